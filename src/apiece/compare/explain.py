"""Why F1 and AP disagree: which outcomes of predictions account for the change of each.

For every outcome, B is scored once more with just those predictions as in A: what the figure would then be says what
the change of that outcome is worth. Effects overlap, so they do not add up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from apiece.compare.figures import Judged
from apiece.evaluate.coco import coco_scores
from apiece.evaluate.forms import Detections, GroundTruth
from apiece.evaluate.outcomes import Outcome
from apiece.evaluate.rates import f1_of

_WORTH_NAMING = 0.5
"""Share of the largest effect from which on an outcome is named beside it."""
_NOT_COUNTED = (Outcome.IGNORED,)


@dataclass(frozen=True, slots=True, eq=False)
class Side:
    """One run of an arm: what it predicted, and what that is."""

    detections: Detections
    judged: Judged


@dataclass(frozen=True, slots=True)
class Effect:
    """What the change of one outcome is worth.

    Attributes:
        outcome: Which.
        a: How many in A, on average over its runs.
        b: How many in B.
        f1: F1 of B, less what it would be with these as in A.
        ap: AP of B, less the same.
    """

    outcome: Outcome
    a: float
    b: float
    f1: float
    ap: float


def effects(truth: GroundTruth, a: Sequence[Side], b: Sequence[Side]) -> list[Effect]:
    """What the change of every outcome is worth, for runs paired in order (the shorter arm ends it)."""
    pairs = list(zip(a, b, strict=False))
    found = []
    for outcome in Outcome:
        if outcome in _NOT_COUNTED:
            continue
        counts = [tuple(len(side.judged.outcomes.predictions(outcome)) for side in pair) for pair in pairs]
        if not any(map(any, counts)):
            continue
        f1 = [_f1(y, 0, outcome) - _f1(y, m - n, outcome) for (_, y), (m, n) in zip(pairs, counts, strict=True)]
        ap = [_ap(truth, y.detections) - _ap(truth, _swapped(x, y, outcome)) for x, y in pairs]
        mean_a, mean_b = np.mean(counts, axis=0)
        found.append(Effect(outcome, float(mean_a), float(mean_b), float(np.mean(f1)), float(np.mean(ap))))
    return found


def disagreement(
    truth: GroundTruth, a: Sequence[Side], b: Sequence[Side], f1: tuple[float, float], ap: tuple[float, float]
) -> list[str]:
    """Two sentences where F1 and AP move in opposite directions, none where they do not.

    Args:
        truth: Labels.
        a: Runs of the arm A.
        b: Runs of the arm B.
        f1: Of A and of B.
        ap: Of A and of B.
    """
    up, down = f1[1] - f1[0], ap[1] - ap[0]
    if not up * down < 0:
        return []
    found = effects(truth, a, b)
    iou = [np.mean([_mean_iou(side) for side in arm]) for arm in (a, b)]
    head = f"F1 {'rises' if up > 0 else 'falls'} by {abs(up):.4f} while AP {'rises' if down > 0 else 'falls'} by "
    return [
        f"{head}{abs(down):.4f}.",
        _sentence("F1", f1[1], up, [(e, e.f1) for e in found], iou),
        _sentence("AP", ap[1], down, [(e, e.ap) for e in found], iou),
    ]


def _sentence(name: str, value: float, change: float, worth: list[tuple[Effect, float]], iou: list[np.floating]) -> str:
    """Which outcomes account for the change of one figure."""
    pushing = sorted(((e, w) for e, w in worth if w * change > 0), key=lambda pair: -abs(pair[1]))
    if not pushing:
        return f"No outcome alone accounts for the change of {name}: it comes from several together."
    most = abs(pushing[0][1])
    parts = []
    for effect, share in [pair for pair in pushing if abs(pair[1]) >= _WORTH_NAMING * most][:2]:
        label = effect.outcome.label.replace("_", " ")
        counts = f"{effect.a:,.0f} to {effect.b:,.0f}"
        if effect.outcome is Outcome.TP:
            counts += f", mean IoU {iou[0]:.3f} to {iou[1]:.3f}"
        parts.append(f"{label} ({counts}; with these as in A, {name} would be {value - share:.4f})")
    return f"{name}, {value:.4f} in B: accounted for by {' and '.join(parts)}."


def _f1(side: Side, change: int, outcome: Outcome) -> float:
    """F1 with `change` more predictions of an outcome."""
    match = side.judged.match
    tp, fp, fn = len(match.pairs), len(match.false_positives), len(match.misses)
    if outcome is Outcome.TP:
        return f1_of(tp + change, fp, fn - change)
    return f1_of(tp, fp + change, fn)


def _swapped(a: Side, b: Side, outcome: Outcome) -> Detections:
    """The predictions of B, with those of an outcome taken from A."""
    rows_a = a.judged.outcomes.predictions(outcome)
    rows_b = np.flatnonzero(b.judged.outcomes.of_prediction != outcome)
    x, y = a.detections, b.detections
    return Detections(
        image=np.concatenate([y.image[rows_b], x.image[rows_a]]),
        category=np.concatenate([y.category[rows_b], x.category[rows_a]]),
        bbox_xywh=np.concatenate([y.bbox_xywh[rows_b], x.bbox_xywh[rows_a]]),
        score=np.concatenate([y.score[rows_b], x.score[rows_a]]),
    )


def _ap(truth: GroundTruth, detections: Detections) -> float:
    return coco_scores(truth, detections).figures["AP"]


def _mean_iou(side: Side) -> float:
    iou = side.judged.match.iou
    return float(iou.mean()) if len(iou) else 0.0
