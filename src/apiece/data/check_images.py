"""Opening the image files of a data file for the checker, several at a time."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

from apiece.data.images import ImageError, ImageFacts, inspect_image
from apiece.data.problems import Problem, ProblemKind, counted


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
