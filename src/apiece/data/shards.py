"""Images in tar shards: a path that leads through a `.tar` file names one of its members, `train-0001.tar/000123.jpg`.

Nothing is unpacked. Python's `tarfile` walks the headers of a shard once; where each member lies is kept beside the
shard (`derived.py`), and a member is read from there like a file of its own, in any order. Only plain files count:
links and devices in a shard are never followed, and a name that leads out of the shard is no member's.
"""

from __future__ import annotations

import io
import posixpath
import tarfile
from collections.abc import Iterator
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO

import numpy as np

from apiece.data.derived import Arrays, kept_arrays
from apiece.data.problems import ImageError, ProblemKind

SUFFIX = ".tar"
_KEEP_FROM_BYTES = 1_000_000
_MAPPED = 1024
"""Shards whose tables stay open in a process."""
_TYPES = {"name": np.uint64, "offset": np.int64, "size": np.int64}


def split_path(path: Path) -> tuple[Path, str] | None:
    """The tar file that a path leads through and the member's name in it; `None` for a path to a file of its own."""
    if f"{SUFFIX}/" not in path.as_posix():
        return None
    for parent in reversed(path.parents):
        if parent.suffix == SUFFIX and not parent.is_dir():
            return parent, path.relative_to(parent).as_posix()
    return None


def open_member(path: Path) -> BinaryIO | None:
    """A member of a shard as a file to read; `None` for a path to a file of its own.

    Raises:
        ImageError: The shard is missing, broken or compressed, or has no such member.
    """
    if (found := split_path(path)) is None:
        return None
    shard, name = found
    table = _table(shard)
    key = _key(posixpath.normpath(name))
    place = int(np.searchsorted(table["name"], key))
    if place == len(table["name"]) or table["name"][place] != key:
        message = f"no image {name!r} in this shard of {len(table['name']):,}"
        fix = "check the name; links and devices in a shard do not count"
        raise ImageError(ProblemKind.MISSING_IMAGE, message, shard, fix)
    file = open(shard, "rb", buffering=0)  # noqa: SIM115  closed with the member
    return io.BufferedReader(_Member(file, int(table["offset"][place]), int(table["size"][place])), 1 << 16)


def is_image_file(path: Path) -> bool:
    """Whether there is a file at a path, or a member."""
    try:
        member = open_member(path)
    except ImageError:
        return False
    if member is None:
        return path.is_file()
    member.close()
    return True


def read_image_file(path: Path, *, at_most: int | None = None) -> bytes:
    """All bytes of an image file or member; none of one with more than `at_most`.

    Raises:
        ImageError: The shard is missing or broken, or has no such member.
    """
    with open_member(path) or open(path, "rb") as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        return file.read() if at_most is None or size <= at_most else b""


def members(shard: Path) -> Iterator[tuple[str, int, int]]:
    """Name, first byte and size of every plain file in a tar file, front to back.

    Raises:
        ImageError: It is missing, no tar file, compressed, or cut off.
    """
    remake = "make it again, uncompressed, or copy it again"
    try:
        with open(shard, "rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # all that were met, which takes memory
                name = posixpath.normpath(member.name)
                if member.isreg() and not member.issparse() and name.split("/")[0] not in ("", ".."):
                    yield name, member.offset_data, member.size
            # A broken or missing header ends the walk like the zeros that end every tar file.
            file.seek(archive.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError(f"no end mark at byte {archive.offset:,}")
    except FileNotFoundError as error:
        fix = "check the path; in a JSONL file it is read relative to that file"
        raise ImageError(ProblemKind.MISSING_IMAGE, "tar shard not found", shard, fix) from error
    except PermissionError as error:
        fix = "check its permissions"
        raise ImageError(ProblemKind.UNREADABLE_IMAGE, "tar shard cannot be read", shard, fix) from error
    except (tarfile.TarError, EOFError, ValueError) as error:
        message = f"tar shard is cut off, damaged or compressed ({error})"
        raise ImageError(ProblemKind.BROKEN_SHARD, message, shard, remake) from error


def _table(shard: Path) -> Arrays:
    try:
        status = shard.stat()
    except OSError:
        status = None
    return _known_table(shard, status and (status.st_size, status.st_mtime_ns))


@lru_cache(_MAPPED)
def _known_table(shard: Path, state: tuple[int, int] | None) -> Arrays:
    if state is None:
        return _build(shard)  # which says what is wrong
    return kept_arrays(
        shard, "members", "", lambda: _build(shard), lambda found: _fits(found, state[0]), _KEEP_FROM_BYTES
    )


def _build(shard: Path) -> Arrays:
    rows = [(_key(name), offset, size) for name, offset, size in members(shard)]
    names = np.array([key for key, _, _ in rows], np.uint64)
    order = np.argsort(names, kind="stable")
    names = names[order]
    twice = set(names[1:][names[1:] == names[:-1]].tolist())
    if twice:
        name = next(name for name, _, _ in members(shard) if int(_key(name)) in twice)
        message, fix = f"tar shard has two images of the name {name!r}", "rename one of them"
        raise ImageError(ProblemKind.BROKEN_SHARD, message, shard, fix)
    places = np.array([(offset, size) for _, offset, size in rows], np.int64).reshape(-1, 2)[order]
    return {"name": names, "offset": places[:, 0].copy(), "size": places[:, 1].copy()}


def _fits(arrays: Arrays, shard_bytes: int) -> bool:
    """Whether kept arrays can be those of a shard of this size: they may come from anybody, with the data."""
    if arrays.keys() != _TYPES.keys() or any(arrays[key].dtype != dtype for key, dtype in _TYPES.items()):
        return False
    name, offset, size = (arrays[key] for key in _TYPES)
    if not name.shape == offset.shape == size.shape or name.ndim != 1:
        return False
    inside = (offset >= 0) & (size >= 0) & (offset <= shard_bytes) & (size <= shard_bytes - offset)
    return bool(inside.all() and (name[1:] > name[:-1]).all())


def _key(name: str) -> np.uint64:
    """A name as a number: two names of a shard with one number would be told as one name twice."""
    return np.uint64(int.from_bytes(blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "little"))


class _Member(io.RawIOBase):
    """A stretch of a file, as a file."""

    def __init__(self, file: io.RawIOBase | io.FileIO, start: int, size: int) -> None:
        self._file, self._start, self._size, self._at = file, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        self._file.seek(self._start + self._at)
        data = self._file.read(max(0, min(len(buffer), self._size - self._at))) or b""
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()
