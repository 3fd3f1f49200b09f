"""A mistake and what is said of it: one row a case, run as the command line runs it.

A case makes its files in an empty folder, runs one command there and pins the exit code and all that stderr says. What
was there before must be there afterwards, byte for byte, and nothing may be left that the case does not name.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import re
import shlex
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

from apiece.cli import main

Make = Callable[[Path], object]

ANYTHING = "…"
"""In a pinned text: whatever a library or the system says there, in its own words and version."""


@dataclass(frozen=True)
class Bad:
    """One mistake.

    Attributes:
        word: Names the case.
        command: What follows `apiece`, as in a shell.
        said: All of stderr; of a usage error, the text in its frame.
        make: Writes files into the folder that the command runs in.
        code: Exit code.
        shown: What stdout must hold.
        writes: Patterns of new files that this case may leave.
    """

    word: str
    command: str
    said: str
    make: Sequence[Make] = ()
    code: int = 1
    shown: str = ""
    writes: Sequence[str] = ()


def rows(cases: Sequence[Bad]) -> pytest.MarkDecorator:
    """The cases as parameters, each under its word."""
    words = [case.word for case in cases]
    assert len(set(words)) == len(words), f"a word twice: {sorted(w for w in words if words.count(w) > 1)}"
    return pytest.mark.parametrize("case", cases, ids=words)


@dataclass
class CommandLine:
    """Runs commands in a folder and keeps what they said."""

    folder: Path
    capsys: pytest.CaptureFixture[str]
    monkeypatch: pytest.MonkeyPatch

    def __call__(self, *words: str) -> tuple[int, str, str]:
        """Exit code, stdout, stderr."""
        self.monkeypatch.setattr(sys, "argv", ["apiece", *words])
        code = 0
        try:
            main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        out, err = self.capsys.readouterr()
        return code, out, err

    def refuses(self, case: Bad) -> None:
        """Run a case and hold what happens against it."""
        for make in case.make:
            make(self.folder)
        self.capsys.readouterr()
        before, threads = contents(self.folder), set(threading.enumerate())
        code, out, err = self(*shlex.split(case.command))
        assert "Traceback" not in err + out
        assert (code, plain(err)) == (case.code, Pinned(case.said)), f"it said:\n{plain(err)}"
        assert case.shown in plain(out)
        after = contents(self.folder)
        lost = [name for name, digest in before.items() if after.get(name) != digest]
        left = [name for name in after if name not in before and not any(fnmatch(name, p) for p in case.writes)]
        assert not lost, f"lost or changed: {lost}"
        assert not left, f"left behind: {left}"
        assert not set(threading.enumerate()) - threads, "a thread goes on"
        assert not multiprocessing.active_children(), "a process goes on"


class Pinned(str):
    """A pinned text: equal to one that differs only where it says `…`."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        pattern = ".*?".join(re.escape(part) for part in self.split(ANYTHING))
        return isinstance(other, str) and re.fullmatch(pattern, other, re.DOTALL) is not None

    __hash__ = str.__hash__


def contents(folder: Path) -> dict[str, str]:
    """What lies in a folder: the hash of each file, the target of each link, and folders."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found[name] = f"link to {path.readlink()}"
        elif path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[name] = "folder" if path.is_dir() else "neither file nor folder"
    return found


def plain(text: str) -> str:
    """What was said without frames: of a usage error only the text in its frame, as one line."""
    framed = re.search(r"╭─ Error ─+╮\n(.*)╰─+╯\n", text, re.DOTALL)
    if framed is None:
        return text
    return re.sub(r"[\s│]+", " ", framed[1]).strip()


def write(name: str, text: str | bytes = "") -> Make:
    """A file of this content, as it stands."""

    def make(folder: Path) -> None:
        (path := folder / name).parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())

    return make


def write_json(name: str, value: Any) -> Make:
    """A JSON file; NaN is written as Python does."""
    return write(name, json.dumps(value))


def write_lines(name: str, *values: Any) -> Make:
    """A JSONL file."""
    return write(name, "".join(json.dumps(value) + "\n" for value in values))


def mkdir(name: str) -> Make:
    """An empty folder."""
    return lambda folder: (folder / name).mkdir(parents=True)


def link(name: str, target: str) -> Make:
    """A symbolic link; its folder is made."""

    def make(folder: Path) -> None:
        (path := folder / name).parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(target)

    return make
