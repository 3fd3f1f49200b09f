"""Importing YOLO labels: one text file an image, `class cx cy width height` a line, as shares of the image."""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import yaml

from apiece.data.images import ImageError, image_size
from apiece.data.imported import IMAGE_SUFFIXES, Imported, files_under, require_folder
from apiece.data.problems import ProblemKind
from apiece.errors import UserError, require_file
from apiece.types import BoxXYXY, Instance, Sample

_LISTS = frozenset({"classes.txt", "names.txt"})  # labelling tools put these beside the labels


def import_yolo(images: Path, labels: Path, names: Path) -> Imported:
    """Read a folder of YOLO labels.

    The label of `images/a/b.jpg` is `labels/a/b.txt`; an image without one has no objects. The sample id is the image's
    path in the folder without its suffix. A line of more than five columns is a polygon and becomes its bounding box,
    with the polygon's area. Sizes come from the image files, after EXIF rotation.

    Args:
        images: Folder of images, searched with its subfolders.
        labels: Folder of label files, laid out alike.
        names: Class names: a text file with one a line, or a YAML file with `names` (a list, or number: name).

    Returns:
        Samples sorted by path, and what could not be converted.

    Raises:
        UserError: A folder is missing or empty, or the names cannot be read.
    """
    require_folder(images, "the image folder")
    require_folder(labels, "the label folder")
    classes = read_names(names)
    result = Imported()
    paths = list(files_under(images, IMAGE_SUFFIXES))
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
