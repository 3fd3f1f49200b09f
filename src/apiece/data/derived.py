"""Arrays worked out from a file, kept beside it until it changes: opened in no time, and never held in memory whole.

A kept file is safetensors (a JSON header, then the arrays), memory-mapped. It is used only if its header names the
size, the time of change and the first and last bytes that the source has now, and if its own checksum is right;
otherwise it is made anew. Where nothing can be written beside the source it goes to a cache folder; where that fails,
too, the arrays live in memory.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from safetensors.numpy import save

from apiece.errors import UserError
from apiece.files import atomic_open

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
