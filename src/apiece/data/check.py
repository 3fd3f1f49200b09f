"""Checking a data file: every error and warning with its line, and the numbers that describe the set."""

from __future__ import annotations

import os
from array import array
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from rich.console import Console
from rich.table import Table
from rich.text import Text

from apiece import boxes
from apiece.data.images import ImageFacts, inspect_image
from apiece.data.jsonl import iter_lines, write_jsonl
from apiece.data.lines import ImageError, Level, Line, Problem, ProblemKind, counted
from apiece.errors import UserError
from apiece.printed import table
from apiece.progress import track
from apiece.stats.ratio import CROWDING, crowding_of_counts
from apiece.types import Instance, IntArray, Sample

PAIR_IOU = 0.5
DUPLICATE_IOU = 0.9
HELD = 0.8
"""Share of a label that must lie inside another for that one to contain it. Stricter than `outcomes.COVERED`, by which
a wrong box of a model lies over objects: here a label itself is doubted."""
_CELLS = 400_000  # most cells of one block of the pair matrix: about 50 MB of temporaries
_ROWS = 64  # of a block: more would compare boxes of different images with each other for nothing


@dataclass(frozen=True, slots=True)
class Overlaps:
    """Same-class overlaps of N boxes; every array is `[N]`. A pair is counted once, at one of its two boxes."""

    pairs: IntArray  # pairs with IoU >= `PAIR_IOU`
    duplicates: IntArray  # pairs with IoU >= `DUPLICATE_IOU`
    twin: IntArray  # index of the other box in one of the `duplicates`, or -1
    contained: IntArray
    """How many boxes of its own class each one contains: `HELD` or more of their area in it, IoU below `PAIR_IOU` (so
    that two boxes of one object do not contain each other)."""


def same_class_overlaps(boxes_xyxy: ArrayLike, classes: ArrayLike) -> Overlaps:
    """Find overlapping pairs and containing boxes among `[N, 4]` valid boxes of `[N]` numbered classes.

    Boxes are sorted by class and left edge, and each is compared only with those that start before it ends, in blocks
    that bound the memory. Several images go in one call, which is five times as fast for small ones, when a class has
    another number in each.
    """
    unsorted = boxes.as_boxes(boxes_xyxy)
    labels = np.asarray(classes, dtype=np.int64)
    count = len(unsorted)
    order = np.lexsort((unsorted[:, 0], labels))
    box, label = unsorted[order], labels[order]
    area = boxes.area(box)
    end = _ends(box, label)
    pairs, duplicates, contained = (np.zeros(count, dtype=np.int64) for _ in range(3))
    twin = np.full(count, -1, dtype=np.int64)
    start = 0
    while start < count:
        stop = min(count, start + _ROWS)
        while stop > start + 1 and (stop - start) * (int(end[start:stop].max()) - start) > _CELLS:
            stop = start + (stop - start) // 2
        here, there = slice(start, stop), slice(start, max(stop, int(end[start:stop].max())))
        start = stop
        inter = boxes.intersection(box[here], box[there])
        inter *= label[here, None] == label[None, there]
        inter *= np.arange(there.start, there.stop)[None] > np.arange(here.start, here.stop)[:, None]
        iou = inter / np.maximum(area[here, None] + area[None, there] - inter, np.finfo(float).tiny)
        pairs[here] += (iou >= PAIR_IOU).sum(1)
        same = iou >= DUPLICATE_IOU
        duplicates[here] += (found := same.sum(1))
        twin[here] = np.where(found > 0, order[there][same.argmax(1)], -1)
        apart = (inter > 0) & (iou < PAIR_IOU)
        contained[here] += ((inter >= HELD * area[None, there]) & apart).sum(1)
        contained[there] += ((inter >= HELD * area[here, None]) & apart).sum(0)
    back = np.argsort(order)
    return Overlaps(pairs[back], duplicates[back], twin[back], contained[back])


def _ends(box: boxes.FloatArray, label: IntArray) -> IntArray:
    """For boxes sorted by (label, x1): where the boxes end that have its label and start before it ends, for each."""
    if not len(box):
        return np.zeros(0, dtype=np.int64)
    # One number that sorts as (label, x1) does. The span is small against 2^53, so nothing is lost.
    _, number = np.unique(label, return_inverse=True)
    shift = number * (np.ptp(box[:, [0, 2]]) + 1.0)
    return np.searchsorted(shift + box[:, 0], shift + box[:, 2], side="right")


MAX_OBJECTS = 60  # of an image, crowd regions not counted; training drops an image with more
MIN_SIDE = 32  # pixels: an image side below is no larger than one visual token of Qwen3-VL
SIZES = (("small", 0, 32**2), ("medium", 32**2, 96**2), ("large", 96**2, None))
"""COCO's, by annotation area in square pixels, as the evaluator counts them."""
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95)
MAX_KEPT = 10_000  # problems of one kind that a report lists; further ones are only counted
_LINES, _BATCH = 512, 20_000  # lines whose images are opened together, and objects looked at together, at most
_ONCE_A_DESC = (ProblemKind.DESC_NON_ASCII, ProblemKind.DESC_PUNCTUATION)


@dataclass(slots=True)
class CheckReport:
    """What a check found.

    Numbers describe the lines that are valid as text (whether their image files are or not) and their valid objects.
    """

    path: Path
    lines: int = 0  # that are not blank
    images: int = 0  # valid lines
    objects: int = 0  # valid ones, crowd regions included
    crowd_regions: int = 0
    class_objects: Counter[str] = field(default_factory=Counter)  # crowd regions included
    class_images: Counter[str] = field(default_factory=Counter)
    crowding: dict[str, int] = field(default_factory=lambda: dict.fromkeys(CROWDING, 0))  # images
    most_objects: tuple[int, int] | None = None  # of the most crowded image, and its line
    sizes: dict[str, int] = field(default_factory=lambda: {name: 0 for name, _, _ in SIZES})  # objects
    short_side: dict[str, float] = field(default_factory=dict)  # quantiles in pixels of the shorter box side
    overlap_50: int = 0  # same-class pairs with IoU >= 0.5
    overlap_90: int = 0
    group_boxes: int = 0  # boxes that contain two or more of their own class
    over_max_objects: int = 0  # images with more than the limit
    images_opened: bool = False
    image_modes: Counter[str] = field(default_factory=Counter)  # files by stored pixel mode
    counts: Counter[ProblemKind] = field(default_factory=Counter)
    problems: list[Problem] = field(default_factory=list)  # by line: of each kind the first `MAX_KEPT`
    bad_lines: set[int | None] = field(default_factory=set)  # with an error of their own or of their image file
    bad_objects: set[tuple[int | None, int]] = field(default_factory=set)  # line and place

    def add(self, problem: Problem) -> None:
        self.counts[problem.kind] += 1
        if self.counts[problem.kind] <= MAX_KEPT:
            self.problems.append(problem)
        if problem.level is Level.ERROR:
            if problem.object_index is None:
                self.bad_lines.add(problem.line)
            else:
                self.bad_objects.add((problem.line, problem.object_index))

    def counted(self, level: Level) -> Counter[ProblemKind]:
        """Problems of one level by kind, those that are not kept included."""
        return Counter({kind: count for kind, count in self.counts.items() if kind.level is level})

    def of(self, level: Level) -> list[Problem]:
        return [problem for problem in self.problems if problem.level is level]

    @property
    def errors(self) -> list[Problem]:
        return self.of(Level.ERROR)

    def as_dict(self) -> dict[str, Any]:
        return {
            "file": str(self.path),
            "lines": self.lines,
            "images": self.images,
            "objects": self.objects,
            "crowd_regions": self.crowd_regions,
            "classes": {
                name: {"objects": count, "images": self.class_images[name]}
                for name, count in self.class_objects.most_common()
            },
            "crowding": self.crowding,
            "most_objects": self.most_objects and dict(zip(("objects", "line"), self.most_objects, strict=True)),
            "sizes": self.sizes,
            "short_side": self.short_side,
            "overlaps": {"iou_50": self.overlap_50, "iou_90": self.overlap_90, "group_boxes": self.group_boxes},
            "over_max_objects": self.over_max_objects,
            "images_opened": self.images_opened,
            "image_modes": dict(self.image_modes.most_common()),
            "counts": {str(kind): count for kind, count in self.counts.most_common()},
            "not_listed": self.counts.total() - len(self.problems),
            "problems": [problem.as_dict() for problem in self.problems],
        }


def check_jsonl(path: Path, *, open_images: bool = True, max_objects: int = MAX_OBJECTS) -> CheckReport:
    """Check a data file and describe it; errors in its lines are reported, not raised.

    Args:
        path: The JSONL file.
        open_images: Decode every image file, in threads: finds missing, truncated and wrongly sized ones.
        max_objects: Warn of images with more objects than this.

    Raises:
        UserError: The file itself is missing, empty, or may not be read.
    """
    report = CheckReport(Path(path), images_opened=open_images)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        gatherer = _Gatherer(report, max_objects, threads if open_images else None)
        try:
            for line in track(iter_lines(report.path), "checking", total=_count_lines(report.path)):
                gatherer.add(line)
            gatherer.finish()
        finally:
            threads.shutdown(cancel_futures=True)  # so that Ctrl-C does not wait for the files still in line
    if not report.lines:
        raise UserError("expected one image a line, found an empty file", where=path)
    report.problems.sort(key=lambda p: (p.line or 0, -1 if p.object_index is None else p.object_index))
    return report


def _count_lines(path: Path) -> int | None:
    if not path.is_file():
        return None  # the reader says so
    with open(path, "rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 22), b""))


def write_clean(report: CheckReport, out: Path) -> tuple[int, int]:
    """Copy the checked file to `out`, without lines that have an error and without faulty objects of the others.

    Returns:
        How many images and how many objects of the other images were left out.

    Raises:
        UserError: Nothing would be left, `out` is the file itself, or it cannot be written.
    """
    if os.path.realpath(out) == os.path.realpath(report.path):
        raise UserError("the clean copy would replace the file itself", where=out, fix="give another --out")
    bad_lines = report.bad_lines
    if len(bad_lines) >= report.lines:
        message = "every image has an error: nothing would be left"
        raise UserError(message, where=report.path, fix="see its errors first")
    lines = (line for line in iter_lines(report.path) if line.number not in bad_lines)
    write_jsonl(out, (line.sample for line in lines if line.sample is not None))
    return len(bad_lines), sum(line not in bad_lines for line, _ in report.bad_objects)


class _Gatherer:
    """Counts lines in order; images and boxes are examined in batches of many lines."""

    def __init__(self, report: CheckReport, max_objects: int, threads: ThreadPoolExecutor | None) -> None:
        self._report, self._max_objects, self._threads = report, max_objects, threads
        self._images = array("q"), array("q")  # hash of each path, and its line: sixteen bytes an image
        self._converted: dict[str, int] = {}  # the first line of each mode that is not RGB
        self._warned_descs: set[tuple[ProblemKind, str]] = set()
        self._desc_numbers: dict[str, int] = {}
        self._short_sides: list[np.ndarray] = []
        self._batch: list[Line] = []
        self._count = 0

    def add(self, line: Line) -> None:
        report, sample = self._report, line.sample
        report.lines += 1
        self._batch.append(line)
        if sample is not None:
            self._images[0].append(hash(str(sample.image)))
            self._images[1].append(line.number)
            if min(sample.size_wh) < MIN_SIDE:
                message = f"image is tiny: expected sides of {MIN_SIDE} pixels or more, found {_by(sample.size_wh)}"
                self._add(ProblemKind.TINY_IMAGE, line.number, message)
            report.images += 1
            report.objects += len(sample.objects)
            crowd_regions = sum(instance.iscrowd for instance in sample.objects)
            report.crowd_regions += crowd_regions
            count = len(sample.objects) - crowd_regions
            report.crowding[CROWDING[int(crowding_of_counts(count))]] += 1
            if report.most_objects is None or count > report.most_objects[0]:
                report.most_objects = (count, line.number)
            if count > self._max_objects:
                report.over_max_objects += 1
                message = f"{count:,} objects, more than max_objects ({self._max_objects}): training drops this image"
                self._add(ProblemKind.MANY_OBJECTS, line.number, message)
            names = [instance.desc for instance in sample.objects]
            report.class_objects.update(names)
            report.class_images.update(set(names))
            self._count += len(names)
        if len(self._batch) >= _LINES or self._count >= _BATCH:
            self._finish_batch()

    def finish(self) -> None:
        self._finish_batch()
        paths, lines = (np.array(values, dtype=np.int64) for values in self._images)
        _, earliest, which = np.unique(paths, return_index=True, return_inverse=True)
        for place in np.flatnonzero(earliest[which] != np.arange(len(paths))):
            message = f"the same image file as line {lines[earliest[which[place]]]}"
            self._add(ProblemKind.REPEATED_IMAGE, int(lines[place]), message)
        for mode, first in self._converted.items():
            count = counted(self._report.image_modes[mode], "image")
            message = f"{count} of mode {mode} will be converted to RGB, this the first"
            self._add(ProblemKind.CONVERTED_TO_RGB, first, message)
        if self._short_sides:
            values = np.quantile(np.concatenate(self._short_sides), QUANTILES)
            named = zip(QUANTILES, values, strict=True)
            self._report.short_side = {f"{quantile:.0%}": round(float(value), 2) for quantile, value in named}

    def _finish_batch(self) -> None:
        batch, self._batch, self._count = self._batch, [], 0
        wrong_size = self._open_images(batch)
        for line in batch:
            for problem in line.problems:
                # One cause, one error: whether a box is outside can be said once the size is right.
                hidden = problem.kind is ProblemKind.BOX_OUTSIDE and line.number in wrong_size
                if not hidden and self._is_new(problem, line):
                    self._report.add(problem)
        self._measure_objects(batch)

    def _open_images(self, batch: list[Line]) -> set[int]:
        """Open image files in threads (decoding releases the interpreter lock); the lines that have a wrong size."""
        wrong_size: set[int] = set()
        if self._threads is None:
            return wrong_size
        samples = [(line.number, line.sample) for line in batch if line.sample is not None]
        found = self._threads.map(_inspect, [sample.image for _, sample in samples])
        for (number, sample), facts in zip(samples, found, strict=True):
            if isinstance(facts, ImageError):
                self._add(facts.kind, number, f"{facts.where}: {facts.message}")
                continue
            self._report.image_modes[facts.mode] += 1
            if facts.mode != "RGB":
                self._converted.setdefault(facts.mode, number)
            if facts.size_wh != sample.size_wh:
                wrong_size.add(number)
                kind, message = _size_problem(sample, facts)
                self._add(kind, number, message)
        return wrong_size

    def _is_new(self, problem: Problem, line: Line) -> bool:
        """A desc that warns does so once, not at each of its thousands of objects."""
        if problem.kind not in _ONCE_A_DESC or line.sample is None or problem.object_index not in line.kept:
            return True
        key = (problem.kind, line.sample.objects[line.kept.index(problem.object_index)].desc)
        is_new = key not in self._warned_descs
        self._warned_descs.add(key)
        return is_new

    def _add(self, kind: ProblemKind, number: int, message: str, index: int | None = None) -> None:
        self._report.add(Problem(kind, f"{self._report.path}:{number}", message, number, index))

    def _measure_objects(self, batch: list[Line]) -> None:
        """Sizes and overlaps of the valid objects of some lines."""
        items = [
            (line.number, index, instance)
            for line in batch
            if line.sample is not None
            for index, instance in zip(line.kept, line.sample.objects, strict=True)
        ]
        if not items:
            return
        boxes = np.array([instance.bbox_xyxy for _, _, instance in items], dtype=np.float64)
        sides = boxes[:, 2:] - boxes[:, :2]
        self._short_sides.append(sides.min(1))
        areas = np.array([np.nan if i.area is None else i.area for _, _, i in items], dtype=np.float64)
        areas = np.where(np.isnan(areas), sides.prod(1), areas)
        for name, low, high in SIZES:
            self._report.sizes[name] += int(((areas >= low) & (areas < (high or np.inf))).sum())
        self._count_overlaps(items, boxes)

    def _count_overlaps(self, items: list[tuple[int, int, Instance]], boxes: np.ndarray) -> None:
        numbers = self._desc_numbers
        keys = [
            # A class is another one in each image; a crowd region is a class of its own.
            (number, -1 - place if instance.iscrowd else numbers.setdefault(instance.desc, len(numbers)))
            for place, (number, _, instance) in enumerate(items)
        ]
        unique = {key: number for number, key in enumerate(dict.fromkeys(keys))}
        found = same_class_overlaps(boxes, [unique[key] for key in keys])
        report = self._report
        report.overlap_50 += int(found.pairs.sum())
        report.overlap_90 += int(found.duplicates.sum())
        twins: dict[int, list[int]] = {}
        for place in np.flatnonzero(found.duplicates):
            twins.setdefault(items[place][0], []).append(int(place))
        for number, places in twins.items():
            _, index, instance = items[places[0]]
            other = items[int(found.twin[places[0]])][1]
            count = int(found.duplicates[places].sum())
            such = f"(such as objects {min(index, other)} and {max(index, other)}, {instance.desc!r})"
            message = f"{counted(count, 'pair')} of the same class with IoU >= 0.9: one object labelled twice? {such}"
            self._add(ProblemKind.DUPLICATE_BOXES, number, message)
        for place in np.flatnonzero(found.contained >= 2):
            number, index, instance = items[place]
            report.group_boxes += 1
            inner = f"{found.contained[place]:,} boxes of its own class"
            message = f"object {index} ({instance.desc!r}) contains {inner}: a group?"
            self._add(ProblemKind.GROUP_BOX, number, message, index)


def _inspect(path: Path) -> ImageFacts | ImageError:
    try:
        return inspect_image(path)
    except ImageError as error:
        return error


def _size_problem(sample: Sample, facts: ImageFacts) -> tuple[ProblemKind, str]:
    found = f"expected {_by(facts.size_wh)} as in {sample.image}, found {_by(sample.size_wh)}"
    if sample.size_wh == facts.stored_wh:
        advice = "swap it, and turn boxes drawn in the unrotated frame"
        return ProblemKind.SIZE_UNROTATED, f"size is the one before EXIF rotation: {found}; {advice}"
    return ProblemKind.SIZE_DIFFERS, f"size differs from the file: {found}"


def _by(size_wh: tuple[int, int]) -> str:
    return f"{size_wh[0]} x {size_wh[1]}"


# Printing a report: tables for people, in a terminal or a file; problems one a line, so that grep works.

MAX_CLASSES = 20


def print_report(report: CheckReport, console: Console, *, show: int) -> None:
    """Print numbers, then notes and warnings (the first `show` of each kind, -1 for all), then every error."""
    if report.images:
        _print_numbers(report, console)
    by_kind: dict[ProblemKind, list[Problem]] = {}
    for problem in (*report.of(Level.NOTE), *report.of(Level.WARNING)):
        by_kind.setdefault(problem.kind, []).append(problem)
    for kind, found in by_kind.items():
        shown, total = found if show < 0 else found[:show], report.counts[kind]
        print_problems(shown, f"{counted(total, str(kind.level))} {kind}", console)
        if len(shown) < len(found):
            plain_line(console, f"  ... and {total - len(shown):,} more (--show -1 lists all)")
        else:
            _print_rest(console, total - len(shown))
    if total := report.counted(Level.ERROR).total():
        print_problems(report.errors, counted(total, "error"), console)
        _print_rest(console, total - len(report.errors))


def print_problems(problems: list[Problem], title: str, console: Console) -> None:
    """Print problems under a title, each on one line that is never wrapped."""
    plain_line(console, f"\n{title}:")
    for problem in problems:
        plain_line(console, f"  {printable(str(problem))}")


def plain_line(console: Console, text: str) -> None:
    """Print a line as it is: no markup, no wrapping."""
    console.print(Text(text), soft_wrap=True, highlight=False)


def kinds(counts: Counter[ProblemKind]) -> str:
    """`3 box_zero_size, 1 missing_image`: problems counted by kind."""
    return ", ".join(f"{count:,} {kind}" for kind, count in counts.most_common())


def printable(text: str) -> str:
    """Text without what would move the cursor or colour a terminal: data may hold anything."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def _print_rest(console: Console, count: int) -> None:
    if count:
        plain_line(console, f"  ... and {count:,} more, which are counted but not listed")


def _print_numbers(report: CheckReport, console: Console) -> None:
    crowd = f" ({report.crowd_regions:,} of them iscrowd)" if report.crowd_regions else ""
    classes = report.class_objects.most_common()
    images, objects = counted(report.images, "image"), counted(report.objects, "object")
    plain_line(console, f"{images}, {objects}{crowd}, {counted(len(classes), 'class')}")
    if classes:
        rows = table("class", "objects", "images", head_width=60)
        for name, count in classes[:MAX_CLASSES]:
            rows.add_row(Text(printable(name)), f"{count:,}", f"{report.class_images[name]:,}")
        _print_table(console, rows)
    if len(classes) > MAX_CLASSES:
        rest = sum(count for _, count in classes[MAX_CLASSES:])
        plain_line(console, f"and {len(classes) - MAX_CLASSES:,} more classes with {rest:,} objects (--json lists all)")
    rows = table("objects in an image", "images", "share")
    for name, count in report.crowding.items():
        rows.add_row(name, f"{count:,}", f"{count / report.images:.1%}")
    _print_table(console, rows)
    if report.most_objects:
        most, line = report.most_objects
        plain_line(console, f"most: {most:,} ({report.path}:{line}); over max_objects: {report.over_max_objects:,}")
    if report.objects:
        rows = table("object size (area, COCO)", "objects", "share")
        for name, low, high in SIZES:
            label = f"{name}, under {high**0.5:.0f}^2" if high else f"{name}, from {low**0.5:.0f}^2"
            rows.add_row(label, f"{report.sizes[name]:,}", f"{report.sizes[name] / report.objects:.1%}")
        _print_table(console, rows)
        quantiles = ", ".join(f"{name} {value:g}" for name, value in report.short_side.items())
        plain_line(console, f"shorter box side in pixels, quantiles: {quantiles}")
        pairs = f"same-class pairs: {report.overlap_50:,} with IoU >= 0.5, {report.overlap_90:,} with IoU >= 0.9"
        plain_line(console, f"{pairs}; boxes that contain two or more of their class: {report.group_boxes:,}")
    if not report.images_opened:
        plain_line(console, "image files were not opened (--no-images)")


def _print_table(console: Console, rows: Table) -> None:
    plain_line(console, "")
    console.print(rows, highlight=False)
