"""What scores are worth, for `metrics.json`: AP under every policy, its range where scores tie, calibration.

Shapes: N detections.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from apiece.boxes import FloatArray
from apiece.evaluate.calibration import calibration
from apiece.evaluate.coco import coco_scores
from apiece.evaluate.f1 import SplitMatch
from apiece.evaluate.forms import Detections, GroundTruth
from apiece.evaluate.scores import ScorePolicy
from apiece.evaluate.ties import ap_range

Figures = dict[str, float]

_FIGURES = ("AP", "AP50", "AP_tie_lo", "AP_tie_hi")


@dataclass(frozen=True, slots=True)
class RankingFigures:
    """What `metrics.json` says about scores.

    Attributes:
        flat: By key.
        curves: Policy to its calibration curve.
    """

    flat: Figures
    curves: dict[str, dict[str, Figures]]


def ranking_figures(
    truth: GroundTruth,
    detections: Detections,
    match: SplitMatch,
    coco: Mapping[str, float],
    policy: str,
    scores: Mapping[str, FloatArray] | None = None,
) -> RankingFigures:
    """Score the detections under every policy.

    Args:
        truth: Labels.
        detections: Detections, scored by `policy`.
        match: Of the two; what it left out is not in the calibration, under no policy.
        coco: `AP` and `AP50` of the detections as they are.
        policy: Name of the policy that they have.
        scores: Further policies to their scores `[N]`; `constant` needs none.
    """
    policy = str(policy)
    every = {policy: detections.score, **(scores or {}), str(ScorePolicy.CONSTANT): np.ones(len(detections))}
    right = np.concatenate([np.ones(len(match.pairs), dtype=bool), np.zeros(len(match.false_positives), dtype=bool)])
    judged = np.concatenate([match.pairs[:, 0], match.false_positives])
    flat: Figures = {}
    curves = {}
    for name, score in every.items():
        scored = replace(detections, score=score)
        figures = coco if name == policy else coco_scores(truth, scored).figures
        low, high = ap_range(truth, scored, figures["AP"])
        if name == policy:
            flat |= {"coco/AP_tie_lo": low, "coco/AP_tie_hi": high}
        of_policy = (figures["AP"], figures["AP50"], low, high)
        flat |= {f"coco_by_policy/{name}/{key}": value for key, value in zip(_FIGURES, of_policy, strict=True)}
        found = calibration(score[judged], right)
        if found is not None:
            flat[f"calibration/{name}/ece"] = found.ece
            curves[name] = found.curve
    return RankingFigures(flat, curves)


def ranking_table(metrics: Mapping[str, Any]) -> Table:
    """AP by policy, its range over the orders of ties and the calibration error; the policy in use first."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("score policy", no_wrap=True, max_width=24)
    for column in ("AP", "AP50", "AP by the order of ties", "calibration error"):
        table.add_column(column, justify="right", no_wrap=True)
    names = [key.split("/")[1] for key in metrics if key.startswith("coco_by_policy/") and key.endswith("/AP")]
    for name in names:
        ap, ap50, low, high = (metrics[f"coco_by_policy/{name}/{figure}"] for figure in _FIGURES)
        tied = f"{low:.3f} - {high:.3f}" if low < high else "no ties"
        ece = metrics.get(f"calibration/{name}/ece")
        used = " (used)" if name == metrics["score_policy"] else ""
        table.add_row(
            escape(name + used), _figure(ap), _figure(ap50), tied, "not in 0..1" if ece is None else f"{ece:.3f}"
        )
    return table


def _figure(value: float) -> str:
    return "-" if value < 0 else f"{value:.3f}"
