"""The quick pass over a data file: strict, by a typed decoder and whole arrays; a large file is shared among processes.

It either finds that a file is as it should be, or that somebody else has to look: it names no errors. The processes are
of `python -m apiece.data.quick FILE FIRST LAST`, which reads whole lines from one byte to another and writes its arrays
as safetensors.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import chain, pairwise
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
from safetensors.numpy import load

from apiece.data.derived import Arrays, packed
from apiece.data.jsonl import without_cycle_search
from apiece.data.problems import Level
from apiece.data.record import MAX_AREA, MAX_SIDE, boxes_with_errors, desc_faults, texts_are_plain

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
