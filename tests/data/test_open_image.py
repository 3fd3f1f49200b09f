"""Image files: always upright RGB, or an error that names the file."""

from __future__ import annotations

import logging
import pickle
import random
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from records import save_image

from apiece.data import images
from apiece.data.images import image_size, inspect_image, open_image
from apiece.data.lines import ImageError

RED_CORNER = {1: (0, 0), 2: (1, 0), 3: (1, 1), 4: (0, 1), 5: (0, 0), 6: (1, 0), 7: (1, 1), 8: (0, 1)}
"""Where the stored top left corner is seen (x, y) under each EXIF orientation."""
ALL = (open_image, image_size, inspect_image)


@pytest.mark.parametrize("orientation", RED_CORNER)
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_a_turned_photo_is_seen_upright(tmp_path: Path, suffix: str, orientation: int) -> None:
    pixels = np.zeros((40, 60, 3), dtype=np.uint8)
    pixels[:20, :30] = (255, 0, 0)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(pixels).save(path, exif=exif)
    image = open_image(path)
    expected = (40, 60) if orientation >= 5 else (60, 40)
    assert image.size == image_size(path) == inspect_image(path).size_wh == expected
    width, height = image.size
    corners = {(x, y): image.getpixel((2 + x * (width - 5), 2 + y * (height - 5))) for x in (0, 1) for y in (0, 1)}
    assert [place for place, pixel in corners.items() if pixel[0] > 200] == [RED_CORNER[orientation]]
    assert image.info == {} and image.getexif().get(0x0112) is None, "nothing is left that turns it again"


@pytest.mark.parametrize(
    ("mode", "suffix", "color", "expected"),
    [
        ("1", "png", 1, (255, 255, 255)),
        ("L", "jpg", 100, (100, 100, 100)),
        ("LA", "png", (0, 0), (255, 255, 255)),
        ("P", "png", 0, (0, 0, 0)),
        ("RGBA", "png", (0, 0, 0, 0), (255, 255, 255)),
        ("RGBA", "png", (200, 0, 0, 255), (200, 0, 0)),
        ("RGBA", "png", (0, 0, 0, 128), (127, 127, 127)),
        ("CMYK", "jpg", (0, 0, 0, 0), (255, 255, 255)),
        ("I;16", "png", 65535, (255, 255, 255)),
        ("I;16", "png", 257 * 100, (100, 100, 100)),
        ("I", "tif", 65535, (255, 255, 255)),
    ],
)
def test_every_mode_becomes_rgb(
    tmp_path: Path, mode: str, suffix: str, color: int | tuple[int, ...], expected: tuple[int, int, int]
) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.new(mode, (8, 6), color).save(path)
    image = open_image(path)
    assert image.mode == "RGB" and image.size == image_size(path) == (8, 6)
    assert np.abs(np.array(image.getpixel((3, 3))) - expected).max() <= 1


def test_transparent_palette_and_colour_key_lie_on_white(tmp_path: Path) -> None:
    palette = Image.new("P", (8, 6), 0)
    palette.info["transparency"] = 0
    palette.save(tmp_path / "p.gif", transparency=0)
    Image.new("RGB", (8, 6), (1, 2, 3)).save(tmp_path / "k.png", transparency=(1, 2, 3))
    for name in ("p.gif", "k.png"):
        assert open_image(tmp_path / name).getpixel((3, 3)) == (255, 255, 255), name


def test_one_pixel(tmp_path: Path) -> None:
    assert open_image(save_image(tmp_path / "a.png", (1, 1))).size == (1, 1)


def _truncated(path: Path) -> Path:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "gif", "tif"])
def test_a_truncated_file_is_named(tmp_path: Path, suffix: str) -> None:
    path = _truncated(tmp_path / f"a.{suffix}")
    for read in (open_image, inspect_image):
        with pytest.raises(ImageError, match=r"a\.\w+: image (is truncated or damaged|header is broken) \(") as caught:
            read(path)
        assert caught.value.kind == "truncated_image"


@pytest.mark.parametrize("read", ALL)
def test_what_is_no_image_is_named(tmp_path: Path, read: object) -> None:
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("not found")
    (tmp_path / "script.jpg").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")
    rows = [
        ("none.jpg", "missing_image", "image file not found"),
        ("text.jpg/a.jpg", "missing_image", "image file not found"),
        ("empty.jpg", "truncated_image", "image file is empty (0 bytes)"),
        ("text.jpg", "not_an_image", "not an image that can be read; expected one of JPEG, PNG"),
        ("script.jpg", "not_an_image", "not an image that can be read"),
        (".", "not_an_image", "expected an image file, found a folder"),
        ("a" * 300 + ".jpg", "unreadable_image", "image file cannot be read: File name too long"),
    ]
    for name, kind, message in rows:
        with pytest.raises(ImageError) as caught:
            read(tmp_path / name)  # type: ignore[operator]
        assert caught.value.kind == kind and message in str(caught.value), name
        assert caught.value.where == str(tmp_path / name)


@pytest.mark.parametrize("read", ALL)
def test_an_image_over_the_limit_is_refused_before_decoding(
    tmp_path: Path, read: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_image(tmp_path / "a.png", (200, 100))
    monkeypatch.setattr(images, "MAX_PIXELS", 19_999)
    with pytest.raises(ImageError, match=r"expected at most 19,999 pixels, found 200 x 100 = 20,000") as caught:
        read(path)  # type: ignore[operator]
    assert caught.value.kind == "image_too_large"
    monkeypatch.setattr(images, "MAX_PIXELS", 20_000)
    read(path)  # type: ignore[operator]


@pytest.mark.parametrize(("width", "found"), [(10_001, "10001 x 10000"), (30_000, "far more")])
def test_a_decompression_bomb_is_refused(tmp_path: Path, width: int, found: str) -> None:
    header = b"P6\n%d 10000\n255\n" % width  # no pixels follow: none may be asked for
    (tmp_path / "a.ppm").write_bytes(header)
    with pytest.raises(ImageError, match=f"too large.*{found}"):
        image_size(tmp_path / "a.ppm")


def test_floating_point_pixels_are_refused(tmp_path: Path) -> None:
    path = save_image(tmp_path / "a.tif", mode="F")
    for read in (open_image, inspect_image):
        with pytest.raises(ImageError, match="floating-point numbers"):
            read(path)


def test_no_warning_leaks_and_filters_are_restored(tmp_path: Path) -> None:
    (tmp_path / "big.ppm").write_bytes(b"P6\n9500 9500\n255\n")  # Pillow warns from 89 million pixels on
    before = list(warnings.filters)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert image_size(tmp_path / "big.ppm") == (9500, 9500)
    assert caught == [] and list(warnings.filters) == before


def test_threads_do_not_leave_filters_behind(tmp_path: Path) -> None:
    paths = [save_image(tmp_path / f"{k}.png", (100 + k, 50)) for k in range(20)]
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        images = list(pool.map(open_image, paths * 5))
    assert [image.size[0] for image in images[:20]] == list(range(100, 120))
    assert list(warnings.filters) == before


def test_broken_exif_means_upright(tmp_path: Path) -> None:
    path = save_image(tmp_path / "a.jpg", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xffgarbage")
    assert open_image(path).size == image_size(path) == (64, 48)


def test_an_error_crosses_processes(tmp_path: Path) -> None:
    with pytest.raises(ImageError) as caught:
        open_image(tmp_path / "none.jpg")
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (str(copy), copy.kind, copy.fix) == (str(caught.value), caught.value.kind, caught.value.fix)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "gif", "bmp", "jp2", "avif"])
def test_damage_anywhere_is_an_image_error_or_an_image(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (24, 32, 3), dtype=np.uint8)
    path = tmp_path / f"a.{suffix}"
    try:
        Image.fromarray(noise).save(path)
    except (OSError, ValueError, KeyError):
        pytest.skip(f"this Pillow does not write {suffix}")
    whole, rng = path.read_bytes(), random.Random(0)
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    for _ in range(60):
        damaged = bytearray(whole)
        for _ in range(rng.randrange(1, 6)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        path.write_bytes(damaged)
        for read in ALL:
            try:
                read(path)
            except ImageError as error:
                assert str(path) in str(error)
