"""Finds image files and opens them: always upright RGB within a size limit, or an error that names them.

Sizes are `(width, height)` in pixels after EXIF rotation, as a viewer shows the photo: the frame that boxes are in.
"""

from __future__ import annotations

import logging
import os
import struct
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.Image import Transpose
from PIL.ImageFile import ImageFile

from apiece.data.lines import ImageError, ProblemKind
from apiece.errors import UserError
from apiece.types import Sample

_READABLE = "avif bmp gif j2k jfif jp2 jpe jpeg jpg pbm pgm png pnm ppm tif tiff webp"
SUFFIXES = frozenset(f".{kind}" for kind in f"{_READABLE} heic heif".split())
"""What counts as an image in a folder: a .heic cannot be read, but is better named in an error than passed over."""
MAX_PIXELS = 100_000_000
"""More are refused before decoding: 300 MB once decoded, and well under Pillow's own limit (179 million)."""

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
    *(OSError, EOFError, SyntaxError, ValueError, TypeError, IndexError, OverflowError, RuntimeError),
    struct.error,
)
_SIXTEEN_BIT = frozenset({"I;16", "I;16L", "I;16B", "I;16N", "I"})

# Pillow logs what it then raises; without a handler Python would print that to stderr as well.
logging.getLogger("PIL").addHandler(logging.NullHandler())


@dataclass(frozen=True, slots=True)
class Photo:
    """An image file; `id` is its path (`a/1.jpg`) below the deepest folder that holds all photos asked for."""

    id: str
    path: Path


def find_photos(paths: Sequence[Path], *, leave_out: Path | None = None) -> list[Photo]:
    """The files that are named, and the photos in the folders that are named, at any depth, sorted by id.

    A file that is named is always taken; in folders, files with a photo's suffix are, hidden ones excepted. Links to
    folders inside folders are not followed. A photo that is met twice is taken once.

    Args:
        paths: Files and folders.
        leave_out: A folder that is never searched: where results go.

    Raises:
        UserError: A path is missing, or a folder holds no photo.
    """
    found: dict[str, Path] = {}
    roots: list[str] = []
    for path in paths:
        if path.is_dir():
            inside = [path / name for name in files_under(path, SUFFIXES, hidden=False, leave_out=leave_out)]
            inside = [file for file in inside if file.is_file()]
            if not inside:
                fix = f"photos are files that end in {_READABLE.replace(' ', ', ')}"
                raise UserError("expected photos, found none in this folder", where=path, fix=fix)
            roots.append(_absolute(path))
        elif path.is_file():
            inside = [path]
            roots.append(_absolute(path.parent))
        else:
            message = "expected a photo or a folder, found " + ("something else" if path.exists() else "nothing")
            raise UserError(message, where=path, fix="check the path; it is read relative to the current folder")
        for file in inside:
            found.setdefault(_absolute(file), file)
    if not roots:
        raise UserError("no photo named", exit_code=2)
    common = os.path.commonpath(roots)
    photos = [Photo(Path(os.path.relpath(key, common)).as_posix(), file) for key, file in found.items()]
    return sorted(photos, key=lambda photo: photo.id)


def _absolute(path: Path) -> str:
    """Without `..` and `.`, links kept: a link to a photo is a photo of its own."""
    return os.path.abspath(path)  # noqa: PTH100  Path.resolve() would follow links


def files_under(
    folder: Path, suffixes: frozenset[str], *, hidden: bool = True, leave_out: Path | None = None
) -> Iterator[Path]:
    """Files below a folder with one of the suffixes (in any case), sorted by name, as paths relative to it.

    Hidden files are passed over, hidden folders only if not `hidden`, and the folder `leave_out` always.
    """
    skip = None if leave_out is None else os.path.realpath(leave_out)
    for current, folders, names in os.walk(folder):
        if skip is not None and os.path.realpath(current) == skip:
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if hidden or not name.startswith("."))
        for name in sorted(names):
            if os.path.splitext(name)[1].lower() in suffixes and not name.startswith("."):  # noqa: PTH122  a million names
                yield Path(current, name).relative_to(folder)


class ImageFacts(NamedTuple):
    """What an image file holds."""

    size_wh: tuple[int, int]  # after EXIF rotation
    stored_wh: tuple[int, int]  # before it; the same for an upright file
    mode: str  # Pillow's name of the stored pixels: `RGB`, `L`, `CMYK`, `RGBA`, `P`, `I;16`, ...


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


def open_image(path: Path) -> Image.Image:
    """Read an image file as upright 8-bit RGB, turned as its EXIF orientation asks.

    Greyscale, palette, CMYK and 16-bit pixels are converted (16 bits: divided by 257); transparent pixels are laid on
    white; of an animation the first frame is taken.

    Raises:
        ImageError: The file is missing, not an image, truncated or too large; a `UserError` that names it.
    """
    with _opened(Path(path)) as image, _decoding(Path(path)):
        orientation = _orientation(image)
        _refuse_float(image.mode, Path(path))
        rgb = _to_rgb(image)
        upright = rgb.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else rgb
        upright.info = {}  # Its EXIF block would turn the image a second time elsewhere.
        return upright


def image_size(path: Path) -> tuple[int, int]:
    """Width and height in pixels after EXIF rotation, read from the header only.

    Raises:
        ImageError: As `open_image`, but a truncated file is only noticed when its header is cut.
    """
    return inspect_header(path).size_wh


def inspect_header(path: Path) -> ImageFacts:
    """Like `inspect_image`, without decoding any pixels; errors as `image_size`."""
    with _opened(Path(path)) as image, _decoding(Path(path)):
        return _facts(image)


def inspect_image(path: Path) -> ImageFacts:
    """Decode a file to the end, as cheaply as its format allows.

    Raises:
        ImageError: As `open_image`.
    """
    with _opened(Path(path)) as image, _decoding(Path(path)):
        facts = _facts(image)
        _refuse_float(facts.mode, Path(path))
        # A JPEG decoded at 1/8 of its scale still reads all of its bytes, in a third of the time.
        image.draft(None, (1, 1))
        image.load()
        return facts


def require_size(sample: Sample, found_wh: tuple[int, int], data: str | Path = "DATA.jsonl") -> None:
    """Refuse an image whose size (after EXIF rotation) is not the one in the data file: boxes lie in another frame."""
    if found_wh != sample.size_wh:
        expected, found = (f"{width} x {height}" for width, height in (sample.size_wh, found_wh))
        message = f"sample {sample.id}: expected an image of {expected} pixels, found {found}"
        raise UserError(message, where=sample.image, fix=f"see all problems with `apiece data check {data}`")


@contextmanager
def _opened(path: Path) -> Iterator[ImageFile]:
    """Open a file and read its header; every way that can fail becomes an `ImageError`."""
    with _quiet, _open_header(path) as image:
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise _too_large(path, f"{width} x {height} = {width * height:,}")
        yield image


def _open_header(path: Path) -> ImageFile:
    try:
        return Image.open(path, formats=_FORMATS)
    except UnidentifiedImageError as error:
        if path.stat().st_size == 0:
            raise ImageError(ProblemKind.TRUNCATED_IMAGE, "image file is empty (0 bytes)", path, _COPY_AGAIN) from error
        message = f"not an image that can be read; expected one of {', '.join(_FORMATS)}"
        fix = "convert it (a .heic photo, say, to JPEG), or leave it out"
        raise ImageError(ProblemKind.NOT_AN_IMAGE, message, path, fix) from error
    except Image.DecompressionBombError as error:
        raise _too_large(path, "far more") from error
    except (FileNotFoundError, NotADirectoryError) as error:
        fix = "check the path; in a JSONL file it is read relative to that file"
        raise ImageError(ProblemKind.MISSING_IMAGE, "image file not found", path, fix) from error
    except IsADirectoryError as error:
        message = "expected an image file, found a folder"
        raise ImageError(ProblemKind.NOT_AN_IMAGE, message, path, "check the path") from error
    except _BROKEN_PIXELS as error:
        if isinstance(error, OSError) and error.errno is not None:
            message, fix = (
                f"image file cannot be read: {os.strerror(error.errno)}",
                "check the file and its permissions",
            )
            raise ImageError(ProblemKind.UNREADABLE_IMAGE, message, path, fix) from error
        raise ImageError(ProblemKind.TRUNCATED_IMAGE, f"image header is broken ({error})", path, _COPY_AGAIN) from error


_COPY_AGAIN = "copy or download it again, or drop it"


@contextmanager
def _decoding(path: Path) -> Iterator[None]:
    try:
        yield
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise _too_large(path, "far more") from error
    except _BROKEN_PIXELS as error:
        message = f"image is truncated or damaged ({error})"
        raise ImageError(ProblemKind.TRUNCATED_IMAGE, message, path, _COPY_AGAIN) from error


def _too_large(path: Path, found: str) -> ImageError:
    message = f"image is too large: expected at most {MAX_PIXELS:,} pixels, found {found}"
    return ImageError(ProblemKind.IMAGE_TOO_LARGE, message, path, "scale it down, together with its boxes")


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


def _facts(image: ImageFile) -> ImageFacts:
    width, height = image.size
    upright_wh = (height, width) if _orientation(image) >= 5 else (width, height)
    return ImageFacts(upright_wh, image.size, image.mode)


def _refuse_float(mode: str, path: Path) -> None:
    if mode.startswith("F"):
        message = "pixels are floating-point numbers, whose range for 0..255 is not known"
        raise ImageError(ProblemKind.NOT_AN_IMAGE, message, path, "convert it to 8-bit RGB")


def _to_rgb(image: ImageFile) -> Image.Image:
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
