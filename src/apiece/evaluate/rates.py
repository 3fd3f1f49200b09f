"""Rates of a split: the one-to-one match at IoU 0.5, what each prediction is, by crowding, by place in the answer.

One class-aware match for the whole split (`apiece.match`) gives the true positives. Every other prediction is a false
positive, unless half or more of it lies inside a crowd region of its class (those objects are there, but not labelled
one by one); every other label that is not a crowd region is a miss. Counts are summed over images before they are
divided (micro), so every rate is a `Ratio` by image, and its interval comes from `apiece.stats`.

A rate with nothing to divide is `None`. Shapes: I images, N detections, M labels, K pairs, G groups of a table.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from apiece.boxes import FloatArray, area, paired_intersection
from apiece.evaluate.detections import hidden_instances
from apiece.evaluate.forms import Detections, GroundTruth
from apiece.outcomes import MISSES, NONE, Fate, Outcome, Outcomes, SplitMatch, label_outcomes, match_labels
from apiece.stats.ratio import CROWDING, Ratio, crowding_of_counts, per_image
from apiece.types import IntArray

POSITIONS = ("1", "2-5", "6-10", "11-20", "21-40", "41+")  # places in the answer, counted from 1
_POSITION_STARTS = (2, 6, 11, 21, 41)
NEAR_DUPLICATE_IOU = 0.9
STRIP_RATIO = 8.0
STRIP_AREA = 0.01
_PAIRS_AT_ONCE = 1 << 20


@dataclass(frozen=True, slots=True)
class Scores:
    """Counts of a match and the rates that follow."""

    tp: int
    fp: int  # predictions that are neither matched nor ignored
    fn: int
    ignored: int  # unmatched predictions inside a crowd region of their class
    iou_total: float  # sum of the pairs' IoU

    @property
    def f1(self) -> float | None:
        return f1_of(self.tp, self.fp, self.fn)

    @property
    def precision(self) -> float | None:
        return share(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> float | None:
        return share(self.tp, self.tp + self.fn)

    @property
    def mean_iou(self) -> float | None:
        return share(self.iou_total, self.tp)

    def as_dict(self) -> dict[str, float | None]:
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


def share(part: float, whole: float) -> float | None:
    """`part / whole`; `None` with nothing to divide."""
    return float(part / whole) if whole else None


def f1_of(tp: int, fp: int, fn: int) -> float | None:
    """2 tp / (2 tp + fp + fn); `None` with nothing to divide."""
    return share(2 * tp, 2 * tp + fp + fn)


def match_split(truth: GroundTruth, detections: Detections, *, min_score: float = 0.0) -> SplitMatch:
    """Match all detections scored `min_score` or more to the labels of their image and class."""
    detections.check_against(truth)
    return match_labels(truth, detections, np.flatnonzero(detections.score >= min_score))


def total_scores(match: SplitMatch) -> Scores:
    """Scores over all images and classes."""
    tp, fp, fn, ignored = map(len, (match.pairs, match.false_positives, match.misses, match.ignored))
    return Scores(tp, fp, fn, ignored, float(match.iou.sum()))


def class_scores(match: SplitMatch, truth: GroundTruth, detections: Detections) -> dict[str, Scores]:
    """Scores of each class that has a label or a detection, by name in category order."""
    scores = _grouped(match, detections.category, truth.category, len(truth.categories))
    return {n: s for n, s in zip(truth.names, scores, strict=True) if s.tp + s.fp + s.fn + s.ignored}


def crowding_scores(match: SplitMatch, truth: GroundTruth, detections: Detections) -> dict[str, Scores]:
    """Scores of the images of each row of `CROWDING`."""
    bucket = crowding_of_images(truth)
    scores = _grouped(match, bucket[detections.image], bucket[truth.image], len(CROWDING))
    return dict(zip(CROWDING, scores, strict=True))


def crowding_of_images(truth: GroundTruth) -> IntArray:
    """Index into `CROWDING` of each image, `[I]`."""
    return crowding_of_counts(truth.objects_per_image)


def _grouped(match: SplitMatch, of_detection: IntArray, of_label: IntArray, groups: int) -> list[Scores]:
    """Scores of each of G groups, from the group numbers of detections `[N]` and labels `[M]`."""
    paired = of_label[match.pairs[:, 1]]
    columns = (
        np.bincount(paired, minlength=groups),
        np.bincount(of_detection[match.false_positives], minlength=groups),
        np.bincount(of_label[match.misses], minlength=groups),
        np.bincount(of_detection[match.ignored], minlength=groups),
        np.bincount(paired, weights=match.iou, minlength=groups),
    )
    return [Scores(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """A split with every prediction named."""

    match: SplitMatch
    outcomes: Outcomes


def judge(
    truth: GroundTruth, detections: Detections, complete: GroundTruth | None = None, *, min_score: float = 0.0
) -> Judged:
    """Match a split and name every label, and every prediction scored `min_score` or more.

    `complete` is everything that is on the images, where it is known, with the images and classes of `truth`.
    """
    match = match_split(truth, detections, min_score=min_score)
    hidden = None if complete is None else hidden_instances(complete, truth)
    return Judged(match, label_outcomes(truth, detections, match, hidden))


def counted_images(
    truth: GroundTruth, detections: Detections, complete: GroundTruth | None = None, *, min_score: float = 0.0
) -> NDArray[np.bool_]:
    """Which images `[I]` have a label or a prediction: draws are made of these, as no other affects a rate."""
    some = truth.objects_per_image > 0
    if complete is not None:
        some |= complete.objects_per_image > 0
    some[detections.image[detections.score >= min_score]] = True
    return some


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
    rates = value_ratios(detections.image[named], judged.outcomes.of_prediction[named], len(Outcome), images)
    ratios = {
        "f1/f1": Ratio(2 * tp, 2 * tp + fp + fn),
        "f1/precision": Ratio(tp, tp + fp),
        "f1/recall": Ratio(tp, labels),
        "f1/mean_iou": Ratio(count(detections.image[judged.match.pairs[:, 0]], judged.match.iou), tp),
        **{
            f"rates/{outcome.label}": rates[outcome]
            for outcome in Outcome
            if complete is not None or outcome is not Outcome.UNLABELLED
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


def value_ratios(image: IntArray, value: NDArray[np.integer], values: int, images: int) -> list[Ratio]:
    """The share of each value among items `[N]`, each of an image and with a value in 0..values-1."""
    whole = per_image(np.ones(len(image)), image, images)
    return [Ratio(np.bincount(image[value == v], minlength=images).astype(np.float64), whole) for v in range(values)]


def _counts(match: SplitMatch, truth: GroundTruth, detections: Detections) -> tuple[FloatArray, FloatArray, FloatArray]:
    """True positives, false positives and misses of each image."""
    rows = truth.image[match.pairs[:, 1]], detections.image[match.false_positives], truth.image[match.misses]
    tp, fp, fn = (np.bincount(image, minlength=len(truth.images)).astype(np.float64) for image in rows)
    return tp, fp, fn


def lenient_f1(scores: Scores, detections: Detections, outcomes: Outcomes) -> float | None:
    """F1 without the confident part of the background, which may be objects that nobody labelled.

    Confident means a score at or above the median score of the true positives.
    """
    found = outcomes.predictions(Outcome.TP)
    if not len(found):
        return scores.f1
    background = detections.score[outcomes.predictions(Outcome.BACKGROUND)]
    confident = int((background >= np.median(detections.score[found])).sum())
    return f1_of(scores.tp, scores.fp - confident, scores.fn)


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


def by_position(detections: Detections, outcomes: Outcomes) -> dict[str, dict[str, float | None]]:
    """What the predictions at each row of `POSITIONS` are.

    `tp` and `duplicate` are shares of `predictions`, `mean_iou` is of the true positives, and `recall` the share of all
    labels found up to the end of the row.
    """
    bucket = position_of(detections.image)

    def count(rows: NDArray[np.bool_], weights: FloatArray | None = None) -> list[float]:
        chosen = None if weights is None else weights[rows]
        found: list[float] = np.bincount(bucket[rows], weights=chosen, minlength=len(POSITIONS)).tolist()
        return found

    is_tp = outcomes.of_prediction == Outcome.TP
    labels = int((outcomes.of_truth != NONE).sum())
    columns = (
        count(outcomes.of_prediction != NONE),
        count(is_tp),
        count(outcomes.of_prediction == Outcome.DUPLICATE),
        count(is_tp, outcomes.iou),
    )
    rows, so_far = {}, 0.0
    for name, whole, tp, duplicate, iou in zip(POSITIONS, *columns, strict=True):
        so_far += tp
        rows[name] = {
            "predictions": whole,
            "tp": share(tp, whole),
            "duplicate": share(duplicate, whole),
            "mean_iou": share(iou, tp),
            "recall": share(so_far, labels),
        }
    return rows


def near_duplicates(truth: GroundTruth, detections: Detections, rows: IntArray) -> IntArray:
    """Pairs `[K, 2]` among the detections in `rows` of one image and class at IoU >= 0.9, the earlier first.

    Labels are almost never near-duplicates (5 of 243,225 same-class pairs of COCO reach IoU 0.9), so such a pair is an
    error whether or not its object is labelled.
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
