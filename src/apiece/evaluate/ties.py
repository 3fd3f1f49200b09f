"""AP where scores tie: the order of equal scores is nobody's choice, and AP depends on it.

Two orders are scored beside the given one, by the official evaluator: within equal scores, what is right first, and
what is wrong first. Both are orders in which the same detections could have been written, so the range is one that
really comes up. docs/metrics.md says what right and wrong first means in full.

Shapes: N detections, E pairs of a detection and a label of its image and class.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from apiece.boxes import FloatArray, area, paired_intersection
from apiece.evaluate.coco import coco_scores
from apiece.evaluate.forms import Detections, GroundTruth
from apiece.match import pairs_in_groups
from apiece.types import IntArray

THRESHOLDS = np.linspace(0.5, 0.95, 10)
"""Of COCO's AP."""


def ap_range(truth: GroundTruth, detections: Detections, ap: float) -> tuple[float, float]:
    """Lowest and highest COCO AP over orders of equal scores; twice `ap`, that of the order given, where none tie."""
    if not has_ties(detections):
        return ap, ap
    found = [
        coco_scores(truth, replace(detections, score=ranked(order))).figures["AP"]
        for order in tie_orders(truth, detections)
    ]
    return min(ap, *found), max(ap, *found)


def has_ties(detections: Detections) -> bool:
    """Whether two detections of one class have one score: other ties decide nothing."""
    order = np.lexsort((detections.score, detections.category))
    category, score = detections.category[order], detections.score[order]
    return bool(((category[1:] == category[:-1]) & (score[1:] == score[:-1])).any())


def ranked(order: IntArray) -> FloatArray:
    """Scores without ties that rank rows `[N]` in an order."""
    score = np.empty(len(order))
    score[order] = np.arange(len(order), 0, -1)
    return score


def tie_orders(truth: GroundTruth, detections: Detections) -> tuple[IntArray, IntArray]:
    """Rows `[N]` by falling score: with what is wrong first among equals, and with what is right first.

    Each detection counts for the label that it fits best. At each of COCO's thresholds a label is found by the first
    detection that fits it well enough; a detection is as right as the number of thresholds at which it is that one.
    """
    label, iou = _best_label(truth, detections)
    passed = np.searchsorted(THRESHOLDS, iou + 1e-12, side="right")
    higher = -detections.score
    # Right first: the best box of a label stands for it, and others come last, with whatever fits no label.
    order = np.lexsort((-iou, higher, label))
    gained = _scatter(order, np.maximum(passed[order] - _most_before(label[order], passed[order]), 0))
    best = np.lexsort((-iou, -gained, higher))
    # Wrong first: what could find no label whatever the order, then the boxes that compete for a label, together and
    # the worst of them first, so that it takes the label from the others; labels with most rivals first.
    order = np.lexsort((iou, higher, label))
    run = _starts(label[order], higher[order])
    _, start, count = np.unique(run, return_index=True, return_counts=True)
    taken = _most_before(label[order], passed[order])
    least = np.maximum(passed[order] - taken, 0)[start]
    worst = np.lexsort((iou, label, -_scatter(order, count[run]), _scatter(order, least[run]), higher))
    return worst, best


def _best_label(truth: GroundTruth, detections: Detections) -> tuple[IntArray, FloatArray]:
    """The label of highest IoU of each detection and that IoU, `[N]`; a number of its own and 0 where none has 0.5."""
    objects = np.flatnonzero(~truth.iscrowd)
    classes = len(truth.categories)
    boxes, truth_boxes = detections.bbox_xyxy, truth.bbox_xyxy[objects]
    own, other = area(boxes), area(truth_boxes)
    label, best = len(truth) + np.arange(len(detections)), np.zeros(len(detections))
    groups = [(rows.image * classes + rows.category) for rows in (detections, truth)]
    for p, t in pairs_in_groups(groups[0], groups[1][objects]):
        shared = paired_intersection(boxes[p], truth_boxes[t])
        # shared / union >= 0.5, without dividing by nothing
        near = (shared > 0) & (2 * shared >= own[p] + other[t] - shared)
        p, t, shared = p[near], t[near], shared[near]
        iou = shared / (own[p] + other[t] - shared)
        rows = np.lexsort((t, -iou, p))
        first = rows[np.unique(p[rows], return_index=True)[1]]
        label[p[first]], best[p[first]] = objects[t[first]], iou[first]
    return label, best


def _starts(*keys: NDArray[np.generic]) -> IntArray:
    """Runs of equal keys, numbered from 0, for each of the rows `[N]`; equal keys are neighbours."""
    changes = [key[1:] != key[:-1] for key in keys]
    return np.cumsum(np.concatenate([[0], np.any(changes, axis=0)]), dtype=np.int64)[: len(keys[0])]


def _most_before(group: IntArray, value: IntArray) -> IntArray:
    """The greatest of the values before each row in its group, 0 for the first; rows are ordered by group."""
    base = (len(THRESHOLDS) + 1) * _starts(group)
    so_far = np.maximum.accumulate(base + value)
    return np.maximum(np.concatenate([[0], so_far])[: len(group)] - base, 0)


def _scatter(rows: IntArray, values: IntArray) -> IntArray:
    """Values given in some order of rows, in the order of rows."""
    out = np.empty(len(rows), dtype=np.int64)
    out[rows] = values
    return out
