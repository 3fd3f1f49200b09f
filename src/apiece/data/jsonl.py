"""Reads data files (JSON, one image a line) strictly, and writes them."""

from __future__ import annotations

import gc
import json
import os
from array import array
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from apiece.data.lines import MAX_LISTED, Line, Problem, ProblemKind, decode, is_spread, read_line, refusal, remedy
from apiece.errors import UserError, require_file
from apiece.files import atomic_open
from apiece.types import Instance, Sample

_LONG_BYTES = 32_000_000


def read_jsonl(path: Path) -> list[Sample]:
    """Read a data file strictly: any error in a line refuses the whole file. Image files are not opened.

    Returns:
        Samples in file order, those without objects included. Image paths are joined to the file's folder.

    Raises:
        UserError: The file is missing or empty, or some lines are wrong: the first ones are listed with `file:line`.
    """
    with without_cycle_search():
        return [line.sample for line in valid_lines(path) if line.sample is not None]


def valid_lines(path: Path) -> Iterator[Line]:
    """The lines of a data file, each with its sample; a file with errors is refused as in `read_jsonl`, at the latest
    when it ends.
    """
    path = Path(path)
    found = 0
    errors: list[Problem] = []
    for line in iter_lines(path):
        errors += line.errors
        if len(errors) >= MAX_LISTED:
            break
        if line.sample is not None:
            found += 1
            yield line
    if errors:
        raise refusal(errors, path, remedy(errors, path, f"see all with `apiece data check {path}`;"))
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


def iter_lines(path: Path) -> Iterator[Line]:
    """Read a data file line by line, with everything wrong that the text alone can show, such as ids that appear twice.

    Blank lines are skipped. A missing or unreadable file is a `UserError`.
    """
    path = require_file(Path(path), "a JSONL data file")
    try:
        known = _KnownIds(path)
        with open(path, "rb") as file:
            for number, raw in enumerate(file, 1):
                if raw.isspace():
                    continue
                where = f"{path}:{number}"
                if number == 1 and b"\0" in raw:
                    message = "expected UTF-8 text, found a binary file (or UTF-16: save it as UTF-8)"
                    yield Line(1, problems=[Problem(ProblemKind.NOT_UTF8, where, message, 1)])
                    return
                line = read_line(raw, folder=path.parent, number=number, where=where)
                if line.sample is not None:
                    known.check(line, line.sample, where)
                yield line
                if line.problems and is_spread(line.problems[0]):
                    return  # thousands of further problems of the same cause would say nothing more
    except PermissionError as error:
        raise UserError("cannot be read: permission denied", where=path) from error


class _KnownIds:
    """Ids met so far in a file, with the line where each was met first.

    Of a long file only those are kept that appear twice, which a pass over it finds beforehand: eight bytes an id.
    """

    def __init__(self, path: Path) -> None:
        self._lines: dict[str, int] = {}
        self._objects: dict[int, int] = {}
        self._twice: tuple[frozenset[int], frozenset[int]] | None = None
        if path.stat().st_size >= _LONG_BYTES:
            with open(path, "rb") as file:
                self._twice = _ids_twice(file, path.parent)

    def check(self, line: Line, sample: Sample, where: str) -> None:
        """Drop from `line` what repeats an id, and name it."""
        first = line.number
        if self._twice is None or hash(sample.id) in self._twice[0]:
            first = self._lines.setdefault(sample.id, line.number)
        if first != line.number:
            message = f"id {sample.id!r} appears twice, first in line {first}; ids must be unique in a file"
            line.problems.append(Problem(ProblemKind.DUPLICATE_ID, where, message, line.number))
            line.sample = None
            return
        unique: list[int] = []
        for place, instance in enumerate(sample.objects):
            if instance.id is not None and (self._twice is None or hash(instance.id) in self._twice[1]):
                count = len(self._objects)
                first = self._objects.setdefault(instance.id, line.number)
                if len(self._objects) == count:
                    index = line.kept[place]
                    label = f"object {index} ({instance.desc!r})"
                    message = f"{label}: object id {instance.id} appears twice, first in line {first}"
                    line.problems.append(Problem(ProblemKind.DUPLICATE_OBJECT_ID, where, message, line.number, index))
                    continue
            unique.append(place)
        if len(unique) < len(sample.objects):
            line.kept = [line.kept[place] for place in unique]
            objects = tuple(sample.objects[place] for place in unique)
            line.sample = Sample(sample.id, sample.image, sample.size_wh, objects)


def _ids_twice(lines: Iterable[bytes], folder: Path) -> tuple[frozenset[int], frozenset[int]]:
    """Hashes of all ids of lines and of objects that appear more than once, and perhaps a few others."""
    ids, objects = array("q"), array("q")
    for number, raw in enumerate(lines, 1):
        if (form := decode(raw)) is not None:
            ids.append(hash(form.image if form.id is None else form.id))
            objects.extend([hash(o.id) for o in form.objects if o.id is not None])
        elif (sample := read_line(raw, folder=folder, number=number, where="").sample) is not None:
            ids.append(hash(sample.id))
            objects.extend([hash(o.id) for o in sample.objects if o.id is not None])
    return twice(ids), twice(objects)


def twice(values: array[int]) -> frozenset[int]:
    """The values that appear more than once."""
    ordered = np.sort(np.frombuffer(values, np.int64)) if values else np.zeros(0, np.int64)
    return frozenset(ordered[1:][ordered[1:] == ordered[:-1]].tolist())


def write_jsonl(path: Path, samples: Iterable[Sample]) -> None:
    """Write a data file atomically, one sample a line; image paths become relative to its folder.

    Raises:
        UserError: The disk is full, the folder cannot be written, or a name is not Unicode text.
        ValueError: A number is NaN or infinite.
    """
    path = Path(path)
    folder = os.path.realpath(path.parent)
    known: dict[Path, str] = {}
    encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, check_circular=False).encode
    with atomic_open(path) as file:
        for sample in samples:
            line = {
                "id": sample.id,
                "image": _relative(sample.image, folder, known),
                "width": sample.size_wh[0],
                "height": sample.size_wh[1],
                "objects": [object_dict(instance) for instance in sample.objects],
            }
            try:
                file.write(encode(line) + "\n")
            except UnicodeEncodeError as error:
                message = f"sample {sample.id!r}: a name in it is not Unicode text"
                raise UserError(message, where=sample.image, fix="rename the file or the class") from error
            except ValueError as error:
                raise ValueError(f"sample {sample.id!r}: a box or area is NaN or infinite") from error


def object_dict(instance: Instance) -> dict[str, Any]:
    """An object as a line has it."""
    keys: dict[str, Any] = {"desc": instance.desc, "bbox": [_short_number(v) for v in instance.bbox_xyxy]}
    if instance.iscrowd:
        keys["iscrowd"] = True
    if instance.area is not None:
        keys["area"] = _short_number(instance.area)
    if instance.id is not None:
        keys["id"] = instance.id
    return keys


def _short_number(value: float) -> float:
    """A whole float as an int, which is the same number in less text."""
    return int(value) if float(value).is_integer() else value


def _relative(image: Path, folder: str, known: dict[Path, str]) -> str:
    """A path relative to a (resolved) folder, with links resolved up to the image's own folder; `known` is a cache.

    `..` after a link leads from the link's target, not from where the link stands, so both folders are resolved first.
    The image itself may be a link (to a store of blobs, say) and stays one.
    """
    parent = known.get(image.parent)
    if parent is None:
        try:
            parent = os.path.relpath(os.path.realpath(image.parent), folder)
        except ValueError as error:  # Windows only
            message = "the image is on another drive than the JSONL file, and paths in it must be relative"
            raise UserError(message, where=image, fix="write the JSONL file on the drive of the images") from error
        known[image.parent] = parent
    return image.name if parent == os.curdir else (Path(parent) / image.name).as_posix()
