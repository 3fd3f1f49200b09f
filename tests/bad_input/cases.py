"""A mistake and what is said of it: one row a case, run as the command line runs it.

A case makes its files in an empty folder and runs one command there. Its exit code and all that stderr says are pinned
in `said/AREA.txt`, case by case. What was there before must be there afterwards, byte for byte, and nothing may be left
that the case does not name.

`APIECE_PIN=1 pytest tests/bad_input` writes the pinned texts anew; read the difference before it is kept.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import re
import shlex
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

from apiece.cli import main

Make = Callable[[Path], object]

FOLDER = Path(__file__).parent / "said"
PINNING = bool(os.environ.get("APIECE_PIN"))
ANYTHING = "…"
"""In a pinned text: whatever a library or the system says there, in its own words and version."""


@dataclass(frozen=True)
class Bad:
    """One mistake.

    Attributes:
        word: Names the case.
        command: What follows `apiece`, as in a shell.
        make: Writes files into the folder that the command runs in.
        writes: Patterns of new files that this case may leave.
    """

    word: str
    command: str
    make: Sequence[Make] = ()
    writes: Sequence[str] = ()


Said = tuple[int, str]
"""Exit code and what was said: problems of data on stdout, then all of stderr (of usage errors, what is framed)."""

Pins = Mapping[str, dict[str, Said]]


def rows(area: str, *tables: Sequence[Bad]) -> pytest.MarkDecorator:
    """The cases of an area as parameters, each under its word, with what is pinned of it."""
    cases = [case for table in tables for case in table]
    words, pinned = [case.word for case in cases], read_said(area)
    assert len(set(words)) == len(words), f"a word twice: {sorted(w for w in words if words.count(w) > 1)}"
    if not PINNING:
        assert words == list(pinned), f"said/{area}.txt has other cases: {sorted(set(words) ^ set(pinned))}"
    return pytest.mark.parametrize(
        ("area", "case", "said"), [(area, case, pinned.get(case.word, (0, ""))) for case in cases], ids=words
    )


def read_said(area: str) -> dict[str, Said]:
    """What is pinned of an area, by word."""
    path = FOLDER / f"{area}.txt"
    parts = re.split(r"^## (.*) -> (\d+)\n", path.read_text(encoding="utf-8") if path.exists() else "", flags=re.M)[1:]
    return {word: (int(code), text.strip("\n")) for word, code, text in zip(*[iter(parts)] * 3, strict=True)}


def write_said(area: str, found: Mapping[str, Said]) -> None:
    """Pin what was said; a pin that still holds stays, with what it leaves open."""
    before = read_said(area)
    kept = {
        w: before[w] if w in before and said == (before[w][0], Pinned(before[w][1])) else said
        for w, said in found.items()
    }
    FOLDER.mkdir(exist_ok=True)
    text = "\n".join(f"## {word} -> {code}\n{text}\n" for word, (code, text) in kept.items())
    (FOLDER / f"{area}.txt").write_text(text, encoding="utf-8")


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

    def refuses(self, case: Bad, said: Said, pins: dict[str, Said]) -> None:
        """Run a case and hold what happens against what is pinned."""
        for make in case.make:
            make(self.folder)
        self.capsys.readouterr()
        before, threads = contents(self.folder), set(threading.enumerate())
        code, out, err = self(*shlex.split(case.command))
        assert "Traceback" not in err + out
        assert code in (1, 2), f"exit code {code}: {out}{err}"
        found = code, "\n".join(problems(out) + plain(err).splitlines())
        pins[case.word] = found
        if not PINNING:
            assert found == (said[0], Pinned(said[1])), f"it said:\n{found[1]}"
        after = contents(self.folder)
        lost = [name for name, digest in before.items() if after.get(name) != digest]
        left = [name for name in after if name not in before and not any(fnmatch(name, p) for p in case.writes)]
        assert not lost, f"lost or changed: {lost}"
        assert not left, f"left behind: {left}"
        for thread in set(threading.enumerate()) - threads:
            thread.join(timeout=10)  # the one that feeds a closed queue needs a moment
            assert not thread.is_alive(), f"a thread goes on: {thread}"
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


def problems(out: str) -> list[str]:
    """The problems of data on stdout, one a line with its kind in brackets."""
    return [line.strip() for line in out.splitlines() if re.search(r" \[[a-z_0-9]+\]$", line)]


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
