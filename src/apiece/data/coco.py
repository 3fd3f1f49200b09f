"""Importing a COCO annotation file: `xywh` becomes `xyxy`; ids, `iscrowd` and areas are kept.

What COCO can say and the contract can hold is converted as it is, dirt such as boxes without size included: `data
check` names it. What cannot be held (no such category, a box of three numbers) is a problem of the import.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Any

from apiece.data.formats import Imported, require_folder
from apiece.data.images import image_size
from apiece.data.lines import MAX_SIDE, ImageError, ProblemKind, area_faults, parse_box, text_faults
from apiece.errors import UserError, require_file
from apiece.types import Instance, Sample

_SECTIONS = ("images", "annotations", "categories")


def import_coco(annotations: Path, images: Path) -> Imported:
    """Read a COCO annotation file (`instances_*.json`).

    The sample id is the COCO image id as text; the annotation id and area are kept; category ids are not, as the name
    says it. Images without annotations are kept. Segmentations are not read and may be absent.

    Args:
        annotations: The JSON file.
        images: Folder that `file_name` is relative to. Files must exist; their content is not read, except for the size
            where the entry has none.

    Returns:
        Samples in the order of `images`, and what could not be converted.

    Raises:
        UserError: The file is missing, not JSON, or not a COCO annotation file at all.
    """
    require_folder(images, "the image folder")
    document = _load(annotations)
    return _Reader(str(annotations), document, images).read()


def _load(path: Path) -> dict[str, Any]:
    require_file(path, "a COCO annotation file")
    try:
        document = json.loads(path.read_bytes())
    except json.JSONDecodeError as error:
        message = f"not valid JSON: {error.msg}"
        raise UserError(message, where=f"{path}:{error.lineno}:{error.colno}", fix="export it again") from error
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8 text (byte {error.start})", where=path, fix="export it again") from error
    except (ValueError, RecursionError) as error:
        raise UserError("not valid JSON: nested too deep, or a number of thousands of digits", where=path) from error
    if isinstance(document, list) and document and isinstance(document[0], dict) and "score" in document[0]:
        fix = "give the annotation file that they belong to, such as instances_val2017.json"
        raise UserError("this is a COCO results file: predictions without images", where=path, fix=fix)
    if not isinstance(document, dict):
        raise UserError("expected a JSON object with images, annotations and categories", where=path)
    missing = [key for key in _SECTIONS if not isinstance(document.get(key), list)]
    if missing:
        found = ", ".join(map(repr, list(document)[:8])) or "nothing"
        expected, lacking = ", ".join(map(repr, _SECTIONS)), ", ".join(map(repr, missing))
        message = f"expected the lists {expected}; missing {lacking}, found {found}"
        raise UserError(message, where=path, fix="give an instances file (not captions or panoptic)")
    return document


class _Reader:
    """One pass over a COCO document."""

    def __init__(self, name: str, document: dict[str, Any], folder: Path) -> None:
        self._name = name
        self._document = document
        self._folder = folder
        self._result = Imported()
        self._categories: dict[int, str] = {}
        self._sizes: dict[int | str, tuple[int, int]] = {}
        self._refused: set[int | str] = set()
        self._paths: dict[int | str, Path] = {}

    def read(self) -> Imported:
        """Categories, then images, then annotations, as each refers to the one before."""
        self._read_categories()
        self._read_images()
        objects = self._read_annotations()
        self._result.samples = [
            Sample(str(image_id), self._paths[image_id], size_wh, tuple(objects.get(image_id, ())))
            for image_id, size_wh in self._sizes.items()
        ]
        return self._result

    def _read_categories(self) -> None:
        for index, entry in enumerate(self._document["categories"]):
            where = f"{self._name}: categories[{index}]"
            if not self._has_keys(entry, where, ("id", "name")):
                continue
            if type(entry["id"]) is not int or not isinstance(entry["name"], str):
                message = f"expected a number 'id' and a text 'name', found {entry['id']!r} and {entry['name']!r}"
                self._result.add(ProblemKind.WRONG_TYPE, where, message)
            elif entry["id"] in self._categories:
                names = f"{self._categories[entry['id']]!r} and {entry['name']!r}"
                message = f"category id {entry['id']} appears twice: {names}"
                self._result.add(ProblemKind.DUPLICATE_ID, where, message)
            else:
                self._categories[entry["id"]] = entry["name"]
        for name, count in Counter(self._categories.values()).items():
            if count > 1:
                ids = [key for key, value in self._categories.items() if value == name]
                message = f"categories {', '.join(map(str, ids))} share the name {name!r}: they become one class"
                self._result.add(ProblemKind.SHARED_CATEGORY_NAME, f"{self._name}: categories", message)

    def _read_images(self) -> None:
        missing = 0
        for index, entry in enumerate(self._document["images"]):
            where = f"{self._name}: images[{index}]"
            if not self._has_keys(entry, where, ("id", "file_name")):
                if isinstance(entry, dict) and isinstance(entry.get("id"), int | str):
                    self._refused.add(entry["id"])
                continue
            missing += self._read_image(entry, f"{where} (id {entry['id']!r})")
        if missing and missing == len(self._document["images"]):
            message = f"none of its {missing} images is in {self._folder}"
            first = self._folder / str(self._document["images"][0]["file_name"])
            fix = f"check --images; the first is expected at {first}"
            raise UserError(message, where=self._name, fix=fix)

    def _read_image(self, entry: dict[str, Any], where: str) -> bool:
        """Take one image entry; whether its file is missing."""
        image_id, file_name = entry["id"], entry["file_name"]
        if isinstance(image_id, bool) or not isinstance(image_id, int | str):
            self._result.add(ProblemKind.WRONG_TYPE, where, f"'id': expected a number or text, found {image_id!r}")
            return False
        if image_id in self._sizes or image_id in self._refused:
            self._result.add(ProblemKind.DUPLICATE_ID, where, f"image id {image_id!r} appears twice")
            return False
        self._refused.add(image_id)  # until all is known to be well
        faults = text_faults("id", image_id) if isinstance(image_id, str) else []
        if isinstance(file_name, str) and file_name:
            faults += text_faults("file_name", file_name)
        if faults:
            self._result.add(faults[0][0], where, faults[0][1])
            return False
        if not isinstance(file_name, str) or not file_name:
            self._result.add(ProblemKind.WRONG_TYPE, where, f"'file_name': expected text, found {file_name!r}")
            return False
        if PurePosixPath(file_name).is_absolute() or ".." in PurePosixPath(file_name).parts:
            message = f"'file_name' leads out of the image folder: {file_name!r}"
            self._result.add(ProblemKind.BAD_PATH, where, message)
            return False
        path = self._folder / file_name
        if not os.path.isfile(path):  # noqa: PTH113  twice as fast, and there may be a million
            self._result.add(ProblemKind.MISSING_IMAGE, where, f"image file not found: {path}")
            return True
        size_wh = self._size(entry, path, where)
        if size_wh is not None:
            self._sizes[image_id], self._paths[image_id] = size_wh, path
            self._refused.discard(image_id)
        return False

    def _size(self, entry: dict[str, Any], path: Path, where: str) -> tuple[int, int] | None:
        if "width" not in entry and "height" not in entry:
            try:
                return image_size(path)
            except ImageError as error:
                self._result.add(error.kind, where, f"{path}: {error.message}")
                return None
        width, height = entry.get("width"), entry.get("height")
        if type(width) is int and type(height) is int and 1 <= min(width, height) <= max(width, height) <= MAX_SIDE:
            return width, height
        message = f"expected 'width' and 'height' in whole pixels, found {width!r} and {height!r}"
        self._result.add(ProblemKind.BAD_SIZE, where, message)
        return None

    def _read_annotations(self) -> dict[int | str, list[Instance]]:
        objects: dict[int | str, list[Instance]] = {}
        seen: set[int] = set()
        passed_over = 0
        for index, entry in enumerate(self._document["annotations"]):
            where = f"{self._name}: annotations[{index}]"
            if isinstance(entry, dict) and "id" in entry:
                where += f" (id {entry['id']!r})"
            if not self._has_keys(entry, where, ("image_id", "category_id", "bbox")):
                continue
            image_id = entry["image_id"]
            if isinstance(image_id, int | str) and image_id in self._refused:
                passed_over += 1
                continue
            instance = self._instance(entry, where, seen)
            if instance is not None:
                objects.setdefault(image_id, []).append(instance)
        if passed_over:
            self._result.notes.append(f"{passed_over} annotations belong to images with a problem")
        return objects

    def _instance(self, entry: dict[str, Any], where: str, seen: set[int]) -> Instance | None:
        """One annotation, or `None` with its problems recorded."""
        before = len(self._result.problems)
        add = self._result.add
        image_id, category_id, identity = entry["image_id"], entry["category_id"], entry.get("id")
        if not isinstance(image_id, int | str) or image_id not in self._sizes:
            add(ProblemKind.UNKNOWN_IMAGE, where, f"no image has the id {image_id!r}")
        if type(category_id) is not int or category_id not in self._categories:
            add(ProblemKind.UNKNOWN_CATEGORY, where, f"no category has the id {category_id!r}")
        if identity is not None and type(identity) is not int:
            add(ProblemKind.WRONG_TYPE, where, f"'id': expected a number, found {identity!r}")
        elif identity in seen:
            add(ProblemKind.DUPLICATE_OBJECT_ID, where, f"annotation id {identity} appears twice")
        iscrowd, area = entry.get("iscrowd", 0), entry.get("area")
        if iscrowd not in (0, 1):
            add(ProblemKind.WRONG_TYPE, where, f"'iscrowd': expected 0 or 1, found {iscrowd!r}")
        if area is not None and (fault := area_faults(area)):
            add(fault[0], where, fault[1])
        (x, y, width, height), box_fault = parse_box(entry["bbox"])
        if box_fault:
            add(box_fault[0], where, box_fault[1])
        if len(self._result.problems) > before:
            return None
        if identity is not None:
            seen.add(identity)
        box = self._result.fit((x, y, x + width, y + height), self._sizes[image_id])
        return Instance(
            self._categories[category_id], box, bool(iscrowd), None if area is None else float(area), identity
        )

    def _has_keys(self, entry: Any, where: str, keys: tuple[str, ...]) -> bool:
        if not isinstance(entry, dict):
            self._result.add(ProblemKind.WRONG_TYPE, where, f"expected a JSON object, found {entry!r:.40}")
            return False
        missing = [key for key in keys if key not in entry]
        if missing:
            self._result.add(ProblemKind.MISSING_KEY, where, f"missing {', '.join(map(repr, missing))}")
        return not missing
