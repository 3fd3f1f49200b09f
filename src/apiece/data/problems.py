"""Every kind of dirt that data can have, by name and level, and one finding of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from apiece.errors import UserError


class Level(StrEnum):
    """How bad a problem is: an error stops training and `data check` (exit 1); a warning and a note do not."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


class ProblemKind(StrEnum):
    """Names of problems. Listed with their meaning in docs/data.md; a test holds that page complete."""

    # The line and its keys.
    BROKEN_JSON = "broken_json"
    NOT_UTF8 = "not_utf8"
    MISSING_KEY = "missing_key"
    UNKNOWN_KEY = "unknown_key"
    WRONG_TYPE = "wrong_type"
    BAD_SIZE = "bad_size"
    BAD_PATH = "bad_path"
    DUPLICATE_ID = "duplicate_id"
    # One object.
    DUPLICATE_OBJECT_ID = "duplicate_object_id"
    BOX_NOT_FINITE = "box_not_finite"
    BOX_INVERTED = "box_inverted"
    BOX_ZERO_SIZE = "box_zero_size"
    BOX_OUTSIDE = "box_outside"
    BAD_AREA = "bad_area"
    DESC_EMPTY = "desc_empty"
    DESC_SPACES = "desc_spaces"
    DESC_TOO_LONG = "desc_too_long"
    DESC_QUOTE = "desc_quote"
    DESC_CONTROL = "desc_control"
    # The image file.
    MISSING_IMAGE = "missing_image"
    UNREADABLE_IMAGE = "unreadable_image"
    NOT_AN_IMAGE = "not_an_image"
    TRUNCATED_IMAGE = "truncated_image"
    IMAGE_TOO_LARGE = "image_too_large"
    BROKEN_SHARD = "broken_shard"
    SIZE_DIFFERS = "size_differs"
    SIZE_UNROTATED = "size_unrotated"
    # Only on import.
    UNKNOWN_CATEGORY = "unknown_category"
    UNKNOWN_IMAGE = "unknown_image"
    BROKEN_FILE = "broken_file"
    NO_IMAGE_FOR_LABEL = "no_image_for_label"
    # Warnings.
    DESC_NON_ASCII = "desc_non_ascii"
    DESC_PUNCTUATION = "desc_punctuation"
    BOX_UNDER_ONE_PIXEL = "box_under_one_pixel"
    TINY_IMAGE = "tiny_image"
    MANY_OBJECTS = "many_objects"
    DUPLICATE_BOXES = "duplicate_boxes"
    GROUP_BOX = "group_box"
    REPEATED_IMAGE = "repeated_image"
    SHARED_CATEGORY_NAME = "shared_category_name"
    # Notes.
    CONVERTED_TO_RGB = "converted_to_rgb"

    @property
    def level(self) -> Level:
        """Whether this kind is an error, a warning or a note."""
        if self in _WARNINGS:
            return Level.WARNING
        return Level.NOTE if self is ProblemKind.CONVERTED_TO_RGB else Level.ERROR


class ImageError(UserError):
    """An image file, or a shard of them, that cannot be used; `kind` says why, for `data check`."""

    def __init__(self, kind: ProblemKind, message: str, path: str | Path, fix: str) -> None:
        self.kind = kind
        super().__init__(message, where=path, fix=fix)

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions are rebuilt from one text; worker processes must be able to hand this one back.
        return ImageError, (self.kind, self.message, self.where, self.fix)


IMPORT_COCO = "apiece data import coco"
ROOT_VARIABLE = "APIECE_DATA_ROOT"
"""Environment variable: folders (parted as in PATH) that images may lie in, beside the folder of their data file."""
ALLOW_OUTSIDE = f"{ROOT_VARIABLE}=FOLDER"


def remedy(errors: Sequence[Problem], path: Path, look: str) -> str:
    """How to mend the errors of a data file.

    A COCO file is imported, whatever else is wrong with it; images that lie elsewhere are allowed, not dropped.

    Args:
        errors: At least one.
        path: Of the file.
        look: What comes before dropping them: looking at them, or mending them.
    """
    if any(IMPORT_COCO in problem.message for problem in errors):
        return f"{IMPORT_COCO} --annotations {path} --images FOLDER --out data.jsonl"
    if all(ALLOW_OUTSIDE in problem.message for problem in errors):
        return f"{look} if you trust this file: export {ALLOW_OUTSIDE}, a folder that holds its images"
    return f"{look} drop them with `--fix drop --out {path.stem}_clean.jsonl`"


_WARNINGS = frozenset(
    {
        ProblemKind.DESC_NON_ASCII,
        ProblemKind.DESC_PUNCTUATION,
        ProblemKind.BOX_UNDER_ONE_PIXEL,
        ProblemKind.TINY_IMAGE,
        ProblemKind.MANY_OBJECTS,
        ProblemKind.DUPLICATE_BOXES,
        ProblemKind.GROUP_BOX,
        ProblemKind.REPEATED_IMAGE,
        ProblemKind.SHARED_CATEGORY_NAME,
    }
)


@dataclass(frozen=True, slots=True)
class Problem:
    """One finding.

    Attributes:
        kind: Its name, which fixes its level.
        where: `file:line`, or the entry of a file without lines.
        message: What was expected and what was found.
        line: Line of the JSONL file, from 1; `None` for problems of an import.
        object_index: Place of the object in its record, from 0; `None` when the whole record is meant.
    """

    kind: ProblemKind
    where: str
    message: str
    line: int | None = None
    object_index: int | None = None

    @property
    def level(self) -> Level:
        """The level of its kind."""
        return self.kind.level

    def __str__(self) -> str:
        return f"{self.where}: {self.message} [{self.kind}]"

    def as_dict(self) -> dict[str, Any]:
        """For JSON output; `object` counts from 0."""
        return {
            "kind": str(self.kind),
            "level": str(self.level),
            "where": self.where,
            "line": self.line,
            "object": self.object_index,
            "message": self.message,
        }


def counted(count: int, noun: str) -> str:
    """A count with its noun: `1 box`, `2,000 boxes`."""
    ending = "" if count == 1 else "es" if noun.endswith(("s", "x")) else "s"
    return f"{count:,} {noun}{ending}"
