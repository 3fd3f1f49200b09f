"""Writing files so that a crash, a full disk or Ctrl-C never leaves half of one.

Everything is written under a temporary name in the same folder, flushed to disk and renamed.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Sequence
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

    A link is followed: the file that it points to is replaced, the link stays. A missing folder is made. `mode` is `w`
    (UTF-8 text, newline `\\n`) or `wb`.

    Raises:
        UserError: The disk is full, or the file cannot be written. Errors of the block itself pass through.
    """
    path = Path(path)
    target = Path(os.path.realpath(path))
    # Short, since a name may be 255 bytes; counted, so that two files in one folder never share a name.
    temporary = target.with_name(f".{target.name[:40]}.{os.getpid()}-{next(_numbers)}.tmp")
    try:
        with _as_user_error(path, during_block=False):
            _require_replaceable(target)
            target.parent.mkdir(parents=True, exist_ok=True)
            file = temporary.open("wb") if "b" in mode else temporary.open("w", encoding="utf-8", newline="\n")
        with _as_user_error(path, during_block=True), file:
            yield file
            file.flush()
            _sync(file.fileno())
        with _as_user_error(path, during_block=False):
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


def read_json(path: Path, *, fix: str | None = None) -> Any:
    """A JSON file's value, NaN and infinity allowed; a `UserError`, with this `fix`, where there is none to read."""
    try:
        return json.loads(path.read_bytes().decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        message = f"broken JSON: {error.msg.removesuffix(' at')} in line {error.lineno}, column {error.colno}"
    except UnicodeDecodeError as error:
        message = f"broken JSON: not UTF-8 text (byte {error.start})"
    except (ValueError, RecursionError):
        message = "broken JSON: nested too deep, or a number of thousands of digits"
    except OSError as error:
        message = f"cannot be read: {error.strerror}"
    raise UserError(message, where=path, fix=fix)


def read_json_object(path: Path, what: str, *, fix: str | None = None) -> dict[str, Any]:
    """`read_json` of a file that must hold an object; `what` names it in the message."""
    value = read_json(path, fix=fix)
    if not isinstance(value, dict):
        found = "a list" if isinstance(value, list) else "null" if value is None else f"{json.dumps(value):.40}"
        raise UserError(f"expected {what} (a JSON object), found {found}", where=path, fix=fix)
    return value


def require_new(out: Path) -> Path:
    """Refuse a name that is taken, or that nothing can be written under; the folder above it is made."""
    if os.path.lexists(out):
        raise UserError(
            "the output exists already and is not overwritten", where=out, fix="choose a new folder", exit_code=2
        )
    with _as_user_error(out, during_block=False):
        out.parent.mkdir(parents=True, exist_ok=True)
    return out


def sync_tree(folder: Path) -> None:
    """Flush a folder to disk: every file in it, and the names of them all."""
    for path in sorted(folder.rglob("*"), reverse=True):
        sync_path(path)
    sync_path(folder)


def sync_path(path: Path) -> None:
    """Flush one file, or the names in one folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        _sync(descriptor)
    finally:
        os.close(descriptor)


def require_free(out: Path, *, overwrite: bool, made_from: Sequence[Path] = ()) -> None:
    """Refuse to write over an existing file, unless `overwrite`, and over a file that it is made from."""
    if any(os.path.realpath(out) == os.path.realpath(source) for source in made_from):
        raise UserError(
            "it would replace the file that it is made from", where=out, fix="choose another name", exit_code=2
        )
    if out.is_file() and not overwrite:
        raise UserError(
            "this file is there already and is not overwritten",
            where=out,
            fix="choose another name, or add --overwrite",
            exit_code=2,
        )


def file_hash(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_locks: set[IO[str]] = set()


def _let_go() -> None:
    """In a forked child, such as a data worker: it would hold the locks of its parent after that has ended."""
    for file in _locks:
        file.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


@contextmanager
def locked(path: Path, *, wait: bool) -> Iterator[bool]:
    """Hold a lock file for the length of the block, and yield whether it is held: never false if `wait`.

    The lock ends with the process, however that ends; the file stays. Where the file system has no locks, the block
    runs as if it held one.
    """
    import fcntl  # missing on some systems; nothing else here needs it

    with _as_user_error(path, during_block=False):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w", encoding="utf-8")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                yield False
                return
        _locks.add(file)
        try:
            yield True
        finally:
            _locks.discard(file)


@contextmanager
def _as_user_error(path: Path, *, during_block: bool) -> Iterator[None]:
    """Convert an error of the file system to a `UserError`.

    While the caller's own code runs (`during_block`), only a disk's errors are this file's: those of `write` name no
    file, those of opening another one do.
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


def _require_replaceable(target: Path) -> None:
    """Refuse a folder, and a device or pipe, which renaming would replace with a file."""
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
