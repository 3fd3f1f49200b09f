"""The index of a data file: where each record lies, and what batches and checks need to know of it.

A million records are read strictly in seconds: a typed decoder reads each line, and arrays of boxes are held against
the contract at once. Where anything is odd, the file is read again by the one reader that says what a valid record is
(`jsonl.py`), which names the errors, or finds that there are none.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np

from apiece.data.derived import Arrays, kept_arrays
from apiece.data.jsonl import valid_lines, without_cycle_search
from apiece.data.problems import Level
from apiece.data.record import MAX_AREA, MAX_SIDE, ROOT_VARIABLE, boxes_with_errors, desc_faults, texts_are_plain
from apiece.errors import UserError, require_file
from apiece.types import IntArray

KEEP_FROM_BYTES = 32_000_000
"""From this size of the data file its index is kept; below, it is made in half a second."""
_BLOCK_BYTES = 4 << 20
_NO_ID = -(2**63)
_TYPES = {
    "start": np.int64,
    "size": np.int32,
    "size_wh": np.int32,
    "first": np.int64,
    "name": np.int32,
    "names": np.uint8,
    "sha256": np.uint8,
}


class _Object(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    desc: str
    bbox: tuple[float, float, float, float]
    iscrowd: bool = False
    area: Annotated[float, msgspec.Meta(ge=0, lt=MAX_AREA)] = 0.0
    id: Annotated[int, msgspec.Meta(ge=_NO_ID + 1, le=2**63 - 1)] = _NO_ID


class _Record(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    image: str
    width: Annotated[int, msgspec.Meta(ge=1, le=MAX_SIDE)]
    height: Annotated[int, msgspec.Meta(ge=1, le=MAX_SIDE)]
    objects: list[_Object]
    id: str | None = None


_decode = msgspec.json.Decoder(_Record).decode


@dataclass(frozen=True, slots=True, eq=False)
class RecordIndex:
    """Where the records of a file lie and what is in them. N records, M objects that are not crowd regions.

    Attributes:
        start: `[N]` first byte of each record's line.
        size: `[N]` bytes of it, without the line break.
        size_wh: `[N, 2]` pixels of its image.
        first: `[N + 1]` where its objects begin in `name`.
        name: `[M]` which of `names` each object has.
        names: Every name in the file, those of crowd regions alone included.
        sha256: Of the file, in hex.
        file_state: Its size and time of change when the index was made.
    """

    start: IntArray
    size: IntArray
    size_wh: IntArray
    first: IntArray
    name: IntArray
    names: tuple[str, ...]
    sha256: str
    file_state: tuple[int, int]

    @property
    def num_objects(self) -> IntArray:
        """`[N]` objects of each record, crowd regions not counted."""
        return np.diff(self.first)


def index_of(path: Path) -> RecordIndex:
    """The index of a data file, read strictly: any error of a line refuses the whole file. Images are not opened.

    Raises:
        UserError: As `read_jsonl`.
    """
    path = require_file(Path(path), "a JSONL data file")
    try:
        status = path.stat()
        settings = os.environ.get(ROOT_VARIABLE, "")  # it decides which paths are errors
        arrays = kept_arrays(
            path, "records", settings, lambda: _build(path), lambda found: _fits(found, status.st_size), KEEP_FROM_BYTES
        )
    except PermissionError as error:
        raise UserError("cannot be read: permission denied", where=path) from error
    return RecordIndex(
        arrays["start"],
        arrays["size"],
        arrays["size_wh"],
        arrays["first"],
        arrays["name"],
        _names(arrays),
        arrays["sha256"].tobytes().hex(),
        (status.st_size, status.st_mtime_ns),
    )


def _fits(arrays: Arrays, file_bytes: int) -> bool:
    """Whether kept arrays can be an index of a file of this size: they may come from anybody, with the data."""
    if arrays.keys() != _TYPES.keys() or any(arrays[key].dtype != dtype for key, dtype in _TYPES.items()):
        return False
    start, size, first, name = (arrays[key] for key in ("start", "size", "first", "name"))
    count = len(start)
    return bool(
        count
        and size.shape == (count,)
        and arrays["size_wh"].shape == (count, 2)
        and arrays["size_wh"].min() >= 1
        and first.shape == (count + 1,)
        and first[0] == 0
        and first[-1] == len(name)
        and (np.diff(first) >= 0).all()
        and start.min() >= 0
        and size.min() > 0
        and start.max() <= file_bytes
        and (start + size).max() <= file_bytes
        and (not len(name) or (name.min() >= 0 and name.max() < len(_names(arrays))))
    )


def _names(arrays: Arrays) -> tuple[str, ...]:
    """The names; none where they are not what was written."""
    try:
        names = json.loads(arrays["names"].tobytes())
    except ValueError:
        return ()
    return tuple(name for name in names if isinstance(name, str)) if isinstance(names, list) else ()


class _OddError(Exception):
    """Something that the quick pass cannot judge."""


class _Names(dict[str, int]):
    """Numbers of names, given as they are met."""

    def __missing__(self, name: str) -> int:
        if any(kind.level is Level.ERROR for kind, _ in desc_faults(name)):
            raise _OddError
        self[name] = number = len(self)
        return number


def _build(path: Path) -> Arrays:
    with without_cycle_search():
        try:
            arrays = _quick(path)
        except (_OddError, msgspec.DecodeError, UnicodeError):
            arrays = _thorough(path)
    if not len(arrays["start"]):
        raise UserError("expected one image a line, found an empty file", where=path)
    return arrays


def _quick(path: Path) -> Arrays:
    """The arrays of a file without errors.

    Raises:
        _OddError, msgspec.DecodeError, UnicodeError: There may be an error.
    """
    names = _Names()
    digest = hashlib.sha256()
    parts: dict[str, list[np.ndarray]] = {
        key: [] for key in ("start", "size", "size_wh", "count", "name", "record", "object")
    }
    offset = 0
    for block in _blocks(path):
        digest.update(block)
        for key, values in _quick_block(block, offset, names, path.parent).items():
            parts[key].append(values)
        offset += len(block)
    joined = {key: np.concatenate(values) if values else np.zeros(0, np.int64) for key, values in parts.items()}
    numbered = joined["object"]
    for ids in (joined["record"], numbered[numbered != _NO_ID]):
        if (np.diff(ids) <= 0).any() and len(np.unique(ids)) < len(ids):
            raise _OddError  # an id that appears twice
    return _arrays(joined, names, digest.digest())


def _quick_block(block: bytes, offset: int, names: _Names, folder: Path) -> Arrays:
    lines = block.removesuffix(b"\n").split(b"\n")
    sizes = np.fromiter(map(len, lines), np.int64, len(lines))
    starts = offset + np.cumsum(sizes + 1) - sizes - 1
    if b"\n\n" in block or b"\r\n" in block or block[:1].isspace():
        written = np.fromiter((bool(line.strip()) for line in lines), bool, len(lines))
        lines, sizes, starts = [line for line in lines if line.strip()], sizes[written], starts[written]
    records = [_decode(line) for line in lines]
    images, ids = [r.image for r in records], [r.id for r in records]
    if not texts_are_plain(images, ids, folder):
        raise _OddError
    objects = [o for r in records for o in r.objects]
    count = np.fromiter([len(r.objects) for r in records], np.int64, len(records))
    size_wh = np.empty((2, len(records)), np.int64)
    size_wh[:] = [r.width for r in records], [r.height for r in records]
    corners = chain.from_iterable([o.bbox for o in objects])
    boxes_xyxy = np.fromiter(corners, np.float64, 4 * len(objects)).reshape(-1, 4)
    if boxes_with_errors(boxes_xyxy, np.repeat(size_wh, count, axis=1).T).any():
        raise _OddError
    name = np.fromiter(map(names.__getitem__, [o.desc for o in objects]), np.int32, len(objects))
    crowd = np.fromiter([o.iscrowd for o in objects], bool, len(objects))
    if crowd.any():
        owner = np.repeat(np.arange(len(records)), count)
        name, count = name[~crowd], np.bincount(owner[~crowd], minlength=len(records))
    return {
        "start": starts,
        "size": sizes,
        "size_wh": size_wh.T,
        "count": count,
        "name": name,
        # Ids are compared by hash: one that seems to appear twice is judged by the thorough pass.
        "record": np.fromiter([hash(i if d is None else d) for i, d in zip(images, ids, strict=True)], np.int64),
        "object": np.fromiter([o.id for o in objects], np.int64, len(objects)),
    }


def _blocks(path: Path) -> Iterator[bytes]:
    """The file in blocks of whole lines, about `_BLOCK_BYTES` each."""
    with open(path, "rb") as file:
        rest = [b""]
        while chunk := file.read(_BLOCK_BYTES):
            cut = chunk.rfind(b"\n") + 1
            if not cut:
                rest.append(chunk)
                continue
            yield b"".join([*rest, chunk[:cut]])
            rest = [chunk[cut:]]
        if last := b"".join(rest):
            yield last


def _thorough(path: Path) -> Arrays:
    """The arrays by the strict reader, which names what is wrong."""
    names: dict[str, int] = {}
    rows: dict[str, list[Any]] = {key: [] for key in ("line", "size_wh", "count", "name")}
    for line in valid_lines(path):
        sample = line.sample
        assert sample is not None
        written = [o for o in sample.objects if not o.iscrowd]
        numbers = {o.desc: names.setdefault(o.desc, len(names)) for o in sample.objects}
        rows["line"].append(line.number - 1)
        rows["size_wh"].append(sample.size_wh)
        rows["count"].append(len(written))
        rows["name"] += [numbers[o.desc] for o in written]
    digest = hashlib.sha256()
    sizes = []
    for block in _blocks(path):
        digest.update(block)
        sizes += [len(line) + 1 for line in block.removesuffix(b"\n").split(b"\n")]
    ends = np.cumsum(np.array(sizes, np.int64))
    lines = np.array(rows["line"], np.int64)
    size = np.array(sizes, np.int64)[lines]
    joined = {
        "start": ends[lines] - size,
        "size": size - 1,
        "size_wh": np.array(rows["size_wh"], np.int64).reshape(-1, 2),
        "count": np.array(rows["count"], np.int64),
        "name": np.array(rows["name"], np.int32),
    }
    return _arrays(joined, names, digest.digest())


def _arrays(joined: Arrays, names: dict[str, int], digest: bytes) -> Arrays:
    arrays = joined | {
        "first": np.concatenate([[0], np.cumsum(joined["count"])]),
        "names": np.frombuffer(json.dumps(list(names)).encode(), np.uint8),
        "sha256": np.frombuffer(digest, np.uint8),
    }
    return {key: arrays[key].astype(dtype, copy=False) for key, dtype in _TYPES.items()}
