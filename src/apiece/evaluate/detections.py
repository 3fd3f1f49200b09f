"""Reading and writing labels and detections: COCO JSON and apiece JSONL to `GroundTruth` and `Detections`, and back.

Everything that would score wrongly without a word (an unknown image, a missing score, a box that is not four finite
numbers) is an error here that names the entry, what was expected and what was found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apiece.boxes import xyxy_to_xywh
from apiece.errors import UserError, nearest, require_file
from apiece.evaluate.forms import Category, Detections, GroundTruth, ImageInfo
from apiece.files import read_json, write_json
from apiece.match import match_groups
from apiece.outcomes import IOU_MIN
from apiece.types import Detection, IntArray, Sample

Row = dict[str, Any]

_LARGEST = 1e12
"""Of any number in a file; the product of two is still exact enough to compare."""


def load_ground_truth(path: Path) -> GroundTruth:
    """Read labels from apiece JSONL (`.jsonl`) or a COCO annotation file (anything else).

    Raises:
        UserError: The file is missing or something in it cannot be scored.
    """
    if path.suffix == ".jsonl":
        from apiece.data.jsonl import read_jsonl

        return samples_to_ground_truth(read_jsonl(require_file(path, "an apiece JSONL file")))
    return load_coco_ground_truth(path)


def load_coco_ground_truth(path: Path) -> GroundTruth:
    """Read a COCO annotation file (https://cocodataset.org/#format-data). Segmentations are not read.

    A missing `iscrowd` is 0 and a missing `area` the box's own. Annotation ids are not kept: ids that are repeated or
    0 mislead COCO evaluators, so they are numbered anew.

    Raises:
        UserError: The file is missing or something in it cannot be scored; names the entry by its index.
    """
    content = _read_json(path, "a COCO annotation file")
    keys = ("images", "annotations", "categories")
    if not isinstance(content, dict) or any(not isinstance(content.get(key), list) for key in keys):
        found = f"an object with keys {sorted(content)}" if isinstance(content, dict) else f"a {_kind(content)}"
        raise UserError(
            f"expected a COCO annotation file (an object with lists {', '.join(keys)}), found {found}",
            where=path,
            fix="give the annotation file to --annotations and the list of detections to --predictions",
        )
    images = [_image(row, f"{path}: images[{i}]") for i, row in enumerate(content["images"])]
    categories = [_category(row, f"{path}: categories[{i}]") for i, row in enumerate(content["categories"])]
    _refuse_repeats([image.id for image in images], f"{path}: images", "id")
    _refuse_repeats([category.id for category in categories], f"{path}: categories", "id")
    _refuse_repeats([category.name for category in categories], f"{path}: categories", "name")
    images.sort(key=lambda image: image.id)
    categories.sort(key=lambda category: category.id)
    lookup = _Lookup(images, categories)
    annotations = content["annotations"]
    rows = [lookup.box(row, f"{path}: annotations[{i}]") for i, row in enumerate(annotations)]
    area = [
        _number(row["area"], "area", f"{path}: annotations[{i}]") if "area" in row else box[2] * box[3]
        for i, (row, (_, _, box)) in enumerate(zip(annotations, rows, strict=True))
    ]
    return GroundTruth(
        images=tuple(images),
        categories=tuple(categories),
        image=np.array([row[0] for row in rows], dtype=np.int64),
        category=np.array([row[1] for row in rows], dtype=np.int64),
        bbox_xywh=np.array([row[2] for row in rows], dtype=np.float64).reshape(-1, 4),
        iscrowd=np.array(
            [_flag(row, "iscrowd", f"{path}: annotations[{i}]") for i, row in enumerate(annotations)], dtype=bool
        ),
        area=np.array(area, dtype=np.float64),
    )


def samples_to_ground_truth(samples: Sequence[Sample]) -> GroundTruth:
    """Labels of samples. Image ids are the sample ids where all are integers, else 1, 2, ... in order.

    Category ids are 1, 2, ... over the sorted class names.

    Raises:
        UserError: Two samples have one id.
    """
    _refuse_repeats([sample.id for sample in samples], "samples", "id")
    ids = _image_ids(samples)
    order = sorted(range(len(samples)), key=ids.__getitem__)
    names = sorted({instance.desc for sample in samples for instance in sample.objects})
    number = {name: i for i, name in enumerate(names)}
    rows = [(place, instance) for place, i in enumerate(order) for instance in samples[i].objects]
    boxes_xywh = xyxy_to_xywh([instance.bbox_xyxy for _, instance in rows])
    own_area = boxes_xywh[:, 2] * boxes_xywh[:, 3]
    return GroundTruth(
        images=tuple(ImageInfo(ids[i], samples[i].id, samples[i].size_wh) for i in order),
        categories=tuple(Category(i + 1, name) for i, name in enumerate(names)),
        image=np.array([place for place, _ in rows], dtype=np.int64),
        category=np.array([number[instance.desc] for _, instance in rows], dtype=np.int64),
        bbox_xywh=boxes_xywh,
        iscrowd=np.array([instance.iscrowd for _, instance in rows], dtype=bool),
        area=np.array(
            [own if x.area is None else x.area for own, (_, x) in zip(own_area, rows, strict=True)], dtype=np.float64
        ),
    )


def load_coco_results(path: Path, truth: GroundTruth) -> Detections:
    """Read a COCO results file: a list of `{"image_id", "category_id", "bbox": [x, y, width, height], "score"}`.

    Raises:
        UserError: The file is missing or a detection cannot be scored; names it by its index.
    """
    content = _read_json(path, "a COCO results file")
    if not isinstance(content, list):
        found = f"an object with keys {sorted(content)}" if isinstance(content, dict) else f"a {_kind(content)}"
        raise UserError(
            f"expected a list of detections, found {found}",
            where=path,
            fix='write a list of {"image_id", "category_id", "bbox", "score"}; the annotations go to --annotations',
        )
    lookup = _Lookup(truth.images, truth.categories)
    rows: list[tuple[int, int, list[float]]] = []
    scores: list[float] = []
    for i, row in enumerate(content):
        where = f"{path}: detection {i}"
        rows.append(lookup.box(row, where))
        if "score" not in row:
            raise UserError(
                "expected a score, found none", where=where, fix="AP ranks by score: give every detection one"
            )
        scores.append(_number(row["score"], "score", where))
    return Detections(
        image=np.array([row[0] for row in rows], dtype=np.int64),
        category=np.array([row[1] for row in rows], dtype=np.int64),
        bbox_xywh=np.array([row[2] for row in rows], dtype=np.float64).reshape(-1, 4),
        score=np.array(scores, dtype=np.float64),
    )


def predictions_to_detections(
    truth: GroundTruth, predictions: Mapping[str, Sequence[Detection]]
) -> tuple[GroundTruth, Detections]:
    """Detections by sample id to columns.

    Args:
        truth: Labels of the split.
        predictions: Sample id (`ImageInfo.name`) to its detections, in the order written.

    Returns:
        The ground truth, with classes added where detections name further ones, and the detections.

    Raises:
        UserError: A sample id is not in the split.
        ValueError: A box or score cannot be scored.
    """
    place = {image.name: i for i, image in enumerate(truth.images)}
    for name in predictions:
        if name not in place:
            raise UserError(
                f"expected a sample of the split, found '{name}'{nearest(name, place)}", where="predictions"
            )
    rows = [(place[name], detection) for name, detections in predictions.items() for detection in detections]
    truth = truth.with_classes(detection.desc for _, detection in rows)
    number = {name: i for i, name in enumerate(truth.names)}
    return truth, Detections(
        image=np.array([image for image, _ in rows], dtype=np.int64),
        category=np.array([number[detection.desc] for _, detection in rows], dtype=np.int64),
        bbox_xywh=xyxy_to_xywh([detection.bbox_xyxy for _, detection in rows]),
        score=np.array([detection.score for _, detection in rows], dtype=np.float64),
    )


def to_coco(labels: GroundTruth | Sequence[Sample]) -> dict[str, list[Row]]:
    """Labels as a COCO annotation file: `images`, `annotations` (numbered from 1), `categories`.

    The ids are those of `samples_to_ground_truth`, so a results file written from the same samples belongs to it.
    `file_name` is the image's path for samples, and the image's name for a ground truth.
    """
    truth = labels if isinstance(labels, GroundTruth) else samples_to_ground_truth(labels)
    files = {} if isinstance(labels, GroundTruth) else {sample.id: sample.image.as_posix() for sample in labels}
    return {
        "images": [
            {
                "id": image.id,
                "file_name": files.get(image.name, image.name),
                "width": image.size_wh[0],
                "height": image.size_wh[1],
            }
            for image in truth.images
        ],
        "annotations": [
            {
                "id": i + 1,
                "image_id": truth.images[image].id,
                "category_id": truth.categories[category].id,
                "bbox": box,
                "area": area,
                "iscrowd": int(crowd),
            }
            for i, (image, category, box, area, crowd) in enumerate(
                zip(
                    truth.image.tolist(),
                    truth.category.tolist(),
                    truth.bbox_xywh.tolist(),
                    truth.area.tolist(),
                    truth.iscrowd.tolist(),
                    strict=True,
                )
            )
        ],
        "categories": [{"id": category.id, "name": category.name} for category in truth.categories],
    }


def to_coco_results(truth: GroundTruth, detections: Detections) -> list[Row]:
    """Detections as the list of a COCO results file, in order."""
    detections.check_against(truth)
    columns = zip(
        detections.image.tolist(),
        detections.category.tolist(),
        detections.bbox_xywh.tolist(),
        detections.score.tolist(),
        strict=True,
    )
    return [
        {
            "image_id": truth.images[image].id,
            "category_id": truth.categories[category].id,
            "bbox": box,
            "score": score,
        }
        for image, category, box, score in columns
    ]


def write_coco_results(path: Path, truth: GroundTruth, detections: Detections) -> None:
    """Write a COCO results file atomically; evaluating it gives the figures of `detections` exactly."""
    write_json(path, to_coco_results(truth, detections), indent=None)


class _Lookup:
    """Checks and resolves what annotations and detections have in common: image, class and box."""

    def __init__(self, images: Sequence[ImageInfo], categories: Sequence[Category]) -> None:
        self.image = {image.id: i for i, image in enumerate(images)}
        self.category = {category.id: i for i, category in enumerate(categories)}

    def box(self, row: Any, where: str) -> tuple[int, int, list[float]]:
        """Image number, class number and `[x, y, width, height]` of a row, or a `UserError` at `where`."""
        if not isinstance(row, dict):
            raise UserError(f"expected an object, found a {_kind(row)}", where=where)
        image, category = _integer(row, "image_id", where), _integer(row, "category_id", where)
        if image not in self.image:
            raise UserError(
                f"expected an image_id of the annotations ({_some(self.image)}), found {image}", where=where
            )
        if category not in self.category:
            known = _some(self.category)
            raise UserError(
                f"expected a category_id of the annotations ({known}), found {category}",
                where=where,
                fix="list the class among the categories of the annotations; it needs no label there",
            )
        box = row.get("bbox")
        if not isinstance(box, list) or len(box) != 4:
            found = f"{len(box)} numbers" if isinstance(box, list) else "none" if box is None else f"a {_kind(box)}"
            raise UserError(f"expected bbox to be [x, y, width, height], found {found}", where=where)
        values = [_number(value, "bbox", where) for value in box]
        if values[2] < 0 or values[3] < 0:
            raise UserError(
                f"expected bbox [x, y, width, height] with width and height >= 0, found {box}",
                where=where,
                fix="write COCO's width and height, not the right and lower edge",
            )
        return self.image[image], self.category[category], values


def _read_json(path: Path, what: str) -> Any:
    return read_json(require_file(path, what), fix=f"name {what}")


def _image(row: Any, where: str) -> ImageInfo:
    if not isinstance(row, dict):
        raise UserError(f"expected an object, found a {_kind(row)}", where=where)
    size = _integer(row, "width", where), _integer(row, "height", where)
    if min(size) < 1:
        raise UserError(f"expected width and height of at least 1, found {size[0]} x {size[1]}", where=where)
    identity = _integer(row, "id", where)
    return ImageInfo(identity, str(row.get("file_name", identity)), size)


def _category(row: Any, where: str) -> Category:
    if not isinstance(row, dict):
        raise UserError(f"expected an object, found a {_kind(row)}", where=where)
    if not isinstance(row.get("name"), str):
        raise UserError(f"expected a text as name, found {row.get('name')!r}", where=where)
    return Category(_integer(row, "id", where), row["name"])


def _integer(row: Row, key: str, where: str) -> int:
    value = row.get(key)
    if type(value) is not int:  # not isinstance: True is no id
        raise UserError(f"expected an integer {key}, found {'none' if value is None else repr(value)}", where=where)
    return value


def _flag(row: Row, key: str, where: str) -> bool:
    value = row.get(key, 0)
    if not isinstance(value, int) or value not in (0, 1):
        raise UserError(f"expected {key} to be 0 or 1, found {value!r}", where=where)
    return bool(value)


def _number(value: Any, key: str, where: str) -> float:
    if type(value) not in (int, float) or not abs(value) <= _LARGEST:  # NaN is not <= anything
        raise UserError(f"expected a finite number up to {_LARGEST:.0e} in {key}, found {value!r:.40}", where=where)
    return float(value)


def _refuse_repeats(values: Iterable[int | str], where: str, key: str) -> None:
    seen: set[int | str] = set()
    for i, value in enumerate(values):
        if value in seen:
            raise UserError(f"expected every {key} once, found {value!r} again", where=f"{where}[{i}]")
        seen.add(value)


def _image_ids(samples: Sequence[Sample]) -> list[int]:
    if all(sample.id.isascii() and sample.id.isdigit() and str(int(sample.id)) == sample.id for sample in samples):
        return [int(sample.id) for sample in samples]
    return list(range(1, len(samples) + 1))


def _some(known: Mapping[int, int]) -> str:
    shown = ", ".join(map(str, list(known)[:5]))
    return f"{len(known)} ids: {shown}{', ...' if len(known) > 5 else ''}" if known else "it has none"


def _kind(value: Any) -> str:
    return "list" if isinstance(value, list) else "null" if value is None else type(value).__name__


# Complete truth beside the labels: what is there but was not labelled.
#
# Known for generated scenes and for photos that someone labelled to the end. Then a false positive that is a real
# object is told from one that is not.
#
# Shapes: I images, N rows.


_IMAGE_ENDINGS = ("jpg", "jpeg", "png", "bmp", "webp", "tif", "tiff", "gif")


def load_complete(path: Path, truth: GroundTruth) -> tuple[GroundTruth, GroundTruth]:
    """Read complete truth and bring it into the images and classes of `truth`.

    Args:
        path: COCO annotations or apiece JSONL.
        truth: Labels of the split.

    Returns:
        The labels, with classes added after theirs that only the complete truth has, and the complete truth.

    Raises:
        UserError: The file cannot be read, or an image of the split is not in it or has another size there.
    """
    return fit_complete(load_ground_truth(path), truth, path)


def fit_complete(complete: GroundTruth, truth: GroundTruth, path: Path) -> tuple[GroundTruth, GroundTruth]:
    """`load_complete` for a file that is read already."""
    try:
        return align_complete(complete, truth)
    except ValueError as error:
        raise UserError(str(error), where=path, fix="give the complete truth of the same images") from error


def align_complete(complete: GroundTruth, truth: GroundTruth) -> tuple[GroundTruth, GroundTruth]:
    """`load_complete` for labels already read.

    Images are joined by name (sample id or file name) where every name of the split is in both once; else by file names
    without folder and ending, as sample ids often are; else by id. Images of the complete truth that are not in the
    split are left out.

    Raises:
        ValueError: An image of the split is not among the complete ones, or has another size there.
    """
    key_of = _common_key(complete, truth)
    place = {key_of(image): i for i, image in enumerate(complete.images)}
    new_image = np.full(len(complete.images), -1, dtype=np.int64)
    for i, image in enumerate(truth.images):
        if key_of(image) not in place:
            raise ValueError(f"expected every image of the split, found none of id {image.id} ({image.name})")
        other = complete.images[place[key_of(image)]]
        if other.size_wh != image.size_wh:
            raise ValueError(
                f"image {image.name}: expected {image.size_wh[0]} x {image.size_wh[1]} pixels as in the split, "
                f"found {other.size_wh[0]} x {other.size_wh[1]}"
            )
        new_image[place[key_of(image)]] = i
    truth = truth.with_classes(complete.names)
    number = {name: i for i, name in enumerate(truth.names)}
    new_category = np.array([number[name] for name in complete.names], dtype=np.int64)
    complete = rows_of(complete, new_image[complete.image] >= 0)
    return truth, replace(
        complete,
        images=truth.images,
        categories=truth.categories,
        image=new_image[complete.image],
        category=new_category[complete.category],
    )


def _common_key(complete: GroundTruth, truth: GroundTruth) -> Callable[[ImageInfo], int | str]:
    """What tells the images of both apart in the same way: the first that fits."""
    keys: tuple[Callable[[ImageInfo], str], ...] = (lambda image: image.name, lambda image: _stem(image.name))
    for key in keys:
        theirs, ours = [key(image) for image in complete.images], {key(image) for image in truth.images}
        if len(set(theirs)) == len(theirs) and len(ours) == len(truth.images) and ours <= set(theirs):
            return key
    return lambda image: image.id


def _stem(name: str) -> str:
    """`images/000017.png` to `000017`."""
    last = name.rpartition("/")[2]
    head, dot, ending = last.rpartition(".")
    return head if dot and head and ending.lower() in _IMAGE_ENDINGS else last


def with_classes_of(complete: GroundTruth, truth: GroundTruth) -> GroundTruth:
    """The labels with the classes that only the complete truth has, under the category ids that they have there.

    So a results file can name them. Only where both files number classes alike; else an id could mean two classes,
    and the labels are given back as they are. Numbers of classes change: do this before detections are read.
    """
    name_of = {category.id: category.name for category in truth.categories}
    id_of = {category.name: category.id for category in truth.categories}
    theirs = complete.categories
    if any(name_of.get(c.id, c.name) != c.name or id_of.get(c.name, c.id) != c.id for c in theirs):
        return truth
    categories = tuple(sorted({*truth.categories, *theirs}, key=lambda category: category.id))
    number = {category.id: i for i, category in enumerate(categories)}
    new = np.array([number[category.id] for category in truth.categories], dtype=np.int64)
    return replace(truth, categories=categories, category=new[truth.category])


def hidden_instances(complete: GroundTruth, truth: GroundTruth) -> GroundTruth:
    """The complete truth without what is labelled: instances left over by a one-to-one match with all labels."""
    objects = np.flatnonzero(~complete.iscrowd)
    labels = np.flatnonzero(~truth.iscrowd)
    classes = len(truth.categories)
    match = match_groups(
        complete.bbox_xyxy[objects],
        complete.image[objects] * classes + complete.category[objects],
        truth.bbox_xyxy[labels],
        truth.image[labels] * classes + truth.category[labels],
        IOU_MIN,
    )
    return rows_of(complete, objects[match.unmatched_predictions])


def rows_of(truth: GroundTruth, rows: IntArray | NDArray[np.bool_]) -> GroundTruth:
    """Some of the labels, with the same images and classes."""
    return replace(
        truth,
        image=truth.image[rows],
        category=truth.category[rows],
        bbox_xywh=truth.bbox_xywh[rows],
        iscrowd=truth.iscrowd[rows],
        area=truth.area[rows],
    )
