"""The input of an evaluation: the labels of a split and the detections on it.

Both are columns of arrays, so that a split of thousands of images is matched and scored at once. Boxes are kept as
COCO writes them (`xywh`): a detection scored in memory and the same one read back from a file give equal figures.

Shapes: I images, C classes, N rows (labels or detections).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from apiece.boxes import FloatArray, xywh_to_xyxy
from apiece.types import BoxXYXY, Detection, Instance, IntArray


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """An image of the split."""

    id: int  # COCO's
    name: str  # sample id where labels came from apiece JSONL, else the file name
    size_wh: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Category:
    """A class: COCO id and name."""

    id: int
    name: str


@dataclass(frozen=True, slots=True, eq=False)
class GroundTruth:
    """The labels of a split."""

    images: tuple[ImageInfo, ...]  # `[I]`, by ascending id (at equal scores COCO AP depends on the order of images)
    categories: tuple[Category, ...]  # `[C]`, by ascending id; names are unique
    image: IntArray  # `[N]` index into `images`
    category: IntArray  # `[N]` index into `categories`
    bbox_xywh: FloatArray  # `[N, 4]` pixels
    iscrowd: NDArray[np.bool_]  # `[N]` COCO's crowd regions
    area: FloatArray  # `[N]` annotation areas (of the mask where there is one)

    def __post_init__(self) -> None:
        _check_rows(self.image, self.category, self.bbox_xywh, self.iscrowd, self.area)
        _check_range(self.image, len(self.images), "image")
        _check_range(self.category, len(self.categories), "category")
        for name, ids in (
            ("image ids", [image.id for image in self.images]),
            ("category ids", [category.id for category in self.categories]),
        ):
            if any(a >= b for a, b in pairwise(ids)):
                raise ValueError(f"{name} must ascend without repeats, got {ids[:10]}")
        if len(set(self.names)) != len(self.names):
            raise ValueError(f"category names must be unique, got {sorted(self.names)}")

    def __len__(self) -> int:
        return len(self.image)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(category.name for category in self.categories)

    @property
    def bbox_xyxy(self) -> FloatArray:
        return xywh_to_xyxy(self.bbox_xywh)

    @property
    def objects_per_image(self) -> IntArray:
        """Labels of each image, crowd regions left out, `[I]`."""
        return np.bincount(self.image[~self.iscrowd], minlength=len(self.images))

    def instances(self, image: int) -> tuple[Instance, ...]:
        """The labels of the image at index `image` (not its id), in order."""
        rows = np.flatnonzero(self.image == image)
        boxes = self.bbox_xyxy
        return tuple(
            Instance(self.names[self.category[row]], _box(boxes[row]), bool(self.iscrowd[row]), float(self.area[row]))
            for row in rows
        )

    def with_classes(self, names: Iterable[str]) -> GroundTruth:
        """The same labels with further classes after the known ones, so that detections may name them.

        A class without labels has no AP and does not change the mean; its detections are false positives in F1.
        """
        start = 1 + max((category.id for category in self.categories), default=0)
        new = [Category(i, name) for i, name in enumerate(sorted(set(names) - set(self.names)), start)]
        return replace(self, categories=(*self.categories, *new))

    def rows(self, rows: IntArray | NDArray[np.bool_]) -> GroundTruth:
        """Some of the labels, with the same images and classes."""
        columns = {name: getattr(self, name)[rows] for name in ("image", "category", "bbox_xywh", "iscrowd", "area")}
        return replace(self, **columns)


@dataclass(frozen=True, slots=True, eq=False)
class Detections:
    """The detections on a split, in the order in which they were written (AP depends on it at equal scores)."""

    image: IntArray  # `[N]` index into the images of the ground truth
    category: IntArray  # `[N]` index into its categories
    bbox_xywh: FloatArray  # `[N, 4]` pixels
    score: FloatArray  # `[N]` finite

    def __post_init__(self) -> None:
        _check_rows(self.image, self.category, self.bbox_xywh, self.score)
        if not np.isfinite(self.score).all():
            raise ValueError("scores must be finite numbers")

    def __len__(self) -> int:
        return len(self.image)

    @property
    def bbox_xyxy(self) -> FloatArray:
        return xywh_to_xyxy(self.bbox_xywh)

    def check_against(self, truth: GroundTruth) -> None:
        """Raise `ValueError` where an image or class number is not one of `truth`."""
        _check_range(self.image, len(truth.images), "image")
        _check_range(self.category, len(truth.categories), "category")

    def of_image(self, image: int, names: tuple[str, ...]) -> tuple[Detection, ...]:
        """The detections on the image at index `image`, in order; `names` are the classes of the ground truth."""
        rows = np.flatnonzero(self.image == image)
        boxes = self.bbox_xyxy
        return tuple(Detection(names[self.category[row]], _box(boxes[row]), float(self.score[row])) for row in rows)


def _box(row: FloatArray) -> BoxXYXY:
    x1, y1, x2, y2 = row.tolist()
    return x1, y1, x2, y2


def _check_rows(image: IntArray, category: IntArray, bbox_xywh: FloatArray, *others: NDArray[np.generic]) -> None:
    """Raise `ValueError` unless all columns have one length and boxes are finite `[N, 4]` of sizes >= 0."""
    lengths = [len(image), len(category), len(bbox_xywh), *map(len, others)]
    if len(set(lengths)) != 1:
        raise ValueError(f"columns must have one length, got {lengths}")
    if bbox_xywh.ndim != 2 or bbox_xywh.shape[1] != 4:
        raise ValueError(f"boxes must have shape [N, 4], got {list(bbox_xywh.shape)}")
    if not np.isfinite(bbox_xywh).all() or (bbox_xywh[:, 2:] < 0).any():
        raise ValueError("boxes must be finite, with width and height >= 0")


def _check_range(index: IntArray, count: int, what: str) -> None:
    if len(index) and not 0 <= index.min() <= index.max() < count:
        raise ValueError(f"{what} numbers must be in 0..{count - 1}, got {index.min()}..{index.max()}")
