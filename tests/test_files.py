"""Files are whole or absent, and the file system's errors are told in one message."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from apiece.errors import UserError
from apiece.files import atomic_open, locked, write_json, write_text


def names(folder: Path) -> list[str]:
    """Everything in a folder, hidden files too."""
    return sorted(p.name for p in folder.iterdir())


def fails(code: int) -> Callable[..., None]:
    """A system call that fails."""

    def call(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    return call


def test_text_is_utf8_with_unix_newlines_in_a_new_folder(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "b" / "x.txt", "naïve 🐟\n")
    assert (tmp_path / "a" / "b" / "x.txt").read_bytes() == "naïve 🐟\n".encode()
    assert names(tmp_path / "a" / "b") == ["x.txt"]


def test_bytes(tmp_path: Path) -> None:
    with atomic_open(tmp_path / "x.bin", "wb") as file:
        file.write(b"\r\n\x00")
    assert (tmp_path / "x.bin").read_bytes() == b"\r\n\x00"


def test_json_is_strict(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"name": "Åse", "n": 1})
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == {"name": "Åse", "n": 1}
    assert (tmp_path / "x.json").read_bytes().endswith(b"}\n")
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", float("nan"))
    assert (tmp_path / "x.json").read_text(encoding="utf-8") != ""


def test_permissions_are_those_of_an_ordinary_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    write_text(tmp_path / "atomic", "")
    assert stat.S_IMODE((tmp_path / "atomic").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_two_files_with_one_long_beginning_can_be_open_at_once(tmp_path: Path) -> None:
    first, second = ("x" * 200 + end for end in ("1", "2"))
    with atomic_open(tmp_path / first) as one, atomic_open(tmp_path / second) as two:
        one.write("one")
        two.write("two")
    assert [(tmp_path / name).read_text() for name in (first, second)] == ["one", "two"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, UserError("bad input")])
def test_an_error_in_the_block_leaves_the_old_file(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "x.txt"
    path.write_text("old")
    with pytest.raises(BaseException) as raised, atomic_open(path) as file:
        file.write("new")
        raise error
    assert raised.type is (error if isinstance(error, type) else type(error))
    assert path.read_text() == "old"
    assert names(tmp_path) == ["x.txt"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_is_full_when_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    path = tmp_path / "x.txt"
    path.write_text("old")
    monkeypatch.setattr(os, "fsync", fails(code))
    with pytest.raises(UserError, match=r"x\.txt: no space left on the disk\n  fix: free some space"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["x.txt"]


def test_a_disk_that_is_full_while_writing(tmp_path: Path) -> None:
    """A real failing write, by the limit on a file's size: it fails in `write` and again in `close`."""
    path = tmp_path / "x.txt"
    path.write_text("old")
    script = (
        "import resource, signal, sys\nfrom pathlib import Path\nfrom apiece.files import write_text\n"
        "from apiece.errors import UserError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try:\n    write_text(Path(sys.argv[1]), 'n' * 1_000_000)\nexcept UserError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{path}: cannot write here: File too large\n")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["x.txt"]


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_that_cannot_flush_is_fine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    monkeypatch.setattr(os, "fsync", fails(code))
    write_text(tmp_path / "x.txt", "new")
    assert (tmp_path / "x.txt").read_text() == "new"


def test_an_unreadable_source_is_not_blamed_on_the_target(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="source"), atomic_open(tmp_path / "x.txt") as file:
        file.write((tmp_path / "source").read_text())
    with pytest.raises(BrokenPipeError), atomic_open(tmp_path / "x.txt"):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")
    assert names(tmp_path) == []


def make_unwritable(kind: str, folder: Path) -> Path:
    """A path in `folder` that nothing can be written to."""
    (folder / "file").write_text("old")
    (folder / "folder").mkdir()
    os.mkfifo(folder / "pipe")
    return {
        "a folder": folder / "folder",
        "inside a file": folder / "file" / "x.txt",
        "deep inside a file": folder / "file" / "a" / "x.txt",
        "name too long": folder / ("x" * 300),
        "folder's name too long": folder / ("x" * 300) / "x.txt",
        "pipe": folder / "pipe",
        "device": Path("/dev/null"),
        "no such file system": Path("/proc/nowhere/x.txt"),
    }[kind]


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("a folder", "a folder has this name"),
        ("inside a file", "File exists|Not a directory"),
        ("deep inside a file", "Not a directory"),
        ("name too long", "File name too long"),
        ("folder's name too long", "File name too long"),
        ("pipe", "this is a device or a pipe"),
        ("device", "this is a device or a pipe"),
        ("no such file system", "No such file or directory"),
    ],
)
def test_a_place_that_cannot_be_written(tmp_path: Path, kind: str, reason: str) -> None:
    path = make_unwritable(kind, tmp_path)
    before = names(tmp_path)
    with pytest.raises(UserError, match=f"cannot write here: ({reason}).*\n  fix: choose another") as raised:
        write_text(path, "new")
    assert raised.value.where == str(path)
    assert names(tmp_path) == before
    assert (tmp_path / "file").read_text() == "old"


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.ENOENT, errno.EPERM])
@pytest.mark.parametrize("call", ["mkdir", "open", "replace"])
def test_each_system_call_may_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int) -> None:
    (tmp_path / "x.txt").write_text("old")
    monkeypatch.setattr(Path, call, lambda *_, **__: fails(code)())
    with pytest.raises(UserError, match=f"cannot write here: {os.strerror(code)}"):
        write_text(tmp_path / "x.txt", "new")
    monkeypatch.undo()
    assert (tmp_path / "x.txt").read_text() == "old"
    assert names(tmp_path) == ["x.txt"]


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_stays_and_its_file_is_replaced(tmp_path: Path, exists: bool) -> None:
    (tmp_path / "real").mkdir()
    if exists:
        (tmp_path / "real" / "x.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to("real/x.txt")
    write_text(tmp_path / "link.txt", "new")
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "real" / "x.txt").read_text() == "new"
    assert names(tmp_path / "real") == ["x.txt"]


@pytest.mark.parametrize("name", ["x" * 255, "é" * 127, ".hidden", "-o", "a b\nc", "🐟" * 60])
def test_every_name_that_the_file_system_takes(tmp_path: Path, name: str) -> None:
    write_text(tmp_path / name, "new")
    assert names(tmp_path) == [name]


def test_a_lock_is_held_by_one_and_ends_with_the_block(tmp_path: Path) -> None:
    file = tmp_path / "new" / "a.lock"
    with locked(file, wait=False) as first:
        with locked(file, wait=False) as second:
            assert (first, second) == (True, False)
        with locked(tmp_path / "b.lock", wait=False) as other:
            assert other
    with locked(file, wait=True) as again:
        assert again
