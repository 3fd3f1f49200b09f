"""Importing Pascal VOC annotations: one XML file an image.

VOC counts pixels from 1 and its boxes include their last pixel, so that `xmin` 1 is the image's left edge: here
x1 = xmin - 1, y1 = ymin - 1, x2 = xmax, y2 = ymax.
"""

from __future__ import annotations

import math
from pathlib import Path
from xml.etree import ElementTree

from apiece.data.images import ImageError, inspect_header
from apiece.data.imported import IMAGE_SUFFIXES, Imported, files_under, require_folder
from apiece.data.problems import ProblemKind
from apiece.errors import UserError
from apiece.types import BoxXYXY, Instance, Sample

_EDGES = ("xmin", "ymin", "xmax", "ymax")


def import_voc(annotations: Path, images: Path) -> Imported:
    """Read a folder of Pascal VOC annotations.

    The sample id is the XML file's path in the folder without its suffix. Sizes come from the image files, after EXIF
    rotation; an XML that says another size is a problem, as its boxes then lie in another frame. Objects marked
    `difficult` are kept and counted; parts of objects are not read.

    Args:
        annotations: Folder of XML files, searched with its subfolders.
        images: Folder that each `filename` is relative to.

    Returns:
        Samples sorted by path, and what could not be converted.

    Raises:
        UserError: A folder is missing or has no XML files.
    """
    require_folder(annotations, "the annotation folder")
    require_folder(images, "the image folder")
    paths = list(files_under(annotations, frozenset({".xml"})))
    if not paths:
        raise UserError("no XML files in this folder", where=annotations, fix="check --annotations")
    result = Imported()
    difficult = 0
    for path in paths:
        root = _parse(annotations / path, result)
        if root is None:
            continue
        where = str(annotations / path)
        image = _find_image(root, annotations / path, images, result)
        if image is None:
            continue
        size_wh = _size(root, image, where, result)
        if size_wh is None:
            continue
        objects: list[Instance] = []
        for index, element in enumerate(root.findall("object")):
            instance = _instance(element, f"{where}: object {index}", size_wh, result)
            if instance is not None:
                objects.append(instance)
                difficult += _text(element, "difficult") == "1"
        result.samples.append(Sample(path.with_suffix("").as_posix(), image, size_wh, tuple(objects)))
    if difficult:
        result.notes.append(f"{difficult} objects marked difficult are kept as ordinary ones")
    return result


def _text(element: ElementTree.Element, tag: str) -> str:
    return (element.findtext(tag) or "").strip()


def _parse(path: Path, result: Imported) -> ElementTree.Element | None:
    try:
        raw = path.read_bytes()
        if b"<!DOCTYPE" in raw or b"<!ENTITY" in raw:
            # Entities can expand to gigabytes; no VOC file has a reason to declare any.
            result.add(ProblemKind.BROKEN_FILE, str(path), "XML with a DOCTYPE is refused")
            return None
        root = ElementTree.fromstring(raw)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        result.add(ProblemKind.BROKEN_FILE, str(path), f"not valid XML: {error}")
        return None
    except PermissionError:
        result.add(ProblemKind.BROKEN_FILE, str(path), "cannot be read: permission denied")
        return None
    if root.tag != "annotation":
        result.add(ProblemKind.BROKEN_FILE, str(path), f"expected a VOC <annotation>, found <{root.tag}>")
        return None
    return root


def _find_image(root: ElementTree.Element, path: Path, images: Path, result: Imported) -> Path | None:
    """The image of an annotation: its `filename`, or that with a suffix of an image (ImageNet leaves it out)."""
    name = _text(root, "filename") or path.stem
    if Path(name).is_absolute() or ".." in Path(name).parts or "\0" in name:
        result.add(ProblemKind.BAD_PATH, str(path), f"'filename' leads out of the image folder: {name!r}")
        return None
    for candidate in (name, *(name + suffix for suffix in (".jpg", ".JPEG", ".jpeg", ".png", ".JPG"))):
        if Path(candidate).suffix.lower() in IMAGE_SUFFIXES and (images / candidate).is_file():
            return images / candidate
    result.add(ProblemKind.MISSING_IMAGE, str(path), f"image file not found: {images / name}")
    return None


def _size(root: ElementTree.Element, image: Path, where: str, result: Imported) -> tuple[int, int] | None:
    """Size from the image file, if the XML agrees or is silent."""
    try:
        facts = inspect_header(image)
    except ImageError as error:
        result.add(error.kind, where, f"{image}: {error.message}")
        return None
    said = (_text(root, "size/width"), _text(root, "size/height"))
    real = (str(facts.size_wh[0]), str(facts.size_wh[1]))
    if said == real or all(value in ("", "0") for value in said):
        return facts.size_wh
    shown = f"{' x '.join(said)} in the XML, {' x '.join(real)} in {image}"
    if said == (str(facts.stored_wh[0]), str(facts.stored_wh[1])):
        message = f"size is the one before EXIF rotation: {shown}; its boxes may be in the unrotated frame"
        result.add(ProblemKind.SIZE_UNROTATED, where, message)
    else:
        result.add(ProblemKind.SIZE_DIFFERS, where, f"size differs: {shown}")
    return None


def _instance(element: ElementTree.Element, where: str, size_wh: tuple[int, int], result: Imported) -> Instance | None:
    box = element.find("bndbox")
    missing = [edge for edge in _EDGES if box is None or not _text(box, edge)]
    if element.find("name") is None:
        missing.insert(0, "name")
    if missing or box is None:
        result.add(ProblemKind.MISSING_KEY, where, f"missing {', '.join(f'<{tag}>' for tag in missing)}")
        return None
    try:
        x1, y1, x2, y2 = (float(_text(box, edge)) for edge in _EDGES)
    except ValueError:
        found = ", ".join(_text(box, edge) for edge in _EDGES)
        result.add(ProblemKind.WRONG_TYPE, where, f"expected 4 numbers in <bndbox>, found {found!r:.60}")
        return None
    if not all(math.isfinite(corner) and abs(corner) < 1e12 for corner in (x1, y1, x2, y2)):
        result.add(ProblemKind.BOX_NOT_FINITE, where, "box is not finite")
        return None
    shifted: BoxXYXY = (x1 - 1, y1 - 1, x2, y2)
    return Instance(_text(element, "name"), result.fit(shifted, size_wh))
