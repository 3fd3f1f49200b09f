"""Complete truth beside the labels: what is there but was not labelled.

Known for generated scenes and for photos that someone labelled to the end. Then a false positive that is a real object
is told from one that is not.

Shapes: I images, N rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from apiece.errors import UserError
from apiece.evaluate.detections import load_ground_truth
from apiece.evaluate.f1 import IOU_MIN
from apiece.evaluate.forms import GroundTruth, ImageInfo
from apiece.match import match_groups
from apiece.types import IntArray

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
