"""Checking a data file: every error and warning with its line, and the numbers that describe the set."""

from __future__ import annotations

import os
from array import array
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from apiece.data.check_images import File, ImageInspector, by
from apiece.data.jsonl import iter_records, write_jsonl
from apiece.data.overlaps import same_class_overlaps
from apiece.data.problems import Level, Problem, ProblemKind, counted
from apiece.data.record import Line
from apiece.errors import UserError
from apiece.progress import track
from apiece.types import Sample

MAX_OBJECTS = 60
"""Objects of an image beyond which training drops it (crowd regions not counted)."""
MIN_SIDE = 32
"""Pixels of an image side below which it is no larger than one visual token of Qwen3-VL."""
CROWDING = (("0", 0, 0), ("1-5", 1, 5), ("6-15", 6, 15), ("16+", 16, None))
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
    crowding: dict[str, int] = field(default_factory=lambda: {name: 0 for name, _, _ in CROWDING})
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
        for name, low, high in CROWDING:
            report.crowding[name] += low <= count and (high is None or count <= high)
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
