"""Writing files so that a crash, a full disk or Ctrl-C never leaves half of one.

Everything is written under a temporary name in the same folder, flushed to disk and renamed.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from apiece.errors import UserError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_DISK = (*_FULL, errno.EIO, errno.EFBIG, errno.EROFS, errno.ESTALE)
_numbers = itertools.count()


@contextmanager
def atomic_open(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open `path` for writing; the file appears under its name only when the block ends without an error.

    A link is followed: the file that it points to is replaced, the link stays.

    Args:
        path: Target; its folder is made if missing.
        mode: `w` (UTF-8 text, newline `\\n`) or `wb`.

    Raises:
        UserError: The disk is full, or no file can be written under this name. An error of the block itself, such as
            another file that cannot be read, passes through as it is.
    """
    path = Path(path)
    target = Path(os.path.realpath(path))
    # Short, since a name may be 255 bytes; counted, so that two files in one folder never share a name.
    temporary = target.with_name(f".{target.name[:40]}.{os.getpid()}-{next(_numbers)}.tmp")
    try:
        with _told(path, during_block=False):
            _require_replaceable(target)
            target.parent.mkdir(parents=True, exist_ok=True)
            file = _open(temporary, mode)
        with _told(path, during_block=True), file:
            yield file
            file.flush()
            _sync(file.fileno())
        with _told(path, during_block=False):
            temporary.replace(target)
    finally:
        with suppress(OSError):  # what cannot be reached was never made
            temporary.unlink()


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_open(path) as file:
        file.write(text)


def write_json(path: Path, value: Any, *, indent: int | None = 1) -> None:
    """Write strict JSON (NaN is an error) atomically, with a newline at the end."""
    write_text(path, json.dumps(value, indent=indent, allow_nan=False, ensure_ascii=False) + "\n")


def file_hash(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _told(path: Path, *, during_block: bool) -> Iterator[None]:
    """Tell an error of the file system as a `UserError`.

    Args:
        path: The file as the user named it.
        during_block: Whether the caller's own code runs. Then only a disk's errors are this file's: those of `write`
            name no file, those of opening another one do.
    """
    try:
        yield
    except OSError as error:
        if during_block and (error.filename is not None or error.errno not in _DISK):
            raise
        if error.errno in _FULL:
            message, fix = "no space left on the disk", "free some space or write elsewhere"
        else:
            message, fix = f"cannot write here: {error.strerror}", "choose another name or folder that you can write to"
        raise UserError(message, where=path, fix=fix) from error


def _open(path: Path, mode: str) -> IO[Any]:
    return path.open("wb") if "b" in mode else path.open("w", encoding="utf-8", newline="\n")


def _require_replaceable(target: Path) -> None:
    """Refuse a folder, and a device or pipe, which the renaming would replace by a file."""
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, "a folder has this name", str(target))
    if target.exists() and not target.is_file():
        raise OSError(errno.EINVAL, "this is a device or a pipe, not a file", str(target))


def _sync(descriptor: int) -> None:
    """Flush to disk, where the file system can (some network mounts cannot)."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
