"""Which explanation of long boxes the numbers support: averaging, chimeras, or the labels. docs/diagnosing.md.

Each explanation makes predictions that can fail. It is supported if the whole interval of every number that it speaks
of is on its side of a threshold, refuted if that of one is on the other side; else nobody can tell.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apiece.boxes import FloatArray
from apiece.probes.slots import reach
from apiece.study.evidence import Evidence, Figure, contrast, mean, quotient
from apiece.types import IntArray

RATE_LOW = 0.01
"""Share of long boxes among predictions below which there is nothing to explain."""
MULTI_HIGH = 0.2
"""Share of labels whose x2 or y2 has several peaks, from which on the beliefs are averages of instances."""
CHIMERA_HIGH = 0.1
"""Share of context boxes that mix instances, from which on training on them could matter."""
FOLLOW_HALF = 0.5
"""Share of the mass near either box that goes to the one that was begun: below it the model finishes another one."""
FOLLOW_KNOWN = 0.1
"""Mass near either box, below which `follow` decides nothing."""
LABELS_ENOUGH = 0.5
"""Labelled group boxes / labels over long boxes / predictions, from which on the labels explain the predictions."""
LABELS_TOO_FEW = 0.1
"""The same, below which they cannot."""


class Stand(StrEnum):
    """How an explanation stands."""

    SUPPORTED = "supported"
    REFUTED = "refuted"
    CANNOT_TELL = "can't tell"


NOTHING = "nothing to explain"


@dataclass(frozen=True, slots=True)
class Explanation:
    """One explanation and its numbers.

    Attributes:
        stand: What the numbers say of it.
        numbers: By name.
        because: The same in one sentence.
    """

    stand: Stand
    numbers: Mapping[str, Figure]
    because: str

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "verdict": str(self.stand),
            "because": self.because,
            "numbers": {name: figure.as_dict() for name, figure in self.numbers.items()},
        }


@dataclass(frozen=True, slots=True)
class Explained:
    """What explains the long boxes.

    Attributes:
        verdict: Names of the supported explanations, `nothing to explain`, or `can't tell`.
        rate: Long boxes / predictions.
        explanations: By name.
    """

    verdict: tuple[str, ...]
    rate: Figure
    explanations: Mapping[str, Explanation]


def explain(evidence: Evidence, *, sigma: float = 2.0, training_groups: Figure | None = None) -> Explained:
    """Check every explanation against the numbers.

    Args:
        evidence: Of the split.
        sigma: Width of the training target, bins.
        training_groups: Labelled group boxes / labels where the model was trained, if that is known.
    """
    found = evidence.detections
    used = evidence.outcomes.of_prediction >= 0
    rate = mean(evidence.draws, found.image[used], evidence.long[used])
    explanations = {
        "averaging": averaging(evidence, reach(sigma)),
        "chimera": chimera(evidence),
        "labels": labels(evidence, rate, training_groups),
    }
    if not evidence.long.any() or rate.below(RATE_LOW):
        verdict: tuple[str, ...] = (NOTHING,)
    else:
        verdict = tuple(name for name, e in explanations.items() if e.stand is Stand.SUPPORTED) or (
            str(Stand.CANNOT_TELL),
        )
    return Explained(verdict, rate, explanations)


def several_peaks(evidence: Evidence, chosen: NDArray[np.bool_]) -> tuple[IntArray, FloatArray]:
    """Probed labels among those chosen; whether x2 or y2 has two or more modes in the first pass, NaN if unknown."""
    label, modes = evidence.at_x2_y2("a1/modes", chosen)
    return label, np.where(np.isnan(modes).any(1), np.nan, (modes >= 2).any(1))


def averaging(evidence: Evidence, high: float) -> Explanation:
    """Beliefs between instances: expectations far from peaks, and several peaks, where long boxes are.

    x2 and y2 of the first pass alone: the true x1, y1 stand before them, so several peaks there are not several objects
    that could come next.
    """
    label, gaps = evidence.at_x2_y2("a1/exp_argmax_gap", evidence.has_neighbour)
    image, here = evidence.truth.image[label], evidence.under_long[label]
    gap, gap_off, gap_more = contrast(evidence.draws, image, gaps.max(1, initial=0), here)
    peaks = several_peaks(evidence, evidence.has_neighbour)[1]
    multi, multi_off, multi_more = contrast(evidence.draws, image, peaks, here)
    numbers = {
        "gap": gap, "gap_elsewhere": gap_off, "gap_difference": gap_more,
        "several_peaks": multi, "several_peaks_elsewhere": multi_off, "several_peaks_difference": multi_more,
    }  # fmt: skip
    stand = Stand.CANNOT_TELL
    if gap.above(high) and multi.above(MULTI_HIGH) and gap_more.above(0) and multi_more.above(0):
        stand = Stand.SUPPORTED
    elif gap.below(high) or multi.below(MULTI_HIGH) or gap_more.below(0) or multi_more.below(0):
        stand = Stand.REFUTED
    return Explanation(stand, numbers, _said_of_averaging(gap, gap_off, multi, multi_off, high))


def _said_of_averaging(gap: Figure, gap_off: Figure, multi: Figure, multi_off: Figure, high: float) -> str:
    if gap.value is None or multi.value is None:
        if gap_off.value is None or multi_off.value is None:
            return "no label was probed"
        return (
            f"no probed label is under a long box; elsewhere the expectation of x2, y2 is {gap_off.text(' bins', 1)} "
            f"from the peak (high is {high:g}), and {multi_off.text(percent=True)} have several peaks "
            f"(high is {MULTI_HIGH:.0%})"
        )
    elsewhere = ("", "")
    if gap_off.value is not None and multi_off.value is not None:
        elsewhere = (f"{gap_off.text('', 1)} elsewhere; ", f"{multi_off.text(percent=True)} elsewhere; ")
    return (
        f"under long boxes the expectation of x2, y2 is {gap.text(' bins', 1)} from the peak ({elsewhere[0]}"
        f"high is {high:g}), and {multi.text(percent=True)} have several peaks "
        f"({elsewhere[1]}high is {MULTI_HIGH:.0%})"
    )


def chimera(evidence: Evidence) -> Explanation:
    """Contexts that mix instances, in a model that does not finish the box that was begun."""
    image, draws, chosen = evidence.truth.image, evidence.draws, evidence.has_neighbour
    label, mixes = evidence.belief("chimera", chosen)
    mixed, mixed_off, _ = contrast(draws, image[label], mixes, evidence.under_long[label])
    rate = mean(draws, image[label], mixes)
    flip = mean(draws, image[label], evidence.belief("flip", chosen)[1])
    label, neighbour = evidence.belief("follow/near_neighbour", chosen)
    own = evidence.belief("follow/near_own", chosen)[1]
    near = mean(draws, image[label], neighbour + own)
    followed = quotient(draws, image[label], neighbour, neighbour + own)
    numbers = {
        "chimera": rate, "chimera_under_long": mixed, "chimera_elsewhere": mixed_off, "flip": flip,
        "follow": followed, "follow_mass": near,
    }  # fmt: skip
    stand = Stand.CANNOT_TELL
    knows = near.above(FOLLOW_KNOWN)
    if rate.above(CHIMERA_HIGH) and knows and followed.below(FOLLOW_HALF):
        stand = Stand.SUPPORTED
    elif rate.below(CHIMERA_HIGH) or (knows and followed.above(FOLLOW_HALF)):
        stand = Stand.REFUTED
    return Explanation(stand, numbers, _said_of_chimeras(rate, followed, near))


def _said_of_chimeras(rate: Figure, followed: Figure, near: Figure) -> str:
    if rate.value is None:
        return "no box of the model's own context was probed"
    said = (
        f"{rate.text(percent=True)} of the boxes in the model's own context mix instances (high is {CHIMERA_HIGH:.0%})"
    )
    if near.value is None:
        return f"{said}; no label was probed after a neighbour's x1, y1"
    if followed.value is not None:
        said += (
            f"; after a neighbour's x1, y1, {followed.text(percent=True)} of the mass near either box "
            f"finishes the neighbour's (low is under {FOLLOW_HALF:.0%})"
        )
    if not near.above(FOLLOW_KNOWN):
        said += f"; only {near.text(percent=True)} of the mass is near either"
    return said


def labels(evidence: Evidence, rate: Figure, training_groups: Figure | None) -> Explanation:
    """Group boxes in the labels: the model writes what it was shown."""
    truth = evidence.truth
    objects = ~truth.iscrowd
    shares = {"labelled_groups": mean(evidence.draws, truth.image[objects], evidence.labelled_groups[objects])}
    if training_groups is not None:
        shares["labelled_groups_training"] = training_groups
    stands = [_labels_stand(share, rate) for share in shares.values()]
    stand = Stand.CANNOT_TELL
    if Stand.SUPPORTED in stands:
        stand = Stand.SUPPORTED
    elif all(s is Stand.REFUTED for s in stands):
        stand = Stand.REFUTED
    said = "there are no labels"
    if shares["labelled_groups"].value is not None:
        said = f"{shares['labelled_groups'].text(percent=True)} of the labels hold two or more of their class"
    if training_groups is None:
        said += " (those trained on are not known)"
    elif training_groups.value is not None:
        said += f", {training_groups.text(percent=True)} of those trained on"
    found = "there are no predictions"
    if rate.value is not None:
        found = f"{rate.text(percent=True)} of the predictions are long boxes"
    return Explanation(stand, {**shares, "long_boxes": rate}, f"{said}; {found}")


def _labels_stand(share: Figure, rate: Figure) -> Stand:
    if share.interval is None or rate.interval is None:
        return Stand.CANNOT_TELL
    (low, high), (rate_low, rate_high) = share.interval, rate.interval
    if rate_high > 0 and low >= LABELS_ENOUGH * rate_high:
        return Stand.SUPPORTED
    return Stand.REFUTED if high < LABELS_TOO_FEW * rate_low else Stand.CANNOT_TELL
