"""Writing files so that a crash, a full disk or Ctrl-C never leaves half of one.

Everything is written under a temporary name in the same folder, flushed to disk and renamed.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from apiece.errors import UserError


@contextmanager
def atomic_open(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open `path` for writing; the file appears under its name only when the block ends without an error.

    Args:
        path: Target; its folder is made if missing.
        mode: `w` (UTF-8 text, newline `\\n`) or `wb`.

    Raises:
        UserError: The disk is full or the folder cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
        with open(temporary, mode, **text) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError("no space left on the disk", where=path, fix="free some space or write elsewhere") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR):
            reason = os.strerror(error.errno)
            raise UserError(f"cannot write here: {reason}", where=path, fix="choose a folder that you can write to") from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_open(path) as file:
        file.write(text)


def write_json(path: Path, value: Any, *, indent: int | None = 1) -> None:
    """Write strict JSON (NaN is an error) atomically, with a newline at the end."""
    write_text(path, json.dumps(value, indent=indent, allow_nan=False, ensure_ascii=False) + "\n")
