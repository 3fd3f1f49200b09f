"""Labels and detections from COCO JSON and apiece JSONL to `GroundTruth` and `Detections`, and back.

Everything that would silently score wrong (an unknown image, a missing score, a box that is not four finite
numbers) is a `UserError` that names the entry, what was expected and what was found.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from apiece.boxes import xyxy_to_xywh
from apiece.errors import UserError, nearest, require_file
from apiece.evaluate.forms import Category, Detections, GroundTruth, ImageInfo
from apiece.files import read_json
from apiece.outcomes import match_labels
from apiece.types import Detection, Sample

Row = dict[str, Any]

_LARGEST = 1e12  # number allowed in a file: the product of two is still exact enough to compare


def load_ground_truth(path: Path) -> GroundTruth:
    """Read labels from apiece JSONL (`.jsonl`) or a COCO annotation file (anything else)."""
    if path.suffix == ".jsonl":
        from apiece.data.jsonl import read_jsonl

        return samples_to_ground_truth(read_jsonl(require_file(path, "an apiece JSONL file")))
    return load_coco_ground_truth(path)


def load_coco_ground_truth(path: Path) -> GroundTruth:
    """Read a COCO annotation file as `apiece data import coco` does; the photos are not needed.

    A missing `iscrowd` is 0 and a missing `area` the box's own. Annotations get new ids: repeated ones and 0 mislead
    COCO evaluators.
    """
    from apiece.data.coco import CocoFile
    from apiece.data.formats import Imported
    from apiece.data.lines import ProblemKind, refusal

    found = Imported()
    file = CocoFile(path, found)
    images = []
    for image in file.images():
        if not isinstance(image.id, int):
            file.refuse(image, ProblemKind.WRONG_TYPE, "'id': to be scored, image ids must be whole numbers")
        elif image.size_wh is None:
            file.refuse(image, ProblemKind.MISSING_KEY, "missing 'width', 'height'")
        else:
            name = str(image.id) if image.file_name is None else image.file_name
            images.append(ImageInfo(image.id, name, image.size_wh))
    images.sort(key=lambda image: image.id)
    categories = sorted((Category(*row) for row in file.categories.items()), key=lambda category: category.id)
    objects = list(file.objects(with_ids=False))
    for item in objects:
        if min(item.bbox_xywh[2:]) < 0:
            shown = ", ".join(f"{value:g}" for value in item.bbox_xywh)
            message = f"expected bbox [x, y, width, height] with width and height >= 0, found [{shown}]"
            found.add(ProblemKind.BOX_INVERTED, item.where, message)
    if found.problems:  # classes of one name only warn on import, but cannot be scored
        raise refusal(found.problems, path, "correct these entries of the annotations")
    image_number = {image.id: i for i, image in enumerate(images)}
    category_number = {category.id: i for i, category in enumerate(categories)}
    columns = [(image_number[int(item.image_id)], category_number[item.category_id]) for item in objects]
    return _ground_truth(
        images, categories, columns, [item.bbox_xywh for item in objects], [(o.iscrowd, o.area) for o in objects]
    )


def _ground_truth(
    images: Sequence[ImageInfo],
    categories: Sequence[Category],
    columns: Sequence[tuple[int, int]],
    boxes_xywh: Any,
    flags: Sequence[tuple[bool, float | None]],
) -> GroundTruth:
    """Labels from (image, class) numbers, boxes, and (`iscrowd`, area) pairs; `None` is the box's own area."""
    image, category = np.array(columns, dtype=np.int64).reshape(-1, 2).T
    bbox_xywh = np.array(boxes_xywh, dtype=np.float64).reshape(-1, 4)
    own_area = bbox_xywh[:, 2] * bbox_xywh[:, 3]
    area = [own if given is None else given for own, (_, given) in zip(own_area, flags, strict=True)]
    iscrowd = np.array([crowd for crowd, _ in flags], dtype=bool)
    return GroundTruth(
        tuple(images), tuple(categories), image, category, bbox_xywh, iscrowd, np.array(area, dtype=np.float64)
    )


def samples_to_ground_truth(samples: Sequence[Sample]) -> GroundTruth:
    """Labels of samples, whose ids must differ.

    Image ids are the sample ids where all are integers, else 1, 2, ... in order; category ids are 1, 2, ... over the
    sorted class names.
    """
    if repeated := [name for name, count in Counter(sample.id for sample in samples).items() if count > 1]:
        raise UserError(f"expected every id once, found {repeated[0]!r} twice", where="samples")
    ids = list(range(1, len(samples) + 1))
    if all(sample.id.isascii() and sample.id.isdigit() and str(int(sample.id)) == sample.id for sample in samples):
        ids = [int(sample.id) for sample in samples]
    order = sorted(range(len(samples)), key=ids.__getitem__)
    names = sorted({instance.desc for sample in samples for instance in sample.objects})
    number = {name: i for i, name in enumerate(names)}
    rows = [(place, instance) for place, i in enumerate(order) for instance in samples[i].objects]
    return _ground_truth(
        [ImageInfo(ids[i], samples[i].id, samples[i].size_wh) for i in order],
        [Category(i + 1, name) for i, name in enumerate(names)],
        [(place, number[instance.desc]) for place, instance in rows],
        xyxy_to_xywh([instance.bbox_xyxy for _, instance in rows]),
        [(instance.iscrowd, instance.area) for _, instance in rows],
    )


def load_coco_results(path: Path, truth: GroundTruth) -> Detections:
    """Read a COCO results file: a list of `{"image_id", "category_id", "bbox": [x, y, width, height], "score"}`."""
    content = read_json(require_file(path, "a COCO results file"), fix="name a COCO results file")
    if not isinstance(content, list):
        found = f"an object with keys {sorted(content)}" if isinstance(content, dict) else f"a {_kind(content)}"
        raise UserError(
            f"expected a list of detections, found {found}",
            where=path,
            fix='write a list of {"image_id", "category_id", "bbox", "score"}; the annotations go to --annotations',
        )
    image_number = {image.id: i for i, image in enumerate(truth.images)}
    category_number = {category.id: i for i, category in enumerate(truth.categories)}
    images, categories, boxes, scores = [], [], [], []
    for i, row in enumerate(content):
        where = f"{path}: detection {i}"
        if not isinstance(row, dict):
            raise UserError(f"expected an object, found a {_kind(row)}", where=where)
        images.append(_known(row, "image_id", image_number, where))
        categories.append(_known(row, "category_id", category_number, where))
        boxes.append(_bbox(row.get("bbox"), where))
        if "score" not in row:
            fix = "AP ranks by score: give every detection one"
            raise UserError("expected a score, found none", where=where, fix=fix)
        scores.append(_number(row["score"], "score", where))
    return Detections(
        image=np.array(images, dtype=np.int64),
        category=np.array(categories, dtype=np.int64),
        bbox_xywh=np.array(boxes, dtype=np.float64).reshape(-1, 4),
        score=np.array(scores, dtype=np.float64),
    )


def predictions_to_detections(
    truth: GroundTruth, predictions: Mapping[str, Sequence[Detection]]
) -> tuple[GroundTruth, Detections]:
    """Detections by sample id (`ImageInfo.name`), in the order written, to columns.

    Returns:
        The ground truth, with the classes added that only detections name, and the detections.
    """
    place = {image.name: i for i, image in enumerate(truth.images)}
    if unknown := [name for name in predictions if name not in place]:
        found = f"'{unknown[0]}'{nearest(unknown[0], place)}"
        raise UserError(f"expected a sample of the split, found {found}", where="predictions")
    rows = [(place[name], detection) for name, detections in predictions.items() for detection in detections]
    truth = truth.with_classes(detection.desc for _, detection in rows)
    number = {name: i for i, name in enumerate(truth.names)}
    return truth, Detections(
        image=np.array([image for image, _ in rows], dtype=np.int64),
        category=np.array([number[detection.desc] for _, detection in rows], dtype=np.int64),
        bbox_xywh=xyxy_to_xywh([detection.bbox_xyxy for _, detection in rows]),
        score=np.array([detection.score for _, detection in rows], dtype=np.float64),
    )


def to_coco(truth: GroundTruth, samples: Sequence[Sample] = ()) -> dict[str, list[Row]]:
    """Labels as a COCO annotation file: `images`, `annotations` (numbered from 1), `categories`.

    `file_name` is the path of the sample's image, or the image's name where its sample is not given.
    """
    files = {sample.id: sample.image.as_posix() for sample in samples}
    images = [
        {"id": image.id, "file_name": files.get(image.name, image.name), "width": width, "height": height}
        for image in truth.images
        for width, height in [image.size_wh]
    ]
    annotations = [
        {"id": number, **ids, "bbox": box, "area": area, "iscrowd": int(crowd)}
        for number, (ids, box, area, crowd) in enumerate(
            zip(_ids(truth, truth), truth.bbox_xywh.tolist(), truth.area.tolist(), truth.iscrowd.tolist(), strict=True),
            start=1,
        )
    ]
    categories = [{"id": category.id, "name": category.name} for category in truth.categories]
    return {"images": images, "annotations": annotations, "categories": categories}


def to_coco_results(truth: GroundTruth, detections: Detections) -> list[Row]:
    """Detections as the list of a COCO results file, in order; evaluating it gives exactly their figures."""
    detections.check_against(truth)
    columns = zip(_ids(truth, detections), detections.bbox_xywh.tolist(), detections.score.tolist(), strict=True)
    return [{**ids, "bbox": box, "score": score} for ids, box, score in columns]


def _ids(truth: GroundTruth, boxes: GroundTruth | Detections) -> Iterator[dict[str, int]]:
    """COCO's ids of the image and class of each box."""
    for image, category in zip(boxes.image.tolist(), boxes.category.tolist(), strict=True):
        yield {"image_id": truth.images[image].id, "category_id": truth.categories[category].id}


def _known(row: Row, key: str, numbers: Mapping[int, int], where: str) -> int:
    value = row.get(key)
    if type(value) is not int:  # not isinstance: True is no id
        raise UserError(f"expected an integer {key}, found {'none' if value is None else repr(value)}", where=where)
    if value not in numbers:
        shown = ", ".join(map(str, list(numbers)[:5]))
        known = f"{len(numbers)} ids: {shown}{', ...' if len(numbers) > 5 else ''}" if numbers else "it has none"
        article, fix = "an", None
        if key == "category_id":
            article, fix = "a", "list the class among the categories of the annotations; it needs no label there"
        raise UserError(f"expected {article} {key} of the annotations ({known}), found {value}", where=where, fix=fix)
    return numbers[value]


def _bbox(box: Any, where: str) -> list[float]:
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
    return values


def _number(value: Any, key: str, where: str) -> float:
    if type(value) not in (int, float) or not abs(value) <= _LARGEST:  # NaN is not <= anything
        raise UserError(f"expected a finite number up to {_LARGEST:.0e} in {key}, found {value!r:.40}", where=where)
    return float(value)


def _kind(value: Any) -> str:
    return "list" if isinstance(value, list) else "null" if value is None else type(value).__name__


# Complete truth: every object of an image, labelled or not, as known for generated scenes and for photos that someone
# labelled to the end. It shows which false positives are real objects.

_IMAGE_ENDINGS = ("jpg", "jpeg", "png", "bmp", "webp", "tif", "tiff", "gif")


def load_complete(path: Path, truth: GroundTruth) -> tuple[GroundTruth, GroundTruth]:
    """Read complete truth (COCO annotations or apiece JSONL) and align it with the labels of a split.

    Returns:
        The labels, followed by the classes that only the complete truth has, and the complete truth in the images and
        classes of these labels.
    """
    return fit_complete(load_ground_truth(path), truth, path)


def fit_complete(complete: GroundTruth, truth: GroundTruth, path: Path) -> tuple[GroundTruth, GroundTruth]:
    """`load_complete` for a file that was read already."""
    try:
        return align_complete(complete, truth)
    except ValueError as error:
        raise UserError(str(error), where=path, fix="give the complete truth of the same images") from error


def align_complete(complete: GroundTruth, truth: GroundTruth) -> tuple[GroundTruth, GroundTruth]:
    """`load_complete` for labels that were read already.

    Images are joined by name (sample id or file name) where every name of the split is in both once; else by file names
    without folder and ending, as sample ids often are; else by id. Images of the complete truth that are not in the
    split are left out. An image of the split that it lacks, or has in another size, is a `ValueError`.
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
    complete = complete.rows(new_image[complete.image] >= 0)
    return truth, replace(
        complete,
        images=truth.images,
        categories=truth.categories,
        image=new_image[complete.image],
        category=new_category[complete.category],
    )


def _common_key(complete: GroundTruth, truth: GroundTruth) -> Callable[[ImageInfo], int | str]:
    """A key that identifies the images of both files in the same way: the first that fits."""
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
    """The labels with the classes that only the complete truth has, under its ids, so that a results file can use them.

    Only where both files number classes alike: else an id could mean two classes, and the labels are returned as they
    are. Class numbers change: call this before detections are read.
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
    return complete.rows(np.setdiff1d(objects, match_labels(truth, complete, objects).pairs[:, 0]))
