"""Opening image files and members of tar shards: always upright RGB within a size limit, or an error that names them.

Sizes are `(width, height)` in pixels after EXIF rotation, as a viewer shows the photo: the frame that boxes are in.
"""

from __future__ import annotations

import io
import logging
import os
import posixpath
import struct
import tarfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.Image import Transpose
from PIL.ImageFile import ImageFile

from apiece.data.index import Arrays, kept_arrays
from apiece.data.lines import ImageError, ProblemKind
from apiece.errors import UserError
from apiece.types import Sample

MAX_PIXELS = 100_000_000
"""Default limit: 300 MB once decoded, and well under Pillow's own (179 million)."""

# Raster formats only: Pillow would also run Ghostscript on an EPS file, or take raw bytes for a rare format.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")
_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
_BROKEN_METADATA = (SyntaxError, ValueError, TypeError, KeyError, IndexError, OSError, struct.error)
# What Pillow's decoders raise on damaged files, found by damaging files of every format (RuntimeError: AVIF).
_BROKEN_PIXELS = (
    OSError,
    EOFError,
    SyntaxError,
    ValueError,
    TypeError,
    IndexError,
    OverflowError,
    RuntimeError,
    struct.error,
)
_SIXTEEN_BIT = frozenset({"I;16", "I;16L", "I;16B", "I;16N", "I"})

# Pillow logs what it then raises; without a handler Python would print that to stderr as well.
logging.getLogger("PIL").addHandler(logging.NullHandler())


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What an image file turned out to be.

    Attributes:
        size_wh: After EXIF rotation.
        stored_wh: As stored, before it; the same for an upright file.
        mode: Pillow's name of the stored pixels: `RGB`, `L`, `CMYK`, `RGBA`, `P`, `I;16`, ...
    """

    size_wh: tuple[int, int]
    stored_wh: tuple[int, int]
    mode: str


class _QuietPillow:
    """Keeps Pillow's warnings (large image, broken EXIF, odd palette) from users; safe with several threads.

    `warnings.catch_warnings` swaps a global, so that two overlapping uses would restore the wrong one. Here the first
    thread in swaps and the last one out restores.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._depth = 0
        self._saved = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if self._depth == 0:
                self._saved = warnings.catch_warnings()
                self._saved.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\.")
            self._depth += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._depth -= 1
            if self._depth == 0:
                self._saved.__exit__(None, None, None)


_quiet = _QuietPillow()


def open_image(path: Path, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Read an image file as upright 8-bit RGB.

    Greyscale, palette, CMYK and 16-bit pixels are converted (16 bits: divided by 257); transparent pixels are laid on
    white; of an animation the first frame is taken.

    Args:
        path: The file.
        max_pixels: Refuse more than this, before decoding.

    Returns:
        A loaded image of mode `RGB`, turned as its EXIF orientation asks.

    Raises:
        ImageError: The file is missing, not an image, truncated or too large; a `UserError` that names it.
    """
    with _opened(Path(path), max_pixels) as image, _decoding(Path(path)):
        orientation = _orientation(image)
        rgb = _to_rgb(image)
        upright = rgb.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else rgb
        upright.info = {}  # Its EXIF block would turn the image a second time elsewhere.
        return upright


def image_size(path: Path, *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Width and height in pixels after EXIF rotation, read from the header only.

    Args:
        path: The file.
        max_pixels: Refuse more than this.

    Raises:
        ImageError: As `open_image`, but a truncated file is only noticed when its header is cut.
    """
    return inspect_header(path, max_pixels=max_pixels).size_wh


def inspect_header(path: Path, *, max_pixels: int = MAX_PIXELS) -> ImageFacts:
    """Like `inspect_image`, without decoding any pixels; errors as `image_size`."""
    with _opened(Path(path), max_pixels) as image, _decoding(Path(path)):
        return ImageFacts(_upright_size(image.size, _orientation(image)), image.size, image.mode)


def inspect_image(path: Path, *, max_pixels: int = MAX_PIXELS) -> ImageFacts:
    """Decode a file to the end, as cheaply as its format allows, and tell what it is.

    Args:
        path: The file.
        max_pixels: Refuse more than this.

    Raises:
        ImageError: As `open_image`.
    """
    with _opened(Path(path), max_pixels) as image, _decoding(Path(path)):
        stored_wh, mode = image.size, image.mode
        orientation = _orientation(image)
        _refuse_float(mode)
        # A JPEG decoded at 1/8 of its scale still reads all of its bytes, in a third of the time.
        image.draft(None, (1, 1))
        image.load()
        return ImageFacts(_upright_size(stored_wh, orientation), stored_wh, mode)


def require_size(sample: Sample, found_wh: tuple[int, int], data: str | Path = "DATA.jsonl") -> None:
    """Refuse an image of another size than its sample says: its boxes lie in another frame.

    Args:
        sample: As its data file has it.
        found_wh: Of the image, after EXIF rotation.
        data: The file, if it is known.
    """
    if found_wh != sample.size_wh:
        raise UserError(
            f"sample {sample.id}: expected an image of {sample.size_wh[0]} x {sample.size_wh[1]} pixels, "
            f"found {found_wh[0]} x {found_wh[1]}",
            where=sample.image,
            fix=f"see all problems with `apiece data check {data}`",
        )


@contextmanager
def _opened(path: Path, max_pixels: int) -> Iterator[ImageFile]:
    """Open the header of a file or of a member of a shard; every way that can fail becomes an `ImageError`."""
    with _quiet, open_member(path) or nullcontext() as member:
        image = _open_header(path, member)
        with image:
            width, height = image.size
            if width * height > max_pixels:
                raise _too_large(path, f"{width} x {height} = {width * height:,}", max_pixels)
            yield image


def _open_header(path: Path, member: BinaryIO | None) -> ImageFile:
    try:
        return Image.open(path if member is None else member, formats=_FORMATS)
    except UnidentifiedImageError as error:
        if (path.stat().st_size if member is None else member.seek(0, os.SEEK_END)) == 0:
            raise ImageError(ProblemKind.TRUNCATED_IMAGE, "image file is empty (0 bytes)", path, _COPY_AGAIN) from error
        message = f"not an image that can be read; expected one of {', '.join(_FORMATS)}"
        fix = "convert it (a .heic photo, say, to JPEG), or leave it out"
        raise ImageError(ProblemKind.NOT_AN_IMAGE, message, path, fix) from error
    except Image.DecompressionBombError as error:
        raise _too_large(path, "far more", MAX_PIXELS) from error
    except (FileNotFoundError, NotADirectoryError) as error:
        fix = "check the path; in a JSONL file it is read relative to that file"
        raise ImageError(ProblemKind.MISSING_IMAGE, "image file not found", path, fix) from error
    except IsADirectoryError as error:
        message = "expected an image file, found a folder"
        raise ImageError(ProblemKind.NOT_AN_IMAGE, message, path, "check the path") from error
    except _BROKEN_PIXELS as error:
        if isinstance(error, OSError) and error.errno is not None:
            message = f"image file cannot be read: {os.strerror(error.errno)}"
            raise ImageError(
                ProblemKind.UNREADABLE_IMAGE, message, path, "check the file and its permissions"
            ) from error
        raise ImageError(ProblemKind.TRUNCATED_IMAGE, f"image header is broken ({error})", path, _COPY_AGAIN) from error


_COPY_AGAIN = "copy or download it again, or drop it"


@contextmanager
def _decoding(path: Path) -> Iterator[None]:
    try:
        yield
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise _too_large(path, "far more", MAX_PIXELS) from error
    except _PixelError as error:
        raise ImageError(ProblemKind.NOT_AN_IMAGE, str(error), path, "convert it to 8-bit RGB") from error
    except _BROKEN_PIXELS as error:
        raise ImageError(
            ProblemKind.TRUNCATED_IMAGE, f"image is truncated or damaged ({error})", path, _COPY_AGAIN
        ) from error


class _PixelError(Exception):
    """Pixels without one right way to 8 bits."""


def _too_large(path: Path, found: str, max_pixels: int) -> ImageError:
    return ImageError(
        ProblemKind.IMAGE_TOO_LARGE,
        f"image is too large: expected at most {max_pixels:,} pixels, found {found}",
        path,
        "scale it down, together with its boxes",
    )


def _orientation(image: ImageFile) -> int:
    """EXIF orientation 1..8; 1 where there is none or its block is broken, as viewers do."""
    if image.format == "TIFF":
        return 1  # Pillow turns a TIFF itself, its `size` included.
    if image.format == "PNG" and not _png_may_be_turned(image):
        return 1
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except _BROKEN_METADATA:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _png_may_be_turned(image: ImageFile) -> bool:
    """Whether a PNG has metadata that may hold an orientation, from its chunk headers.

    That metadata may follow the pixels, and Pillow decodes the whole image to find out: ten times the work of reading a
    size, for files that hardly ever have any.
    """
    if "exif" in image.info or "Raw profile type exif" in image.info:
        return True
    stream = image.fp
    assert stream is not None, "asked before the image is loaded"
    before = stream.tell()
    stream.seek(8)
    found = False
    while len(header := stream.read(8)) == 8 and not found:
        length, kind = struct.unpack(">I4s", header)
        found = kind in (b"eXIf", b"iTXt", b"zTXt", b"tEXt")
        stream.seek(length + 4, 1)
    stream.seek(before)
    return found


def _upright_size(stored_wh: tuple[int, int], orientation: int) -> tuple[int, int]:
    width, height = stored_wh
    return (height, width) if orientation >= 5 else (width, height)


def _refuse_float(mode: str) -> None:
    if mode.startswith("F"):
        raise _PixelError("pixels are floating-point numbers, whose range for 0..255 is not known")


def _to_rgb(image: ImageFile) -> Image.Image:
    _refuse_float(image.mode)
    if image.mode == "RGB" and "transparency" not in image.info:
        image.load()
        return image.copy()
    if image.mode in _SIXTEEN_BIT:
        values = np.asarray(image).astype(np.float32)
        return Image.fromarray((values.clip(0, 65535) / 257 + 0.5).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


# Images in tar shards: a path that leads through a `.tar` file names one of its members, `train-0001.tar/000123.jpg`.
#
# Nothing is unpacked. Python's `tarfile` walks the headers of a shard once; where each member lies is kept beside the
# shard (`derived.py`), and a member is read from there like a file of its own, in any order. Only plain files count:
# links and devices in a shard are never followed, and a name that leads out of the shard is no member's.


SUFFIX = ".tar"
_KEEP_FROM_BYTES = 1_000_000
_MAPPED = 1024
"""Shards whose tables stay open in a process."""
_TYPES = {"name": np.uint64, "offset": np.int64, "size": np.int64}


def split_path(path: Path) -> tuple[Path, str] | None:
    """The tar file that a path leads through and the member's name in it; `None` for a path to a file of its own."""
    if f"{SUFFIX}/" not in path.as_posix():
        return None
    for parent in reversed(path.parents):
        if parent.suffix == SUFFIX and not parent.is_dir():
            return parent, path.relative_to(parent).as_posix()
    return None


def open_member(path: Path) -> BinaryIO | None:
    """A member of a shard as a file to read; `None` for a path to a file of its own.

    Raises:
        ImageError: The shard is missing, broken or compressed, or has no such member.
    """
    if (found := split_path(path)) is None:
        return None
    shard, name = found
    table = _table(shard)
    key = _key(posixpath.normpath(name))
    place = int(np.searchsorted(table["name"], key))
    if place == len(table["name"]) or table["name"][place] != key:
        message = f"no image {name!r} in this shard of {len(table['name']):,}"
        fix = "check the name; links and devices in a shard do not count"
        raise ImageError(ProblemKind.MISSING_IMAGE, message, shard, fix)
    file = open(shard, "rb", buffering=0)  # noqa: SIM115  closed with the member
    return io.BufferedReader(_Member(file, int(table["offset"][place]), int(table["size"][place])), 1 << 16)


def is_image_file(path: Path) -> bool:
    """Whether there is a file at a path, or a member."""
    try:
        member = open_member(path)
    except ImageError:
        return False
    if member is None:
        return path.is_file()
    member.close()
    return True


def read_image_file(path: Path, *, at_most: int | None = None) -> bytes:
    """All bytes of an image file or member; none of one with more than `at_most`.

    Raises:
        ImageError: The shard is missing or broken, or has no such member.
    """
    with open_member(path) or open(path, "rb") as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        return file.read() if at_most is None or size <= at_most else b""


def members(shard: Path) -> Iterator[tuple[str, int, int]]:
    """Name, first byte and size of every plain file in a tar file, front to back.

    Raises:
        ImageError: It is missing, no tar file, compressed, or cut off.
    """
    remake = "make it again, uncompressed, or copy it again"
    try:
        with open(shard, "rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # all that were met, which takes memory
                name = posixpath.normpath(member.name)
                if member.isreg() and not member.issparse() and name.split("/")[0] not in ("", ".."):
                    yield name, member.offset_data, member.size
            # A broken or missing header ends the walk like the zeros that end every tar file.
            file.seek(archive.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError(f"no end mark at byte {archive.offset:,}")
    except FileNotFoundError as error:
        fix = "check the path; in a JSONL file it is read relative to that file"
        raise ImageError(ProblemKind.MISSING_IMAGE, "tar shard not found", shard, fix) from error
    except PermissionError as error:
        fix = "check its permissions"
        raise ImageError(ProblemKind.UNREADABLE_IMAGE, "tar shard cannot be read", shard, fix) from error
    except (tarfile.TarError, EOFError, ValueError) as error:
        message = f"tar shard is cut off, damaged or compressed ({error})"
        raise ImageError(ProblemKind.BROKEN_SHARD, message, shard, remake) from error


def _table(shard: Path) -> Arrays:
    try:
        status = shard.stat()
    except OSError:
        status = None
    return _known_table(shard, status and (status.st_size, status.st_mtime_ns))


@lru_cache(_MAPPED)
def _known_table(shard: Path, state: tuple[int, int] | None) -> Arrays:
    if state is None:
        return _build(shard)  # which says what is wrong
    return kept_arrays(
        shard, "members", "", lambda: _build(shard), lambda found: _fits(found, state[0]), _KEEP_FROM_BYTES
    )


def _build(shard: Path) -> Arrays:
    rows = [(_key(name), offset, size) for name, offset, size in members(shard)]
    names = np.array([key for key, _, _ in rows], np.uint64)
    order = np.argsort(names, kind="stable")
    names = names[order]
    twice = set(names[1:][names[1:] == names[:-1]].tolist())
    if twice:
        name = next(name for name, _, _ in members(shard) if int(_key(name)) in twice)
        message, fix = f"tar shard has two images of the name {name!r}", "rename one of them"
        raise ImageError(ProblemKind.BROKEN_SHARD, message, shard, fix)
    places = np.array([(offset, size) for _, offset, size in rows], np.int64).reshape(-1, 2)[order]
    return {"name": names, "offset": places[:, 0].copy(), "size": places[:, 1].copy()}


def _fits(arrays: Arrays, shard_bytes: int) -> bool:
    """Whether kept arrays can be those of a shard of this size: they may come from anybody, with the data."""
    if arrays.keys() != _TYPES.keys() or any(arrays[key].dtype != dtype for key, dtype in _TYPES.items()):
        return False
    name, offset, size = (arrays[key] for key in _TYPES)
    if not name.shape == offset.shape == size.shape or name.ndim != 1:
        return False
    inside = (offset >= 0) & (size >= 0) & (offset <= shard_bytes) & (size <= shard_bytes - offset)
    return bool(inside.all() and (name[1:] > name[:-1]).all())


def _key(name: str) -> np.uint64:
    """A name as a number: two names of a shard with one number would be told as one name twice."""
    return np.uint64(int.from_bytes(blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "little"))


class _Member(io.RawIOBase):
    """A stretch of a file, as a file."""

    def __init__(self, file: io.RawIOBase | io.FileIO, start: int, size: int) -> None:
        self._file, self._start, self._size, self._at = file, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        self._file.seek(self._start + self._at)
        data = self._file.read(max(0, min(len(buffer), self._size - self._at))) or b""
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()
