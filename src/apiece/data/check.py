"""Checking a data file: every error and warning with its line, and the numbers that describe the set."""

from __future__ import annotations

import os
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import ArrayLike
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from apiece import boxes
from apiece.data.images import ImageFacts, inspect_image
from apiece.data.jsonl import iter_records, write_jsonl
from apiece.data.lines import ImageError, Level, Line, Problem, ProblemKind, counted
from apiece.errors import UserError
from apiece.progress import track
from apiece.stats.ratio import CROWDING, crowding_of_counts
from apiece.types import IntArray, Sample

# Boxes of one class that lie on each other: counts for the checker, bounded in memory for any number of boxes.


PAIR_IOU = 0.5
DUPLICATE_IOU = 0.9
CONTAINED = 0.8
"""Share of a box that must lie inside another for that one to contain it."""
_CELLS = 400_000  # most cells of one block of the pair matrix: about 50 MB of temporaries
_ROWS = 64  # of a block: more would compare boxes of different images with each other for nothing


@dataclass(frozen=True, slots=True)
class Overlaps:
    """Same-class overlaps of N boxes. A pair is counted once, at one of its two boxes.

    Attributes:
        pairs: `[N]` pairs with IoU >= `PAIR_IOU`.
        duplicates: `[N]` pairs with IoU >= `DUPLICATE_IOU`.
        twin: `[N]` index of the other box in one of the `duplicates`, or -1.
        contained: `[N]` how many boxes of its own class each one contains: `CONTAINED` or more of their area in it, IoU
            below `PAIR_IOU` (so that two boxes of one object do not contain each other).
    """

    pairs: IntArray
    duplicates: IntArray
    twin: IntArray
    contained: IntArray


def same_class_overlaps(boxes_xyxy: ArrayLike, classes: ArrayLike) -> Overlaps:
    """Find overlapping pairs and containing boxes among boxes of one class.

    Boxes are sorted by class and left edge, and each is compared only with those that start before it ends. Several
    images go in one call, which is five times as fast for small ones, when a class has another number in each.

    Args:
        boxes_xyxy: `[N, 4]` valid boxes.
        classes: `[N]` whole numbers.
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
        contained[here] += ((inter >= CONTAINED * area[None, there]) & apart).sum(1)
        contained[there] += ((inter >= CONTAINED * area[here, None]) & apart).sum(0)
    back = np.argsort(order)
    return Overlaps(pairs[back], duplicates[back], twin[back], contained[back])


def _ends(box: boxes.FloatArray, label: IntArray) -> IntArray:
    """For boxes sorted by (label, x1): the end of those of its label that start before a box ends."""
    if not len(box):
        return np.zeros(0, dtype=np.int64)
    # One number that sorts as (label, x1) does. The span is small against 2^53, so nothing is lost.
    _, number = np.unique(label, return_inverse=True)
    shift = number * (np.ptp(box[:, [0, 2]]) + 1.0)
    return np.searchsorted(shift + box[:, 0], shift + box[:, 2], side="right")


# Opening the image files of a data file for the checker, several at a time.


class Report(Protocol):
    """What findings go to."""

    image_modes: Counter[str]

    def add(self, problem: Problem) -> None:
        """Take one problem."""


@dataclass(slots=True)
class File:
    """An image file to open, and the record that names it."""

    line: int
    where: str
    path: Path
    size_wh: tuple[int, int]


class ImageInspector:
    """Opens files in threads (decoding releases the interpreter lock), as many at a time as it is given.

    Args:
        report: Told of every problem, and of the modes of pixels.
    """

    def __init__(self, report: Report) -> None:
        self._report = report
        self._converted: dict[str, File] = {}
        self._threads = ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(cancel_futures=True)  # so that Ctrl-C does not wait for the files still in line

    def inspect(self, files: Sequence[File]) -> set[int]:
        """Open files; returns the lines whose size is not that of their file."""
        report, wrong_size = self._report, set()
        for file, outcome in zip(files, self._threads.map(_inspect, files), strict=True):
            if isinstance(outcome, ImageError):
                message = f"{outcome.where}: {outcome.message}"
                report.add(Problem(outcome.kind, file.where, message, file.line))
                continue
            report.image_modes[outcome.mode] += 1
            if outcome.mode != "RGB":
                self._converted.setdefault(outcome.mode, file)
            if outcome.size_wh != file.size_wh:
                report.add(_size_problem(file, outcome))
                wrong_size.add(file.line)
        return wrong_size

    def finish(self) -> None:
        """Tell which modes will be converted, once each."""
        for mode, file in self._converted.items():
            count = counted(self._report.image_modes[mode], "image")
            message = f"{count} of mode {mode} will be converted to RGB, this the first"
            self._report.add(Problem(ProblemKind.CONVERTED_TO_RGB, file.where, message, file.line))


def _inspect(file: File) -> ImageFacts | ImageError:
    try:
        return inspect_image(file.path)
    except ImageError as error:
        return error


def _size_problem(file: File, facts: ImageFacts) -> Problem:
    found = f"expected {by(facts.size_wh)} as in {file.path}, found {by(file.size_wh)}"
    if file.size_wh == facts.stored_wh:
        message = f"size is the one before EXIF rotation: {found}; swap it, and turn boxes drawn in the unrotated frame"
        return Problem(ProblemKind.SIZE_UNROTATED, file.where, message, file.line)
    return Problem(ProblemKind.SIZE_DIFFERS, file.where, f"size differs from the file: {found}", file.line)


def by(size_wh: tuple[int, int]) -> str:
    """`640 x 480`."""
    return f"{size_wh[0]} x {size_wh[1]}"


MAX_OBJECTS = 60
"""Objects of an image beyond which training drops it (crowd regions not counted)."""
MIN_SIDE = 32
"""Pixels of an image side below which it is no larger than one visual token of Qwen3-VL."""
SIZES = (("small", 0, 32**2), ("medium", 32**2, 96**2), ("large", 96**2, None))
"""COCO's, by annotation area in square pixels, as the evaluator counts them."""
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95)
MAX_KEPT = 10_000
"""Problems of one kind that a report lists; further ones are only counted."""
_BATCH = 2000  # objects looked at together; bounds memory and amortises numpy's overhead
_LINES = 512  # lines whose images are opened together
_ONCE_A_DESC = (ProblemKind.DESC_NON_ASCII, ProblemKind.DESC_PUNCTUATION)


@dataclass(slots=True)
class CheckReport:
    """What a check found.

    Numbers describe the records that are valid as text (whatever their image files are like) and their valid objects.

    Attributes:
        path: The file.
        lines: Lines that are not blank.
        images: Valid records.
        objects: Valid objects, crowd regions included.
        crowd_regions: Those with `iscrowd`.
        class_objects: Objects by class, crowd regions included.
        class_images: Images by class.
        crowding: Images by their number of objects, crowd regions not counted.
        most_objects: The most crowded image: its number of objects and its line; `None` without images.
        sizes: Objects by COCO size.
        short_side: Quantiles in pixels of the shorter box side; empty without objects.
        overlap_50: Same-class pairs with IoU >= 0.5.
        overlap_90: Same-class pairs with IoU >= 0.9.
        group_boxes: Boxes that contain two or more of their own class.
        over_max_objects: Images with more than the limit.
        images_opened: Whether files were opened.
        image_modes: Files by stored pixel mode.
        counts: Errors, warnings and notes by kind.
        problems: The errors, warnings and notes, by line: of each kind the first `MAX_KEPT`.
        bad_lines: Lines whose record, or its image file, has an error.
        bad_objects: Line and place of every object with an error.
    """

    path: Path
    lines: int = 0
    images: int = 0
    objects: int = 0
    crowd_regions: int = 0
    class_objects: Counter[str] = field(default_factory=Counter)
    class_images: Counter[str] = field(default_factory=Counter)
    crowding: dict[str, int] = field(default_factory=lambda: dict.fromkeys(CROWDING, 0))
    most_objects: tuple[int, int] | None = None
    sizes: dict[str, int] = field(default_factory=lambda: {name: 0 for name, _, _ in SIZES})
    short_side: dict[str, float] = field(default_factory=dict)
    overlap_50: int = 0
    overlap_90: int = 0
    group_boxes: int = 0
    over_max_objects: int = 0
    images_opened: bool = False
    image_modes: Counter[str] = field(default_factory=Counter)
    counts: Counter[ProblemKind] = field(default_factory=Counter)
    problems: list[Problem] = field(default_factory=list)
    bad_lines: set[int | None] = field(default_factory=set)
    bad_objects: set[tuple[int | None, int]] = field(default_factory=set)

    def add(self, problem: Problem) -> None:
        """Count a problem, and keep it unless there are many of its kind already."""
        self.counts[problem.kind] += 1
        if self.counts[problem.kind] <= MAX_KEPT:
            self.problems.append(problem)
        if problem.level is Level.ERROR and problem.object_index is None:
            self.bad_lines.add(problem.line)
        elif problem.level is Level.ERROR and problem.object_index is not None:
            self.bad_objects.add((problem.line, problem.object_index))

    def counted(self, level: Level) -> Counter[ProblemKind]:
        """Problems of one level by kind, those that are not kept included."""
        return Counter({kind: count for kind, count in self.counts.items() if kind.level is level})

    def of(self, level: Level) -> list[Problem]:
        """Problems of one level."""
        return [problem for problem in self.problems if problem.level is level]

    @property
    def errors(self) -> list[Problem]:
        """The problems that make the file unusable, as far as they are kept."""
        return self.of(Level.ERROR)

    def as_dict(self) -> dict[str, Any]:
        """For JSON output."""
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
    """Check a data file and describe it.

    Args:
        path: The JSONL file.
        open_images: Decode every image file, in threads: finds missing, truncated and wrongly sized ones.
        max_objects: Warn of images with more objects than this.

    Returns:
        The report; errors in the file are in it, not raised.

    Raises:
        UserError: The file itself is missing or may not be read.
    """
    report = CheckReport(Path(path))
    gatherer = _Gatherer(report, max_objects)
    report.images_opened = open_images
    with ImageInspector(report) if open_images else nullcontext() as inspector:
        for line in track(iter_records(report.path), "checking", total=_count_lines(report.path)):
            gatherer.add(line)
            if len(gatherer.waiting) >= _LINES:
                gatherer.release(inspector)
        gatherer.release(inspector)
        if inspector is not None:
            inspector.finish()
    gatherer.finish()
    if not report.lines:
        raise UserError("expected one image a line, found an empty file", where=path)
    report.problems.sort(
        key=lambda problem: (problem.line or 0, -1 if problem.object_index is None else problem.object_index)
    )
    return report


def _count_lines(path: Path) -> int | None:
    if not path.is_file():
        return None  # the reader says so
    with open(path, "rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 22), b""))


def require_other(out: Path, path: Path) -> None:
    """Refuse to write a clean copy over the file that it is made from."""
    if os.path.realpath(out) == os.path.realpath(path):
        raise UserError("the clean copy would replace the file itself", where=out, fix="give another --out")


def write_clean(report: CheckReport, out: Path) -> tuple[int, int]:
    """Write a copy of the checked file without what has an error.

    A record with an error of its own is left out; from the others only the faulty objects are.

    Args:
        report: Of the file.
        out: The copy.

    Returns:
        How many images and how many objects of the other images were left out.

    Raises:
        UserError: Nothing would be left, `out` is the file itself, or it cannot be written.
    """
    require_other(out, report.path)
    bad_lines = report.bad_lines
    bad_objects = {(line, index) for line, index in report.bad_objects if line not in bad_lines}
    if len(bad_lines) >= report.lines:
        raise UserError(
            "every image has an error: nothing would be left", where=report.path, fix="see its errors first"
        )

    def clean() -> Iterator[Sample]:
        for line in iter_records(report.path):
            if line.sample is not None and line.number not in bad_lines:
                yield line.sample

    write_jsonl(out, clean())
    return len(bad_lines), len(bad_objects)


class _Gatherer:
    """Takes lines in order and counts; objects are looked at in batches of many images."""

    def __init__(self, report: CheckReport, max_objects: int) -> None:
        self.waiting: list[Line] = []
        self._report = report
        self._max_objects = max_objects
        self._images = array("q"), array("q")  # hash of each path, and its line: sixteen bytes an image
        self._warned_descs: set[tuple[ProblemKind, str]] = set()
        self._desc_numbers: dict[str, int] = {}
        self._short_sides: list[np.ndarray] = []
        self._start_batch()

    def _start_batch(self) -> None:
        self._lines: list[Line] = []
        self._count = 0

    def add(self, line: Line) -> None:
        """Take one line."""
        report, sample = self._report, line.sample
        report.lines += 1
        self.waiting.append(line)
        if sample is None:
            return
        where = f"{report.path}:{line.number}"
        self._images[0].append(hash(str(sample.image)))
        self._images[1].append(line.number)
        if min(sample.size_wh) < MIN_SIDE:
            message = f"image is tiny: expected sides of {MIN_SIDE} pixels or more, found {by(sample.size_wh)}"
            self._warn(ProblemKind.TINY_IMAGE, line, where, message)
        report.images += 1
        report.objects += len(sample.objects)
        crowd_regions = sum(instance.iscrowd for instance in sample.objects)
        report.crowd_regions += crowd_regions
        self._count_objects(len(sample.objects) - crowd_regions, line, where)
        names = [instance.desc for instance in sample.objects]
        report.class_objects.update(names)
        report.class_images.update(set(names))
        self._lines.append(line)
        self._count += len(names)
        if self._count >= _BATCH:
            self._finish_batch()

    def release(self, inspector: ImageInspector | None) -> None:
        """Report the problems of the lines that wait, once their images have been opened."""
        report, lines, self.waiting = self._report, self.waiting, []
        files = [
            File(line.number, f"{report.path}:{line.number}", line.sample.image, line.sample.size_wh)
            for line in lines
            if line.sample is not None
        ]
        wrong_size = inspector.inspect(files) if inspector is not None else set()
        for line in lines:
            for problem in line.problems:
                # One cause, one error: whether a box is outside can be said once the size is right.
                hidden = problem.kind is ProblemKind.BOX_OUTSIDE and line.number in wrong_size
                if not hidden and self._is_new(problem, line):
                    report.add(problem)

    def _count_objects(self, count: int, line: Line, where: str) -> None:
        report = self._report
        report.crowding[CROWDING[int(crowding_of_counts(count))]] += 1
        if report.most_objects is None or count > report.most_objects[0]:
            report.most_objects = (count, line.number)
        if count > self._max_objects:
            report.over_max_objects += 1
            message = f"{count:,} objects, more than max_objects ({self._max_objects}): training drops this image"
            self._warn(ProblemKind.MANY_OBJECTS, line, where, message)

    def _is_new(self, problem: Problem, line: Line) -> bool:
        """A desc that warns does so once, not at each of its thousands of objects."""
        if problem.kind not in _ONCE_A_DESC or line.sample is None or problem.object_index not in line.kept:
            return True
        key = (problem.kind, line.sample.objects[line.kept.index(problem.object_index)].desc)
        is_new = key not in self._warned_descs
        self._warned_descs.add(key)
        return is_new

    def _warn(self, kind: ProblemKind, line: Line, where: str, message: str, index: int | None = None) -> None:
        self._report.add(Problem(kind, where, message, line.number, index))

    def _finish_batch(self) -> None:
        """Sizes and overlaps of the objects gathered since the last time."""
        lines = [line for line in self._lines if line.sample is not None and line.sample.objects]
        items = [
            (line, index, instance)
            for line in lines
            if line.sample is not None
            for index, instance in zip(line.kept, line.sample.objects, strict=True)
        ]
        self._start_batch()
        if not items:
            return
        boxes = np.array([instance.bbox_xyxy for _, _, instance in items], dtype=np.float64)
        sides = boxes[:, 2:] - boxes[:, :2]
        self._short_sides.append(sides.min(1))
        areas = np.array([np.nan if i.area is None else i.area for _, _, i in items], dtype=np.float64)
        areas = np.where(np.isnan(areas), sides.prod(1), areas)
        for name, low, high in SIZES:
            inside = (areas >= low) & (areas < (np.inf if high is None else high))
            self._report.sizes[name] += int(inside.sum())
        self._count_overlaps(items, boxes)

    def _count_overlaps(self, items: list[tuple[Line, int, Any]], boxes: np.ndarray) -> None:
        numbers = self._desc_numbers
        keys = [
            # A class is another one in each image; a crowd region is a class of its own.
            (line.number, -1 - place if instance.iscrowd else numbers.setdefault(instance.desc, len(numbers)))
            for place, (line, _, instance) in enumerate(items)
        ]
        unique = {key: number for number, key in enumerate(dict.fromkeys(keys))}
        found = same_class_overlaps(boxes, [unique[key] for key in keys])
        report = self._report
        report.overlap_50 += int(found.pairs.sum())
        report.overlap_90 += int(found.duplicates.sum())
        twins: dict[int, list[int]] = {}
        for place in np.flatnonzero(found.duplicates):
            twins.setdefault(items[place][0].number, []).append(int(place))
        for places in twins.values():
            line, index, instance = items[places[0]]
            other = items[int(found.twin[places[0]])][1]
            count = int(found.duplicates[places].sum())
            message = (
                f"{counted(count, 'pair')} of the same class with IoU >= 0.9: one object labelled"
                f" twice? (such as objects {min(index, other)} and {max(index, other)}, {instance.desc!r})"
            )
            self._warn(ProblemKind.DUPLICATE_BOXES, line, f"{report.path}:{line.number}", message)
        for place in np.flatnonzero(found.contained >= 2):
            line, index, instance = items[place]
            report.group_boxes += 1
            inner = f"{found.contained[place]:,} boxes of its own class"
            message = f"object {index} ({instance.desc!r}) contains {inner}: a group?"
            self._warn(ProblemKind.GROUP_BOX, line, f"{report.path}:{line.number}", message, index)

    def finish(self) -> None:
        """Close the last batch, find images that were named twice and take the quantiles."""
        self._finish_batch()
        self._warn_of_repeated_images()
        if self._short_sides:
            values = np.quantile(np.concatenate(self._short_sides), QUANTILES)
            named = zip(QUANTILES, values, strict=True)
            self._report.short_side = {f"{quantile:.0%}": round(float(value), 2) for quantile, value in named}

    def _warn_of_repeated_images(self) -> None:
        paths, lines = (np.array(values, dtype=np.int64) for values in self._images)
        _, first, which = np.unique(paths, return_index=True, return_inverse=True)
        for place in np.flatnonzero(first[which] != np.arange(len(paths))):
            line, message = int(lines[place]), f"the same image file as line {lines[first[which[place]]]}"
            where = f"{self._report.path}:{line}"
            self._report.add(Problem(ProblemKind.REPEATED_IMAGE, where, message, line))


# Printing a check report: tables for people, in a terminal or a file; problems one a line, so that grep works.


MAX_CLASSES = 20


def print_report(report: CheckReport, console: Console, *, show: int) -> None:
    """Print numbers, then notes and warnings (the first `show` of each kind), then every error.

    Args:
        report: What to print.
        console: Where to; a console on a file gets plain text.
        show: Warnings to list of each kind; -1 for all.
    """
    if report.images:
        _print_numbers(report, console)
    _print_some(report, Level.NOTE, console, show)
    _print_some(report, Level.WARNING, console, show)
    if total := report.counted(Level.ERROR).total():
        print_problems(report.errors, counted(total, "error"), console)
        _print_rest(console, total - len(report.errors))


def print_problems(problems: list[Problem], title: str, console: Console) -> None:
    """Print problems under a title, each on one line that is never wrapped."""
    plain_line(console, "")
    plain_line(console, f"{title}:")
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


def _print_some(report: CheckReport, level: Level, console: Console, show: int) -> None:
    by_kind: dict[ProblemKind, list[Problem]] = {}
    for problem in report.of(level):
        by_kind.setdefault(problem.kind, []).append(problem)
    for kind, found in by_kind.items():
        shown, total = found if show < 0 else found[:show], report.counts[kind]
        print_problems(shown, f"{counted(total, str(level))} {kind}", console)
        if len(shown) < len(found):
            plain_line(console, f"  ... and {total - len(shown):,} more (--show -1 lists all)")
        else:
            _print_rest(console, total - len(shown))


def _print_rest(console: Console, count: int) -> None:
    if count:
        plain_line(console, f"  ... and {count:,} more, which are counted but not listed")


def _table(console: Console, title: str, *columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD if console.is_terminal else None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(title, overflow="fold")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _print_table(console: Console, table: Table) -> None:
    plain_line(console, "")
    console.print(table, highlight=False)


def _print_numbers(report: CheckReport, console: Console) -> None:
    crowd = f" ({report.crowd_regions:,} of them iscrowd)" if report.crowd_regions else ""
    classes = len(report.class_objects)
    plain_line(
        console,
        f"{counted(report.images, 'image')}, {counted(report.objects, 'object')}{crowd}, {counted(classes, 'class')}",
    )
    _print_classes(report, console)
    table = _table(console, "objects in an image", "images", "share")
    for name, count in report.crowding.items():
        table.add_row(name, f"{count:,}", _share(count, report.images))
    _print_table(console, table)
    if report.most_objects:
        most, line = report.most_objects
        plain_line(console, f"most: {most:,} ({report.path}:{line}); over max_objects: {report.over_max_objects:,}")
    if report.objects:
        table = _table(console, "object size (area, COCO)", "objects", "share")
        for name, low, high in SIZES:
            label = f"{name}, under {high**0.5:.0f}^2" if high else f"{name}, from {low**0.5:.0f}^2"
            table.add_row(label, f"{report.sizes[name]:,}", _share(report.sizes[name], report.objects))
        _print_table(console, table)
        quantiles = ", ".join(f"{name} {value:g}" for name, value in report.short_side.items())
        plain_line(console, f"shorter box side in pixels, quantiles: {quantiles}")
        plain_line(
            console,
            f"same-class pairs: {report.overlap_50:,} with IoU >= 0.5, {report.overlap_90:,} with IoU >= 0.9;"
            f" boxes that contain two or more of their class: {report.group_boxes:,}",
        )
    if not report.images_opened:
        plain_line(console, "image files were not opened (--no-images)")


def _print_classes(report: CheckReport, console: Console) -> None:
    if not report.class_objects:
        return
    table = _table(console, "class", "objects", "images")
    rows = report.class_objects.most_common()
    for name, count in rows[:MAX_CLASSES]:
        table.add_row(Text(printable(name)), f"{count:,}", f"{report.class_images[name]:,}")
    _print_table(console, table)
    if len(rows) > MAX_CLASSES:
        rest = sum(count for _, count in rows[MAX_CLASSES:])
        plain_line(console, f"and {len(rows) - MAX_CLASSES:,} more classes with {rest:,} objects (--json lists all)")


def _share(count: int, total: int) -> str:
    return f"{count / total:.1%}"
