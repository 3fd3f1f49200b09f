"""Packing: the same images, in the same order, in shards."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from records import DOG, record, save_image, write_lines

from apiece.cli import main
from apiece.data.images import members, open_image, read_image_file
from apiece.data.jsonl import read_jsonl
from apiece.data.pack import pack
from apiece.errors import UserError


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for i in range(5):
        save_image(tmp_path / "d" / "images" / f"{i}.PNG", (64, 48 + i))
    lines = [record(f"images/{i}.PNG", (64, 48 + i), id=f"s{i}", objects=[DOG] * i) for i in (3, 1, 4, 0, 2)]
    return write_lines(tmp_path / "d" / "x.jsonl", *lines, record("images/3.PNG", (64, 51), id="again", objects=[]))


@pytest.mark.parametrize(("shard_bytes", "shards"), [(1, 6), (1_000_000, 1)])
def test_the_same_images_in_the_same_order(tmp_path: Path, data: Path, shard_bytes: int, shards: int) -> None:
    done = pack(data, tmp_path / "out", shard_bytes=shard_bytes)
    assert (done.images, len(done.shards)) == (6, shards)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        *(f"x-{i:05d}.tar" for i in range(shards)),
        "x.jsonl",
    ]
    before, after = read_jsonl(data), read_jsonl(tmp_path / "out" / "x.jsonl")
    assert [(s.id, s.size_wh, s.objects) for s in after] == [(s.id, s.size_wh, s.objects) for s in before]
    assert [read_image_file(s.image) for s in after] == [s.image.read_bytes() for s in before]
    assert open_image(after[2].image).size == (64, 52)
    names = [name for shard in done.shards for name, _, _ in members(shard)]
    assert names == [f"{i:08d}.png" for i in range(6)]
    again = pack(tmp_path / "out" / "x.jsonl", tmp_path / "again", shard_bytes=shard_bytes)
    assert [p.read_bytes() for p in again.shards] == [p.read_bytes() for p in done.shards]


def test_what_cannot_be_packed_leaves_no_data_file(tmp_path: Path, data: Path) -> None:
    for image, message in (((tmp_path / "d" / "images" / "2.PNG"), "image file not found"), (None, "found 64 x 48")):
        if image is None:
            save_image(tmp_path / "d" / "images" / "2.PNG", (64, 48))
        else:
            image.unlink()
        with pytest.raises(UserError, match=message):
            pack(data, tmp_path / f"out {message}", shard_bytes=1)
        assert not (tmp_path / f"out {message}" / "x.jsonl").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    for out in (tmp_path / "full", tmp_path / "full" / "x"):
        with pytest.raises(UserError, match="expected a new or empty folder"):
            pack(data, out, shard_bytes=1)


def test_the_command(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["apiece", "data", "pack", str(data), "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    assert capsys.readouterr().out == f"wrote {tmp_path / 'out' / 'x.jsonl'}: 6 images in 1 shard\n"
