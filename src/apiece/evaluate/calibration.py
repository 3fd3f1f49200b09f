"""Calibration: of the boxes scored .8, are eight in ten right?

Right is a true positive of the one-to-one match at IoU 0.5. Bins hold equal counts, which estimates the error with less
bias than bins of equal width (Roelofs et al., Mitigating Bias in Calibration Error Estimation, AISTATS 2022).

Shapes: N predictions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from apiece.boxes import FloatArray

BINS = 10


@dataclass(frozen=True, slots=True)
class Calibration:
    """How far scores are from the share that is right.

    Attributes:
        ece: Mean over the predictions of abs(mean score - share right) of their bin; 0 without predictions.
        curve: Bins by rising score, numbered from 1: `from`, `to` (scores), `score` (their mean), `tp` (share right),
            `count`.
    """

    ece: float
    curve: dict[str, dict[str, float]]


def calibration(score: FloatArray, right: NDArray[np.bool_], bins: int = BINS) -> Calibration | None:
    """Calibration of scores `[N]` against what is right `[N]`; `None` where scores are not in [0, 1].

    Equal scores share a bin, so there may be fewer: one for a constant score.
    """
    if len(score) and not 0 <= score.min() <= score.max() <= 1:
        return None
    order = np.argsort(score, kind="stable")
    score, right = score[order], right[order]
    # A prediction is in the bin of the first one that has its score.
    first = np.searchsorted(score, score, side="left")
    _, start, count = np.unique(first * bins // max(len(score), 1), return_index=True, return_counts=True)
    curve, error = {}, 0.0
    for number, (low, size) in enumerate(zip(start.tolist(), count.tolist(), strict=True), 1):
        rows = slice(low, low + size)
        mean, share = float(score[rows].mean()), float(right[rows].mean())
        error += abs(mean - share) * size / len(score)
        ends = {"from": float(score[low]), "to": float(score[low + size - 1])}
        curve[str(number)] = {**ends, "score": mean, "tp": share, "count": size}
    return Calibration(error, curve)
