"""Records read one by one are those read whole, with the same errors; what is kept of a file is right or made anew."""

from __future__ import annotations

import json
import os
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from records import DOG, record, with_box, with_desc, write_lines
from test_jsonl import BAD_LINES, instances

from apiece.data import index
from apiece.data.index import DataFile, open_data
from apiece.data.jsonl import read_jsonl, write_jsonl
from apiece.errors import UserError
from apiece.files import file_hash
from apiece.types import Instance, Sample

CROWD = DOG | {"iscrowd": True, "desc": "people"}


def told(read: Callable[[Path], object], path: Path) -> str | None:
    try:
        read(path)
    except UserError as error:
        return str(error)
    return None


@pytest.mark.parametrize("line", [row[1] for row in BAD_LINES], ids=[row[0] for row in BAD_LINES])
@pytest.mark.parametrize("behind", [False, True], ids=["first", "behind a good one"])
def test_a_bad_line_is_refused_as_by_the_strict_reader(tmp_path: Path, line: object, behind: bool) -> None:
    path = write_lines(tmp_path / "x.jsonl", *[record("good.jpg")] * behind, line)
    assert told(open_data, path) == told(read_jsonl, path) is not None


@pytest.mark.parametrize(
    "lines",
    [
        (record(), record()),
        (record(), record("b.jpg", id="a.jpg")),
        (record(objects=[DOG | {"id": 5}]), record("b.jpg", objects=[DOG | {"id": 4}, DOG | {"id": 5}])),
        (record(), '{"image": "b.jpg", "width": 1, "height": 1, "objects": []} {"image": "c.jpg"}'),
        (record(), '{"image": "b.jpg", "width": 1,', '"height": 1, "objects": []}'),
        (b"\n \n",),
        (b"",),
    ],
)
def test_files_with_errors_are_refused_as_by_the_strict_reader(tmp_path: Path, lines: tuple[object, ...]) -> None:
    path = write_lines(tmp_path / "x.jsonl", *lines)
    assert told(open_data, path) == told(read_jsonl, path) is not None


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.jsonl"):
        assert told(open_data, path) == told(read_jsonl, path) is not None


@pytest.mark.parametrize(
    "content",
    [
        [record(objects=[])],
        [record(), record("b.jpg", objects=[CROWD, DOG, with_desc("cat")["objects"][0]]), record("c", objects=[CROWD])],
        [b"\xef\xbb\xbf" + json.dumps(record()).encode() + b"\r", b"\r", b"  ", json.dumps(record("b")).encode()],
        [b"", b"", json.dumps(record()).encode(), b"", json.dumps(record("b")).encode(), b"\t"],
        [with_box(-1, -0.5, 65, 48.25), with_box(5, 2, 5.5, 40) | {"id": "x"}],
        [with_box(1, 2, 3, 4, id=10**400, area=7), with_desc("café") | {"id": "é 🐕"}],
        [record(image="a:b.jpg"), record(image=" a.jpg"), record(image="\u00a0a")],
    ],
    ids=["no objects", "crowds", "bom and windows", "blank lines", "near the edge", "huge id", "unusual paths"],
)
def test_samples_are_those_of_the_strict_reader(tmp_path: Path, content: list[object]) -> None:
    path = write_lines(tmp_path / "x.jsonl", *content)
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    assert_equal_to_strict(path)


def assert_equal_to_strict(path: Path) -> None:
    records, expected = open_data(path), read_jsonl(path)
    assert list(records) == expected
    counted = [[o.desc for o in sample.objects if not o.iscrowd] for sample in expected]
    assert records.num_objects.tolist() == [len(names) for names in counted]
    assert records.size_wh.tolist() == [list(sample.size_wh) for sample in expected]
    assert set(records.table.names) == {o.desc for sample in expected for o in sample.objects}
    value = np.array([1000 + len(name) for name in records.table.names], dtype=np.int64)
    assert records.sums_over_names(value).tolist() == [sum(1000 + len(n) for n in names) for names in counted]
    assert records.table.sha256 == file_hash(path)


@given(st.lists(st.lists(instances(), max_size=4), min_size=1, max_size=6))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_file_that_was_written(tmp_path: Path, lists: list[list[Instance]]) -> None:
    path = tmp_path / "x.jsonl"
    write_jsonl(path, [Sample(f"é {i}", tmp_path / f"{i}.jpg", (1600, 1600), tuple(o)) for i, o in enumerate(lists)])
    assert_equal_to_strict(path)


def test_a_key_twice_is_found(tmp_path: Path) -> None:
    twice = '{"image": "b", "image": "c.jpg", "width": 64, "height": 48, "objects": []}'
    path = write_lines(tmp_path / "x.jsonl", record(), b"", twice)
    with pytest.raises(UserError, match=r"x\.jsonl:3: not valid JSON: key 'image' appears twice"):
        open_data(path)


def test_some_of_the_records(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "x.jsonl", *(record(f"{i}.jpg", objects=[DOG] * i) for i in range(6)))
    some = open_data(path).select(np.array([4, 0, 5]))
    assert [s.id for s in some] == ["4.jpg", "0.jpg", "5.jpg"] and len(some) == 3
    assert some.num_objects.tolist() == [4, 0, 5]
    assert some.sums_over_names(np.array([10])).tolist() == [40, 0, 50]
    assert [s.id for s in some[1:]] == ["0.jpg", "5.jpg"] and some[-1].id == "5.jpg"
    with pytest.raises(IndexError):
        some[3]


def test_a_file_that_changes_is_not_read_on(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "x.jsonl", record(), record("b.jpg"))
    records = open_data(path)
    write_lines(path, record("b.jpg"), record())
    os.utime(path, ns=(1, 1))
    with pytest.raises(UserError, match=r"x\.jsonl: the file has changed since"):
        records[0]


def test_reading_holds_no_record_in_memory(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "x.jsonl", *(record(f"{i}.jpg", objects=[DOG] * 20) for i in range(3000)))
    records = open_data(path)
    grown = []
    for _ in range(3):  # at first names are cached for good, and a table of Python's own may grow at any time, once
        tracemalloc.start()
        try:
            assert sum(len(sample.objects) for sample in records) == 60_000
            grown.append(tracemalloc.get_traced_memory()[0])
        finally:
            tracemalloc.stop()
    assert min(grown) < 50_000


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data file whose index is kept, however short it is; no index has been made yet."""
    monkeypatch.setattr(index, "KEEP_FROM_BYTES", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    return write_lines(tmp_path / "data" / "x.jsonl", *(record(f"{i}.jpg", objects=[DOG, CROWD]) for i in range(9)))


def builds(monkeypatch: pytest.MonkeyPatch, path: Path) -> int:
    """How often the index is built when the file is opened, which must give its records."""
    count = 0
    build = index._build

    def counted(source: Path) -> dict[str, np.ndarray]:
        nonlocal count
        count += 1
        return build(source)

    with monkeypatch.context() as patch:
        patch.setattr(index, "_build", counted)
        records: DataFile = open_data(path)
    assert list(records) == read_jsonl(path)
    return count


def test_an_index_is_made_once(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [builds(monkeypatch, kept) for _ in range(3)] == [1, 0, 0]
    assert [p.name for p in kept.parent.iterdir() if p != kept] == [".x.jsonl.records.safetensors"]


def test_a_kept_index_is_the_one_that_was_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "KEEP_FROM_BYTES", 0)
    path = write_lines(tmp_path / "x.jsonl", *(record(f"{i}.jpg", (64 + i, 48), [DOG] * (i % 3)) for i in range(9)))
    made, kept = index._build(path), index.index_of(path)
    assert kept.size_wh.tolist() == [[64 + i, 48] for i in range(9)]
    for key in ("start", "size", "size_wh", "first", "name"):
        np.testing.assert_array_equal(getattr(kept, key), made[key])


def test_a_kept_index_does_not_open_what_is_not_allowed_any_more(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_lines(kept, record("../x.jpg"))
    monkeypatch.setenv("APIECE_DATA_ROOT", str(kept.parent.parent))
    assert builds(monkeypatch, kept) == 1
    records = open_data(kept)
    monkeypatch.delenv("APIECE_DATA_ROOT")
    with pytest.raises(UserError, match="leads out of this file's folder"):
        records[0]
    assert told(open_data, kept) == told(read_jsonl, kept) is not None


def test_a_short_file_leaves_nothing_behind(tmp_path: Path) -> None:
    open_data(write_lines(tmp_path / "x.jsonl", record()))
    assert [p.name for p in tmp_path.iterdir()] == ["x.jsonl"]


@pytest.mark.parametrize("change", ["longer", "touched", "other bytes at the same time"])
def test_an_index_of_a_file_that_has_changed_is_made_anew(
    kept: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    builds(monkeypatch, kept)
    before = kept.stat()
    if change == "longer":
        write_lines(kept, record("other.jpg"), *kept.read_bytes().splitlines())
    elif change == "touched":
        os.utime(kept, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    else:
        kept.write_bytes(kept.read_bytes().replace(b"dog", b"cat"))
        os.utime(kept, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert builds(monkeypatch, kept) == 1
    assert builds(monkeypatch, kept) == 0


@pytest.mark.parametrize("place", ["header", "length", "data", "cut", "empty", "text"])
def test_a_damaged_index_is_made_anew(kept: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    builds(monkeypatch, kept)
    file = kept.with_name(".x.jsonl.records.safetensors")
    raw = bytearray(file.read_bytes())
    if place in ("header", "length", "data"):
        raw[{"header": 20, "length": 3, "data": -40}[place]] ^= 0x10
    file.write_bytes({"cut": bytes(raw[:-8]), "empty": b"", "text": b"not an index"}.get(place, bytes(raw)))
    assert builds(monkeypatch, kept) == 1
    assert builds(monkeypatch, kept) == 0


@pytest.mark.parametrize(
    ("array", "change"),
    [
        ("start", lambda a: a + 10_000),
        ("start", lambda a: a - 1),
        ("size", lambda a: -a),
        ("name", lambda a: a + 5),
        ("name", lambda a: a - 1),
        ("first", lambda a: a[::-1].copy()),
        ("first", lambda a: a[1:].copy()),
        ("size_wh", lambda a: a * 0),
        ("names", lambda a: a[:0].copy()),
        ("start", lambda a: a.astype(np.int32)),
    ],
)
def test_an_index_that_cannot_be_one_is_made_anew(
    kept: Path, monkeypatch: pytest.MonkeyPatch, array: str, change: Callable[[np.ndarray], np.ndarray]
) -> None:
    """It may come with the data, from anybody; its checksum is right."""
    build = index._build

    def hostile(path: Path) -> dict[str, np.ndarray]:
        arrays = build(path)
        return arrays | {array: change(arrays[array])}

    with monkeypatch.context() as patch:
        patch.setattr(index, "_build", hostile)
        with suppress(IndexError):
            told(open_data, kept)
    assert builds(monkeypatch, kept) == 1


def test_where_nothing_can_be_written_the_index_goes_to_the_cache_or_into_memory(
    kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kept.with_name(".x.jsonl.records.safetensors").mkdir()  # for everybody, root too, no file can be written there
    caplog.set_level("INFO", "apiece")
    assert [builds(monkeypatch, kept) for _ in range(2)] == [1, 0]
    assert f"its index is kept in {tmp_path / 'cache' / 'apiece'}" in caplog.text
    monkeypatch.setenv("XDG_CACHE_HOME", str(kept))
    assert [builds(monkeypatch, kept) for _ in range(2)] == [1, 1]
    assert "cannot be kept anywhere, so every start takes as long: set XDG_CACHE_HOME" in caplog.text
