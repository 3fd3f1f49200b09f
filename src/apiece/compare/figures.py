"""The figures that are compared, by name: what each is called, which direction is better, and its sums image by image.

Keys that `metrics.json` has as well mean the same here (docs/metrics.md). Shapes: I images, N detections, M labels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from apiece.boxes import FloatArray
from apiece.compare.source import Ratio, per_image
from apiece.evaluate.complete import hidden_instances
from apiece.evaluate.f1 import SplitMatch, match_split
from apiece.evaluate.forms import Detections, GroundTruth
from apiece.evaluate.outcomes import MISSES, NONE, Fate, Outcome, Outcomes, label_outcomes
from apiece.evaluate.shape import near_duplicates, strips
from apiece.types import IntArray


@dataclass(frozen=True, slots=True)
class Figure:
    """What a figure is.

    Attributes:
        label: For people.
        group: Heading it stands under.
        higher_is_better: `None` where neither is.
    """

    label: str
    group: str
    higher_is_better: bool | None = None


F1_AND_AP, OUTCOMES, MISSED, SHAPE, PROBES, TELEMETRY = GROUPS = (
    "F1 and AP",
    "outcomes",
    "misses",
    "shape",
    "probes",
    "telemetry",
)
_NEUTRAL = (Outcome.IGNORED, Outcome.UNLABELLED)
_PROBES: dict[str, tuple[str, bool | None]] = {
    "entropy": ("entropy, nats", None),
    "modes": ("modes", None),
    "own_mass": ("mass near its own", True),
    "cross_instance_mass": ("mass near another", False),
    "exp_argmax_gap": ("mean to argmax, bins", None),
    "flip": ("flipped to a neighbour", False),
    "chimera": ("mixed of several instances", False),
    "drift": ("drift from a1 to last, bins", None),
    "near_neighbour": ("the neighbour's box", True),
    "near_own": ("its own box", False),
    "elsewhere": ("elsewhere", None),
}


def _outcome(outcome: Outcome) -> Figure:
    better = None if outcome in _NEUTRAL else outcome is Outcome.TP
    return Figure(outcome.label.replace("_", " "), OUTCOMES, better)


FIGURES: dict[str, Figure] = {
    "f1/f1": Figure("F1", F1_AND_AP, True),
    "f1/lenient": Figure("F1, lenient", F1_AND_AP, True),
    "f1/true": Figure("F1 on complete truth", F1_AND_AP, True),
    "f1/precision": Figure("precision", F1_AND_AP, True),
    "f1/recall": Figure("recall", F1_AND_AP, True),
    "f1/mean_iou": Figure("mean IoU of the matched", F1_AND_AP, True),
    "coco/AP": Figure("AP", F1_AND_AP, True),
    "coco/AP50": Figure("AP50", F1_AND_AP, True),
    **{f"rates/{outcome.label}": _outcome(outcome) for outcome in Outcome},
    "count/per_image": Figure("predictions per image", OUTCOMES),
    "parse/dropped": Figure("dropped records", OUTCOMES, False),
    **{f"miss_rate/{fate.label}": Figure(fate.label.replace("_", " "), MISSED, False) for fate in MISSES},
    "rates/merged": Figure("share of misses in groups", MISSED),
    "shape/near_duplicate": Figure("near-duplicates", SHAPE, False),
    "shape/strip": Figure("strips", SHAPE, False),
}


def figure_of(key: str) -> Figure:
    """What the figure of a key is; also of probes (`probes/a1/entropy`) and telemetry (`window_var/...`)."""
    if key in FIGURES:
        return FIGURES[key]
    family, _, rest = key.partition("/")
    if family == "probes":
        context, _, name = rest.rpartition("/")
        label, better = _PROBES[name]
        return Figure(f"{context}: {label}" if context else label, PROBES, better)
    assert family == "window_var", f"unknown figure {key}"
    return Figure(f"variance of {rest}", TELEMETRY, False)


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


def lenient_draws(
    ratio: Ratio, detections: Detections, outcomes: Outcomes, weights: FloatArray, *, block: int = 1 << 22
) -> FloatArray:
    """`f1/lenient` of every draw `[B]`: the median score of the true positives is that of the draw.

    Args:
        ratio: Of `f1/f1`.
        detections: Detections.
        outcomes: Their outcomes.
        weights: `[B, I]` how often each image is in each draw.
        block: Draws times detections held in memory at a time.
    """
    found, doubtful = (outcomes.predictions(o) for o in (Outcome.TP, Outcome.BACKGROUND))
    found = found[np.argsort(detections.score[found])]
    doubtful = doubtful[np.argsort(-detections.score[doubtful])]
    score, rising = detections.score[found], -detections.score[doubtful]
    result = np.empty(len(weights))
    size = max(block // max(len(found) + len(doubtful), 1), 1)
    for start in range(0, len(weights), size):
        drawn = weights[start : start + size]
        whole, left_out = drawn @ ratio.whole, np.zeros(len(drawn))
        if len(found) and len(doubtful):
            passed = np.cumsum(drawn[:, detections.image[found]], axis=1)
            total = passed[:, -1]
            middle = [
                score[np.minimum((passed <= place[:, None]).sum(1), len(score) - 1)]
                for place in ((total - 1) // 2, total // 2)
            ]
            confident = np.searchsorted(rising, -(middle[0] + middle[1]) / 2, side="right")
            above = np.cumsum(drawn[:, detections.image[doubtful]], axis=1)
            left_out = np.where(confident > 0, above[np.arange(len(drawn)), np.maximum(confident - 1, 0)], 0.0)
            left_out = np.where(total > 0, left_out, 0.0)
        rest = whole - left_out
        result[start : start + size] = np.divide(
            drawn @ ratio.part, rest, out=np.full(len(drawn), np.nan), where=rest > 0
        )
    return result
