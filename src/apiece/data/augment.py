"""Augmentation: mirrors and crops training images with their boxes, and moves the coordinates that a model reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from PIL import Image, ImageOps

from apiece.boxes import area, clip
from apiece.types import Encoded, Instance

# A box cut by a crop stays a label while this share of it is inside; below, what is left is not a fair target.
MIN_KEPT = 0.5


def mirror(image: Image.Image, objects: Sequence[Instance]) -> tuple[Image.Image, list[Instance]]:
    """Image and boxes, flipped left to right."""
    width = image.width
    flipped = []
    for item in objects:
        x1, y1, x2, y2 = item.bbox_xyxy
        flipped.append(replace(item, bbox_xyxy=(width - x2, y1, width - x1, y2)))
    return ImageOps.mirror(image), flipped


def random_crop(
    image: Image.Image, objects: Sequence[Instance], jitter: float, rng: np.random.Generator
) -> tuple[Image.Image, list[Instance]]:
    """A random window that keeps at least `1 - jitter` of each side; boxes cut to it, mostly hidden ones left out."""
    width, height = image.size
    w, h = (max(1, round(side * (1 - jitter * rng.random()))) for side in (width, height))
    left, top = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
    kept = []
    if objects:
        boxes = np.array([o.bbox_xyxy for o in objects]) - np.array([left, top, left, top])
        inside = clip(boxes, (w, h))
        shares = area(inside) / np.maximum(area(boxes), 1e-9)
        for item, box, share in zip(objects, inside.tolist(), shares, strict=True):
            if share >= MIN_KEPT:
                kept.append(replace(item, bbox_xyxy=(box[0], box[1], box[2], box[3]), area=None))
    return image.crop((left, top, left + w, top + h)), kept


def move_context(answer: Encoded, share: float, num_bins: int, rng: np.random.Generator) -> Encoded:
    """The answer with other coordinates to read and the same ones to write.

    The model reads the tokens at slots; it learns to write `target_bin`, which stays. Each coordinate moves by a normal
    draw whose standard deviation is up to `share` of its box's width (for x) or height (for y), drawn per object, so
    that some are read nearly as they are. A coordinate token's id must be that of bin 0 plus its bin.
    """
    target_N4 = answer.slots.target_bin.reshape(-1, 4)
    side_N2 = target_N4[:, 2:] - target_N4[:, :2]
    deviation_N4 = share * rng.random((len(target_N4), 1)) * np.tile(side_N2, 2)
    moved_N4 = np.rint(target_N4 + deviation_N4 * rng.standard_normal(target_N4.shape)).clip(0, num_bins - 1)
    ids = answer.ids.copy()
    ids[answer.slots.position] += (moved_N4 - target_N4).astype(ids.dtype).reshape(-1)
    return replace(answer, ids=ids)
