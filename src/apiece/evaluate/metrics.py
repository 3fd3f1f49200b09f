"""One dictionary of figures a run: what `metrics.json` holds, and the table that is printed.

Keys are flat (`coco/AP`, `f1/f1`, `codec/AP`, `count/images`, `parse/truncated`) and their values numbers;
`score_policy` is a text, `by_class`, `by_crowding`, `by_position` and `calibration_curve` are nested tables. Every key
is explained in docs/metrics.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from apiece.boxes import FloatArray
from apiece.errors import UserError
from apiece.evaluate.answers import ScorePolicy
from apiece.evaluate.ap import CocoScores, ap_range, coco_scores, codec_ceiling
from apiece.evaluate.detections import align_complete, hidden_instances, rows_of
from apiece.evaluate.forms import Detections, GroundTruth
from apiece.evaluate.rates import (
    IOU_MIN,
    Bootstrap,
    Rates,
    Scores,
    SplitMatch,
    by_position,
    class_scores,
    crowding_of_images,
    crowding_scores,
    f1_of,
    lenient_f1,
    match_split,
    near_duplicates,
    outcome_rates,
    strips,
    total_scores,
)
from apiece.files import write_json
from apiece.match import match_groups
from apiece.outcomes import MISSES, NONE, Fate, Outcome, Outcomes, label_outcomes
from apiece.stats.ratio import CROWDING
from apiece.types import FinishReason, IntArray, ParseResult, ParseStatus

# Calibration: of the boxes scored .8, are eight in ten right?
#
# Right is a true positive of the one-to-one match at IoU 0.5. Bins hold equal counts, which estimates the error with
# less bias than bins of equal width (Roelofs et al., Mitigating Bias in Calibration Error Estimation, AISTATS 2022).
#
# Shapes: N predictions.


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


# What scores are worth, for `metrics.json`: AP under every policy, its range where scores tie, calibration.
#
# Shapes: N detections.


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


# Every figure about outcomes for `metrics.json`, and their tables: what predictions are, what fixing them would give.
#
# Shapes: N detections, M labels.


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
    predictions = _error_table("predictions", "count", "rate", "95 % interval", "F1 if fixed", "AP if fixed")
    for outcome in Outcome:
        label = outcome.label
        count, rate = metrics[f"outcomes/{label}"], f"rates/{label}"
        interval = f"{metrics[f'{rate}_lo']:.3f} - {metrics[f'{rate}_hi']:.3f}"
        predictions.add_row(label, f"{count:,}", f"{metrics[rate]:.3f}", interval, *_fixed(metrics, label))
    misses = _error_table("misses", "count", "share", "F1 if fixed", "AP if fixed")
    whole = sum(metrics[f"misses/{fate.label}"] for fate in MISSES)
    for fate in MISSES:
        count = metrics[f"misses/{fate.label}"]
        misses.add_row(fate.label, f"{count:,}", f"{count / whole:.3f}" if whole else "-", *_fixed(metrics, fate.label))
    positions = _error_table("place in the answer", "predictions", "TP", "duplicate", "IoU", "recall so far")
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


def _error_table(head: str, *columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(head, no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


# What fixing one kind of error would give: the F1 and AP if just those predictions had been right.
#
# A box that was meant for a missed label gets what it lacked, at its own score; each missed label is given once, and
# what is left over is dropped. docs/metrics.md has the table. Errors overlap in what they cost, so gains do not add
# up.
#
# Shapes: N detections, M labels.


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


Metrics = dict[str, Any]

METRICS_FILE = "metrics.json"
AS_GIVEN = "as_given"
"""Name of the score policy where scores come from a file."""

_CLASSES_PRINTED = 20


@dataclass(frozen=True, slots=True)
class ParseCounts:
    """What became of the answers of a split.

    Attributes:
        answers: Answers generated.
        records: Records seen in them, kept or dropped.
        dropped: Records dropped, by reason.
        finished: Answers by why generation ended.
        unclosed: Answers whose outermost object was never closed.
    """

    answers: int
    records: int
    dropped: Mapping[ParseStatus, int]
    finished: Mapping[FinishReason, int]
    unclosed: int = 0

    @classmethod
    def of(cls, results: Iterable[tuple[ParseResult, FinishReason]]) -> ParseCounts:
        """Count the parsed answers of a split."""
        dropped: Counter[ParseStatus] = Counter()
        finished: Counter[FinishReason] = Counter()
        records = unclosed = 0
        for parsed, finish in results:
            dropped.update(parsed.dropped)
            finished[finish] += 1
            records += parsed.num_records
            unclosed += not parsed.closed
        return cls(finished.total(), records, dropped, finished, unclosed)

    def rates(self) -> dict[str, float]:
        """`parse/<status>` and `parse/dropped` over records, `parse/finish_<reason>` and `parse/unclosed` over answers.

        Every status and reason is there, 0 where it never came up.
        """
        records, answers = max(self.records, 1), max(self.answers, 1)
        return {
            "count/answers": self.answers,
            "count/records": self.records,
            "parse/dropped": sum(self.dropped.values()) / records,
            **{f"parse/{status}": self.dropped.get(status, 0) / records for status in ParseStatus},
            "parse/unclosed": self.unclosed / answers,
            **{f"parse/finish_{reason}": self.finished.get(reason, 0) / answers for reason in FinishReason},
        }


def evaluate_detections(
    truth: GroundTruth,
    detections: Detections,
    *,
    policy: str,
    scores: Mapping[str, FloatArray] | None = None,
    parse: ParseCounts | None = None,
    min_score: float = 0.0,
    num_bins: int = 1000,
    complete: GroundTruth | None = None,
) -> Metrics:
    """Score detections on a split in every way there is.

    Args:
        truth: Labels of the split.
        detections: In the order written: at equal scores, AP depends on it.
        policy: Name of the rule that the scores follow, kept beside the figures.
        scores: Further rules to their scores `[N]`, to be compared; `constant` always is.
        parse: What became of the answers; adds the `parse/` rates.
        min_score: Detections below it are left out of F1 (never out of AP).
        num_bins: Of the codec whose ceiling is reported.
        complete: Everything that is on the same images, where it is known; adds `f1/true` and the `unlabelled`.

    Returns:
        The metrics in a fixed order: equal input gives equal bytes in `metrics.json`.

    Raises:
        ValueError: A detection's image or class is not one of `truth`, or an image is not in `complete`.
    """
    bucket = crowding_of_images(truth)
    coco = coco_scores(truth, detections, {name: np.flatnonzero(bucket == i) for i, name in enumerate(CROWDING)})
    match = match_split(truth, detections, min_score=min_score)
    by_class = class_scores(match, truth, detections)
    by_crowding = crowding_scores(match, truth, detections)
    errors = error_figures(truth, detections, match, coco.figures["AP"], complete, min_score=min_score)
    ranking = ranking_figures(truth, detections, match, coco.figures, policy, scores)
    images = np.bincount(bucket, minlength=len(CROWDING)).tolist()
    return {
        **{f"coco/{name}": value for name, value in coco.figures.items()},
        **ranking.flat,
        **{f"f1/{name}": value for name, value in total_scores(match).as_dict().items()},
        "f1/min_score": min_score,
        **errors.flat,
        **codec_ceiling(truth, num_bins),
        "count/images": len(truth.images),
        "count/truths": int((~truth.iscrowd).sum()),
        "count/crowd_regions": int(truth.iscrowd.sum()),
        "count/predictions": len(detections),
        **(parse.rates() if parse else {}),
        "score_policy": policy,
        "by_class": {name: _row(score, coco.by_class[name], errors.by_class[name]) for name, score in by_class.items()},
        "by_crowding": {
            name: {"images": count, **_row(by_crowding[name], _brief(coco, name), errors.by_crowding[name])}
            for name, count in zip(CROWDING, images, strict=True)
        },
        "by_position": errors.by_position,
        "calibration_curve": ranking.curves,
    }


def new_metrics_path(out: Path, *, overwrite: bool = False) -> Path:
    """`out/metrics.json`, if it may be written.

    Raises:
        UserError: It exists already and `overwrite` is false, or `out` is a file.
    """
    if out.exists() and not out.is_dir():
        raise UserError("expected a folder, found a file", where=out, exit_code=2)
    path = out / METRICS_FILE
    if path.exists() and not overwrite:
        raise UserError(
            "metrics are there already and are not overwritten",
            where=path,
            fix="choose another --out, or add --overwrite",
            exit_code=2,
        )
    return path


def write_metrics(path: Path, metrics: Metrics) -> None:
    """Write metrics as JSON, atomically and byte for byte the same for equal metrics."""
    write_json(path, metrics)


def print_table(metrics: Metrics, console: Console | None = None) -> None:
    """Print metrics as tables: coloured on a terminal, plain text elsewhere.

    A rate with nothing to divide, or an AP without labels, is printed as `-`.
    """
    console = console or Console()
    counts = {"images": "images", "truths": "labels", "predictions": "predictions"}
    console.print(", ".join(f"{metrics[f'count/{key}']:,} {word}" for key, word in counts.items()))
    by_class: dict[str, Metrics] = metrics["by_class"]
    most = sorted(by_class, key=lambda name: -_labels(by_class[name]))[:_CLASSES_PRINTED]
    tables = [_ap_table(metrics), _f1_table(metrics), ranking_table(metrics), *error_tables(metrics)]
    tables.append(_breakdown("labels per image", metrics["by_crowding"]))
    if len(by_class) > 1:
        tables.append(_breakdown("class", {name: by_class[name] for name in most}))
    for table in tables:
        console.print()
        console.print(table)
    if len(by_class) > len(most):
        console.print(f"and {len(by_class) - len(most)} classes with fewer labels in {METRICS_FILE}")
    console.print()
    for line in error_lines(metrics):
        console.print(line, highlight=False, soft_wrap=True)
    answers = {
        key.removeprefix("parse/"): value for key, value in metrics.items() if key.startswith("parse/") and value
    }
    if answers:
        console.print("\nanswers: " + ", ".join(f"{name} {value:.1%}" for name, value in answers.items()))


def _row(score: Scores, ap: Mapping[str, float], errors: Mapping[str, float]) -> dict[str, float]:
    return {**score.as_dict(), **ap, **errors}


def _brief(coco: CocoScores, subset: str) -> dict[str, float]:
    return {name: coco.by_subset[subset][name] for name in ("AP", "AP50")}


def _labels(row: Metrics) -> int:
    return int(row["tp"] + row["fn"])


def _table(head: str, columns: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(head, no_wrap=True, max_width=24)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _ap_table(metrics: Metrics) -> Table:
    names = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR100")
    table = _table("COCO", names)
    table.add_row("detections", *(_rate(metrics[f"coco/{name}"]) for name in names))
    table.add_row("ceiling of the bins", *(_rate(metrics.get(f"codec/{name}")) for name in names))
    return table


def _f1_table(metrics: Metrics) -> Table:
    row = {name: metrics[f"f1/{name}"] for name in ("f1", "precision", "recall", "mean_iou", "tp", "fp", "fn")}
    table = _table("IoU 0.5", ("F1", "precision", "recall", "mean IoU", "TP", "FP", "FN"))
    table.add_row("detections", *_rates(row), *(f"{row[name]:,}" for name in ("tp", "fp", "fn")))
    return table


def _breakdown(head: str, rows: Mapping[str, Metrics]) -> Table:
    images = all("images" in row for row in rows.values())
    table = _table(head, [*(["images"] if images else []), "labels", "F1", "precision", "recall", "IoU", "AP", "AP50"])
    for name, row in rows.items():
        counts = [*([row["images"]] if images else []), _labels(row)]
        table.add_row(
            escape(name), *(f"{count:,}" for count in counts), *_rates(row), _rate(row["AP"]), _rate(row["AP50"])
        )
    return table


def _rates(row: Metrics) -> list[str]:
    """F1, precision, recall and mean IoU of a row as text; `-` where there was nothing to divide."""
    tp, fp, fn = row["tp"], row["fp"], row["fn"]
    wholes = {"f1": tp + fp + fn, "precision": tp + fp, "recall": tp + fn, "mean_iou": tp}
    return [f"{row[name]:.3f}" if whole else "-" for name, whole in wholes.items()]


def _rate(value: float | None) -> str:
    return "-" if value is None or value < 0 else f"{value:.3f}"
