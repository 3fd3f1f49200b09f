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

from apiece.boxes import FloatArray
from apiece.evaluate.f1 import CROWDING, Scores, crowding_of_images
from apiece.evaluate.forms import Detections, GroundTruth
from apiece.evaluate.outcomes import MISSES, NONE, Fate, Outcome, Outcomes
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
