"""Rates of outcomes with their intervals: how often, in which class, how crowded, where in the answer.

Intervals are percentile bootstraps over images: an image is drawn with all that is in it, as its predictions are not
independent of each other. Every rate of a split uses the same draws.

Shapes: I images, N items, G groups, L values, B draws.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array

from apiece.boxes import FloatArray, area, paired_intersection
from apiece.evaluate.detections import hidden_instances
from apiece.evaluate.forms import Detections, GroundTruth
from apiece.outcomes import IOU_MIN, MISSES, NONE, Fate, Outcome, Outcomes, SplitMatch, label_outcomes, match_labels
from apiece.stats.ratio import CROWDING, Ratio, crowding_of_counts, per_image
from apiece.types import IntArray

DRAWS = 1000
LEVEL = 0.95
_DRAWS_AT_ONCE = 100
POSITIONS = ("1", "2-5", "6-10", "11-20", "21-40", "41+")
"""Places in the answer, counted from 1."""
_POSITION_STARTS = (2, 6, 11, 21, 41)


@dataclass(frozen=True, slots=True, eq=False)
class Rates:
    """How often each of L values comes up in each of G groups, `[G, L]`; 0 where a group has no item.

    Attributes:
        count: Items.
        rate: Items of the value / items of the group.
        lo: Lower end of the interval.
        hi: Upper end.
    """

    count: IntArray
    rate: FloatArray
    lo: FloatArray
    hi: FloatArray

    def row(self, group: int, value: int, name: str) -> dict[str, float]:
        """`name`, `name_lo` and `name_hi` of one value in one group."""
        figures = (self.rate, self.lo, self.hi)
        return {f"{name}{end}": float(f[group, value]) for end, f in zip(("", "_lo", "_hi"), figures, strict=True)}


class Bootstrap:
    """Draws of images with replacement, made once and used for every rate of a split.

    Args:
        images: I.
        draws: B.
        seed: Equal seeds give equal intervals.
    """

    def __init__(self, images: int, *, draws: int = DRAWS, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        chance = np.full(images, 1 / max(images, 1))
        self.images = images
        self.weights: NDArray[np.uint16] = (
            rng.multinomial(images, chance, size=draws) if images else np.zeros((draws, 0))
        ).astype(np.uint16)
        """How often each image is in each draw, `[B, I]`."""

    def rates(self, image: IntArray, group: IntArray, value: IntArray, *, groups: int, values: int) -> Rates:
        """Rates of the values of N items, each of an image and of a group.

        Args:
            image: `[N]` in 0..I-1.
            group: `[N]` in 0..G-1.
            value: `[N]` in 0..L-1.
            groups: G.
            values: L.
        """
        cell = group * values + value
        shape = (groups * values, self.images)
        table = coo_array((np.ones(len(cell)), (cell, image)), shape=shape).tocsr()
        count = np.bincount(cell, minlength=shape[0]).reshape(groups, values)
        drawn = np.concatenate(
            [
                (table @ self.weights[start : start + _DRAWS_AT_ONCE].T.astype(np.float64)).T
                for start in range(0, len(self.weights), _DRAWS_AT_ONCE)
            ]
        ).reshape(len(self.weights), groups, values)
        lo, hi = _interval(_share(drawn))
        return Rates(count, np.nan_to_num(_share(count.astype(np.float64))), lo, hi)


def _share(count: FloatArray) -> FloatArray:
    """Counts `[..., L]` over their sum; NaN where that is 0."""
    whole = np.broadcast_to(count.sum(-1, keepdims=True), count.shape)
    return np.divide(count, whole, out=np.full(count.shape, np.nan), where=whole > 0)


def _interval(drawn: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Percentiles over the draws `[B, ...]` that have the rate at all, interpolated linearly; 0 where none has."""
    ordered = np.sort(drawn, axis=0)  # NaN last
    last = np.maximum((~np.isnan(drawn)).sum(0) - 1, 0)
    ends = []
    for quantile in ((1 - LEVEL) / 2, (1 + LEVEL) / 2):
        place = quantile * last
        low = np.floor(place).astype(np.int64)
        a, b = (np.take_along_axis(ordered, i[None], axis=0)[0] for i in (low, np.minimum(low + 1, last)))
        ends.append(np.nan_to_num(a + (place - low) * (b - a)))
    return ends[0], ends[1]


@dataclass(frozen=True, slots=True, eq=False)
class SplitRates:
    """Rates of all outcomes; groups of `by_class` are the classes, of `by_crowding` the rows of `CROWDING`."""

    overall: Rates
    by_class: Rates
    by_crowding: Rates
    merged: Rates
    """Of all misses, one group: value 1 is those that a group box explains."""


def outcome_rates(truth: GroundTruth, detections: Detections, outcomes: Outcomes, bootstrap: Bootstrap) -> SplitRates:
    """Rates per prediction of each outcome, over the split, by class of the prediction and by crowding."""
    rows = np.flatnonzero(outcomes.of_prediction != NONE)
    image, value = detections.image[rows], outcomes.of_prediction[rows].astype(np.int64)
    missed = np.flatnonzero(np.isin(outcomes.of_truth, MISSES))

    def rates(group: IntArray, groups: int) -> Rates:
        return bootstrap.rates(image, group, value, groups=groups, values=len(Outcome))

    return SplitRates(
        overall=rates(np.zeros_like(image), 1),
        by_class=rates(detections.category[rows], len(truth.categories)),
        by_crowding=rates(crowding_of_images(truth)[image], len(CROWDING)),
        merged=bootstrap.rates(
            truth.image[missed],
            np.zeros_like(missed),
            (outcomes.of_truth[missed] == Fate.MERGED).astype(np.int64),
            groups=1,
            values=2,
        ),
    )


def places(image: IntArray) -> IntArray:
    """Which prediction of its image each one is, `[N]`, counted from 0 in the order written."""
    order = np.argsort(image, kind="stable")
    ordered = image[order]
    place = np.empty(len(image), dtype=np.int64)
    place[order] = np.arange(len(image)) - np.searchsorted(ordered, ordered, side="left")
    return place


def position_of(image: IntArray) -> IntArray:
    """Index into `POSITIONS` of each prediction `[N]`, by its place among those of its image."""
    return np.searchsorted(_POSITION_STARTS, places(image) + 1, side="right")


def by_position(detections: Detections, outcomes: Outcomes) -> dict[str, dict[str, float]]:
    """What the predictions at each row of `POSITIONS` are.

    Returns:
        `predictions`; `tp` and `duplicate`, each / predictions; `mean_iou` of the true positives; `recall`, the labels
        found up to the end of the row / all labels. 0 where there is nothing to divide.
    """
    used = outcomes.of_prediction != NONE
    bucket = position_of(detections.image)

    def count(rows: NDArray[np.bool_], weights: FloatArray | None = None) -> FloatArray:
        chosen = None if weights is None else weights[rows]
        return np.bincount(bucket[rows], weights=chosen, minlength=len(POSITIONS)).astype(np.float64)

    tp, duplicate = (outcomes.of_prediction == outcome for outcome in (Outcome.TP, Outcome.DUPLICATE))
    whole, found = count(used), count(tp)
    labels = int((outcomes.of_truth != NONE).sum())
    columns = {
        "tp": found / np.maximum(whole, 1),
        "duplicate": count(duplicate) / np.maximum(whole, 1),
        "mean_iou": count(tp, outcomes.iou) / np.maximum(found, 1),
        "recall": np.cumsum(found) / max(labels, 1),
    }
    return {
        name: {"predictions": int(whole[i]), **{key: float(column[i]) for key, column in columns.items()}}
        for i, name in enumerate(POSITIONS)
    }


def lenient_f1(scores: Scores, detections: Detections, outcomes: Outcomes) -> float:
    """F1 without the confident part of the background, which may be objects that nobody labelled.

    Confident is a score at or above the median score of the true positives; without true positives nothing is.
    """
    found = outcomes.predictions(Outcome.TP)
    if not len(found):
        return scores.f1
    background = detections.score[outcomes.predictions(Outcome.BACKGROUND)]
    confident = int((background >= np.median(detections.score[found])).sum())
    return f1_of(scores.tp, scores.fp - confident, scores.fn)


def f1_of(tp: int, fp: int, fn: int) -> float:
    """2 tp / (2 tp + fp + fn); 0 with nothing to divide."""
    whole = 2 * tp + fp + fn
    return 2 * tp / whole if whole else 0.0


# F1, precision, recall and mean IoU at IoU 0.5, over a split, by class and by crowding.
#
# One class-aware one-to-one match for the whole split (`apiece.match`) gives the true positives. Every other prediction
# is a false positive, unless half or more of it lies inside a crowd region of its class (those objects are there, but
# not labelled one by one); every other label that is not a crowd region is a miss. Counts are summed over images before
# they are divided (micro).
#
# Shapes: N detections, M labels, K pairs, I images, G groups of a table.


__all__ = [
    "IOU_MIN",
    "Scores",
    "SplitMatch",
    "class_scores",
    "crowding_of_images",
    "crowding_scores",
    "match_split",
    "total_scores",
]


@dataclass(frozen=True, slots=True)
class Scores:
    """Counts of a match and the rates that follow; a rate with nothing to divide is 0.

    Attributes:
        tp: Matched pairs.
        fp: Predictions that are neither matched nor ignored.
        fn: Labels left over.
        ignored: Unmatched predictions inside a crowd region of their class.
        iou_total: Sum of the pairs' IoU.
    """

    tp: int
    fp: int
    fn: int
    ignored: int
    iou_total: float

    @property
    def precision(self) -> float:
        """tp / (tp + fp)."""
        return _ratio(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> float:
        """tp / (tp + fn)."""
        return _ratio(self.tp, self.tp + self.fn)

    @property
    def f1(self) -> float:
        """2 tp / (2 tp + fp + fn)."""
        return _ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn)

    @property
    def mean_iou(self) -> float:
        """Mean IoU of the matched pairs."""
        return _ratio(self.iou_total, self.tp)

    def as_dict(self) -> dict[str, float]:
        """Rates and counts by name."""
        return {
            "f1": self.f1,
            "precision": self.precision,
            "recall": self.recall,
            "mean_iou": self.mean_iou,
            "tp": self.tp,
            "fp": self.fp,
            "fn": self.fn,
            "ignored": self.ignored,
        }


def match_split(truth: GroundTruth, detections: Detections, *, min_score: float = 0.0) -> SplitMatch:
    """Match all detections scored `min_score` or more to the labels of their image and class.

    Raises:
        ValueError: A detection's image or class is not one of `truth`.
    """
    detections.check_against(truth)
    kept = np.flatnonzero(detections.score >= min_score)
    return match_labels(truth, detections, kept)


def total_scores(match: SplitMatch) -> Scores:
    """Scores over all images and classes."""
    return Scores(
        tp=len(match.pairs),
        fp=len(match.false_positives),
        fn=len(match.misses),
        ignored=len(match.ignored),
        iou_total=float(match.iou.sum()),
    )


def class_scores(match: SplitMatch, truth: GroundTruth, detections: Detections) -> dict[str, Scores]:
    """Scores of each class that has a label or a detection, by name in category order."""
    scores = _grouped(match, detections.category, truth.category, len(truth.categories))
    return {name: score for name, score in zip(truth.names, scores, strict=True) if _seen(score)}


def crowding_scores(match: SplitMatch, truth: GroundTruth, detections: Detections) -> dict[str, Scores]:
    """Scores of the images of each row of `CROWDING`."""
    bucket = crowding_of_images(truth)
    scores = _grouped(match, bucket[detections.image], bucket[truth.image], len(CROWDING))
    return dict(zip(CROWDING, scores, strict=True))


def crowding_of_images(truth: GroundTruth) -> IntArray:
    """Index into `CROWDING` for each image, `[I]`."""
    return crowding_of_counts(truth.objects_per_image)


def _grouped(match: SplitMatch, of_detection: IntArray, of_label: IntArray, groups: int) -> list[Scores]:
    """Scores of each of G groups, from the group number of every detection `[N]` and label `[M]`."""
    paired = of_label[match.pairs[:, 1]]
    columns = (
        np.bincount(paired, minlength=groups),
        np.bincount(of_detection[match.false_positives], minlength=groups),
        np.bincount(of_label[match.misses], minlength=groups),
        np.bincount(of_detection[match.ignored], minlength=groups),
        np.bincount(paired, weights=match.iou, minlength=groups),
    )
    return [Scores(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]


def _seen(score: Scores) -> bool:
    return score.tp + score.fp + score.fn + score.ignored > 0


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """A split with every prediction named.

    Attributes:
        match: Predictions to labels.
        outcomes: Of the two.
    """

    match: SplitMatch
    outcomes: Outcomes


def judge(
    truth: GroundTruth, detections: Detections, complete: GroundTruth | None = None, *, min_score: float = 0.0
) -> Judged:
    """Match a split and name every prediction and label, as `apiece evaluate` does."""
    match = match_split(truth, detections, min_score=min_score)
    hidden = None if complete is None else hidden_instances(complete, truth)
    return Judged(match, label_outcomes(truth, detections, match, hidden))


def image_ratios(
    truth: GroundTruth,
    detections: Detections,
    judged: Judged,
    complete: GroundTruth | None = None,
    *,
    min_score: float = 0.0,
) -> dict[str, Ratio]:
    """Every figure that is a ratio of sums over images, by key."""
    images = len(truth.images)

    def count(image: IntArray, weights: FloatArray | None = None) -> FloatArray:
        return per_image(np.ones(len(image)) if weights is None else weights, image, images)

    tp, fp, fn = _counts(judged.match, truth, detections)
    named = np.flatnonzero(judged.outcomes.of_prediction != NONE)
    predicted, labels = count(detections.image[named]), tp + fn
    fate = {f: count(truth.image[judged.outcomes.truths(f)]) for f in MISSES}
    pairs, long = near_duplicates(truth, detections, named), strips(truth, detections)
    ratios = {
        "f1/f1": Ratio(2 * tp, 2 * tp + fp + fn),
        "f1/precision": Ratio(tp, tp + fp),
        "f1/recall": Ratio(tp, labels),
        "f1/mean_iou": Ratio(count(detections.image[judged.match.pairs[:, 0]], judged.match.iou), tp),
        **{
            f"rates/{o.label}": Ratio(count(detections.image[judged.outcomes.predictions(o)]), predicted)
            for o in Outcome
            if complete is not None or o is not Outcome.UNLABELLED
        },
        "count/per_image": Ratio(predicted, np.ones(images)),
        **{f"miss_rate/{f.label}": Ratio(fate[f], labels) for f in MISSES},
        "rates/merged": Ratio(fate[Fate.MERGED], fn),
        "shape/near_duplicate": Ratio(count(detections.image[np.unique(pairs[:, 1])]), predicted),
        "shape/strip": Ratio(count(detections.image[named[long[named]]]), predicted),
    }
    if complete is not None:
        tp, fp, fn = _counts(match_split(complete, detections, min_score=min_score), complete, detections)
        ratios["f1/true"] = Ratio(2 * tp, 2 * tp + fp + fn)
    return ratios


def _counts(match: SplitMatch, truth: GroundTruth, detections: Detections) -> tuple[FloatArray, FloatArray, FloatArray]:
    """True positives, false positives and misses of each image."""
    images = len(truth.images)
    rows = (
        truth.image[match.pairs[:, 1]],
        detections.image[match.false_positives],
        truth.image[match.misses],
    )
    tp, fp, fn = (np.bincount(image, minlength=images).astype(np.float64) for image in rows)
    return tp, fp, fn


# What predictions look like, no labels needed: near-duplicates of each other, and long flat strips.
#
# Labels are almost never near-duplicates (5 of 243,225 same-class pairs of COCO reach IoU 0.9), so such a pair is an
# error whether or not its object is labelled.
#
# Shapes: N detections, K pairs.


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
