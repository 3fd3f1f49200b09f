"""Importing Pascal VOC and YOLO labels, and what all importers share.

An importer returns `Imported`: samples, and every problem of what it could not convert.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import yaml

from apiece.data.images import SUFFIXES, files_under, image_size, inspect_header
from apiece.data.lines import ROUNDING_PX, ImageError, Level, Problem, ProblemKind
from apiece.errors import UserError, require_file
from apiece.types import BoxXYXY, Instance, Sample

_DECIMALS = 6
_NOISE_PX = 1e-6


@dataclass(slots=True)
class Imported:
    """What an importer read."""

    samples: list[Sample] = field(
        default_factory=list
    )  # images with their objects, without entries that have a problem
    problems: list[Problem] = field(default_factory=list)  # errors and warnings, in file order
    clipped: int = 0  # boxes that stuck out of their image by at most one pixel and were cut to it
    notes: list[str] = field(default_factory=list)  # further facts for the user, such as files that were passed over

    def add(self, kind: ProblemKind, where: str, message: str) -> None:
        self.problems.append(Problem(kind, where, message))

    @property
    def errors(self) -> list[Problem]:
        return [problem for problem in self.problems if problem.level is Level.ERROR]

    def fit(self, box_xyxy: BoxXYXY, size_wh: tuple[int, int]) -> BoxXYXY:
        """Round off float noise, and cut (and count) boxes that stick out by no more than rounding does.

        Worse boxes, and those without size, are returned as they came: `data check` names them.
        """
        x1, y1, x2, y2 = (round(corner, _DECIMALS) for corner in box_xyxy)
        width, height = size_wh
        far = max(-x1, -y1, x2 - width, y2 - height)
        inside = x1 < width and y1 < height and x2 > 0 and y2 > 0
        if 0 < far <= ROUNDING_PX and inside and x1 < x2 and y1 < y2:
            self.clipped += far > _NOISE_PX
            return max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))
        return x1, y1, x2, y2


def require_folder(path: Path, what: str) -> Path:
    """Return `path` if it is a folder, else raise a `UserError` that names it."""
    if path.is_file():
        raise UserError(f"expected {what}, found a file", where=path, fix="give the folder that holds it")
    if not path.is_dir():
        fix = "check the path; it is read relative to the current folder"
        raise UserError(f"{what} not found", where=path, fix=fix)
    return path


# Pascal VOC: one XML file an image. VOC counts pixels from 1 and its boxes include their last pixel, so `xmin` 1 is
# the image's left edge: here x1 = xmin - 1, y1 = ymin - 1, x2 = xmax, y2 = ymax.

_EDGES = ("xmin", "ymin", "xmax", "ymax")


def import_voc(annotations: Path, images: Path) -> Imported:
    """Read a folder of Pascal VOC annotations.

    The sample id is the XML file's path in the folder without its suffix. Sizes come from the image files, after EXIF
    rotation; an XML that says another size is a problem, as its boxes then lie in another frame. Objects marked
    `difficult` are kept and counted; parts of objects are not read.

    Args:
        annotations: Folder of XML files, searched with its subfolders.
        images: Folder that each `filename` is relative to.

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
        if Path(candidate).suffix.lower() in SUFFIXES and (images / candidate).is_file():
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


_LISTS = frozenset({"classes.txt", "names.txt"})  # labelling tools put these next to the labels


def import_yolo(images: Path, labels: Path, names: Path) -> Imported:
    """Read a folder of YOLO labels.

    The label of `images/a/b.jpg` is `labels/a/b.txt`; an image without one has no objects. The sample id is the image's
    path in the folder without its suffix. A line of more than five columns is a polygon and becomes its bounding box,
    with the polygon's area. Sizes come from the image files, after EXIF rotation.

    Args:
        images: Folder of images, searched with its subfolders.
        labels: Folder of label files, laid out alike.
        names: Class names: a text file with one a line, or a YAML file with `names` (a list, or number: name).

    Raises:
        UserError: A folder is missing or empty, or the names cannot be read.
    """
    require_folder(images, "the image folder")
    require_folder(labels, "the label folder")
    classes = read_names(names)
    result = Imported()
    paths = list(files_under(images, SUFFIXES))
    if not paths:
        raise UserError("no image files in this folder", where=images, fix="check --images")
    by_stem: dict[Path, list[Path]] = defaultdict(list)
    for path in paths:
        by_stem[path.with_suffix("")].append(path)
    unlabelled = polygons = 0
    for stem, found in by_stem.items():
        label = labels / stem.with_name(stem.name + ".txt")
        if len(found) > 1:
            message = f"two images share this label: {', '.join(map(str, found))}"
            result.add(ProblemKind.DUPLICATE_ID, str(label), message)
            continue
        try:
            size_wh = image_size(images / found[0])
        except ImageError as error:
            result.add(error.kind, str(images / found[0]), error.message)
            continue
        objects: list[Instance] = []
        if label.is_file():
            polygons += _read_label(label, classes, size_wh, result, objects)
        elif label.exists():
            result.add(ProblemKind.BROKEN_FILE, str(label), "expected a label file, found a folder")
        else:
            unlabelled += 1
        result.samples.append(Sample(stem.as_posix(), images / found[0], size_wh, tuple(objects)))
    _find_orphans(labels, by_stem, result)
    if unlabelled:
        result.notes.append(f"{unlabelled} of {len(paths)} images have no label file: taken as images without objects")
    if polygons:
        result.notes.append(f"{polygons} polygons became their bounding boxes")
    return result


def read_names(path: Path) -> list[str]:
    """Class names by number, from a text file (one a line) or a YAML file with `names`.

    Raises:
        UserError: The file is missing, has no names, or numbers them with gaps.
    """
    require_file(path, "the class names (names.txt or data.yaml)")
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() not in (".yaml", ".yml"):
            names = [line.strip() for line in text.splitlines()]
            while names and not names[-1]:
                names.pop()
        else:
            # BaseLoader leaves every scalar as text: a class called `no` stays one instead of becoming False.
            names = _yaml_names(yaml.load(text, Loader=yaml.BaseLoader), path)
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8 text (byte {error.start})", where=path) from error
    except yaml.MarkedYAMLError as error:
        where = path if error.problem_mark is None else f"{path}:{error.problem_mark.line + 1}"
        raise UserError(f"not valid YAML: {error.problem}", where=where, fix="mend its syntax") from error
    except (yaml.YAMLError, RecursionError) as error:
        said = str(error).partition("\n")[0]
        raise UserError(f"not valid YAML: {said}", where=path, fix="mend its syntax") from error
    if not names or not all(names):
        raise UserError("expected one class name a line, found none or an empty one", where=path)
    return names


def _yaml_names(document: Any, path: Path) -> list[str]:
    names = document.get("names") if isinstance(document, dict) else None
    if isinstance(names, dict):
        expected = [str(number) for number in range(len(names))]
        if sorted(names) != sorted(expected):
            message = f"'names' must be numbered 0 to {len(names) - 1} without gaps, found {', '.join(names)}"
            raise UserError(message, where=path)
        names = [names[number] for number in expected]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError("expected 'names': a list of class names, or number: name", where=path)
    count = document.get("nc")
    if count is not None and str(count) != str(len(names)):
        raise UserError(f"'nc' is {count}, but 'names' has {len(names)}", where=path, fix="make them agree")
    return names


def _read_label(
    label: Path, classes: list[str], size_wh: tuple[int, int], result: Imported, objects: list[Instance]
) -> int:
    """Append the objects of one label file; how many of its lines were polygons."""
    try:
        text = label.read_text(encoding="utf-8-sig")
    except (UnicodeDecodeError, PermissionError) as error:
        result.add(ProblemKind.BROKEN_FILE, str(label), f"cannot be read as text: {error}")
        return 0
    polygons = 0
    for number, line in enumerate(text.splitlines(), 1):
        columns = line.split()
        if not columns:
            continue
        where = f"{label}:{number}"
        values = _numbers(columns, where, result)
        if values is None:
            continue
        if values[0] != int(values[0]) or not 0 <= values[0] < len(classes):
            message = f"no class has the number {columns[0]}; the names go from 0 to {len(classes) - 1}"
            result.add(ProblemKind.UNKNOWN_CATEGORY, where, message)
            continue
        is_polygon = len(values) > 5
        box, area = _polygon(values[1:], size_wh) if is_polygon else (_box(values[1:], size_wh), None)
        polygons += is_polygon
        objects.append(Instance(classes[int(values[0])], result.fit(box, size_wh), area=area))
    return polygons


def _numbers(columns: list[str], where: str, result: Imported) -> list[float] | None:
    """The columns as finite numbers, 5 of them or a polygon's 7, 9, 11, ..., or `None` with the problem recorded."""
    if len(columns) < 5 or len(columns) % 2 == 0:
        expected = "5 columns (class cx cy width height), or a polygon's class x y x y x y ..."
        message = f"expected {expected}, found {len(columns)}"
        if len(columns) == 6:
            message += "; a sixth is a confidence: these are predictions, not labels"
        result.add(ProblemKind.WRONG_TYPE, where, message)
        return None
    try:
        values = [float(column) for column in columns]
    except ValueError:
        result.add(ProblemKind.WRONG_TYPE, where, f"expected numbers, found {' '.join(columns)!r:.60}")
        return None
    if not all(math.isfinite(value) and abs(value) < 1e6 for value in values):
        result.add(ProblemKind.BOX_NOT_FINITE, where, f"expected shares from 0 to 1, found {' '.join(columns)!r:.60}")
        return None
    if max(values[1:]) > 2:
        message = f"expected shares of the image from 0 to 1, found {max(values[1:]):g}: are these pixels?"
        result.add(ProblemKind.BOX_OUTSIDE, where, message)
        return None
    return values


def _box(values: list[float], size_wh: tuple[int, int]) -> BoxXYXY:
    (cx, cy, w, h), (width, height) = values, size_wh
    return (cx - w / 2) * width, (cy - h / 2) * height, (cx + w / 2) * width, (cy + h / 2) * height


def _polygon(values: list[float], size_wh: tuple[int, int]) -> tuple[BoxXYXY, float]:
    """Bounding box of a polygon and its area in square pixels (shoelace formula)."""
    xs = [value * size_wh[0] for value in values[0::2]]
    ys = [value * size_wh[1] for value in values[1::2]]
    double = sum(xs[i - 1] * ys[i] - xs[i] * ys[i - 1] for i in range(len(xs)))
    return (min(xs), min(ys), max(xs), max(ys)), round(abs(double) / 2, 6)


def _find_orphans(labels: Path, by_stem: dict[Path, list[Path]], result: Imported) -> None:
    """Name label files that no image belongs to: objects would be lost without a word."""
    for path in files_under(labels, frozenset({".txt"})):
        if path.with_suffix("") not in by_stem and path.name not in _LISTS:
            result.add(ProblemKind.NO_IMAGE_FOR_LABEL, str(labels / path), "no image belongs to this label file")
