"""The figures of a split as one dictionary, the content of `metrics.json`, and the tables that are printed of it.

Keys are flat (`coco/AP`, `f1/f1`, `codec/AP`, `count/images`, `parse/truncated`) and their values numbers, `null` where
there is nothing to divide; `score_policy` is a text; `by_class`, `by_crowding`, `by_position` and `calibration_curve`
are nested tables. Every key is explained in docs/reference/metrics.md.

Shapes: N detections, M labels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
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
from apiece.evaluate.ap import coco_scores, codec_ceiling
from apiece.evaluate.detections import align_complete
from apiece.evaluate.forms import Detections, GroundTruth
from apiece.evaluate.rates import (
    Judged,
    Scores,
    by_position,
    class_scores,
    counted_images,
    crowding_of_images,
    crowding_scores,
    f1_of,
    image_ratios,
    judge,
    lenient_f1,
    near_duplicates,
    share,
    total_scores,
    value_ratios,
)
from apiece.match import match_groups
from apiece.outcomes import IOU_MIN, MISSES, NONE, Fate, Outcome, Outcomes
from apiece.printed import stdout_console, table
from apiece.stats.draws import ImageDraws
from apiece.stats.ratio import CROWDING, Ratio
from apiece.types import FinishReason, IntArray, ParseResult, ParseStatus

SCHEMA = 2  # of `metrics.json`; 1 had percentile intervals, 0 where there was nothing to divide, and no `schema`
METRICS_FILE = "metrics.json"
AS_GIVEN = "as_given"  # the score policy where scores come from a file
BINS = 10
FIXABLE = tuple(outcome for outcome in Outcome if outcome not in (Outcome.TP, Outcome.IGNORED))
_CLASSES_PRINTED = 20

Figures = dict[str, float | None]
Metrics = dict[str, Any]


def parse_figures(results: Iterable[tuple[ParseResult, FinishReason]]) -> Figures:
    """`parse/<status>` and `parse/dropped` over objects, `parse/finish_<reason>` and `parse/unclosed` over answers."""
    dropped: Counter[ParseStatus] = Counter()
    finished: Counter[FinishReason] = Counter()
    objects = unclosed = 0
    for parsed, finish in results:
        dropped.update(parsed.dropped)
        finished[finish] += 1
        objects += parsed.num_records
        unclosed += not parsed.closed
    answers = finished.total()
    return {
        "count/answers": answers,
        "count/records": objects,
        "parse/dropped": share(dropped.total(), objects),
        **{f"parse/{status}": share(dropped[status], objects) for status in ParseStatus},
        "parse/unclosed": share(unclosed, answers),
        **{f"parse/finish_{reason}": share(finished[reason], answers) for reason in FinishReason},
    }


def evaluate_detections(
    truth: GroundTruth,
    detections: Detections,
    *,
    policy: str,
    scores: Mapping[str, FloatArray] | None = None,
    parse: Figures | None = None,
    min_score: float = 0.0,
    num_bins: int = 1000,
    complete: GroundTruth | None = None,
) -> Metrics:
    """All figures of a split, in a fixed order: equal input gives equal bytes in `metrics.json`.

    Args:
        truth: Labels of the split.
        detections: In the order written: at equal scores, AP depends on it.
        policy: Name of the policy that the scores follow.
        scores: Further policies and their scores `[N]`, to be compared; `constant` always is.
        parse: Of `parse_figures`.
        min_score: Detections below it are left out of F1 (never out of AP).
        num_bins: Of the codec whose ceiling is reported.
        complete: Everything that is on the same images, where it is known; adds `f1/true` and `unlabelled`.
    """
    detections.check_against(truth)
    if complete is not None:
        truth, complete = align_complete(complete, truth)
    bucket = crowding_of_images(truth)
    coco = coco_scores(truth, detections, {name: np.flatnonzero(bucket == i) for i, name in enumerate(CROWDING)})
    judged = judge(truth, detections, complete, min_score=min_score)
    total = total_scores(judged.match)
    counted = counted_images(truth, detections, complete, min_score=min_score)
    of_all = ImageDraws(counted)
    crowded = {name: ImageDraws(counted & (bucket == i)) for i, name in enumerate(CROWDING)}
    by_class = class_scores(judged.match, truth, detections)
    by_crowding = crowding_scores(judged.match, truth, detections)
    ranking, curves = ranking_figures(truth, detections, judged, coco.figures, policy, scores)
    return {
        "schema": SCHEMA,
        **{f"coco/{name}": value for name, value in coco.figures.items()},
        **ranking,
        **{f"f1/{name}": value for name, value in total.as_dict().items()},
        "f1/min_score": min_score,
        **error_figures(truth, detections, judged, of_all, complete, min_score=min_score),
        **fix_figures(truth, detections, judged.outcomes, total, coco.figures["AP"]),
        **codec_ceiling(truth, num_bins),
        "count/images": len(truth.images),
        "count/truths": int((~truth.iscrowd).sum()),
        "count/crowd_regions": int(truth.iscrowd.sum()),
        "count/predictions": len(detections),
        **(parse or {}),
        "score_policy": policy,
        "by_class": {
            name: {
                **by_class[name].as_dict(),
                **coco.by_class[name],
                **outcome_row(truth, detections, judged.outcomes, detections.category == i, of_all),
            }
            for i, name in enumerate(truth.names)
            if name in by_class
        },
        "by_crowding": {
            name: {
                "images": int((bucket == i).sum()),
                **by_crowding[name].as_dict(),
                **{key: coco.by_subset[name][key] for key in ("AP", "AP50")},
                **outcome_row(truth, detections, judged.outcomes, bucket[detections.image] == i, crowded[name]),
            }
            for i, name in enumerate(CROWDING)
        },
        "by_position": by_position(detections, judged.outcomes),
        "calibration_curve": curves,
    }


def error_figures(
    truth: GroundTruth,
    detections: Detections,
    judged: Judged,
    draws: ImageDraws,
    complete: GroundTruth | None = None,
    *,
    min_score: float = 0.0,
) -> Figures:
    """What the predictions are, what became of the labels, and what the boxes look like, with intervals."""
    outcomes = judged.outcomes
    ratios = image_ratios(truth, detections, judged, complete, min_score=min_score)
    pairs = near_duplicates(truth, detections, np.flatnonzero(outcomes.of_prediction != NONE))
    true_f1 = {key: share(one.part.sum(), one.whole.sum()) for key, one in ratios.items() if key == "f1/true"}
    return {
        "f1/lenient": lenient_f1(total_scores(judged.match), detections, outcomes),
        **true_f1,
        **outcome_row(truth, detections, outcomes, np.ones(len(detections), dtype=bool), draws),
        **{f"misses/{label}": count for label, count in outcomes.miss_counts().items()},
        **_with_ends(draws, {key: ratios[key] for key in ("rates/merged", "shape/near_duplicate", "shape/strip")}),
        "shape/near_duplicate_pairs": len(pairs),
    }


def outcome_row(
    truth: GroundTruth, detections: Detections, outcomes: Outcomes, chosen: NDArray[np.bool_], draws: ImageDraws
) -> Figures:
    """`outcomes/<label>` and `rates/<label>` with its interval, of the detections that are chosen `[N]`."""
    rows = np.flatnonzero(chosen & (outcomes.of_prediction != NONE))
    value = outcomes.of_prediction[rows]
    ratios = value_ratios(detections.image[rows], value, len(Outcome), len(truth.images))
    counts: Figures = {f"outcomes/{outcome.label}": int((value == outcome).sum()) for outcome in Outcome}
    return counts | _with_ends(draws, {f"rates/{outcome.label}": ratios[outcome] for outcome in Outcome})


def _with_ends(draws: ImageDraws, ratios: Mapping[str, Ratio]) -> Figures:
    """Each ratio as `key`, `key_lo` and `key_hi`."""
    found: Figures = {}
    for key, one in draws.estimates(ratios).items():
        found |= {key: one.value, f"{key}_lo": one.lo, f"{key}_hi": one.hi}
    return found


def ranking_figures(
    truth: GroundTruth,
    detections: Detections,
    judged: Judged,
    coco: Mapping[str, float],
    policy: str,
    scores: Mapping[str, FloatArray] | None = None,
) -> tuple[Figures, dict[str, dict[str, Figures]]]:
    """AP and calibration under every policy as figures by key, and the calibration curve of each policy.

    `coco` are `AP` and `AP50` of the detections as they are, scored by `policy`. What `judged` left out is in no
    calibration.
    """
    policy = str(policy)
    every = {policy: detections.score, **(scores or {}), str(ScorePolicy.CONSTANT): np.ones(len(detections))}
    found, wrong = judged.match.pairs[:, 0], judged.match.false_positives
    rows = np.concatenate([found, wrong])
    right = np.arange(len(rows)) < len(found)
    flat: Figures = {}
    curves = {}
    for name, score in every.items():
        figures = coco if name == policy else coco_scores(truth, replace(detections, score=score)).figures
        flat |= {f"coco_by_policy/{name}/{key}": figures[key] for key in ("AP", "AP50")}
        if (calibrated := calibration(score[rows], right)) is not None:
            flat[f"calibration/{name}/ece"], curves[name] = calibrated
    return flat, curves


def calibration(
    score: FloatArray, right: NDArray[np.bool_], bins: int = BINS
) -> tuple[float | None, dict[str, Figures]] | None:
    """Are eight in ten of the boxes scored .8 right? `None` where scores `[N]` are not in [0, 1].

    Right `[N]` is a true positive of the one-to-one match at IoU 0.5. Bins hold equal counts, which estimates the error
    with less bias than bins of equal width (Roelofs et al., Mitigating Bias in Calibration Error Estimation, AISTATS
    2022). Equal scores share a bin, so there may be fewer than `bins`: one for a constant score.

    Returns:
        The mean over the predictions of abs(mean score - share right) of their bin; and the bins by rising score,
        numbered from 1: `from`, `to` (scores), `score` (their mean), `tp` (share right), `count`.
    """
    if len(score) and not 0 <= score.min() <= score.max() <= 1:
        return None
    order = np.argsort(score, kind="stable")
    score, right = score[order], right[order]
    # A prediction is in the bin of the first one that has its score.
    first = np.searchsorted(score, score, side="left")
    _, start, count = np.unique(first * bins // max(len(score), 1), return_index=True, return_counts=True)
    curve: dict[str, Figures] = {}
    error = 0.0
    for number, (low, size) in enumerate(zip(start.tolist(), count.tolist(), strict=True), 1):
        rows = slice(low, low + size)
        mean, tp = float(score[rows].mean()), float(right[rows].mean())
        error += abs(mean - tp) * size / len(score)
        ends = {"from": float(score[low]), "to": float(score[low + size - 1])}
        curve[str(number)] = {**ends, "score": mean, "tp": tp, "count": size}
    return error if curve else None, curve


def fix_figures(truth: GroundTruth, detections: Detections, outcomes: Outcomes, scores: Scores, ap: float) -> Figures:
    """F1 and AP if one kind of error, or every `missed` label, had been right: `fix/<label>/f1`, `fix/<label>/ap`.

    A box that was meant for a missed label gets what it lacked, at its own score; each missed label is given once, and
    boxes left over are dropped. Errors overlap in what they cost, so gains do not add up. `ap` is COCO AP as it is.
    """
    figures: Figures = {}
    for outcome in FIXABLE:
        wrong = len(outcomes.predictions(outcome))
        fixed, found = fix(truth, detections, outcomes, outcome)
        figures[f"fix/{outcome.label}/f1"] = f1_of(scores.tp + found, scores.fp - wrong, scores.fn - found)
        figures[f"fix/{outcome.label}/ap"] = coco_scores(truth, fixed).figures["AP"] if wrong else ap
    missed = outcomes.of_truth == Fate.MISSED
    label, count = Fate.MISSED.label, int(missed.sum())
    figures[f"fix/{label}/f1"] = f1_of(scores.tp, scores.fp, scores.fn - count)
    figures[f"fix/{label}/ap"] = coco_scores(truth.rows(~missed), detections).figures["AP"] if count else ap
    return figures


def fix(truth: GroundTruth, detections: Detections, outcomes: Outcomes, outcome: Outcome) -> tuple[Detections, int]:
    """Correct every prediction of one outcome as docs/reference/metrics.md says; and how many more labels are found."""
    wrong = outcomes.predictions(outcome)
    donors, labels = _given(truth, detections, outcomes, outcome, wrong)
    box = detections.bbox_xywh[donors] if outcome is Outcome.WRONG_CLASS else truth.bbox_xywh[labels]
    score = detections.score.copy()
    if outcome is Outcome.DUPLICATE:  # the box that stays gets the highest score of them
        holder = np.full(len(truth), -1, dtype=np.int64)
        found = outcomes.predictions(Outcome.TP)
        holder[outcomes.target[found]] = found
        np.maximum.at(score, holder[outcomes.target[wrong]], detections.score[wrong])
    kept = np.setdiff1d(np.arange(len(detections)), wrong, assume_unique=True)
    # A new box takes the place of the old one: at equal scores AP depends on the order.
    order = np.argsort(np.concatenate([kept, donors]), kind="stable")
    fixed = Detections(
        image=np.concatenate([detections.image[kept], truth.image[labels]])[order],
        category=np.concatenate([detections.category[kept], truth.category[labels]])[order],
        bbox_xywh=np.concatenate([detections.bbox_xywh[kept], box])[order],
        score=np.concatenate([score[kept], detections.score[donors]])[order],
    )
    return fixed, len(labels)


def _given(
    truth: GroundTruth, detections: Detections, outcomes: Outcomes, outcome: Outcome, wrong: IntArray
) -> tuple[IntArray, IntArray]:
    """Which wrong prediction becomes which missed label: rows of detections and of labels."""
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
        return wrong[:0], wrong[:0]
    free = missed[labels]
    donors, labels = donors[free], labels[free]
    # For each label the donor of highest score, the earlier at a tie.
    order = np.lexsort((donors, -detections.score[donors], labels))
    labels, first = np.unique(labels[order], return_index=True)
    return donors[order][first], labels


def new_metrics_path(out: Path, *, overwrite: bool = False) -> Path:
    """`out/metrics.json`, if it may be written: no file is there, or `overwrite` is set."""
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


def print_table(metrics: Metrics, console: Console | None = None) -> None:
    """Print metrics as tables, with `-` for a rate with nothing to divide and an AP without labels."""
    console = console or stdout_console()
    counts = {"images": "images", "truths": "labels", "predictions": "predictions"}
    console.print(", ".join(f"{metrics[f'count/{key}']:,} {word}" for key, word in counts.items()))
    by_class: dict[str, Metrics] = metrics["by_class"]
    most = sorted(by_class, key=lambda name: -_labels(by_class[name]))[:_CLASSES_PRINTED]
    tables = [*_score_tables(metrics), ranking_table(metrics), *_error_tables(metrics)]
    tables.append(_breakdown("labels per image", metrics["by_crowding"]))
    if len(by_class) > 1:
        tables.append(_breakdown("class", {name: by_class[name] for name in most}))
    for made in tables:
        console.print()
        console.print(made)
    if len(by_class) > len(most):
        console.print(f"and {len(by_class) - len(most)} classes with fewer labels in {METRICS_FILE}")
    console.print()
    f1 = f"F1 {_shown(metrics['f1/f1'])}, {_shown(metrics['f1/lenient'])} if confident background is unlabelled objects"
    if "f1/true" in metrics:
        f1 += f", {_shown(metrics['f1/true'])} on complete truth"
    console.print(f1, highlight=False, soft_wrap=True)
    pairs, shape = metrics["shape/near_duplicate_pairs"], [metrics[f"shape/{k}"] for k in ("near_duplicate", "strip")]
    near, strip = ("-" if value is None else f"{value:.1%}" for value in shape)
    console.print(f"near-duplicates {near} ({pairs:,} pairs), strips {strip}", highlight=False, soft_wrap=True)
    answers = {key.removeprefix("parse/"): value for key, value in metrics.items() if key.startswith("parse/")}
    if shares := ", ".join(f"{name} {value:.1%}" for name, value in answers.items() if value):
        console.print(f"\nanswers: {shares}")


def ranking_table(metrics: Mapping[str, Any]) -> Table:
    """AP by policy and the calibration error; the policy in use first."""
    made = table("score policy", "AP", "AP50", "calibration error", head_width=24)
    for name in (key.split("/")[1] for key in metrics if key.startswith("coco_by_policy/") and key.endswith("/AP")):
        ap, ap50 = (metrics[f"coco_by_policy/{name}/{figure}"] for figure in ("AP", "AP50"))
        error = f"calibration/{name}/ece"
        used = " (used)" if name == metrics["score_policy"] else ""
        ece = _shown(metrics[error]) if error in metrics else "not in 0..1"
        made.add_row(escape(name + used), _shown(ap), _shown(ap50), ece)
    return made


def _error_tables(metrics: Mapping[str, Any]) -> list[Table]:
    predictions = table("predictions", "count", "rate", "95 % interval", "F1 if fixed", "AP if fixed")
    for outcome in Outcome:
        label = outcome.label
        rate, lo, hi = (metrics[f"rates/{label}{end}"] for end in ("", "_lo", "_hi"))
        interval = "-" if lo is None else f"{max(lo, 0):.3f} - {hi:.3f}"  # a rate, centred: its end may be below 0
        predictions.add_row(label, f"{metrics[f'outcomes/{label}']:,}", _shown(rate), interval, *_fixed(metrics, label))
    misses = table("misses", "count", "share", "F1 if fixed", "AP if fixed")
    whole = sum(metrics[f"misses/{fate.label}"] for fate in MISSES)
    for fate in MISSES:
        count = metrics[f"misses/{fate.label}"]
        misses.add_row(fate.label, f"{count:,}", _shown(share(count, whole)), *_fixed(metrics, fate.label))
    positions = table("place in the answer", "predictions", "TP", "duplicate", "IoU", "recall so far")
    for name, row in metrics["by_position"].items():
        if row["predictions"]:
            rates = (_shown(row[key]) for key in ("tp", "duplicate", "mean_iou", "recall"))
            positions.add_row(name, f"{row['predictions']:,}", *rates)
    return [predictions, misses, positions]


def _fixed(metrics: Mapping[str, Any], label: str) -> tuple[str, str]:
    return _shown(metrics.get(f"fix/{label}/f1")), _shown(metrics.get(f"fix/{label}/ap"))


def _score_tables(metrics: Metrics) -> list[Table]:
    names = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR100")
    coco = table("COCO", *names, head_width=24)
    coco.add_row("detections", *(_shown(metrics[f"coco/{name}"]) for name in names))
    coco.add_row("ceiling of the bins", *(_shown(metrics.get(f"codec/{name}")) for name in names))
    f1 = table("IoU 0.5", "F1", "precision", "recall", "mean IoU", "TP", "FP", "FN", head_width=24)
    rates = (_shown(metrics[f"f1/{name}"]) for name in ("f1", "precision", "recall", "mean_iou"))
    f1.add_row("detections", *rates, *(f"{metrics[f'f1/{name}']:,}" for name in ("tp", "fp", "fn")))
    return [coco, f1]


def _breakdown(head: str, rows: Mapping[str, Metrics]) -> Table:
    images = ["images"] if all("images" in row for row in rows.values()) else []
    made = table(head, *images, "labels", "F1", "precision", "recall", "IoU", "AP", "AP50", head_width=24)
    for name, row in rows.items():
        counts = [*(row[key] for key in images), _labels(row)]
        rates = (_shown(row[key]) for key in ("f1", "precision", "recall", "mean_iou", "AP", "AP50"))
        made.add_row(escape(name), *(f"{count:,}" for count in counts), *rates)
    return made


def _labels(row: Metrics) -> int:
    return int(row["tp"] + row["fn"])


def _shown(value: float | None) -> str:
    """`-` where there is nothing to divide, and for COCO's -1: no label to find."""
    return "-" if value is None or value < 0 else f"{value:.3f}"
