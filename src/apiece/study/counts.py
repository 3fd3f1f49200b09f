"""A run's labels and predictions as counts by image, from which every figure, draw and interval follows.

A figure is a sum over images divided by another one (`Ratio`), so its parts by image are all that a bootstrap needs; AP
needs what the protocol decided about each detection. Keys that `metrics.json` has as well mean the same here
(docs/metrics.md).

Shapes: I images, N detections, B draws.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from apiece.boxes import FloatArray
from apiece.evaluate.ap import CocoMatches, coco_matches
from apiece.evaluate.forms import Detections, GroundTruth
from apiece.evaluate.rates import Judged, image_ratios, judge
from apiece.outcomes import MISSES, Outcome
from apiece.stats.ratio import Ratio
from apiece.types import IntArray

TRUE = "true/"
"""Begins the keys of figures judged on complete truth; the plain key is judged on the labels."""


@dataclass(frozen=True, slots=True)
class Figure:
    """What a figure is called, the heading it stands under, and which direction is better (`None`: neither)."""

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
    """What the figure of a key is; also of probes (`probes/...`), telemetry (`window_var/...`) and `true/...`."""
    if key.startswith(TRUE):
        figure = figure_of(key.removeprefix(TRUE))
        return replace(figure, label=f"{figure.label}, complete truth")
    if key in FIGURES:
        return FIGURES[key]
    family, _, rest = key.partition("/")
    if family == "probes":
        context, _, name = rest.rpartition("/")
        label, better = _PROBES[name]
        return Figure(f"{context}: {label}" if context else label, PROBES, better)
    assert family == "window_var", f"unknown figure {key}"
    return Figure(f"variance of {rest}", TELEMETRY, False)


class Side(NamedTuple):
    """The predictions of a run, and what each of them is."""

    detections: Detections
    judged: Judged


@dataclass(frozen=True, slots=True, eq=False)
class Counts:
    """Images as figures see them.

    Attributes:
        objects: `[I]` how many objects each has: of the complete truth where it is known, else labels.
        ratios: Figures by key.
        ap: Matches of AP: by `""` for the labels, by `TRUE` for the complete truth.
        side: The predictions themselves, where they are at hand: `f1/lenient` needs their scores.
    """

    objects: IntArray
    ratios: Mapping[str, Ratio]
    ap: Mapping[str, CocoMatches] = field(default_factory=dict)
    side: Side | None = None

    @property
    def images(self) -> int:
        """I."""
        return len(self.objects)


def count_split(
    truth: GroundTruth,
    detections: Detections,
    complete: GroundTruth | None = None,
    *,
    min_score: float = 0.0,
    dropped: Ratio | None = None,
    on_truth: bool = False,
) -> Counts:
    """Judge a split on its labels and, where it is known and `on_truth`, on the complete truth as well.

    Args:
        truth: Labels.
        detections: Predictions, with their classes.
        complete: Everything that is there, with the images and classes of `truth`.
        min_score: Detections below it are left out of all but AP.
        dropped: Dropped objects / objects seen.
        on_truth: Give every figure under `TRUE` too.
    """
    judged = judge(truth, detections, complete, min_score=min_score)
    ratios = image_ratios(truth, detections, judged, complete, min_score=min_score)
    if dropped is not None:
        ratios["parse/dropped"] = dropped
    ap = {"": coco_matches(truth, detections)}
    if complete is not None and on_truth:
        of_all = image_ratios(complete, detections, judge(complete, detections))
        ratios |= {f"{TRUE}{key}": ratio for key, ratio in of_all.items()}
        ap[TRUE] = coco_matches(complete, detections)
    everything = truth if complete is None else complete
    return Counts(everything.objects_per_image.astype(np.int64), ratios, ap, Side(detections, judged))


def lenient_draws(ratio: Ratio, side: Side, weights: FloatArray, *, block: int = 1 << 22) -> FloatArray:
    """`f1/lenient` of every draw `[B]`: the median score of the true positives is that of the draw.

    Args:
        ratio: The one of `f1/f1`.
        side: The run's predictions.
        weights: `[B, I]` how often each image is in each draw.
        block: At most so many draws times detections are in memory at a time.
    """
    detections, outcomes = side.detections, side.judged.outcomes
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
