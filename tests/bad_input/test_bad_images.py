"""Bad photos: in a data file and as what is to be looked at; the odd ones that are fine are taken as they are."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from cases import Bad, CommandLine, Make, Pins, Said, link, mkdir, problems, rows, write, write_lines
from dirt import photo, photo_bytes, record
from PIL import Image

CHECK = "data check x.jsonl"
LOOK = "predict tiny photos --out out"


def spoilt(content: bytes | str, name: str = "a.png") -> list[Make]:
    """A data file whose photo has this content."""
    return [write_lines("x.jsonl", record(image=name)), write(name, content)]


def bomb(side: int = 60_000) -> bytes:
    """A PNG of a few hundred bytes that says it is `side` x `side` pixels."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b""))
    packed = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def floats() -> bytes:
    Image.fromarray(np.zeros((48, 64), dtype=np.float32)).save(stream := io.BytesIO(), "TIFF")
    return stream.getvalue()


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (64, 48)).save(stream := io.BytesIO(), "JPEG", exif=exif)
    return stream.getvalue()


# fmt: off
CASES = [
    Bad("gone", CHECK, [write_lines("x.jsonl", record())]),
    Bad("a folder", CHECK, [write_lines("x.jsonl", record()), mkdir("a.png")]),
    Bad("empty", CHECK, spoilt(b"")),
    Bad("zeros", CHECK, spoilt(bytes(5000))),
    Bad("text", CHECK, spoilt("hello")),
    Bad("html of a failed download", CHECK, spoilt("<html>404 Not Found</html>", "a.jpg")),
    Bad("cut png", CHECK, spoilt(photo_bytes()[:400])),
    Bad("cut png header", CHECK, spoilt(photo_bytes()[:20])),
    Bad("cut jpeg", CHECK, spoilt(photo_bytes("JPEG")[:600], "a.jpg")),
    Bad("cut webp", CHECK, spoilt(photo_bytes("WEBP")[:60], "a.webp")),
    Bad("damaged png", CHECK, spoilt(photo_bytes()[:300] + b"\0" * 40 + photo_bytes()[340:])),
    Bad("bomb", CHECK, spoilt(bomb())),
    Bad("a little too large", CHECK, spoilt(bomb(10_001))),
    Bad("floats", CHECK, spoilt(floats(), "a.tif")),
    Bad("postscript", CHECK, spoilt("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 48\n", "a.eps")),
    Bad("svg", CHECK, spoilt('<svg xmlns="http://www.w3.org/2000/svg" width="64" height="48"/>', "a.svg")),
    Bad("pdf", CHECK, spoilt("%PDF-1.4\n", "a.pdf")),
    Bad("another size", CHECK, spoilt(photo_bytes(size_wh=(48, 64)))),
    Bad("turned by exif", CHECK, spoilt(turned(), "a.jpg")),
    Bad("one pixel for a photo", CHECK, spoilt(photo_bytes(size_wh=(1, 1)))),
    Bad("a link to nothing", CHECK, [write_lines("x.jsonl", record()), link("a.png", "gone.png")]),
    Bad("a link to itself", CHECK, [write_lines("x.jsonl", record()), link("a.png", "a.png")]),
    Bad("below a file", CHECK, [write_lines("x.jsonl", record(image="x.jsonl/a.png"))]),
    Bad("look: nothing", LOOK),
    Bad("look: an empty folder", LOOK, [mkdir("photos")]),
    Bad("look: a folder of text", LOOK, [write("photos/a.txt", "hello")]),
    Bad("look: none that can be read", LOOK, [write("photos/a.jpg", "hello"), write("photos/b.png", b""),
        write("photos/c.png", bomb()), write("photos/d.heic", b"ftypheic")]),
    Bad("look: out is the photo", "predict tiny photos/a.png --out photos/a.png", [photo("photos/a.png")]),
    Bad("look: out is the folder of photos", "predict tiny photos --out photos", [photo("photos/a.png")]),
    Bad("look: out is below a photo", "predict tiny photos --out photos/a.png/out", [photo("photos/a.png")]),
    Bad("look: out holds something", LOOK, [photo("photos/a.png"), write("out/notes.txt", "precious")]),
    Bad("look: nothing to resume", f"{LOOK} --resume", [photo("photos/a.png"), write("out/notes.txt", "precious")]),
    Bad("look: resumed under other settings", f"{LOOK} --resume", [photo("photos/a.png"), write("out/protocol.json",
        '{"prompt_hash": "x"}')]),
    Bad("look: a broken protocol", f"{LOOK} --resume", [photo("photos/a.png"), write("out/protocol.json", "{")]),
    Bad("look: a list as protocol", f"{LOOK} --resume", [photo("photos/a.png"), write("out/protocol.json", "[1]")]),
    Bad("look: a pipe", "predict tiny pipe --out out", [lambda folder: __import__("os").mkfifo(folder / "pipe")]),
]
# fmt: on

FINE = {
    "grey": photo("a.png", mode="L"),
    "palette": photo("a.png", mode="P"),
    "transparent": photo("a.png", mode="RGBA"),
    "sixteen bits": photo("a.png", mode="I;16"),
    "cmyk": photo("a.jpg", mode="CMYK"),
    "animated": photo("a.gif", save_all=True, append_images=[Image.new("RGB", (64, 48), "red")]),
    "a jpeg called png": write("a.png", photo_bytes("JPEG")),
}


@rows("images", CASES)
def test_bad_photos(apiece: CommandLine, pins: Pins, area: str, case: Bad, said: Said) -> None:
    apiece.refuses(case, said, pins[area])


@pytest.mark.parametrize("kind", FINE)
def test_odd_photos_that_are_fine(apiece: CommandLine, kind: str) -> None:
    FINE[kind](apiece.folder)
    (name,) = (path.name for path in apiece.folder.iterdir())
    write_lines("x.jsonl", record(image=name))(apiece.folder)
    code, out, err = apiece(*CHECK.split())
    assert (code, err) == (0, "")
    assert out.endswith("x.jsonl: no errors\n")
    assert all(line.endswith("[converted_to_rgb]") for line in problems(out))  # said, and no error
