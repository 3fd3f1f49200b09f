"""Every figure about outcomes for `metrics.json`, and their tables: what predictions are, what fixing them would give.

Shapes: N detections, M labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.table import Table

from apiece.evaluate.complete import align_complete, hidden_instances
from apiece.evaluate.f1 import CROWDING, SplitMatch, match_split, total_scores
from apiece.evaluate.fixes import fix_figures
from apiece.evaluate.forms import Detections, GroundTruth
from apiece.evaluate.outcomes import MISSES, NONE, Outcome, label_outcomes
from apiece.evaluate.rates import Bootstrap, Rates, by_position, lenient_f1, outcome_rates
from apiece.evaluate.shape import near_duplicates, strips
from apiece.types import IntArray

Figures = dict[str, float]


@dataclass(frozen=True, slots=True)
class ErrorFigures:
    """What `metrics.json` says about outcomes.

    Attributes:
        flat: By key.
        by_class: Class name to `outcomes/<label>` and `rates/<label>`, for every class.
        by_crowding: The same for the rows of `CROWDING`.
        by_position: Rows of `POSITIONS`.
    """

    flat: Figures
    by_class: dict[str, Figures]
    by_crowding: dict[str, Figures]
    by_position: dict[str, Figures]


def error_figures(
    truth: GroundTruth,
    detections: Detections,
    match: SplitMatch,
    ap: float,
    complete: GroundTruth | None = None,
    *,
    min_score: float = 0.0,
    seed: int = 0,
) -> ErrorFigures:
    """Name and count everything that went wrong on a split.

    Args:
        truth: Labels.
        detections: Detections.
        match: Of the two, at `min_score`.
        ap: Their COCO AP.
        complete: Complete truth of the same images, where it is known.
        min_score: Detections below it have no outcome.
        seed: Of the bootstrap.

    Raises:
        ValueError: `complete` lacks an image of the split.
    """
    hidden = None
    if complete is not None:
        truth, complete = align_complete(complete, truth)
        hidden = hidden_instances(complete, truth)
    outcomes = label_outcomes(truth, detections, match, hidden)
    bootstrap = Bootstrap(len(truth.images), seed=seed)
    rates = outcome_rates(truth, detections, outcomes, bootstrap)
    scores = total_scores(match)
    flat: Figures = {
        "f1/lenient": lenient_f1(scores, detections, outcomes),
        **({} if complete is None else {"f1/true": _f1(complete, detections, min_score)}),
        **_outcome_row(rates.overall, 0),
        **{f"misses/{label}": count for label, count in outcomes.miss_counts().items()},
        **rates.merged.row(0, 1, "rates/merged"),
        **shape_figures(truth, detections, np.flatnonzero(outcomes.of_prediction != NONE), bootstrap),
        **fix_figures(truth, detections, outcomes, scores, ap),
    }
    return ErrorFigures(
        flat,
        {name: _outcome_row(rates.by_class, i) for i, name in enumerate(truth.names)},
        {name: _outcome_row(rates.by_crowding, i) for i, name in enumerate(CROWDING)},
        by_position(detections, outcomes),
    )


def shape_figures(truth: GroundTruth, detections: Detections, rows: IntArray, bootstrap: Bootstrap) -> Figures:
    """`shape/near_duplicate` and `shape/strip` per prediction of `rows`, with intervals, and the pairs counted."""
    pairs = near_duplicates(truth, detections, rows)
    repeats = np.zeros(len(detections), dtype=bool)
    repeats[pairs[:, 1]] = True
    figures: Figures = {}
    for name, found in (("near_duplicate", repeats), ("strip", strips(truth, detections))):
        value = found[rows].astype(np.int64)
        rates = bootstrap.rates(detections.image[rows], np.zeros_like(rows), value, groups=1, values=2)
        figures.update(rates.row(0, 1, f"shape/{name}"))
    return {**figures, "shape/near_duplicate_pairs": len(pairs)}


def error_tables(metrics: Mapping[str, Any]) -> list[Table]:
    """What the predictions are, what the misses are, and where in the answer: as tables."""
    predictions = _table("predictions", "count", "rate", "95 % interval", "F1 if fixed", "AP if fixed")
    for outcome in Outcome:
        label = outcome.label
        count, rate = metrics[f"outcomes/{label}"], f"rates/{label}"
        interval = f"{metrics[f'{rate}_lo']:.3f} - {metrics[f'{rate}_hi']:.3f}"
        predictions.add_row(label, f"{count:,}", f"{metrics[rate]:.3f}", interval, *_fixed(metrics, label))
    misses = _table("misses", "count", "share", "F1 if fixed", "AP if fixed")
    whole = sum(metrics[f"misses/{fate.label}"] for fate in MISSES)
    for fate in MISSES:
        count = metrics[f"misses/{fate.label}"]
        misses.add_row(fate.label, f"{count:,}", f"{count / whole:.3f}" if whole else "-", *_fixed(metrics, fate.label))
    positions = _table("place in the answer", "predictions", "TP", "duplicate", "IoU", "recall so far")
    for name, row in metrics["by_position"].items():
        if row["predictions"]:
            rates = (f"{row[key]:.3f}" for key in ("tp", "duplicate", "mean_iou", "recall"))
            positions.add_row(name, f"{row['predictions']:,}", *rates)
    return [predictions, misses, positions]


def error_lines(metrics: Mapping[str, Any]) -> list[str]:
    """What the tables have no place for: the range of F1, and the shapes."""
    f1 = f"F1 {metrics['f1/f1']:.3f}, {metrics['f1/lenient']:.3f} if confident background is unlabelled objects"
    if "f1/true" in metrics:
        f1 += f", {metrics['f1/true']:.3f} on complete truth"
    shape = (
        f"near-duplicates {metrics['shape/near_duplicate']:.1%} ({metrics['shape/near_duplicate_pairs']:,} pairs), "
        f"strips {metrics['shape/strip']:.1%}"
    )
    return [f1, shape]


def _outcome_row(rates: Rates, group: int) -> Figures:
    figures: Figures = {f"outcomes/{outcome.label}": int(rates.count[group, outcome]) for outcome in Outcome}
    for outcome in Outcome:
        figures.update(rates.row(group, outcome, f"rates/{outcome.label}"))
    return figures


def _f1(truth: GroundTruth, detections: Detections, min_score: float) -> float:
    return total_scores(match_split(truth, detections, min_score=min_score)).f1


def _fixed(metrics: Mapping[str, Any], label: str) -> tuple[str, str]:
    """F1 and AP as text; `-` where there is no fix, or no AP."""
    f1, ap = metrics.get(f"fix/{label}/f1"), metrics.get(f"fix/{label}/ap", -1.0)
    return "-" if f1 is None else f"{f1:.3f}", "-" if ap < 0 else f"{ap:.3f}"


def _table(head: str, *columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(head, no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table
