"""The one error that users see: what is wrong, where, and how to fix it.

`UserError` is for bad input (a missing file, a broken line, an impossible setting). The command line prints it
without a traceback and exits with `exit_code`. Mistakes of our own stay ordinary exceptions.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

INTERRUPTED = 130  # exit code after Ctrl-C: 128 and the signal's number, as shells count it


class UserError(Exception):
    """Bad input, explained in one message.

    Args:
        message: What was expected, what was found.
        where: File, file:line, or dotted config path; printed before the message.
        fix: What the user can do; printed on a line of its own.
        exit_code: 1 for bad content, 2 for bad usage.
    """

    def __init__(
        self, message: str, *, where: str | Path | None = None, fix: str | None = None, exit_code: int = 1
    ) -> None:
        self.message = message
        self.where = None if where is None else str(where)
        self.fix = fix
        self.exit_code = exit_code
        super().__init__(str(self))

    def __str__(self) -> str:
        head = f"{self.where}: {self.message}" if self.where else self.message
        return f"{head}\n  fix: {self.fix}" if self.fix else head


def nearest(name: str, known: Iterable[str]) -> str:
    """` (did you mean 'x'?)` for the closest known name, or an empty string."""
    close = get_close_matches(name, list(known), n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""


def require_file(path: Path, what: str) -> Path:
    """Return `path` if it is an existing file, else raise a `UserError` that names it."""
    if path.is_dir():
        raise UserError(f"expected {what}, found a folder", where=path, fix="name the file in it")
    if not path.is_file():
        raise UserError(
            f"{what} not found", where=path, fix="check the path; it is read relative to the current folder"
        )
    return path
