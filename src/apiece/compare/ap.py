"""COCO AP of many draws of images at once.

The protocol matches image by image and only then ranks all detections, so a draw needs no matching anew: an image drawn
k times counts k times where true and false positives are summed up. With every image once, the figures are the official
ones (held by a test to 1e-12).

Shapes: B draws, I images, D detections of a class, K true positives of it, T IoU thresholds.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from apiece.boxes import FloatArray
from apiece.evaluate.coco import CocoMatches

RECALLS = np.linspace(0.0, 1.0, 101)
_CELLS_AT_ONCE = 1 << 17
"""Draws times detections: what is worked on at a time. More does not stay in the cache, which takes twice as long."""


def ap_of_draws(matches: CocoMatches, weights: NDArray[np.generic]) -> tuple[FloatArray, FloatArray]:
    """AP and AP50 of every draw.

    Args:
        matches: Of the split.
        weights: `[B, I]` how often each image is in each draw.

    Returns:
        `[B]` each; NaN for a draw without a label to find. A class without labels in a draw is left out of its mean.
    """
    thresholds = len(matches.found)
    known = np.flatnonzero(matches.labels.sum(0) > 0)
    starts = np.searchsorted(matches.category, [known, known + 1])
    total, total50 = np.zeros(len(weights)), np.zeros(len(weights))
    classes = np.zeros(len(weights), dtype=np.int64)
    for category, (start, end) in zip(known.tolist(), starts.T.tolist(), strict=True):
        labels = weights.astype(np.float64) @ matches.labels[:, category]
        block = max(_CELLS_AT_ONCE // max(end - start, 1), 1)
        for begin in range(0, len(weights), block):
            rows = slice(begin, begin + block)
            ap = _class_ap(matches, slice(start, end), weights[rows], labels[rows])
            total[rows] += ap.sum(0) / thresholds
            total50[rows] += ap[0]
        classes += labels > 0
    some = classes > 0
    ap, ap50 = (np.divide(x, classes, out=np.full(len(x), np.nan), where=some) for x in (total, total50))
    return ap, ap50


def _class_ap(matches: CocoMatches, detections: slice, weights: NDArray[np.generic], labels: FloatArray) -> FloatArray:
    """AP `[T, B]` of one class at each threshold; 0 for a draw without its labels."""
    drawn = weights[:, matches.image[detections]].astype(np.float64)  # [B, D]
    found, ignored = matches.found[:, detections], matches.ignored[:, detections]
    counted = np.cumsum(drawn, axis=1)
    ap = np.zeros((len(found), len(weights)))
    for i, (hit, ignore) in enumerate(zip(found, ignored, strict=True)):
        at = np.flatnonzero(hit)
        if not len(at):
            continue
        # Precision is highest, and recall moves, at true positives only: the others are needed as counts alone.
        right = np.cumsum(drawn[:, at], axis=1)
        whole = counted[:, at] - np.cumsum(drawn * ignore, axis=1)[:, at] if ignore.any() else counted[:, at]
        precision = np.divide(right, whole, out=np.zeros_like(right), where=whole > 0)
        best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        recall = np.divide(right, labels[:, None], out=np.zeros_like(right), where=labels[:, None] > 0)
        passed = np.searchsorted(RECALLS, recall, side="right") * (right > 0)
        ap[i] = (best * np.diff(passed, axis=1, prepend=0)).sum(1) / len(RECALLS)
    return ap
