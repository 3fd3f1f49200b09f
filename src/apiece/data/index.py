"""The index of a data file: where each line lies, and what batches and checks need to know about it.

A million lines are read strictly in seconds and checked by the rules that every reader uses (`lines.py`). Where one is
wrong, the file is read once more by `jsonl.py`, which names the errors. The index of a large file is kept next to
it until it changes: it opens at once and is never in memory whole.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import zlib
from array import array
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO, overload

import numpy as np
from safetensors.numpy import save

from apiece.data.jsonl import twice, valid_lines, without_cycle_search
from apiece.data.lines import ROOT_VARIABLE, Level, LineForm, decode, faults_of, read_line
from apiece.errors import UserError, require_file
from apiece.files import atomic_open
from apiece.types import IntArray, Sample

Arrays = dict[str, np.ndarray]
log = logging.getLogger("apiece")

KEEP_FROM_BYTES = 32_000_000  # from this size of the data file its index is kept; below, it is made in half a second
_FORMAT = "3"
_END_BYTES = 1 << 16
_MAX_HEADER = 1 << 20
_DTYPES = {"I64": np.int64, "I32": np.int32, "U8": np.uint8}
_TYPES: dict[str, Any] = {
    **{"start": np.int64, "size": np.int32, "size_wh": np.int32, "first": np.int64, "name": np.int32},
    **{"names": np.uint8, "sha256": np.uint8},
}


@dataclass(frozen=True, slots=True, eq=False)
class LineIndex:
    """Where the lines of a file lie and what is in them. N lines, M objects that are not crowd regions."""

    start: IntArray  # `[N]` first byte of each line
    size: IntArray  # `[N]` bytes of it, without the line break
    size_wh: IntArray  # `[N, 2]` pixels of its image
    first: IntArray  # `[N + 1]` where its objects begin in `name`
    name: IntArray  # `[M]` which of `names` each object has
    names: tuple[str, ...]  # every name in the file, those of crowd regions alone included
    sha256: str  # of the file, in hex
    file_state: tuple[int, int]  # size in bytes and time of change in ns, when the index was made

    @property
    def num_objects(self) -> IntArray:
        """`[N]` objects of each line, crowd regions not counted."""
        return np.diff(self.first)


class DataFile(Sequence[Sample]):
    """Samples of a data file, each read when it is asked for: only the index is in memory.

    `rows` says which lines, in which order; `None` means all.
    """

    def __init__(self, path: Path, table: LineIndex, rows: IntArray | None = None) -> None:
        self.path, self.table = path, table
        self.rows = np.arange(len(table.start)) if rows is None else rows

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, place: int) -> Sample: ...
    @overload
    def __getitem__(self, place: slice) -> DataFile: ...
    def __getitem__(self, place: int | slice) -> Sample | DataFile:
        if isinstance(place, slice):
            return self.select(np.arange(len(self))[place])
        return self._read(int(self.rows[place]))

    def select(self, places: IntArray) -> DataFile:
        return DataFile(self.path, self.table, self.rows[places])

    @property
    def num_objects(self) -> IntArray:
        """`[N]` objects of each, crowd regions not counted."""
        return self.table.num_objects[self.rows]

    @property
    def size_wh(self) -> IntArray:
        """`[N, 2]` pixels of each image."""
        return self.table.size_wh[self.rows]

    def sums_over_names(self, value: IntArray) -> IntArray:
        """`[N]` for each sample the sum over its objects, without crowd regions, of the `value` of their names.

        `value` has one entry for each of `table.names`.
        """
        table = self.table
        total = np.concatenate([[0], np.cumsum(value[table.name])])
        return (total[table.first[1:]] - total[table.first[:-1]])[self.rows]

    def _read(self, row: int) -> Sample:
        start, size = int(self.table.start[row]), int(self.table.size[row])
        with open(self.path, "rb", buffering=0) as file:
            if _state_of(file) != self.table.file_state:
                raise UserError("the file has changed since it was opened", where=self.path, fix="start again")
            file.seek(start)
            raw = file.read(size)
        line = read_line(raw, folder=self.path.parent, number=1 if start == 0 else 2, where=str(self.path))
        if line.sample is None or line.errors:
            number = 1
            with open(self.path, "rb") as file:
                while start > 0 and (chunk := file.read(min(start, 1 << 24))):
                    number += chunk.count(b"\n")
                    start -= len(chunk)
            where = f"{self.path}:{number}"
            first = read_line(raw, folder=self.path.parent, number=number, where=where).errors[0]
            raise UserError(first.message, where=where, fix=f"see all errors with `apiece data check {self.path}`")
        return line.sample


def open_data(path: Path) -> DataFile:
    """The samples of a data file, which is checked whole but not kept in memory; errors as in `read_jsonl`."""
    return DataFile(Path(path), index_of(path))


def index_of(path: Path) -> LineIndex:
    """The index of a data file, read as strictly as by `read_jsonl`. Images are not opened."""
    path = require_file(Path(path), "a JSONL data file")
    try:
        status = path.stat()
        arrays = _build(path) if status.st_size < KEEP_FROM_BYTES else _kept(path)
    except PermissionError as error:
        raise UserError("cannot be read: permission denied", where=path) from error
    start, size, size_wh, first, name = (arrays[key] for key in ("start", "size", "size_wh", "first", "name"))
    sha256 = arrays["sha256"].tobytes().hex()
    return LineIndex(start, size, size_wh, first, name, _names(arrays), sha256, (status.st_size, status.st_mtime_ns))


def _build(path: Path) -> Arrays:
    """The arrays of `LineIndex` by name; texts as bytes."""
    starts, sizes, sides, counts, names_of = (array("q") for _ in range(5))
    ids, object_ids = array("q"), array("q")
    number_of: dict[str, int] = defaultdict(count().__next__)
    digest = hashlib.sha256()
    at = 0
    with open(path, "rb") as file, without_cycle_search():
        for number, raw in enumerate(file, 1):
            digest.update(raw)
            start, at = at, at + len(raw)
            if raw.isspace():
                continue
            form = decode(raw)
            if form is None or any(kind.level is Level.ERROR for _, (kind, _) in faults_of(form, path.parent)):
                form = _form_of(raw, path, number)
            written = [number_of[o.desc] for o in form.objects if not o.iscrowd]
            if len(written) < len(form.objects):
                for o in form.objects:
                    number_of[o.desc]
            starts.append(start)
            sizes.append(len(raw) - raw.endswith(b"\n"))
            sides.extend((form.width, form.height))
            counts.append(len(written))
            names_of.extend(written)
            ids.append(hash(form.image if form.id is None else form.id))
            object_ids.extend([hash(o.id) for o in form.objects if o.id is not None])
    if twice(ids) or twice(object_ids) or not starts:
        _refuse(path)
    arrays = {
        "start": np.array(starts),
        "size": np.array(sizes),
        "size_wh": np.array(sides).reshape(-1, 2),
        "first": np.concatenate([[0], np.cumsum(counts)]),
        "name": np.array(names_of),
        "names": np.frombuffer(json.dumps(list(number_of)).encode(), np.uint8),
        "sha256": np.frombuffer(digest.digest(), np.uint8),
    }
    return {key: arrays[key].astype(dtype, copy=False) for key, dtype in _TYPES.items()}


def _form_of(raw: bytes, path: Path, number: int) -> LineForm:
    """A line that the fast checks do not accept, if it is right after all; otherwise the file's errors are raised."""
    line = read_line(raw, folder=path.parent, number=number, where="")
    if line.errors:
        _refuse(path)
    sample = line.sample
    assert sample is not None, "a line without a sample has an error"
    objects: Any = sample.objects  # they have the fields of an `ObjectForm`
    return LineForm("", *sample.size_wh, objects, sample.id)


def _refuse(path: Path) -> None:
    """Name the errors of a file that has some."""
    for _ in valid_lines(path):
        pass


# The kept file is safetensors (a JSON header, then the arrays), memory-mapped. It is used only if its header names the
# size, the time of change and the first and last bytes that the data file has now, and if its own checksum is right;
# otherwise it is made again. Where nothing can be written next to the data it goes to a cache folder; where that fails
# as well, the arrays live in memory.


def _kept(path: Path) -> Arrays:
    """The arrays as they were kept, if the file has not changed since, else built and kept."""
    before = _fingerprint(path)
    places = _places(path)
    for place in places:
        if (arrays := _read(place, before)) is not None and _fits(arrays, int(before["size"])):
            return arrays
    arrays = _build(path)
    if _fingerprint(path) != before:
        raise UserError("the file changed while it was read", where=path, fix="start again once it is complete")
    content = save(arrays, metadata=before | {"crc32": _checksum(arrays)})
    for place in places:
        try:
            with atomic_open(place, "wb") as file:
                file.write(content)
        except (UserError, OSError):
            continue
        if place is not places[0]:
            log.info("cannot write next to %s: its index is kept in %s", path, place.parent)
        return _read(place, before) or arrays
    log.warning("the index of %s cannot be kept anywhere, so every start takes as long: set XDG_CACHE_HOME", path)
    return arrays


def _places(path: Path) -> tuple[Path, Path]:
    """Where the index of a file may lie: next to it, or in the user's cache."""
    name = f"{path.name}.records.safetensors"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    full = hashlib.sha256(os.path.realpath(path).encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return path.with_name(f".{name}"), cache / "apiece" / f"{full}.{name}"


def _state_of(file: BinaryIO) -> tuple[int, int]:
    """As `LineIndex.file_state`, of an open file."""
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns


def _fingerprint(path: Path) -> dict[str, str]:
    """Equal fingerprints mean that a kept index is that of the file."""
    with open(path, "rb") as file:
        size, changed = _state_of(file)
        ends = hashlib.blake2b(file.read(_END_BYTES))
        file.seek(max(0, size - _END_BYTES))
        ends.update(file.read(_END_BYTES))
    return {
        "format": _FORMAT,
        "size": str(size),
        "changed_ns": str(changed),
        "ends": ends.hexdigest(),
        "settings": os.environ.get(ROOT_VARIABLE, ""),  # it decides which paths are errors
    }


def _checksum(arrays: Arrays) -> str:
    total = 0
    for key in _TYPES:
        total = zlib.crc32(arrays[key].reshape(-1).view(np.uint8).data, total)
    return str(total)


def _read(place: Path, fingerprint: dict[str, str]) -> Arrays | None:
    """Kept arrays, memory-mapped; `None` if they are missing, damaged, or of another file."""
    try:
        with open(place, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header: Any = json.loads(file.read(length)) if length <= _MAX_HEADER else None
        metadata = header.pop("__metadata__")
        checksum = metadata.pop("crc32")
        if metadata != fingerprint:
            return None
        data = np.memmap(place, np.uint8, "r", offset=8 + length)
        arrays = {}
        for key, entry in header.items():
            begin, end = entry["data_offsets"]
            arrays[key] = data[begin:end].view(_DTYPES[entry["dtype"]]).reshape(entry["shape"])
        return arrays if checksum == _checksum(arrays) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # it is made again


def _fits(arrays: Arrays, file_bytes: int) -> bool:
    """Whether kept arrays can be an index of a file of this size; not trusted, as they may come with the data."""
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
    """The names; none where they are damaged."""
    try:
        names = json.loads(arrays["names"].tobytes())
    except ValueError:
        return ()
    return tuple(name for name in names if isinstance(name, str)) if isinstance(names, list) else ()
