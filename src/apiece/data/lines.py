"""One line of the JSONL contract: bytes in, a `Sample` and its problems out.

The only decoder of the contract, and the only place that says what a valid line is (docs/start/your_data.md in words).
Nothing is repaired: what is wrong is left out of the sample and named.
"""

from __future__ import annotations

import json
import math
import os
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import msgspec

from apiece.errors import UserError, nearest
from apiece.types import BoxXYXY, Instance, Sample


class Level(StrEnum):
    """How bad a problem is: an error stops training and `data check` (exit 1); a warning and a note do not."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


class ProblemKind(StrEnum):
    """What can be wrong with data; the documentation lists the meaning of each name."""

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
        if self in _WARNINGS:
            return Level.WARNING
        return Level.NOTE if self is ProblemKind.CONVERTED_TO_RGB else Level.ERROR


class ImageError(UserError):
    """An image file that cannot be used; `kind` says why, for `data check`."""

    def __init__(self, kind: ProblemKind, message: str, path: str | Path, fix: str) -> None:
        self.kind = kind
        super().__init__(message, where=path, fix=fix)

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions are rebuilt from one text; worker processes must be able to hand this one back.
        return ImageError, (self.kind, self.message, self.where, self.fix)


IMPORT_COCO = "apiece data import coco"
ROOT_VARIABLE = "APIECE_DATA_ROOT"
"""Environment variable: folders (separated as in PATH) that may hold images, besides the folder of their data file."""
ALLOW_OUTSIDE = f"{ROOT_VARIABLE}=FOLDER"


def remedy(errors: Sequence[Problem], path: Path, look: str) -> str:
    """What to type to correct the errors (one or more) of a data file, after `look` has been done.

    A COCO file must be imported, no matter what else is wrong; images that lie elsewhere are allowed, not dropped.
    """
    if any(IMPORT_COCO in problem.message for problem in errors):
        return f"{IMPORT_COCO} --annotations {path} --images FOLDER --out data.jsonl"
    if all(ALLOW_OUTSIDE in problem.message for problem in errors):
        return f"{look} if you trust this file: export {ALLOW_OUTSIDE}, a folder that holds its images"
    return f"{look} drop them with `--fix drop --out {path.stem}_clean.jsonl`"


_WARNINGS = frozenset(
    "desc_non_ascii desc_punctuation box_under_one_pixel tiny_image many_objects duplicate_boxes group_box"
    " repeated_image shared_category_name".split()
)


@dataclass(frozen=True, slots=True)
class Problem:
    """One finding."""

    kind: ProblemKind
    where: str  # `file:line`, or the entry of a file without lines
    message: str  # what was expected and what was found
    line: int | None = None  # of the JSONL file, from 1; `None` on import
    object_index: int | None = None  # place of the object in its line, from 0; `None` where the whole line is meant

    @property
    def level(self) -> Level:
        return self.kind.level

    def __str__(self) -> str:
        return f"{self.where}: {self.message} [{self.kind}]"

    def as_dict(self) -> dict[str, Any]:
        return {
            "kind": str(self.kind),
            "level": str(self.level),
            "where": self.where,
            "line": self.line,
            "object": self.object_index,
            "message": self.message,
        }


MAX_LISTED = 10
"""Errors of a file that a strict reader lists."""


def refusal(errors: Sequence[Problem], path: Path, fix: str) -> UserError:
    """A file refused with its first errors; a reader may stop at `MAX_LISTED`."""
    least = "at least " if len(errors) >= MAX_LISTED else ""
    listed = "".join(f"\n  {error}" for error in errors[:MAX_LISTED])
    return UserError(f"{least}{counted(min(len(errors), MAX_LISTED), 'error')}:{listed}", where=path, fix=fix)


def counted(count: int, noun: str) -> str:
    """A count with its noun: `1 box`, `2,000 boxes`."""
    ending = "" if count == 1 else "es" if noun.endswith(("s", "x")) else "s"
    return f"{count:,} {noun}{ending}"


LINE_KEYS = ("id", "image", "width", "height", "objects")
OBJECT_KEYS = ("desc", "bbox", "iscrowd", "area", "id")
MAX_DESC = 100  # characters
MAX_SIDE = 1_000_000  # pixels of an image side; more is a typing error, not a photo
ROUNDING_PX = 1.0  # how far a box may stick out of its image: what rounding does
MAX_AREA = 1e15  # square pixels of an annotation, which must be below
_HUGE = 1e12  # beyond it, a whole number may not even fit a float

Fault = tuple[ProblemKind, str]
_ABSENT: Any = None  # a key that is left out; one that is null is an error
_Side = Annotated[int, msgspec.Meta(ge=1, le=MAX_SIDE)]


class ObjectForm(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """An object of a line: its keys and their types. What a key leaves out is `None`."""

    desc: str
    bbox: tuple[float, float, float, float]
    iscrowd: bool = _ABSENT
    area: Annotated[float, msgspec.Meta(ge=0, lt=MAX_AREA)] = _ABSENT
    id: int = _ABSENT


class LineForm(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """A line: its keys and their types."""

    image: str
    width: _Side
    height: _Side
    objects: list[ObjectForm]
    id: str = _ABSENT


_decode = msgspec.json.Decoder(LineForm).decode


@dataclass(slots=True)
class Line:
    """What one line of a file holds."""

    number: int  # from 1
    sample: Sample | None = None  # without its faulty objects; `None` when the line itself is faulty
    problems: list[Problem] = field(default_factory=list)  # errors and warnings, in the order found
    kept: list[int] = field(default_factory=list)  # place in the line, from 0, of each object of `sample`

    @property
    def errors(self) -> list[Problem]:
        return [problem for problem in self.problems if problem.level is Level.ERROR]


def read_line(raw: bytes, *, folder: Path, number: int, where: str) -> Line:
    """One line of a file: its sample and its problems (at `where`), except for ids that another line has as well.

    Image paths are relative to `folder`; the line's `number` counts from 1.
    """
    form = decode(raw)
    if form is None:
        return _explain(raw, Line(number), folder, where)
    line = Line(number)
    bad = set()
    for index, (kind, message) in faults_of(form, folder):
        label = "" if index is None else f"{_label(index, form.objects[index].desc)}: "
        line.problems.append(Problem(kind, where, label + message, number, index))
        if kind.level is Level.ERROR:
            bad.add(index)
    if None not in bad:
        line.kept = [index for index in range(len(form.objects)) if index not in bad]
        items = [form.objects[index] for index in line.kept]
        objects = tuple(Instance(o.desc, o.bbox, bool(o.iscrowd), o.area, o.id) for o in items)
        identity = form.image if form.id is None else form.id
        line.sample = Sample(identity, folder / form.image, (form.width, form.height), objects)
    return line


def decode(raw: bytes) -> LineForm | None:
    """A line whose keys and types are right; `None` for any other, which `read_line` explains."""
    try:
        form = _decode(raw)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None
    # The decoder keeps the last of a key that appears twice. Each key has one colon; further ones may lie in texts.
    keys = 4 if form.id is None else 5
    for item in form.objects:
        keys += 2
        if item.iscrowd is not None:
            keys += 1
        if item.area is not None:
            keys += 1
        if item.id is not None:
            keys += 1
    return form if raw.count(b":") == keys else None


def faults_of(form: LineForm, folder: Path) -> list[tuple[int | None, Fault]]:
    """What is wrong with the values of a line, each with the place of its object, or `None` if it is the line's."""
    texts = [] if form.id is None else text_faults("id", form.id)
    texts += text_faults("image", form.image) or _path_faults(form.image, folder)
    if texts:
        return [(None, fault) for fault in texts]
    found: list[tuple[int | None, Fault]] = []
    width, height = float(form.width), float(form.height)  # floats compare with floats in half the time
    for index, item in enumerate(form.objects):
        found += [(index, fault) for fault in desc_faults(item.desc)]
        x1, y1, x2, y2 = item.bbox
        if x1 < 0.0 or y1 < 0.0 or x2 > width or y2 > height or x2 - x1 < 1.0 or y2 - y1 < 1.0:  # hardly any box
            fault = box_faults(item.bbox, (form.width, form.height))
            if fault is not None:
                found.append((index, fault))
    return found


def _label(index: int, desc: Any) -> str:
    shown = isinstance(desc, str) and len(desc) <= MAX_DESC
    return f"object {index} ({desc!r})" if shown else f"object {index}"


# Why a line is none of `LineForm`, fault by fault in plain words; a bad object does not take the others with it.


def _explain(raw: bytes, line: Line, folder: Path, where: str) -> Line:
    value, problem = _json(raw, line.number, where)
    if problem is not None:
        line.problems.append(problem)
        return line
    if faults := _line_faults(value, folder):
        line.problems += [Problem(kind, where, message, line.number) for kind, message in faults]
        return line
    size_wh = (value["width"], value["height"])
    objects: list[Instance] = []
    for index, item in enumerate(value["objects"]):
        instance, faults = _parse_object(item, size_wh)
        label = _label(index, item.get("desc") if isinstance(item, dict) else None)
        line.problems += [Problem(kind, where, f"{label}: {message}", line.number, index) for kind, message in faults]
        if instance is not None:
            objects.append(instance)
            line.kept.append(index)
    image = value["image"]
    line.sample = Sample(value.get("id", image), folder / image, size_wh, tuple(objects))
    return line


def is_spread(problem: Problem) -> bool:
    """Whether this is the problem of a file of one JSON value over many lines."""
    return problem.kind is ProblemKind.BROKEN_JSON and IMPORT_COCO in problem.message


def _json(raw: bytes, number: int, where: str) -> tuple[Any, Problem | None]:
    """A line as a JSON value, or the problem of a line that is none."""
    try:
        text = raw.rstrip(b"\r\n").decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        message = f"not UTF-8 text: byte 0x{raw[error.start]:02x} at column {error.start + 1}"
        return None, Problem(ProblemKind.NOT_UTF8, where, message, number)
    try:
        return _parse(text), None
    except json.JSONDecodeError as error:
        message = f"not valid JSON: {error.msg.removesuffix(' at')} at column {error.colno}"
        if number == 1 and text.strip() in ("{", "["):
            hint = f"(a COCO file? convert it with `{IMPORT_COCO}`)"
            message = f"expected one JSON object a line, found one spread over lines {hint}"
    except _RepeatedKeyError as error:
        message = f"not valid JSON: key {error.args[0]!r} appears twice in one object"
    except (ValueError, RecursionError):
        message = "not valid JSON: nested too deep, or a number of thousands of digits"
    return None, Problem(ProblemKind.BROKEN_JSON, where, message, number)


class _RepeatedKeyError(Exception):
    """A key twice in one JSON object, of which Python would silently keep the last."""


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        keys = [key for key, _ in pairs]
        raise _RepeatedKeyError(next(key for place, key in enumerate(keys) if key in keys[:place]))
    return value


_parse = json.JSONDecoder(object_pairs_hook=_unique_keys).decode


def _line_faults(value: Any, folder: Path) -> list[Fault]:
    """Faults of a line outside its objects; none means that every key has its right type and range."""
    if not isinstance(value, dict):
        return [(ProblemKind.WRONG_TYPE, f"expected a JSON object, found {_kind(value)}")]
    faults = _key_faults(value, LINE_KEYS, ("image", "width", "height", "objects"))
    if faults and {"images", "annotations"} & value.keys():
        hint = f"this is a COCO file: convert it with `{IMPORT_COCO}`"
        return [(ProblemKind.UNKNOWN_KEY, f"expected one image a line; {hint}")]
    if "id" in value:
        faults += text_faults("id", value["id"])
    if "image" in value:
        faults += text_faults("image", value["image"]) or _path_faults(value["image"], folder)
    for key in ("width", "height"):
        if key in value and (type(value[key]) is not int or not 1 <= value[key] <= MAX_SIDE):
            found = value[key] if type(value[key]) is int and abs(value[key]) < 10**9 else _kind(value[key])
            message = f"'{key}': expected a whole number of pixels from 1 to {MAX_SIDE:,}, found {found}"
            faults.append((ProblemKind.BAD_SIZE, message))
    if "objects" in value and not isinstance(value["objects"], list):
        faults.append((ProblemKind.WRONG_TYPE, f"'objects': expected a list, found {_kind(value['objects'])}"))
    return faults


def _parse_object(raw: Any, size_wh: tuple[int, int]) -> tuple[Instance | None, list[Fault]]:
    """One object of a line: the instance if it has no error, and its errors and warnings."""
    if not isinstance(raw, dict):
        return None, [(ProblemKind.WRONG_TYPE, f"expected a JSON object, found {_kind(raw)}")]
    faults = _key_faults(raw, OBJECT_KEYS, ("desc", "bbox"))
    desc, box, iscrowd = raw.get("desc", "none"), (0.0, 0.0, 1.0, 1.0), raw.get("iscrowd", False)
    if not isinstance(desc, str):
        faults.append((ProblemKind.WRONG_TYPE, f"'desc': expected text, found {_kind(desc)}"))
    else:
        faults += desc_faults(desc)
    if "bbox" in raw:
        box, shape_fault = parse_box(raw["bbox"])
        box_fault = shape_fault or box_faults(box, size_wh)
        if box_fault:
            faults.append(box_fault)
    if not isinstance(iscrowd, bool):
        faults.append((ProblemKind.WRONG_TYPE, f"'iscrowd': expected true or false, found {_kind(iscrowd)}"))
    area, identity = raw.get("area"), raw.get("id")
    if "area" in raw and (area_fault := area_faults(area)):
        faults.append(area_fault)
    if "id" in raw and type(identity) is not int:
        faults.append((ProblemKind.WRONG_TYPE, f"'id': expected a whole number, found {_kind(identity)}"))
    if any(kind.level is Level.ERROR for kind, _ in faults):
        return None, faults
    return Instance(desc, box, iscrowd, None if area is None else float(area), identity), faults


def parse_box(value: Any) -> tuple[BoxXYXY, Fault | None]:
    """Four finite numbers as floats, or the fault that says what was found instead."""
    none = (0.0, 0.0, 1.0, 1.0)
    if type(value) is not list or len(value) != 4:
        found = f"a list of {len(value)}" if type(value) is list else _kind(value)
        return none, (ProblemKind.WRONG_TYPE, f"'bbox': expected a list of 4 numbers, found {found}")
    for corner in value:
        if type(corner) is not float and type(corner) is not int:
            return none, (ProblemKind.WRONG_TYPE, f"'bbox': expected 4 numbers, found {_kind(corner)} among them")
        if not -_HUGE < corner < _HUGE:  # false for NaN too
            if isinstance(corner, float) and not math.isfinite(corner):
                return none, (ProblemKind.BOX_NOT_FINITE, f"box is not finite: found {corner} among its 4 numbers")
            return none, (ProblemKind.BOX_OUTSIDE, f"box is outside any image: found {_kind(corner)} in it")
    return (float(value[0]), float(value[1]), float(value[2]), float(value[3])), None


def box_faults(box_xyxy: BoxXYXY, size_wh: tuple[int, int]) -> Fault | None:
    """The fault of a finite box in an image of `size_wh` pixels, or `None`."""
    x1, y1, x2, y2 = box_xyxy
    width, height = size_wh
    shown = "[" + ", ".join(f"{corner:g}" for corner in box_xyxy) + "]"
    if x2 < x1 or y2 < y1:
        axis = "x" if x2 < x1 else "y"
        message = f"box is inverted: expected {axis}1 < {axis}2 in [x1, y1, x2, y2], found {shown}"
        return ProblemKind.BOX_INVERTED, message
    if x1 == x2 or y1 == y2:
        side = "width" if x1 == x2 else "height"
        return ProblemKind.BOX_ZERO_SIZE, f"box has zero {side}: {shown}"
    far = max(-x1, -y1, x2 - width, y2 - height)
    if far > ROUNDING_PX or x1 >= width or y1 >= height or x2 <= 0 or y2 <= 0:
        message = f"box is outside the image: expected it within {width} x {height}, found {shown}"
        return ProblemKind.BOX_OUTSIDE, message
    if min(x2 - x1, y2 - y1) < 1:
        return ProblemKind.BOX_UNDER_ONE_PIXEL, f"box is narrower than one pixel: {shown}"
    return None


def area_faults(area: Any) -> Fault | None:
    """The fault of an annotation area in square pixels, or `None`."""
    if type(area) not in (int, float):
        return ProblemKind.BAD_AREA, f"'area': expected a number, found {_kind(area)}"
    if not 0 <= area < MAX_AREA:
        found = "NaN" if area != area else "a negative one" if area < 0 else "a huge one"
        return ProblemKind.BAD_AREA, f"'area': expected a finite number from 0, found {found}"
    return None


@lru_cache(maxsize=65536)
def desc_faults(desc: str) -> tuple[Fault, ...]:
    """Faults of a desc: it must fit between the quotes of the answer as it is, without any escape."""
    faults: list[Fault] = []
    if not desc.strip():
        return ((ProblemKind.DESC_EMPTY, "'desc' is empty"),)
    if desc != desc.strip():
        faults.append((ProblemKind.DESC_SPACES, "'desc' starts or ends with space"))
    if len(desc) > MAX_DESC:
        message = f"'desc' is too long: expected at most {MAX_DESC} characters, found {len(desc)}"
        faults.append((ProblemKind.DESC_TOO_LONG, message))
    if '"' in desc or "\\" in desc:
        message = "'desc' holds a double quote or backslash, which would break the answer's JSON"
        faults.append((ProblemKind.DESC_QUOTE, message))
    if has_control(desc):
        faults.append((ProblemKind.DESC_CONTROL, "'desc' holds a line break or control character"))
    elif not desc.isascii():
        message = "'desc' holds letters beyond ASCII, or emoji, that a tokenizer may cut into several tokens"
        faults.append((ProblemKind.DESC_NON_ASCII, message))
    if desc.isascii() and not faults and not desc[-1].isalnum():
        message = f"'desc' ends in {desc[-1]!r}, which a tokenizer may merge with the closing quote"
        faults.append((ProblemKind.DESC_PUNCTUATION, message))
    return tuple(faults)


def has_control(text: str) -> bool:
    """Whether text holds a line break, a control character or half of a surrogate pair."""
    if text.isprintable():
        return False
    return any(unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") for letter in text)


def _key_faults(value: dict[str, Any], known: tuple[str, ...], need: tuple[str, ...]) -> list[Fault]:
    faults = [
        (ProblemKind.UNKNOWN_KEY, f"unknown key {key!r}{nearest(key, known)}; expected {', '.join(known)}")
        for key in value
        if key not in known
    ]
    missing = [key for key in need if key not in value]
    if missing:
        faults.append((ProblemKind.MISSING_KEY, f"missing {', '.join(repr(key) for key in missing)}"))
    return faults


def text_faults(key: str, value: Any) -> list[Fault]:
    """What is wrong with the text of a key: its type, that it is empty, or a control character in it."""
    if not isinstance(value, str):
        return [(ProblemKind.WRONG_TYPE, f"'{key}': expected text, found {_kind(value)}")]
    if not value.strip():
        return [(ProblemKind.WRONG_TYPE, f"'{key}': expected text, found an empty one")]
    if not value.isprintable() and has_control(value):
        return [(ProblemKind.WRONG_TYPE, f"'{key}': holds a line break or control character: {value!r}")]
    return []


def _path_faults(image: str, folder: Path) -> list[Fault]:
    # Checked for both systems: a data set travels, and C:\ would be a relative path on Linux.
    if image[0] in "/\\" or image[1:3] in (":\\", ":/"):
        message = f"'image': expected a path relative to this file's folder, found the absolute {image!r}"
        return [(ProblemKind.BAD_PATH, message)]
    if leads_out(image, folder):
        allow = f"allow it by {ALLOW_OUTSIDE} in the environment, a folder that holds the image"
        return [(ProblemKind.BAD_PATH, f"'image': leads out of this file's folder: {image!r}; {allow}")]
    return []


def leads_out(image: str, folder: Path) -> bool:
    """Whether a relative path leads out of its data file's folder and of the folders in `APIECE_DATA_ROOT`.

    A data file may come from a stranger; links inside the folder were made by its owner and are followed.
    """
    if ".." not in image:
        return False
    parts = image.replace("\\", "/").split("/")
    return ".." in parts and _is_outside("/".join(parts[:-1]), str(folder), os.environ.get(ROOT_VARIABLE, ""))


@lru_cache(maxsize=65536)
def _is_outside(parent: str, folder: str, allowed: str) -> bool:
    # Behind a link `..` leads to where the link's target lies: only the file system knows.
    place = Path(os.path.realpath(Path(folder, parent)))
    roots = [folder, *(root for root in allowed.split(os.pathsep) if root)]
    return not any(place.is_relative_to(os.path.realpath(root)) for root in roots)


def _kind(value: Any) -> str:
    """A JSON value in words, short enough for a message."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        if isinstance(value, int) and abs(value) >= 10**15:
            return "a huge number"
        return f"the number {value!r}" if isinstance(value, int) or value.is_integer() else f"the number {value:g}"
    if isinstance(value, str):
        return f"the text {value if len(value) <= 30 else value[:30] + '...'!r}"
    return "a list" if isinstance(value, list) else "a JSON object"
