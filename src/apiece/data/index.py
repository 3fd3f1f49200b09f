"""The index of a data file: where each record lies, and what batches and checks need to know of it.

A million records are read strictly in seconds, by the quick pass (`quick.py`). Where anything is odd, the file is read
again by the one reader that says what a valid record is (`jsonl.py`), which names the errors, or finds that there are
none.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from apiece.data.derived import Arrays, kept_arrays
from apiece.data.jsonl import valid_lines, without_cycle_search
from apiece.data.problems import ROOT_VARIABLE
from apiece.data.quick import OddError, blocks, read_quickly
from apiece.errors import UserError, require_file
from apiece.types import IntArray

KEEP_FROM_BYTES = 32_000_000
"""From this size of the data file its index is kept; below, it is made in half a second."""
_TYPES = {
    "start": np.int64,
    "size": np.int32,
    "size_wh": np.int32,
    "first": np.int64,
    "name": np.int32,
    "names": np.uint8,
    "sha256": np.uint8,
}


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


def _build(path: Path) -> Arrays:
    try:
        arrays = _arrays(*read_quickly(path))
    except OddError:
        with without_cycle_search():
            arrays = _thorough(path)
    if not len(arrays["start"]):
        raise UserError("expected one image a line, found an empty file", where=path)
    return arrays


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
    for block in blocks(path, 0, path.stat().st_size):
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
