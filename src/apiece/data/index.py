"""The index of a data file: where each record lies, and what batches and checks need to know of it.

A million records are read strictly in seconds, by the quick pass (`quick.py`). Where anything is odd, the file is read
again by the one reader that says what a valid record is (`jsonl.py`), which names the errors, or finds that there are
none.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import Annotated, Any, BinaryIO, overload

import msgspec
import numpy as np
from safetensors.numpy import load, save

from apiece.data.jsonl import parse_line, valid_lines, without_cycle_search
from apiece.data.lines import MAX_AREA, MAX_SIDE, ROOT_VARIABLE, Level, boxes_with_errors, desc_faults, texts_are_plain
from apiece.errors import UserError, require_file
from apiece.files import atomic_open
from apiece.types import IntArray, Sample

# Arrays worked out from a file, kept beside it until it changes: opened in no time, and never held in memory whole.
#
# A kept file is safetensors (a JSON header, then the arrays), memory-mapped. It is used only if its header names the
# size, the time of change and the first and last bytes that the source has now, and if its own checksum is right;
# otherwise it is made anew. Where nothing can be written beside the source it goes to a cache folder; where that fails,
# too, the arrays live in memory.


Arrays = dict[str, np.ndarray]
log = logging.getLogger("apiece")

_FORMAT = "2"
_END_BYTES = 1 << 16
_MAX_HEADER = 1 << 20
_DTYPES = {"I64": np.int64, "I32": np.int32, "U8": np.uint8, "U64": np.uint64}


def state_of(file: BinaryIO) -> tuple[int, int]:
    """Size in bytes and time of change in nanoseconds of an open file: what tells that it is another one now."""
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns


def packed(arrays: Arrays, metadata: dict[str, str] | None = None) -> bytes:
    """Arrays as safetensors, row by row: the library writes memory as it lies, whatever the strides say."""
    return save({key: np.ascontiguousarray(values) for key, values in arrays.items()}, metadata=metadata)


def kept_arrays(
    source: Path,
    kind: str,
    settings: str,
    build: Callable[[], Arrays],
    fits: Callable[[Arrays], bool],
    keep_from: int,
) -> Arrays:
    """The arrays of a source: as they were kept, if it has not changed since, else built and kept.

    Args:
        source: The file.
        kind: What the arrays are; part of the kept file's name.
        settings: What they depend on beside the source, as text.
        build: Makes them.
        fits: Whether kept arrays can be those of the source at all; what cannot is made anew.
        keep_from: Bytes of the source from which they are kept; below, building them is quick.

    Returns:
        Arrays by name; read-only where they come from a file.
    """
    before = _fingerprint(source, settings)
    if int(before["size"]) < keep_from:
        return build()
    places = _places(source, kind)
    for place in places:
        if (arrays := _read(place, before)) is not None and fits(arrays):
            return arrays
    arrays = build()
    if _fingerprint(source, settings) != before:
        raise UserError("the file changed while it was read", where=source, fix="start again once it is complete")
    for place in places:
        try:
            with atomic_open(place, "wb") as file:
                file.write(_packed(arrays, before))
        except (UserError, OSError):
            continue
        if place is not places[0]:
            log.info("nothing can be written beside %s: its index is kept in %s", source, place.parent)
        return _read(place, before) or arrays
    log.warning("the index of %s can be kept nowhere, so every start takes as long: set XDG_CACHE_HOME", source)
    return arrays


def _places(source: Path, kind: str) -> tuple[Path, Path]:
    """Where the arrays of a source may lie: beside it, or in the user's cache."""
    name = f"{source.name}.{kind}.safetensors"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    full = hashlib.sha256(os.path.realpath(source).encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return source.with_name(f".{name}"), cache / "apiece" / f"{full}.{name}"


def _fingerprint(source: Path, settings: str) -> dict[str, str]:
    """What must be the same for kept arrays to be those of the source."""
    with open(source, "rb") as file:
        size, changed = state_of(file)
        ends = hashlib.blake2b(file.read(_END_BYTES))
        file.seek(max(0, size - _END_BYTES))
        ends.update(file.read(_END_BYTES))
    return {
        "format": _FORMAT,
        "size": str(size),
        "changed_ns": str(changed),
        "ends": ends.hexdigest(),
        "settings": settings,
    }


def _packed(arrays: Arrays, fingerprint: dict[str, str]) -> bytes:
    """A safetensors file; its header also holds the checksum of what follows."""
    # The header's own text changes nothing behind it, so packing twice gives the same data.
    plain = packed(arrays)
    start = 8 + int.from_bytes(plain[:8], "little")
    return packed(arrays, fingerprint | {"crc32": str(zlib.crc32(memoryview(plain)[start:]))})


def _read(place: Path, fingerprint: dict[str, str]) -> Arrays | None:
    """Kept arrays, memory-mapped; `None` if there are none, or they are not those of the source, or damaged."""
    try:
        with open(place, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header: Any = json.loads(file.read(length)) if length <= _MAX_HEADER else None
        if not isinstance(header, dict) or not isinstance(metadata := header.pop("__metadata__", None), dict):
            return None
        checksum = metadata.pop("crc32", None)
        data = np.memmap(place, np.uint8, "r", offset=8 + length)
        if metadata != fingerprint or checksum != str(zlib.crc32(data.data)):
            return None
        return {name: _view(data, entry) for name, entry in header.items()}
    except (OSError, ValueError, KeyError, TypeError):
        return None  # it is only a copy of what can be worked out again


def _view(data: np.ndarray, entry: dict[str, Any]) -> np.ndarray:
    first, last = entry["data_offsets"]
    return data[first:last].view(_DTYPES[entry["dtype"]]).reshape(entry["shape"])


# The records of a data file, each read when it is asked for: a file of any length takes no memory but its index.


class Records(Sequence[Sample]):
    """Samples of a data file, or some of them, read from it one by one.

    Args:
        path: The JSONL file. Image paths are joined to its folder.
        table: The index of the file.
        rows: Which of its records, in this order; all if `None`.
    """

    def __init__(self, path: Path, table: RecordIndex, rows: IntArray | None = None) -> None:
        self.path, self.table = path, table
        self.rows = np.arange(len(table.start)) if rows is None else rows

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, place: int) -> Sample: ...
    @overload
    def __getitem__(self, place: slice) -> Records: ...
    def __getitem__(self, place: int | slice) -> Sample | Records:
        if isinstance(place, slice):
            return self.select(np.arange(len(self))[place])
        return self._read(int(self.rows[place]))

    def select(self, places: IntArray) -> Records:
        """Some of these records, in the order given."""
        return Records(self.path, self.table, self.rows[places])

    @property
    def num_objects(self) -> IntArray:
        """`[N]` objects of each, crowd regions not counted; nothing is read for it."""
        return self.table.num_objects[self.rows]

    @property
    def size_wh(self) -> IntArray:
        """`[N, 2]` pixels of each image."""
        return self.table.size_wh[self.rows]

    def sums_over_names(self, value: IntArray) -> IntArray:
        """`[N]` for each record the sum over its objects (crowd regions left out) of a value that its name has.

        Args:
            value: `[names]` one for each of `table.names`.
        """
        table = self.table
        total = np.concatenate([[0], np.cumsum(value[table.name])])
        return (total[table.first[1:]] - total[table.first[:-1]])[self.rows]

    def _read(self, row: int) -> Sample:
        start, size = int(self.table.start[row]), int(self.table.size[row])
        with open(self.path, "rb", buffering=0) as file:
            if state_of(file) != self.table.file_state:
                raise UserError(
                    "the file has changed since its records were found in it", where=self.path, fix="start again"
                )
            file.seek(start)
            raw = file.read(size)
        line = parse_line(raw, folder=self.path.parent, number=1 if start == 0 else 2, where=str(self.path))
        if line.sample is None or line.errors:
            number = self._line_number(start)
            where = f"{self.path}:{number}"
            first = parse_line(raw, folder=self.path.parent, number=number, where=where).errors[0]
            raise UserError(first.message, where=where, fix=f"see all errors with `apiece data check {self.path}`")
        return line.sample

    def _line_number(self, start: int) -> int:
        """Number, from 1, of the line that begins at a byte."""
        number = 1
        with open(self.path, "rb") as file:
            while start > 0 and (chunk := file.read(min(start, 1 << 24))):
                number += chunk.count(b"\n")
                start -= len(chunk)
        return number


def open_records(path: Path) -> Records:
    """The records of a data file, which is held against the contract, but not kept in memory.

    Raises:
        UserError: The file is missing or empty, or some lines are wrong.
    """
    return Records(Path(path), index_of(path))


# The quick pass over a data file: strict, by a typed decoder and whole arrays; a large file is shared among processes.
#
# It either finds that a file is as it should be, or that somebody else has to look: it names no errors. The processes
# are of `python -m apiece.data.quick FILE FIRST LAST`, which reads whole lines from one byte to another and writes
# its arrays as safetensors.


SHARE_BYTES = 64_000_000
"""A process of its own is worth it for this much of a file: it starts in half a second, and reads this in one."""
MAX_PROCESSES = 16
_BLOCK_BYTES = 4 << 20
_NO_ID = -(2**63)
_KEYS = ("start", "size", "size_wh", "count", "name", "record", "object")
_ODD = 3  # exit code: not a mistake of the process, the file has to be looked at


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


class OddError(Exception):
    """The quick pass cannot judge this file."""


class _Names(dict[str, int]):
    """Numbers of names, given as they are met."""

    def __missing__(self, name: str) -> int:
        if any(kind.level is Level.ERROR for kind, _ in desc_faults(name)):
            raise OddError
        self[name] = number = len(self)
        return number


def read_quickly(path: Path) -> tuple[Arrays, dict[str, int], bytes]:
    """What a file without errors holds.

    Returns:
        Arrays by name, numbered names, and the file's SHA-256. `start`, `size` and `count` are `[N]`, `size_wh` is
        `[N, 2]`, `name` is `[M]` (see `RecordIndex`).

    Raises:
        OddError: There may be an error.
    """
    size = path.stat().st_size
    shares = min(_cores(), MAX_PROCESSES, size // SHARE_BYTES)
    spans = _spans(path, size, shares) if shares > 1 else []
    if len(spans) > 1 and (found := _in_processes(path, spans)) is not None:
        parts, digest = found
    else:
        hashed = hashlib.sha256()
        with without_cycle_search():
            parts = [_read_span(path, 0, size, hashed)]
        digest = hashed.digest()
    names: dict[str, int] = {}
    for part in parts:
        number = [names.setdefault(name, len(names)) for name in json.loads(part.pop("names").tobytes())]
        part["name"] = np.array(number, np.int32)[part["name"]] if number else part["name"]
    joined = {key: np.concatenate([part[key] for part in parts]) for key in _KEYS}
    objects = joined.pop("object")
    for ids in (joined.pop("record"), objects[objects != _NO_ID]):
        if (np.diff(ids) <= 0).any() and len(np.unique(ids)) < len(ids):
            raise OddError  # an id that appears twice
    return joined, names, digest


def blocks(path: Path, first: int, last: int) -> Iterator[bytes]:
    """The bytes from `first` to `last` in blocks of whole lines, about 4 MB each."""
    with open(path, "rb") as file:
        file.seek(first)
        rest, left = [b""], last - first
        while left > 0 and (chunk := file.read(min(_BLOCK_BYTES, left))):
            left -= len(chunk)
            cut = chunk.rfind(b"\n") + 1
            if not cut:
                rest.append(chunk)
                continue
            yield b"".join([*rest, chunk[:cut]])
            rest = [chunk[cut:]]
        if end := b"".join(rest):
            yield end


def _cores() -> int:
    """Cores for this process, where torchrun may have started several on the machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores // max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def _spans(path: Path, size: int, shares: int) -> list[tuple[int, int]]:
    """The file in about equal parts of whole lines, from byte to byte."""
    cuts = [0]
    with open(path, "rb") as file:
        for share in range(1, shares):
            file.seek(max(cuts[-1], size * share // shares))
            file.readline()
            cuts.append(file.tell())
    cuts.append(size)
    return [(first, last) for first, last in pairwise(cuts) if first < last]


def _in_processes(path: Path, spans: list[tuple[int, int]]) -> tuple[list[Arrays], bytes] | None:
    """Every part by a process, and the file's SHA-256 meanwhile by this one; `None` where processes do not work.

    Raises:
        OddError: In one of them.
    """
    # Ids are compared by hash, which must be the same in all.
    settings = os.environ | {
        "PYTHONPATH": os.pathsep.join(p or str(Path.cwd()) for p in sys.path),
        "PYTHONHASHSEED": "0",
    }
    command = [sys.executable, "-m", __name__, str(path)]
    children: list[subprocess.Popen[bytes]] = []
    try:
        for first, last in spans:
            asked = [*command, str(first), str(last)]
            children.append(subprocess.Popen(asked, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=settings))
        hashed = hashlib.sha256()
        for block in blocks(path, 0, spans[-1][1]):
            hashed.update(block)
        written = [child.communicate()[0] for child in children]
    except OSError:
        return None
    finally:
        for child in children:
            child.kill()
            child.wait()
            if child.stdout is not None:
                child.stdout.close()
    codes = [child.returncode for child in children]
    if _ODD in codes:
        raise OddError
    return None if any(codes) else ([load(data) for data in written], hashed.digest())


def _read_span(path: Path, first: int, last: int, hashed: hashlib._Hash | None = None) -> Arrays:
    """The arrays of whole lines; `names` is a list in JSON.

    Raises:
        OddError: There may be an error.
    """
    names = _Names()
    parts: dict[str, list[np.ndarray]] = {key: [] for key in _KEYS}
    try:
        for block in blocks(path, first, last):
            if hashed is not None:
                hashed.update(block)
            for key, values in _read_block(block, first, names, path.parent).items():
                parts[key].append(values)
            first += len(block)
    except (msgspec.DecodeError, UnicodeError) as error:
        raise OddError from error
    empty = {key: np.zeros((0, 2) if key == "size_wh" else 0, np.int64) for key in _KEYS}
    joined = {key: np.concatenate(values) if values else empty[key] for key, values in parts.items()}
    return joined | {"names": np.frombuffer(json.dumps(list(names)).encode(), np.uint8)}


def _read_block(block: bytes, offset: int, names: _Names, folder: Path) -> Arrays:
    lines = block.removesuffix(b"\n").split(b"\n")
    sizes = np.fromiter(map(len, lines), np.int64, len(lines))
    starts = offset + np.cumsum(sizes + 1) - sizes - 1
    if b"\n\n" in block or b"\r\n" in block or block[:1].isspace():
        written = np.fromiter((bool(line.strip()) for line in lines), bool, len(lines))
        lines, sizes, starts = [line for line in lines if line.strip()], sizes[written], starts[written]
    records = [_decode(line) for line in lines]
    images, ids = [r.image for r in records], [r.id for r in records]
    if not texts_are_plain(images, ids, folder):
        raise OddError
    objects = [o for r in records for o in r.objects]
    count = np.fromiter([len(r.objects) for r in records], np.int64, len(records))
    size_wh = np.empty((2, len(records)), np.int64)
    size_wh[:] = [r.width for r in records], [r.height for r in records]
    corners = chain.from_iterable([o.bbox for o in objects])
    boxes_xyxy = np.fromiter(corners, np.float64, 4 * len(objects)).reshape(-1, 4)
    if boxes_with_errors(boxes_xyxy, np.repeat(size_wh, count, axis=1).T).any():
        raise OddError
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


if __name__ == "__main__":
    try:
        with without_cycle_search():
            sys.stdout.buffer.write(packed(_read_span(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
    except OddError:
        sys.exit(_ODD)


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
