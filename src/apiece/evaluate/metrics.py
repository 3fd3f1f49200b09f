"""One dictionary of figures a run: what `metrics.json` holds, and the table that is printed.

Keys are flat (`coco/AP`, `f1/f1`, `codec/AP`, `count/images`, `parse/truncated`) and their values numbers;
`score_policy` is a text, `by_class`, `by_crowding`, `by_position` and `calibration_curve` are nested tables. Every key
is explained in docs/metrics.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from apiece.boxes import FloatArray
from apiece.errors import UserError
from apiece.evaluate.ceiling import codec_ceiling
from apiece.evaluate.coco import CocoScores, coco_scores
from apiece.evaluate.errors import error_figures, error_lines, error_tables
from apiece.evaluate.f1 import (
    CROWDING,
    Scores,
    class_scores,
    crowding_of_images,
    crowding_scores,
    match_split,
    total_scores,
)
from apiece.evaluate.forms import Detections, GroundTruth
from apiece.evaluate.ranking import ranking_figures, ranking_table
from apiece.files import write_json
from apiece.types import FinishReason, ParseResult, ParseStatus

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
