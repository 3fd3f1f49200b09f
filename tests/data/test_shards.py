"""Images in tar shards are read like files, and everything that can be wrong with a shard is named."""

from __future__ import annotations

import io
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from records import kinds, record, save_image, write_lines

from apiece.data import images as shards
from apiece.data.check import check_jsonl
from apiece.data.images import (
    image_size,
    inspect_image,
    is_image_file,
    members,
    open_image,
    open_member,
    read_image_file,
    split_path,
)
from apiece.data.jsonl import read_jsonl, write_jsonl
from apiece.data.lines import ImageError


def png(color: int, size_wh: tuple[int, int] = (64, 48)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size_wh, (color, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def make_shard(path: Path, files: dict[str, bytes], *more: tarfile.TarInfo, mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for info in more:
            archive.addfile(info)
    return path


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    long = "/".join(["a folder"] * 30)
    return make_shard(
        tmp_path / "s.tar",
        {"a.png": png(1), "./sub/b.png": png(2, (30, 40)), f"{long}/é.png": png(3), "empty.png": b""},
    )


def test_members_are_read_like_files(shard: Path, tmp_path: Path) -> None:
    assert open_image(shard / "a.png").getpixel((0, 0)) == (1, 0, 0)
    assert image_size(shard / "sub" / "b.png") == (30, 40)
    assert inspect_image(shard / "/".join(["a folder"] * 30) / "é.png").size_wh == (64, 48)
    assert read_image_file(shard / "a.png") == png(1)
    assert read_image_file(shard / "a.png", at_most=10) == b""
    assert is_image_file(shard / "a.png") and not is_image_file(shard / "c.png") and not is_image_file(tmp_path / "x")
    plain = save_image(tmp_path / "plain.png")
    assert read_image_file(plain) == plain.read_bytes() and open_member(plain) is None and is_image_file(plain)
    assert sorted(tmp_path.iterdir()) == [plain, shard], "nothing is unpacked, nothing kept of a small shard"


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000"])
def test_every_format_reads_the_same_from_a_shard(tmp_path: Path, image_format: str) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / "a.img"
    Image.fromarray(rng.integers(0, 255, (48, 64, 3), dtype=np.uint8)).save(path, image_format)
    shard = make_shard(tmp_path / "s.tar", {"before": b"x" * 700, "a.img": path.read_bytes(), "behind": b"y" * 700})
    assert np.array_equal(np.asarray(open_image(shard / "a.img")), np.asarray(open_image(path)))
    assert inspect_image(shard / "a.img") == inspect_image(path)


def test_a_member_is_a_stretch_of_the_shard_and_no_more(shard: Path) -> None:
    whole = png(1)
    member = open_member(shard / "a.png")
    assert member is not None
    with member:
        assert member.read(3) == whole[:3] and member.tell() == 3
        assert member.seek(-4, io.SEEK_END) == len(whole) - 4
        assert member.read() == whole[-4:] and member.read() == b""
        assert member.seek(2) == 2 and member.seek(5, io.SEEK_CUR) == 7 and member.read(2) == whole[7:9]
        assert member.seek(10**9) == 10**9 and member.read() == b""


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("x/a.png", None),
        ("x/s.tar", None),
        ("x/s.tar/a.png", ("x/s.tar", "a.png")),
        ("x/s.tar/t.tar/a.png", ("x/s.tar", "t.tar/a.png")),
        ("x/s.tar/../a.png", ("x/s.tar", "../a.png")),
        ("x/a.tarball/a.png", None),
    ],
)
def test_which_paths_lead_through_a_shard(path: str, expected: tuple[str, str] | None) -> None:
    found = split_path(Path(path))
    assert (found and (found[0].as_posix(), found[1])) == expected


def test_a_folder_with_the_name_of_a_shard_is_a_folder(tmp_path: Path) -> None:
    path = save_image(tmp_path / "folder.tar" / "a.png")
    assert split_path(path) is None and image_size(path) == (64, 48)


def test_what_is_not_there_is_named(shard: Path, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"none\.tar: tar shard not found") as caught:
        open_image(tmp_path / "none.tar" / "a.png")
    assert caught.value.kind == "missing_image"
    for name in ("c.png", "sub", "../s.tar", "sub/../../plain.png", "A.png"):
        with pytest.raises(ImageError, match=r"s\.tar: no image .* in this shard of 4") as caught:
            open_image(shard / name)
        assert caught.value.kind == "missing_image"
    with pytest.raises(ImageError, match="image file is empty") as caught:
        open_image(shard / "empty.png")
    assert caught.value.kind == "truncated_image"


def test_links_devices_and_names_that_lead_out_do_not_count(tmp_path: Path) -> None:
    """A shard is made by anybody: nothing in it may lead to a file of this machine."""
    (tmp_path / "secret.png").write_bytes(png(9))
    kind_of = {"link.png": tarfile.SYMTYPE, "hard.png": tarfile.LNKTYPE, "pipe": tarfile.FIFOTYPE, "d": tarfile.DIRTYPE}
    special = []
    for name, kind in kind_of.items():
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, str(tmp_path / "secret.png")
        special.append(info)
    outside = {"../secret.png": png(1), str(tmp_path / "secret.png"): png(2), "x/../../secret.png": png(3)}
    shard = make_shard(tmp_path / "in" / "s.tar", {"a.png": png(5)} | outside, *special)
    assert [name for name, _, _ in members(shard)] == ["a.png"]
    for name in (*kind_of, *outside):
        assert not is_image_file(Path(f"{shard}/{name}"))


def test_a_name_twice_is_an_error(tmp_path: Path) -> None:
    shard = make_shard(tmp_path / "s.tar", {"a.png": png(1), "b.png": png(2), "./b.png": png(3)})
    with pytest.raises(ImageError, match=r"two images of the name 'b\.png'") as caught:
        open_image(shard / "a.png")
    assert caught.value.kind == "broken_shard"


@pytest.mark.parametrize("cut", [1, 511, 512, 600, -1, -512, -1024, -1100, -1536, -1600])
def test_a_shard_that_is_cut_off_is_an_error(tmp_path: Path, cut: int) -> None:
    whole = make_shard(tmp_path / "whole.tar", {f"{i}.png": png(i) for i in range(3)})
    data = whole.read_bytes().rstrip(b"\0")
    data += bytes(-len(data) % 512 + 1024)  # two blocks of zeros, without the padding to ten kilobytes
    (tmp_path / "cut.tar").write_bytes(data)
    assert len(list(members(tmp_path / "cut.tar"))) == 3
    (tmp_path / "cut.tar").write_bytes(data[:cut])
    if cut in (-1, -512):  # one of the two blocks at the end is there
        assert len(list(members(tmp_path / "cut.tar"))) == 3
        return
    with pytest.raises(ImageError, match="tar shard is cut off, damaged or compressed"):
        list(members(tmp_path / "cut.tar"))


@pytest.mark.parametrize("content", [b"", b"no tar file at all", bytes(100), b"x" * 2048])
def test_what_is_no_tar_file_is_an_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "s.tar").write_bytes(content)
    with pytest.raises(ImageError, match="cut off, damaged or compressed") as caught:
        open_image(tmp_path / "s.tar" / "a.png")
    assert caught.value.kind == "broken_shard"


def test_a_compressed_shard_and_a_damaged_header_are_errors(tmp_path: Path) -> None:
    for shard in (
        make_shard(tmp_path / "z.tar", {"a.png": png(1)}, mode="w:gz"),
        make_shard(tmp_path / "h.tar", {"a.png": png(1), "b.png": png(2)}),
    ):
        raw = bytearray(shard.read_bytes())
        if shard.name == "h.tar":
            raw[raw.index(b"b.png")] ^= 1
            shard.write_bytes(bytes(raw))
        with pytest.raises(ImageError, match="cut off, damaged or compressed"):
            open_image(shard / "a.png")


def test_a_bomb_in_a_shard_is_refused_by_its_header(tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    shard = make_shard(tmp_path / "s.tar", {"bomb.png": bomb, "a.png": png(1)})
    for read in (open_image, image_size, inspect_image):
        with pytest.raises(ImageError, match="image is too large") as caught:
            read(shard / "bomb.png")
        assert caught.value.kind == "image_too_large"
    with pytest.raises(ImageError, match="expected at most 100 pixels"):
        open_image(shard / "a.png", max_pixels=100)


def test_where_members_lie_is_kept_and_made_anew_when_the_shard_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "_KEEP_FROM_BYTES", 0)
    shard = make_shard(tmp_path / "s.tar", {"a.png": png(1)})
    assert image_size(shard / "a.png") == (64, 48)
    assert {p.name for p in tmp_path.iterdir()} == {"s.tar", ".s.tar.members.safetensors"}
    shards._known_table.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(shards, "_build", lambda _: pytest.fail("it is kept"))
        assert image_size(shard / "a.png") == (64, 48)
    make_shard(tmp_path / "s.tar", {"b.png": png(1), "a.png": png(2, (5, 6))})
    assert image_size(shard / "a.png") == (5, 6)


def test_records_name_members_and_their_paths_survive_writing(
    shard: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("APIECE_DATA_ROOT", str(tmp_path))
    path = write_lines(
        tmp_path / "x.jsonl",
        record("s.tar/a.png"),
        record("s.tar/sub/b.png", (30, 40), objects=[]),
        record("s.tar/none.png"),
        record("other.tar/a.png"),
        record("s.tar/a.png", (60, 48), id="again"),
    )
    report = check_jsonl(path)
    assert kinds(report.errors) == ["missing_image", "missing_image", "size_differs"]
    assert [problem.line for problem in report.errors] == [3, 4, 5]
    (tmp_path / "deeper").mkdir()
    write_jsonl(tmp_path / "deeper" / "y.jsonl", read_jsonl(path)[:2])
    (first, _) = read_jsonl(tmp_path / "deeper" / "y.jsonl")
    assert open_image(first.image).getpixel((0, 0)) == (1, 0, 0)
