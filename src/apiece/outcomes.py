"""Names what every prediction is and what became of every label, for any number of images at once.

A true positive is a pair of the one-to-one match (`match_labels`). Every other prediction gets the first outcome that
fits, and so does every missed label; docs/reference/metrics.md defines them in a table. A long box over a row of
objects has a name of its own, `group`, however many it covers: by IoU alone it would be a poor localisation over four
of them and background over twelve. Evaluation and Channel-B read the same definitions here.

Shapes: N detections, M labels, K pairs, E overlapping (detection, label) pairs of an image.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from apiece.boxes import FloatArray, area, paired_intersection
from apiece.match import inside_crowd, match_groups, pairs_in_groups
from apiece.types import IntArray

IOU_MIN = 0.5  # IoU from which a prediction and a label of one class can be a pair
COVERED = 0.5  # share of an instance inside a box from which the box covers it
INSIDE = 0.7  # share of a box inside an instance from which it is a fragment of it
NEAR = 0.1  # IoU from which a box is meant for an instance
NONE = -1
"""In place of an outcome: a detection below the score asked for, or a crowd region. As a target: there is none."""


class Outcome(IntEnum):
    """What a prediction is: the first name that fits, from the top."""

    TP = 0
    IGNORED = 1
    DUPLICATE = 2
    GROUP = 3
    FRAGMENT = 4
    MISLOCALISED = 5
    WRONG_CLASS = 6
    UNLABELLED = 7
    BACKGROUND = 8

    @property
    def label(self) -> str:
        return self.name.lower()


class Fate(IntEnum):
    """What became of a label: the first name that fits, from the top."""

    MATCHED = 0
    MERGED = 1
    MISCLASSIFIED = 2
    NEAR_MISS = 3
    MISSED = 4

    @property
    def label(self) -> str:
        return self.name.lower()


MISSES = tuple(fate for fate in Fate if fate is not Fate.MATCHED)


@dataclass(frozen=True, slots=True, eq=False)
class Outcomes:
    """The outcomes of a split, by row of its detections and of its labels."""

    of_prediction: NDArray[np.int8]  # `[N]` of `Outcome`, or `NONE` for a detection that was left out of the match
    of_truth: NDArray[np.int8]  # `[M]` of `Fate`, or `NONE` for a crowd region
    # `[N]` the label that the outcome speaks of: the one matched (`tp`), found twice (`duplicate`), that the box lies
    # in (`fragment`), that is nearest (`mislocalised`) or has another name (`wrong_class`); else `NONE`
    target: IntArray
    iou: FloatArray  # `[N]` IoU with the target, 0 without one
    covered: IntArray  # `[K, 2]` of (detection, label): the instances that make each `group` one

    def predictions(self, outcome: Outcome) -> IntArray:
        return np.flatnonzero(self.of_prediction == outcome)

    def truths(self, fate: Fate) -> IntArray:
        return np.flatnonzero(self.of_truth == fate)

    def counts(self) -> dict[str, int]:
        found = np.bincount(self.of_prediction[self.of_prediction != NONE], minlength=len(Outcome)).tolist()
        return {outcome.label: found[outcome] for outcome in Outcome}

    def miss_counts(self) -> dict[str, int]:
        found = np.bincount(self.of_truth[self.of_truth != NONE], minlength=len(Fate)).tolist()
        return {fate.label: found[fate] for fate in MISSES}


class Boxes(Protocol):
    """Boxes of any number of images, as columns: `[N]` image and class numbers, `[N, 4]` pixels."""

    @property
    def image(self) -> IntArray: ...

    @property
    def category(self) -> IntArray: ...

    @property
    def bbox_xyxy(self) -> FloatArray: ...


class Labels(Boxes, Protocol):
    """Labelled boxes, crowd regions among them."""

    @property
    def iscrowd(self) -> NDArray[np.bool_]: ...


@dataclass(frozen=True, slots=True, eq=False)
class Columns:
    """`Labels` held as plain arrays."""

    image: IntArray
    category: IntArray
    bbox_xyxy: FloatArray
    iscrowd: NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class SplitMatch:
    """How predictions and labels were matched, as rows of both."""

    pairs: IntArray  # `[K, 2]` of (detection, label)
    iou: FloatArray  # `[K]` IoU of each pair
    false_positives: IntArray  # rows of detections
    ignored: IntArray  # rows of detections: unmatched, but half or more inside a crowd region of their class
    misses: IntArray  # rows of labels; never crowd regions


def match_labels(truth: Labels, detections: Boxes, rows: IntArray) -> SplitMatch:
    """Match the detections in `rows` to the labels of their image and class, one to one, at IoU >= `IOU_MIN`."""
    objects, crowds = np.flatnonzero(~truth.iscrowd), np.flatnonzero(truth.iscrowd)
    boxes, truth_boxes = detections.bbox_xyxy[rows], truth.bbox_xyxy
    classes = 1 + max((int(b.category.max()) for b in (truth, detections) if len(b.category)), default=0)
    group = detections.image[rows] * classes + detections.category[rows]
    truth_group = truth.image * classes + truth.category
    match = match_groups(boxes, group, truth_boxes[objects], truth_group[objects], IOU_MIN)
    left = match.unmatched_predictions
    inside = inside_crowd(boxes[left], group[left], truth_boxes[crowds], truth_group[crowds])
    return SplitMatch(
        pairs=np.stack([rows[match.pairs[:, 0]], objects[match.pairs[:, 1]]], axis=1),
        iou=match.iou,
        false_positives=rows[left[~inside]],
        ignored=rows[left[inside]],
        misses=objects[match.unmatched_truths],
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Edges:
    """Overlapping pairs of a detection and a label of one image: `[E]` each, ordered by detection."""

    p: IntArray
    t: IntArray
    iou: FloatArray
    covers: FloatArray  # share of the label inside the detection
    inside: FloatArray  # share of the detection inside the label
    same: NDArray[np.bool_]  # whether both are of one class


def label_outcomes(truth: Labels, detections: Boxes, match: SplitMatch, hidden: Labels | None = None) -> Outcomes:
    """Name every prediction and every label of a split.

    `hidden` are instances that nobody labelled, where they are known, with the images and classes of `truth`; without
    them no prediction is `unlabelled`.
    """
    edges = _overlaps(truth, detections, match.false_positives)
    of_prediction = np.full(len(detections.image), NONE, dtype=np.int8)
    target = np.full(len(detections.image), NONE, dtype=np.int64)
    iou = np.zeros(len(detections.image))
    found, label = match.pairs.T
    of_prediction[found], target[found], iou[found] = Outcome.TP, label, match.iou
    of_prediction[match.ignored] = Outcome.IGNORED

    covers = edges.same & (edges.covers >= COVERED)
    # A false positive has no free label of its class at IoU >= 0.5: the match would have paired them.
    tests = {
        Outcome.DUPLICATE: (edges.same & (edges.iou >= IOU_MIN), edges.iou),
        Outcome.GROUP: (covers & (np.bincount(edges.p[covers], minlength=len(detections.image))[edges.p] >= 2), None),
        Outcome.FRAGMENT: (edges.same & (edges.inside >= INSIDE), edges.inside),
        Outcome.MISLOCALISED: (edges.same & (edges.iou >= NEAR), edges.iou),
        Outcome.WRONG_CLASS: (~edges.same & (edges.iou >= IOU_MIN), edges.iou),
    }
    of_prediction[match.false_positives] = Outcome.BACKGROUND
    for outcome, (fits, worth) in tests.items():
        rows = np.flatnonzero(fits & (of_prediction[edges.p] == Outcome.BACKGROUND))
        if worth is not None:
            rows = _best_of_each(edges, rows, worth)
            target[edges.p[rows]], iou[edges.p[rows]] = edges.t[rows], edges.iou[rows]
        of_prediction[edges.p[rows]] = outcome
    if hidden is not None:
        on_hidden = match_labels(hidden, detections, np.flatnonzero(of_prediction == Outcome.BACKGROUND))
        of_prediction[on_hidden.pairs[:, 0]] = Outcome.UNLABELLED
    is_group = covers & (of_prediction[edges.p] == Outcome.GROUP)
    covered = np.stack([edges.p[is_group], edges.t[is_group]], axis=1)
    near = _overlaps(truth, detections, match.ignored)
    return Outcomes(of_prediction, _fates(truth, match, (edges, near), covered[:, 1]), target, iou, covered)


def _overlaps(truth: Labels, detections: Boxes, rows: IntArray) -> _Edges:
    """All overlapping pairs of the detections in `rows` and the labels of their image, crowd regions left out."""
    boxes, truth_boxes = detections.bbox_xyxy, truth.bbox_xyxy
    objects = np.flatnonzero(~truth.iscrowd)
    blocks: list[tuple[IntArray, IntArray, FloatArray]] = []
    for p, t in pairs_in_groups(detections.image[rows], truth.image[objects]):
        shared = paired_intersection(boxes[rows[p]], truth_boxes[objects[t]])
        kept = shared > 0
        blocks.append((rows[p[kept]], objects[t[kept]], shared[kept]))
    p, t, shared = (np.concatenate(column) for column in zip(*blocks, strict=True))
    own, other = area(boxes)[p], area(truth_boxes)[t]
    same = detections.category[p] == truth.category[t]
    return _Edges(p, t, shared / (own + other - shared), shared / other, shared / own, same)


def _best_of_each(edges: _Edges, rows: IntArray, worth: FloatArray) -> IntArray:
    """The edge of highest worth of each detection among `rows`; ties go to higher IoU, then to the earlier label."""
    rows = rows[np.lexsort((edges.t[rows], -edges.iou[rows], -worth[rows], edges.p[rows]))]
    _, first = np.unique(edges.p[rows], return_index=True)
    return rows[first]


def _fates(truth: Labels, match: SplitMatch, unmatched: tuple[_Edges, ...], merged: IntArray) -> NDArray[np.int8]:
    fate = np.where(truth.iscrowd, NONE, Fate.MISSED).astype(np.int8)
    fate[match.pairs[:, 1]] = Fate.MATCHED

    def give(labels: IntArray, name: Fate) -> None:
        fate[labels[fate[labels] == Fate.MISSED]] = name

    give(merged, Fate.MERGED)
    for edges in unmatched:
        give(edges.t[~edges.same & (edges.iou >= IOU_MIN)], Fate.MISCLASSIFIED)
    for edges in unmatched:
        give(edges.t[edges.same & (edges.iou >= NEAR) & (edges.iou < IOU_MIN)], Fate.NEAR_MISS)
    return fate
