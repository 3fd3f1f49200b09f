"""Photos of the page: each stored once, whatever the number of steps and runs, without its metadata."""

from __future__ import annotations

import hashlib
import io
import shutil
from pathlib import Path

from apiece.data.images import ImageError, inspect_image, open_image
from apiece.data.problems import ProblemKind
from apiece.data.shards import read_image_file

MAX_SIDE = 1280
"""Longer photos are scaled down: boxes are drawn over them as data, so nothing is lost but pixels."""
_AS_IT_IS = 80_000
"""Bytes up to which a JPEG is copied as it is."""
_SMALL = 66_000
"""Pixels up to which a photo is kept without loss."""


class Photos:
    """The folder `photos/` of a report.

    Args:
        folder: The report's folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[tuple[Path, tuple[int, int]], tuple[str | None, str]] = {}

    def add(self, path: Path, size_wh: tuple[int, int]) -> tuple[str | None, str]:
        """Store a photo.

        Args:
            path: The image file.
            size_wh: As it was when its boxes were written down.

        Returns:
            Its address in the page, or `None` and what is wrong with it.
        """
        key = path, size_wh
        if key not in self._known:
            try:
                self._known[key] = self._stored(path, size_wh), ""
            except ImageError as error:
                self._known[key] = None, f"{path.name}: {error.message}"
        return self._known[key]

    def _stored(self, path: Path, size_wh: tuple[int, int]) -> str:
        facts = inspect_image(path)
        if facts.size_wh != size_wh:
            found, expected = (f"{w} x {h}" for w, h in (facts.size_wh, size_wh))
            message = f"the photo is {found} now, but its boxes are for {expected}"
            raise ImageError(ProblemKind.SIZE_DIFFERS, message, path, "")
        data = read_image_file(path, at_most=_AS_IT_IS)
        suffix = ".jpg"
        if not _plain_jpeg(data) or max(size_wh) > MAX_SIDE:
            image = open_image(path)
            image.thumbnail((MAX_SIDE, MAX_SIDE))
            buffer = io.BytesIO()
            small = image.width * image.height <= _SMALL
            image.save(buffer, format="WEBP", lossless=small, quality=80, method=4)
            data, suffix = buffer.getvalue(), ".webp"
        name = f"photos/{hashlib.sha256(data).hexdigest()[:16]}{suffix}"
        target = self._folder / name
        target.parent.mkdir(exist_ok=True)
        if not target.exists():
            target.write_bytes(data)
        return name


def _plain_jpeg(data: bytes) -> bool:
    """Whether a file's bytes can stand in the page: a JPEG without metadata that turns it or tells its place."""
    return data.startswith(b"\xff\xd8") and b"Exif" not in data[:65536]


def copy_assets(source: Path, folder: Path) -> None:
    """Copy the style sheet and the scripts."""
    (folder / "assets").mkdir()
    for path in sorted(source.iterdir()):
        if path.suffix in (".js", ".css"):
            shutil.copyfile(path, folder / "assets" / path.name)
