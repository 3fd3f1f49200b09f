"""A data file that is shared among processes gives what one process reads, and lets the same files pass."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from records import DOG, record, with_box, write_lines

from apiece.data import index
from apiece.data import index as quick
from apiece.errors import UserError
from apiece.files import file_hash

PERSON = DOG | {"desc": "person", "iscrowd": True}
BOOK = DOG | {"desc": "book"}


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three processes, however small the file."""
    monkeypatch.setattr(quick, "SHARE_BYTES", 1)
    monkeypatch.setattr(quick, "_cores", lambda: 3)


def many(path: Path, *last: object, count: int = 30) -> Path:
    rows = [
        record(f"{i}.jpg", (64 + i, 48), [DOG, PERSON] if i % 2 else [BOOK] * (i % 5), id=str(i)) for i in range(count)
    ]
    return write_lines(path, *rows, *last)


def test_shares_are_whole_lines_and_all_of_the_file(tmp_path: Path) -> None:
    path = many(tmp_path / "x.jsonl")
    data = path.read_bytes()
    for shares in (2, 3, 7, 40, len(data)):
        spans = quick._spans(path, len(data), shares)
        assert b"".join(data[first:last] for first, last in spans) == data
        assert all(data[last - 1 : last] == b"\n" for _, last in spans)
        assert shares > 7 or len(spans) == shares  # of more, some have no line of their own


@pytest.mark.usefixtures("shared")
def test_several_processes_read_what_one_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = many(tmp_path / "x.jsonl", "", record("last.jpg", objects=[BOOK, DOG | {"desc": "cup"}, PERSON]))
    path.write_bytes(path.read_bytes().removesuffix(b"\n"))  # the last line may end without a line break
    several = index._build(path)
    # Else the comparison below would be one of a thing with itself.
    assert quick._in_processes(path, quick._spans(path, path.stat().st_size, 3)) is not None
    monkeypatch.setattr(quick, "_cores", lambda: 1)
    alone = index._build(path)
    assert several.keys() == alone.keys()
    for key in several:
        np.testing.assert_array_equal(several[key], alone[key], strict=True)
    assert several["sha256"].tobytes().hex() == file_hash(path)


@pytest.mark.usefixtures("shared")
@pytest.mark.parametrize(
    ("last", "said"),
    [
        (with_box(5, 5, 5, 9), "x.jsonl:31"),
        ("{", "x.jsonl:31"),
        (record("new.jpg", id="0"), "appears twice"),
        (record("new.jpg", objects=[DOG | {"id": 7}, DOG | {"id": 7}]), "appears twice"),
    ],
    ids=["box", "json", "record id", "object id"],
)
def test_errors_in_one_share_are_told_as_ever(tmp_path: Path, last: object, said: str) -> None:
    with pytest.raises(UserError) as told:
        index._build(many(tmp_path / "x.jsonl", last))
    assert said in str(told.value)


@pytest.mark.usefixtures("shared")
def test_without_processes_one_reads_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", str(tmp_path / "nothing"))
    assert len(index._build(many(tmp_path / "x.jsonl"))["start"]) == 30
    monkeypatch.setattr("sys.executable", "/bin/false")
    assert len(index._build(many(tmp_path / "x.jsonl"))["start"]) == 30


def test_cores_are_shared_with_the_other_processes_of_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert quick._cores() == 2
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    assert quick._cores() == 8
