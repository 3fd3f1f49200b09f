"""What predictions look like, no labels needed: near-duplicates of each other, and long flat strips.

Labels are almost never near-duplicates (5 of 243,225 same-class pairs of COCO reach IoU 0.9), so such a pair is an
error whether or not its object is labelled.

Shapes: N detections, K pairs.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from apiece.boxes import area, paired_intersection
from apiece.evaluate.forms import Detections, GroundTruth
from apiece.types import IntArray

NEAR_DUPLICATE_IOU = 0.9
STRIP_RATIO = 8.0
STRIP_AREA = 0.01
_PAIRS_AT_ONCE = 1 << 20


def near_duplicates(truth: GroundTruth, detections: Detections, rows: IntArray) -> IntArray:
    """Pairs of detections of one image and class at IoU >= 0.9.

    Args:
        truth: The split: says how many classes there are.
        detections: All detections.
        rows: Those to look at.

    Returns:
        `[K, 2]` rows of detections, the earlier first.
    """
    boxes, size = detections.bbox_xyxy, area(detections.bbox_xyxy)
    rows = rows[size[rows] > 0]
    group = detections.image[rows] * len(truth.categories) + detections.category[rows]
    order = np.lexsort((size[rows], group))
    rows, group = rows[order], group[order]
    # IoU >= 0.9 needs areas within 0.9 of each other: a short window in the order of areas, with room for rounding.
    _, number = np.unique(group, return_inverse=True)
    key = number * 200.0 + np.log(np.maximum(size[rows], 1e-30))
    count = np.searchsorted(key, key - np.log(NEAR_DUPLICATE_IOU) + 1e-6, side="right") - np.arange(len(rows)) - 1
    found = []
    for block in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(np.cumsum(count) // _PAIRS_AT_ONCE)) + 1):
        a = np.repeat(block, count[block])
        b = a + 1 + np.arange(len(a)) - np.repeat(np.cumsum(count[block]) - count[block], count[block])
        alike = group[a] == group[b]
        a, b = rows[a[alike]], rows[b[alike]]
        shared = paired_intersection(boxes[a], boxes[b])
        near = shared / (size[a] + size[b] - shared) >= NEAR_DUPLICATE_IOU
        found.append(np.sort(np.stack([a[near], b[near]], axis=1), axis=1))
    pairs = np.concatenate(found)
    return pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]


def strips(truth: GroundTruth, detections: Detections) -> NDArray[np.bool_]:
    """Which detections `[N]` are long and flat: longer / shorter side > 8 and area > 1 % of their image."""
    width, height = detections.bbox_xywh[:, 2], detections.bbox_xywh[:, 3]
    image_area = np.array([w * h for w, h in (image.size_wh for image in truth.images)], dtype=np.float64)
    long = np.maximum(width, height) > STRIP_RATIO * np.minimum(width, height)
    return long & (width * height > STRIP_AREA * image_area[detections.image])
