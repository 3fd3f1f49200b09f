"""Opening image files: always upright RGB within a size limit, or an error that names them.

Sizes are `(width, height)` in pixels after EXIF rotation, as a viewer shows the photo: the frame that boxes are in.
"""

from __future__ import annotations

import logging
import os
import struct
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.Image import Transpose
from PIL.ImageFile import ImageFile

from apiece.data.lines import ImageError, ProblemKind
from apiece.errors import UserError
from apiece.types import Sample

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


def open_image(path: Path) -> Image.Image:
    """Read an image file as upright 8-bit RGB.

    Greyscale, palette, CMYK and 16-bit pixels are converted (16 bits: divided by 257); transparent pixels are laid on
    white; of an animation the first frame is taken.

    Returns:
        A loaded image of mode `RGB`, turned as its EXIF orientation asks.

    Raises:
        ImageError: The file is missing, not an image, truncated or too large; a `UserError` that names it.
    """
    with _opened(Path(path)) as image, _decoding(Path(path)):
        orientation = _orientation(image)
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
        return ImageFacts(_upright_size(image.size, _orientation(image)), image.size, image.mode)


def inspect_image(path: Path) -> ImageFacts:
    """Decode a file to the end, as cheaply as its format allows.

    Raises:
        ImageError: As `open_image`.
    """
    with _opened(Path(path)) as image, _decoding(Path(path)):
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
        sample: What the data file says.
        found_wh: Size of the image file, after EXIF rotation.
        data: The data file, if it is known.
    """
    if found_wh != sample.size_wh:
        raise UserError(
            f"sample {sample.id}: expected an image of {sample.size_wh[0]} x {sample.size_wh[1]} pixels, "
            f"found {found_wh[0]} x {found_wh[1]}",
            where=sample.image,
            fix=f"see all problems with `apiece data check {data}`",
        )


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
        raise _too_large(path, "far more") from error
    except _PixelError as error:
        raise ImageError(ProblemKind.NOT_AN_IMAGE, str(error), path, "convert it to 8-bit RGB") from error
    except _BROKEN_PIXELS as error:
        raise ImageError(
            ProblemKind.TRUNCATED_IMAGE, f"image is truncated or damaged ({error})", path, _COPY_AGAIN
        ) from error


class _PixelError(Exception):
    """Pixels without one right way to 8 bits."""


def _too_large(path: Path, found: str) -> ImageError:
    return ImageError(
        ProblemKind.IMAGE_TOO_LARGE,
        f"image is too large: expected at most {MAX_PIXELS:,} pixels, found {found}",
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
