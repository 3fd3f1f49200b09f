"""What fixing one kind of error would give: the F1 and AP if just those predictions had been right.

A box that was meant for a missed label gets what it lacked, at its own score; each missed label is given once, and what
is left over is dropped. docs/metrics.md has the table. Errors overlap in what they cost, so gains do not add up.

Shapes: N detections, M labels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from apiece.boxes import FloatArray
from apiece.evaluate.coco import coco_scores
from apiece.evaluate.complete import rows_of
from apiece.evaluate.f1 import IOU_MIN, Scores
from apiece.evaluate.forms import Detections, GroundTruth
from apiece.evaluate.outcomes import Fate, Outcome, Outcomes
from apiece.evaluate.rates import f1_of
from apiece.match import match_groups
from apiece.types import IntArray

FIXABLE = tuple(outcome for outcome in Outcome if outcome not in (Outcome.TP, Outcome.IGNORED))
_NOTHING = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class Fixed:
    """A split with one kind of error put right.

    Attributes:
        truth: Labels.
        detections: Detections.
        found: How many more labels are found.
        wrong: How many fewer predictions are wrong.
        dropped_labels: How many labels are not asked for any more.
    """

    truth: GroundTruth
    detections: Detections
    found: int = 0
    wrong: int = 0
    dropped_labels: int = 0


def fix(truth: GroundTruth, detections: Detections, outcomes: Outcomes, outcome: Outcome) -> Fixed:
    """Put every prediction of one outcome right, as docs/metrics.md says, and leave all others as they are."""
    wrong = outcomes.predictions(outcome)
    donors, labels = _given(truth, detections, outcomes, outcome, wrong)
    box = detections.bbox_xywh[donors] if outcome is Outcome.WRONG_CLASS else truth.bbox_xywh[labels]
    score = detections.score.copy()
    if outcome is Outcome.DUPLICATE:  # the box that stays is as sure as the surest of them
        holder = np.full(len(truth), -1, dtype=np.int64)
        found = outcomes.predictions(Outcome.TP)
        holder[outcomes.target[found]] = found
        np.maximum.at(score, holder[outcomes.target[wrong]], detections.score[wrong])
    kept = np.setdiff1d(np.arange(len(detections)), wrong, assume_unique=True)
    # A new box stands where the old one stood: at equal scores AP depends on the order.
    order = np.argsort(np.concatenate([kept, donors]), kind="stable")
    fixed = Detections(
        image=np.concatenate([detections.image[kept], truth.image[labels]])[order],
        category=np.concatenate([detections.category[kept], truth.category[labels]])[order],
        bbox_xywh=np.concatenate([detections.bbox_xywh[kept], box])[order],
        score=np.concatenate([score[kept], detections.score[donors]])[order],
    )
    return Fixed(truth, fixed, found=len(labels), wrong=len(wrong))


def fix_missed(truth: GroundTruth, detections: Detections, outcomes: Outcomes) -> Fixed:
    """Ask no more for the labels that no prediction came near."""
    missed = outcomes.of_truth == Fate.MISSED
    return Fixed(rows_of(truth, ~missed), detections, dropped_labels=int(missed.sum()))


def fix_figures(
    truth: GroundTruth, detections: Detections, outcomes: Outcomes, scores: Scores, ap: float
) -> dict[str, float]:
    """`fix/<label>/f1` and `fix/<label>/ap` for every kind of error and for `missed`.

    Args:
        truth: Labels.
        detections: Detections.
        outcomes: Of the two.
        scores: Of their match.
        ap: COCO AP as it is; also the figure of a kind that does not come up.
    """
    figures: dict[str, float] = {}
    for outcome in (*FIXABLE, Fate.MISSED):
        if isinstance(outcome, Outcome):
            fixed = fix(truth, detections, outcomes, outcome)
        else:
            fixed = fix_missed(truth, detections, outcomes)
        same = fixed.wrong == fixed.dropped_labels == 0
        figures[f"fix/{outcome.label}/f1"] = f1_of(
            scores.tp + fixed.found, scores.fp - fixed.wrong, scores.fn - fixed.found - fixed.dropped_labels
        )
        figures[f"fix/{outcome.label}/ap"] = ap if same else coco_scores(fixed.truth, fixed.detections).figures["AP"]
    return figures


def _given(
    truth: GroundTruth, detections: Detections, outcomes: Outcomes, outcome: Outcome, wrong: IntArray
) -> tuple[IntArray, IntArray]:
    """Which of the wrong predictions becomes which missed label: rows of detections and of labels."""
    missed = outcomes.of_truth > Fate.MATCHED
    if outcome is Outcome.WRONG_CLASS:
        free = np.flatnonzero(missed)
        match = match_groups(
            detections.bbox_xyxy[wrong], detections.image[wrong], truth.bbox_xyxy[free], truth.image[free], IOU_MIN
        )
        return wrong[match.pairs[:, 0]], free[match.pairs[:, 1]]
    if outcome is Outcome.GROUP:
        donors, labels = outcomes.covered.T
    elif outcome in (Outcome.FRAGMENT, Outcome.MISLOCALISED):
        donors, labels = wrong, outcomes.target[wrong]
    else:
        return _NOTHING, _NOTHING
    free = missed[labels]
    return _surest(donors[free], labels[free], detections.score)


def _surest(donors: IntArray, labels: IntArray, score: FloatArray) -> tuple[IntArray, IntArray]:
    """For each label the donor of highest score, the earlier at a tie."""
    order = np.lexsort((donors, -score[donors], labels))
    labels, first = np.unique(labels[order], return_index=True)
    return donors[order][first], labels
