"""The data contract: one image a line, JSON, as docs/data.md says. Reading it strictly, and writing it."""

from __future__ import annotations

import gc
import json
import os
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from apiece.data.lines import IMPORT_COCO, Line, Problem, ProblemKind, parse_record, remedy
from apiece.errors import UserError, require_file
from apiece.files import atomic_open
from apiece.types import Instance, Sample

# Ids that a data file has twice, found in little memory: a quick pass over the file keeps eight bytes of each.


class _Object(msgspec.Struct, gc=False):
    id: int | None = None


class _RepeatLine(msgspec.Struct, gc=False):
    image: str
    objects: list[_Object]
    id: str | None = None


_decode_repeat = msgspec.json.Decoder(_RepeatLine).decode


@dataclass(frozen=True, slots=True)
class Repeats:
    """Hashes (of this process) of all ids that appear more than once, and perhaps of a few others.

    Attributes:
        records: Of records.
        objects: Of objects.
    """

    records: frozenset[int]
    objects: frozenset[int]


def find_repeats(path: Path, parse: Callable[[bytes, int], Sample | None]) -> Repeats:
    """Find the ids that appear more than once in a data file.

    Args:
        path: The JSONL file.
        parse: The strict reader of a line, given its number, for lines that the quick one cannot read.
    """
    records, objects = array("q"), array("q")
    with open(path, "rb") as file:
        for number, raw in enumerate(file, 1):
            try:
                record = _decode_repeat(raw)
            except (msgspec.DecodeError, UnicodeError):
                sample = parse(raw, number)
                if sample is not None:
                    records.append(hash(sample.id))
                    objects.extend(hash(o.id) for o in sample.objects if o.id is not None)
                continue
            records.append(hash(record.image if record.id is None else record.id))
            objects.extend([hash(o.id) for o in record.objects if o.id is not None])
    return Repeats(_twice(records), _twice(objects))


def _twice(values: array[int]) -> frozenset[int]:
    ordered = np.sort(np.frombuffer(values, np.int64)) if values else np.zeros(0, np.int64)
    return frozenset(ordered[1:][ordered[1:] == ordered[:-1]].tolist())


_LONG_BYTES = 32_000_000
MAX_LISTED = 10
"""Problems that a strict read tells at once."""


def read_jsonl(path: Path) -> list[Sample]:
    """Read a data file strictly: any error of a line refuses the whole file. Image files are not opened.

    Args:
        path: The JSONL file. Image paths are joined to its folder.

    Returns:
        Samples in file order, those without objects included.

    Raises:
        UserError: The file is missing or empty, or some lines are wrong: the first ones are told with `file:line`.
    """
    with without_cycle_search():
        return [line.sample for line in valid_lines(path) if line.sample is not None]


def valid_lines(path: Path) -> Iterator[Line]:
    """The lines of a data file, each with its sample; a file with any error is refused once the first errors are known.

    Args:
        path: The JSONL file.

    Yields:
        Lines in file order.

    Raises:
        UserError: As `read_jsonl`.
    """
    path = Path(path)
    found = 0
    errors: list[Problem] = []
    for line in iter_records(path):
        errors += line.errors
        if len(errors) >= MAX_LISTED:
            break
        if line.sample is not None:
            found += 1
            yield line
    if errors:
        count = "at least " if len(errors) >= MAX_LISTED else ""
        listed = "".join(f"\n  {error}" for error in errors[:MAX_LISTED])
        fix = remedy(errors, path, f"see all with `apiece data check {path}`;")
        noun = "error" if len(errors) == 1 else "errors"
        raise UserError(f"{count}{len(errors[:MAX_LISTED])} {noun}:{listed}", where=path, fix=fix)
    if not found:
        raise UserError("expected one image a line, found an empty file", where=path)


@contextmanager
def without_cycle_search() -> Iterator[None]:
    """Pause the cyclic garbage collector: a million live objects without a cycle are searched over and over.

    Half of the time of reading 100,000 lines went there.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def iter_records(path: Path) -> Iterator[Line]:
    """Read a data file line by line, with what is wrong in each: for the checker.

    Checks everything that the text alone can tell, ids that appear twice included. Blank lines are skipped.

    Args:
        path: The JSONL file.

    Yields:
        Each line with its number, its sample without faulty objects, and its problems.

    Raises:
        UserError: The file is missing or may not be read.
    """
    path = require_file(Path(path), "a JSONL data file")
    folder = path.parent
    try:
        seen = _Seen(path)
        with open(path, "rb") as file:
            for number, raw in enumerate(file, 1):
                if raw.isspace():
                    continue
                where = f"{path}:{number}"
                if number == 1 and b"\0" in raw:
                    message = "expected UTF-8 text, found a binary file (or UTF-16: save it as UTF-8)"
                    yield Line(1, problems=[Problem(ProblemKind.NOT_UTF8, where, message, 1)])
                    return
                line = parse_line(raw, folder=folder, number=number, where=where)
                if line.sample is not None:
                    seen.check(line, line.sample, where)
                yield line
                if line.problems and _is_spread(line.problems[0]):
                    return  # thousands of lines that are no records either would say nothing more
    except PermissionError as error:
        raise UserError("cannot be read: permission denied", where=path) from error


def write_jsonl(path: Path, samples: Iterable[Sample]) -> None:
    """Write a data file atomically; image paths become relative to its folder.

    Args:
        path: Target; its folder is made if missing.
        samples: What to write, one line each, in order.

    Raises:
        UserError: The disk is full, the folder cannot be written, or a name is not Unicode text.
        ValueError: A number is NaN or infinite.
    """
    path = Path(path)
    relative = _RelativePaths(path.parent)
    encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, check_circular=False).encode
    with atomic_open(path) as file:
        for sample in samples:
            record = {
                "id": sample.id,
                "image": relative(sample.image),
                "width": sample.size_wh[0],
                "height": sample.size_wh[1],
                "objects": [_instance_dict(instance) for instance in sample.objects],
            }
            try:
                file.write(encode(record) + "\n")
            except UnicodeEncodeError as error:
                message = f"sample {sample.id!r}: a name in it is not Unicode text"
                raise UserError(message, where=sample.image, fix="rename the file or the class") from error
            except ValueError as error:
                raise ValueError(f"sample {sample.id!r}: a box or area is NaN or infinite") from error


def _instance_dict(instance: Instance) -> dict[str, Any]:
    record: dict[str, Any] = {"desc": instance.desc, "bbox": [_short_number(v) for v in instance.bbox_xyxy]}
    if instance.iscrowd:
        record["iscrowd"] = True
    if instance.area is not None:
        record["area"] = _short_number(instance.area)
    if instance.id is not None:
        record["id"] = instance.id
    return record


def _short_number(value: float) -> float:
    """A whole float as an int, which is the same number in less text."""
    return int(value) if float(value).is_integer() else value


class _RelativePaths:
    """Paths relative to a folder, with links resolved up to the image's own folder.

    `..` after a link leads from the link's target, not from where the link stands, so both folders are resolved first.
    The image itself may be a link (to a store of blobs, say) and stays one.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = os.path.realpath(folder)
        self._known: dict[Path, str] = {}

    def __call__(self, image: Path) -> str:
        parent = self._known.get(image.parent)
        if parent is None:
            try:
                parent = os.path.relpath(os.path.realpath(image.parent), self._folder)
            except ValueError as error:  # Windows only
                message = "the image is on another drive than the JSONL file, and paths in it must be relative"
                raise UserError(message, where=image, fix="write the JSONL file on the drive of the images") from error
            self._known[image.parent] = parent
        return image.name if parent == os.curdir else (Path(parent) / image.name).as_posix()


class _Seen:
    """Ids met so far in a file, with the line where each was met first.

    Of a long file only those are kept that appear twice, which a pass over it finds beforehand.
    """

    def __init__(self, path: Path) -> None:
        self._records: dict[str, int] = {}
        self._objects: dict[int, int] = {}
        self._repeats: Repeats | None = None
        if path.stat().st_size >= _LONG_BYTES:
            folder = path.parent
            self._repeats = find_repeats(
                path, lambda raw, number: parse_line(raw, folder=folder, number=number, where="").sample
            )

    def check(self, line: Line, sample: Sample, where: str) -> None:
        """Drop from `line` what repeats an id, and name it."""
        known = self._repeats
        first = line.number
        if known is None or hash(sample.id) in known.records:
            first = self._records.setdefault(sample.id, line.number)
        if first != line.number:
            message = f"id {sample.id!r} appears twice, first in line {first}; ids must be unique in a file"
            line.problems.append(Problem(ProblemKind.DUPLICATE_ID, where, message, line.number))
            line.sample = None
            return
        repeated: set[int] = set()
        for place, instance in enumerate(sample.objects):
            if instance.id is None or (known is not None and hash(instance.id) not in known.objects):
                continue
            count = len(self._objects)
            first = self._objects.setdefault(instance.id, line.number)
            if len(self._objects) == count:
                index = line.kept[place]
                message = (
                    f"object {index} ({instance.desc!r}): object id {instance.id} appears twice, first in line {first}"
                )
                line.problems.append(Problem(ProblemKind.DUPLICATE_OBJECT_ID, where, message, line.number, index))
                repeated.add(place)
        if repeated:
            kept = [place for place in range(len(sample.objects)) if place not in repeated]
            line.kept = [line.kept[place] for place in kept]
            line.sample = Sample(
                sample.id, sample.image, sample.size_wh, tuple(sample.objects[place] for place in kept)
            )


def parse_line(raw: bytes, *, folder: Path, number: int, where: str) -> Line:
    """One line of a file: its sample and its problems, but for ids that other lines have as well.

    Args:
        raw: The line.
        folder: Of the file, which image paths are relative to.
        number: Of the line, from 1.
        where: `file:line`, for the problems.
    """
    value, problem = _decode(raw, number, where)
    if problem is not None:
        return Line(number, problems=[problem])
    return parse_record(value, folder=folder, number=number, where=where)


def _is_spread(problem: Problem) -> bool:
    """Whether this is a file of one JSON value over many lines."""
    return problem.kind is ProblemKind.BROKEN_JSON and IMPORT_COCO in problem.message


def _decode(raw: bytes, number: int, where: str) -> tuple[Any, Problem | None]:
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
            message = (
                "expected one JSON object a line, found one spread over lines"
                f" (a COCO file? convert it with `{IMPORT_COCO}`)"
            )
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
        seen: set[str] = set()
        raise _RepeatedKeyError(next(key for key, _ in pairs if key in seen or seen.add(key)))  # type: ignore[func-returns-value]
    return value


_parse = json.JSONDecoder(object_pairs_hook=_unique_keys).decode
