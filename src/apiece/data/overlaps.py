"""Boxes of one class that lie on each other: counts for the checker, bounded in memory for any number of boxes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from apiece import boxes
from apiece.types import IntArray

PAIR_IOU = 0.5
DUPLICATE_IOU = 0.9
INSIDE = 0.8
"""Share of a box that must lie inside another for that one to contain it."""
_CELLS = 400_000  # most cells of one block of the pair matrix: about 50 MB of temporaries
_ROWS = 64  # of a block: more would compare boxes of different images with each other for nothing


@dataclass(frozen=True, slots=True)
class Overlaps:
    """Same-class overlaps of N boxes. A pair is counted once, at one of its two boxes.

    Attributes:
        pairs: `[N]` pairs with IoU >= `PAIR_IOU`.
        duplicates: `[N]` pairs with IoU >= `DUPLICATE_IOU`.
        twin: `[N]` index of the other box in one of the `duplicates`, or -1.
        contained: `[N]` how many boxes of its own class each one contains: `INSIDE` or more of their area in it, IoU
            below `PAIR_IOU` (so that two boxes of one object do not contain each other).
    """

    pairs: IntArray
    duplicates: IntArray
    twin: IntArray
    contained: IntArray


def same_class_overlaps(boxes_xyxy: ArrayLike, classes: ArrayLike) -> Overlaps:
    """Find overlapping pairs and containing boxes among boxes of one class.

    Boxes are sorted by class and left edge, and each is compared only with those that start before it ends. Several
    images go in one call, which is five times as fast for small ones, when a class has another number in each.

    Args:
        boxes_xyxy: `[N, 4]` valid boxes.
        classes: `[N]` whole numbers.
    """
    unsorted = boxes.as_boxes(boxes_xyxy)
    labels = np.asarray(classes, dtype=np.int64)
    count = len(unsorted)
    order = np.lexsort((unsorted[:, 0], labels))
    box, label = unsorted[order], labels[order]
    area = boxes.area(box)
    end = _ends(box, label)
    pairs, duplicates, contained = (np.zeros(count, dtype=np.int64) for _ in range(3))
    twin = np.full(count, -1, dtype=np.int64)
    start = 0
    while start < count:
        stop = min(count, start + _ROWS)
        while stop > start + 1 and (stop - start) * (int(end[start:stop].max()) - start) > _CELLS:
            stop = start + (stop - start) // 2
        here, there = slice(start, stop), slice(start, max(stop, int(end[start:stop].max())))
        start = stop
        inter = boxes.intersection(box[here], box[there])
        inter *= label[here, None] == label[None, there]
        inter *= np.arange(there.start, there.stop)[None] > np.arange(here.start, here.stop)[:, None]
        iou = inter / np.maximum(area[here, None] + area[None, there] - inter, np.finfo(float).tiny)
        pairs[here] += (iou >= PAIR_IOU).sum(1)
        same = iou >= DUPLICATE_IOU
        duplicates[here] += (found := same.sum(1))
        twin[here] = np.where(found > 0, order[there][same.argmax(1)], -1)
        apart = (inter > 0) & (iou < PAIR_IOU)
        contained[here] += ((inter >= INSIDE * area[None, there]) & apart).sum(1)
        contained[there] += ((inter >= INSIDE * area[here, None]) & apart).sum(0)
    back = np.argsort(order)
    return Overlaps(pairs[back], duplicates[back], twin[back], contained[back])


def _ends(box: boxes.FloatArray, label: IntArray) -> IntArray:
    """For boxes sorted by (label, x1): the end of those of its label that start before a box ends."""
    if not len(box):
        return np.zeros(0, dtype=np.int64)
    # One number that sorts as (label, x1) does. The span is small against 2^53, so nothing is lost.
    _, number = np.unique(label, return_inverse=True)
    shift = number * (np.ptp(box[:, [0, 2]]) + 1.0)
    return np.searchsorted(shift + box[:, 0], shift + box[:, 2], side="right")
