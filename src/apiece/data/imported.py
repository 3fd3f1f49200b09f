"""What the importers share: their result, image folders, and the one change that they make to boxes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from apiece.data.problems import Level, Problem, ProblemKind
from apiece.data.record import ROUNDING_PX
from apiece.errors import UserError
from apiece.types import BoxXYXY, Sample

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".jp2", ".avif"},
)
_DECIMALS = 6
_NOISE_PX = 1e-6


@dataclass(slots=True)
class Imported:
    """What an importer read.

    Attributes:
        samples: Images with their objects; entries with a problem are left out.
        problems: What could not be converted, in file order; warnings are among them.
        clipped: Boxes that stuck out of their image by at most one pixel and were cut to it.
        notes: Further facts for the reader, such as files that were passed over.
    """

    samples: list[Sample] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    clipped: int = 0
    notes: list[str] = field(default_factory=list)

    def add(self, kind: ProblemKind, where: str, message: str) -> None:
        """Record a problem."""
        self.problems.append(Problem(kind, where, message))

    @property
    def errors(self) -> list[Problem]:
        """The problems that are errors."""
        return [problem for problem in self.problems if problem.level is Level.ERROR]

    def fit(self, box_xyxy: BoxXYXY, size_wh: tuple[int, int]) -> BoxXYXY:
        """Round off float noise, and cut what sticks out by no more than rounding does; count the latter.

        A box that is worse than that, or has no size, is returned as it came: `data check` names it.
        """
        x1, y1, x2, y2 = (round(corner, _DECIMALS) for corner in box_xyxy)
        width, height = size_wh
        far = max(-x1, -y1, x2 - width, y2 - height)
        inside = x1 < width and y1 < height and x2 > 0 and y2 > 0
        if 0 < far <= ROUNDING_PX and inside and x1 < x2 and y1 < y2:
            self.clipped += far > _NOISE_PX
            return max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))
        return x1, y1, x2, y2


def require_folder(path: Path, what: str) -> Path:
    """Return `path` if it is an existing folder, else raise a `UserError` that names it."""
    if path.is_file():
        raise UserError(f"expected {what}, found a file", where=path, fix="give the folder that holds it")
    if not path.is_dir():
        fix = "check the path; it is read relative to the current folder"
        raise UserError(f"{what} not found", where=path, fix=fix)
    return path


def files_under(folder: Path, suffixes: frozenset[str]) -> Iterator[Path]:
    """Files below a folder with one of the suffixes (in any case), sorted by name, as paths relative to it."""
    for current, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            if os.path.splitext(name)[1].lower() in suffixes and not name.startswith("."):  # noqa: PTH122  a million names
                yield Path(current, name).relative_to(folder)
