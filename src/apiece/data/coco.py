"""COCO annotation files: the one reader of their entries, and the import of one as samples.

An entry that makes no sense (an unknown category, a box of three numbers) is a problem; other dirt, such as boxes
without size, is read as it is, for `data check` or the evaluator to judge.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from apiece.data.formats import Imported, require_folder
from apiece.data.images import image_size
from apiece.data.lines import MAX_SIDE, ImageError, ProblemKind, area_faults, parse_box, text_faults
from apiece.errors import UserError, require_file
from apiece.files import read_json
from apiece.types import BoxXYXY, Instance, Sample

_SECTIONS = ("images", "annotations", "categories")


@dataclass(frozen=True, slots=True)
class CocoImage:
    """An entry of `images`."""

    id: int | str
    file_name: str | None
    size_wh: tuple[int, int] | None  # pixels; `None` where the entry has neither `width` nor `height`
    where: str  # names the entry in messages


@dataclass(frozen=True, slots=True)
class CocoObject:
    """An entry of `annotations`, of a known image and category."""

    image_id: int | str
    category_id: int
    bbox_xywh: tuple[float, float, float, float]  # finite, sizes of any sign
    iscrowd: bool
    area: float | None  # square pixels, from 0
    id: int | None  # `None` where it is missing or was not asked for
    where: str  # names the entry in messages


class CocoFile:
    """A COCO annotation file (https://cocodataset.org/#format-data), read entry by entry. Segmentations are not read.

    Read `images` first, `refuse` those that cannot be used, then read `objects`. `categories` are names by id; problems
    go to `found`. A file that is missing, not JSON, or not a COCO annotation file at all is a `UserError`.
    """

    def __init__(self, path: Path, found: Imported) -> None:
        self._name, self._found = str(path), found
        self._document = _load(path)
        self._images: set[int | str] = set()
        self._refused: set[int | str] = set()
        self.categories = self._categories()

    def __len__(self) -> int:
        return len(self._document["images"])

    def refuse(self, image: CocoImage, kind: ProblemKind, message: str) -> None:
        """Leave out an image, with its objects."""
        self._found.add(kind, image.where, message)
        self._images.discard(image.id)
        self._refused.add(image.id)

    def images(self) -> Iterator[CocoImage]:
        """The entries of `images` that are well formed."""
        for index, entry in enumerate(self._document["images"]):
            where = f"{self._name}: images[{index}]"
            if not self._has_keys(entry, where, ("id",)):
                continue
            image_id, file_name = entry["id"], entry.get("file_name")
            where += f" (id {image_id!r})"
            if type(image_id) not in (int, str):
                self._found.add(ProblemKind.WRONG_TYPE, where, f"'id': expected a number or text, found {image_id!r}")
                continue
            if image_id in self._images or image_id in self._refused:
                self._found.add(ProblemKind.DUPLICATE_ID, where, f"image id {image_id!r} appears twice")
                continue
            image = CocoImage(image_id, file_name, _size(entry), where)
            faults = text_faults("id", image_id) if isinstance(image_id, str) else []
            if "file_name" in entry:
                faults += text_faults("file_name", file_name)
            if image.size_wh is None and ("width" in entry or "height" in entry):
                found = f"{entry.get('width')!r} and {entry.get('height')!r}"
                message = f"expected 'width' and 'height' in whole pixels, found {found}"
                faults.append((ProblemKind.BAD_SIZE, message))
            if faults:
                self.refuse(image, *faults[0])
                continue
            self._images.add(image_id)
            yield image

    def objects(self, *, with_ids: bool = True) -> Iterator[CocoObject]:
        """The entries of `annotations` that are well formed and belong to an image that was not refused.

        Only `with_ids` is an annotation id that is no number or appears twice a problem.
        """
        seen: set[int] = set()
        passed_over = 0
        for index, entry in enumerate(self._document["annotations"]):
            where = f"{self._name}: annotations[{index}]"
            if isinstance(entry, dict) and "id" in entry:
                where += f" (id {entry['id']!r})"
            if not self._has_keys(entry, where, ("image_id", "category_id", "bbox")):
                continue
            if isinstance(entry["image_id"], int | str) and entry["image_id"] in self._refused:
                passed_over += 1
                continue
            item = self._object(entry, where, seen, with_ids)
            if item is not None:
                yield item
        if passed_over:
            self._found.notes.append(f"{passed_over} annotations belong to images with a problem")

    def _object(self, entry: dict[str, Any], where: str, seen: set[int], with_ids: bool) -> CocoObject | None:
        """One annotation, or `None` with its problems added."""
        before = len(self._found.problems)
        add = self._found.add
        image_id, category_id, identity = entry["image_id"], entry["category_id"], None
        if type(image_id) not in (int, str) or image_id not in self._images:
            add(ProblemKind.UNKNOWN_IMAGE, where, f"no image has the id {image_id!r}")
        if type(category_id) is not int or category_id not in self.categories:
            add(ProblemKind.UNKNOWN_CATEGORY, where, f"no category has the id {category_id!r}")
        if with_ids and (identity := entry.get("id")) is not None:
            if type(identity) is not int:
                add(ProblemKind.WRONG_TYPE, where, f"'id': expected a number, found {identity!r}")
            elif identity in seen:
                add(ProblemKind.DUPLICATE_OBJECT_ID, where, f"annotation id {identity} appears twice")
        iscrowd, area = entry.get("iscrowd", 0), entry.get("area")
        if iscrowd not in (0, 1):
            add(ProblemKind.WRONG_TYPE, where, f"'iscrowd': expected 0 or 1, found {iscrowd!r}")
        if area is not None and (fault := area_faults(area)):
            add(fault[0], where, fault[1])
        bbox_xywh, box_fault = parse_box(entry["bbox"])
        if box_fault:
            add(box_fault[0], where, box_fault[1])
        if len(self._found.problems) > before:
            return None
        if identity is not None:
            seen.add(identity)
        area = None if area is None else float(area)
        return CocoObject(image_id, category_id, bbox_xywh, bool(iscrowd), area, identity, where)

    def _categories(self) -> dict[int, str]:
        names: dict[int, str] = {}
        for index, entry in enumerate(self._document["categories"]):
            where = f"{self._name}: categories[{index}]"
            if not self._has_keys(entry, where, ("id", "name")):
                continue
            identity, name = entry["id"], entry["name"]
            if type(identity) is not int or not isinstance(name, str):
                message = f"expected a number 'id' and a text 'name', found {identity!r} and {name!r}"
                self._found.add(ProblemKind.WRONG_TYPE, where, message)
            elif identity in names:
                message = f"category id {identity} appears twice: {names[identity]!r} and {name!r}"
                self._found.add(ProblemKind.DUPLICATE_ID, where, message)
            else:
                names[identity] = name
        for name, count in Counter(names.values()).items():
            if count > 1:
                ids = ", ".join(str(identity) for identity, other in names.items() if other == name)
                message = f"categories {ids} share the name {name!r}"
                self._found.add(ProblemKind.SHARED_CATEGORY_NAME, f"{self._name}: categories", message)
        return names

    def _has_keys(self, entry: Any, where: str, keys: tuple[str, ...]) -> bool:
        if not isinstance(entry, dict):
            self._found.add(ProblemKind.WRONG_TYPE, where, f"expected a JSON object, found {entry!r:.40}")
            return False
        missing = [key for key in keys if key not in entry]
        if missing:
            self._found.add(ProblemKind.MISSING_KEY, where, f"missing {', '.join(map(repr, missing))}")
        return not missing


def import_coco(annotations: Path, images: Path) -> Imported:
    """Read a COCO annotation file (`instances_*.json`) as samples.

    The sample id is the COCO image id as text; the annotation id and area are kept; category ids are not, as the name
    says it, and categories of one name become one class. Images without annotations are kept.

    Args:
        annotations: The JSON file.
        images: Folder that `file_name` is relative to. Files must exist; their content is not read, except for the size
            where the entry has none.

    Returns:
        Samples in the order of `images`, and what could not be converted.

    Raises:
        UserError: The file is missing, not JSON, or not a COCO annotation file at all, or none of its images exists.
    """
    require_folder(images, "the image folder")
    result = Imported()
    file = CocoFile(annotations, result)
    if len(set(file.categories.values())) < len(file.categories):
        result.notes.append("categories of one name became one class")
    known: dict[int | str, tuple[Path, tuple[int, int]]] = {}
    missing: list[Path] = []
    for image in file.images():
        name = image.file_name
        if name is None:
            file.refuse(image, ProblemKind.MISSING_KEY, "missing 'file_name'")
        elif PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            file.refuse(image, ProblemKind.BAD_PATH, f"'file_name' leads out of the image folder: {name!r}")
        elif not os.path.isfile(path := images / name):  # noqa: PTH113  twice as fast, and there may be a million
            missing.append(path)
            file.refuse(image, ProblemKind.MISSING_IMAGE, f"image file not found: {path}")
        else:
            try:
                known[image.id] = path, image.size_wh or image_size(path)
            except ImageError as error:
                file.refuse(image, error.kind, f"{path}: {error.message}")
    if missing and len(missing) == len(file):
        message = f"none of its {len(missing)} images is in {images}"
        raise UserError(message, where=annotations, fix=f"check --images; the first is expected at {missing[0]}")
    objects: dict[int | str, list[Instance]] = {}
    for item in file.objects():
        x, y, width, height = item.bbox_xywh
        box: BoxXYXY = result.fit((x, y, x + width, y + height), known[item.image_id][1])
        instance = Instance(file.categories[item.category_id], box, item.iscrowd, item.area, item.id)
        objects.setdefault(item.image_id, []).append(instance)
    result.samples = [
        Sample(str(image_id), path, size_wh, tuple(objects.get(image_id, ())))
        for image_id, (path, size_wh) in known.items()
    ]
    return result


def _load(path: Path) -> dict[str, Any]:
    fix = "name a COCO annotation file, or export it again"
    document = read_json(require_file(path, "a COCO annotation file"), fix=fix)
    if isinstance(document, list) and document and isinstance(document[0], dict) and "score" in document[0]:
        fix = "give the file that they belong to, such as instances_val2017.json, to --annotations"
        raise UserError("this is a COCO results file: predictions without images", where=path, fix=fix)
    if not isinstance(document, dict):
        fix = "give an instances file, such as instances_val2017.json"
        raise UserError("expected a JSON object with images, annotations and categories", where=path, fix=fix)
    missing = [key for key in _SECTIONS if not isinstance(document.get(key), list)]
    if missing:
        found = ", ".join(map(repr, list(document)[:8])) or "nothing"
        expected, lacking = ", ".join(map(repr, _SECTIONS)), ", ".join(map(repr, missing))
        message = f"expected the lists {expected}; missing {lacking}, found {found}"
        raise UserError(message, where=path, fix="give an instances file (not captions or panoptic)")
    return document


def _size(entry: dict[str, Any]) -> tuple[int, int] | None:
    width, height = entry.get("width"), entry.get("height")
    if type(width) is int and type(height) is int and 1 <= min(width, height) <= max(width, height) <= MAX_SIDE:
        return width, height
    return None
