"""Mirroring and cropping of training images, with their boxes; a function of the generator handed in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from PIL import Image, ImageOps

from apiece.boxes import area, clip
from apiece.types import Instance

# A box cut by a crop stays a label while this share of it is inside; below, what is left is not a fair target.
MIN_KEPT = 0.5


def mirror(image: Image.Image, objects: Sequence[Instance]) -> tuple[Image.Image, list[Instance]]:
    """Image and boxes mirrored left to right."""
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
