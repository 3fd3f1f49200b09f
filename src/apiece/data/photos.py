"""Finding photos: from files and folders to a list with an id for each that is unique and stable."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from apiece.errors import UserError

_READABLE = "avif bmp gif j2k jfif jp2 jpe jpeg jpg pbm pgm png pnm ppm tif tiff webp"
_UNREADABLE = "heic heif"
SUFFIXES = frozenset(f".{kind}" for kind in f"{_READABLE} {_UNREADABLE}".split())
"""What is taken for a photo in a folder; one of a kind that cannot be read is better named than passed over."""


@dataclass(frozen=True, slots=True)
class Photo:
    """An image file; `id` is its path (`a/1.jpg`) below the deepest folder that holds all photos asked for."""

    id: str
    path: Path


def find_photos(paths: Sequence[Path], *, leave_out: Path | None = None) -> list[Photo]:
    """The photos that are named, and those in the folders that are named, at any depth.

    A file that is named is always taken; in folders, files with a photo's suffix are, hidden ones aside. Links to
    folders inside folders are not followed. A photo that is met twice is taken once.

    Args:
        paths: Files and folders.
        leave_out: A folder that is never searched: where results go.

    Returns:
        Sorted by id.

    Raises:
        UserError: A path is missing, or a folder holds no photo.
    """
    skip = None if leave_out is None else os.path.realpath(leave_out)
    found: dict[str, Path] = {}
    roots: list[str] = []
    for path in paths:
        if path.is_dir():
            inside = list(_in_folder(path, skip))
            if not inside:
                fix = f"photos are files that end in {_READABLE.replace(' ', ', ')}"
                raise UserError("expected photos, found none in this folder", where=path, fix=fix)
            for file in inside:
                found.setdefault(_absolute(file), file)
            roots.append(_absolute(path))
        elif path.is_file():
            found.setdefault(_absolute(path), path)
            roots.append(_absolute(path.parent))
        else:
            message = "expected a photo or a folder, found " + ("something else" if path.exists() else "nothing")
            raise UserError(message, where=path, fix="check the path; it is read relative to the current folder")
    if not roots:
        raise UserError("no photo named", exit_code=2)
    common = os.path.commonpath(roots)
    photos = [Photo(Path(os.path.relpath(key, common)).as_posix(), file) for key, file in found.items()]
    return sorted(photos, key=lambda photo: photo.id)


def _absolute(path: Path) -> str:
    """Without `..` and `.`, links kept: a link to a photo is a photo of its own."""
    return os.path.abspath(path)  # noqa: PTH100  Path.resolve() would follow links


def _in_folder(folder: Path, skip: str | None) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder):
        if os.path.realpath(parent) == skip:
            folders.clear()
            continue
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            path = Path(parent, name)
            if path.suffix.lower() in SUFFIXES and not name.startswith(".") and path.is_file():
                yield path
