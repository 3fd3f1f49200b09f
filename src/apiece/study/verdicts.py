"""A comparison as it is kept and printed: rows with verdicts, images that changed, remarks (docs/comparing.md)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from apiece.boxes import FloatArray
from apiece.dumps.folder import DUMPS
from apiece.evaluate.ap import coco_scores
from apiece.evaluate.forms import Detections, GroundTruth
from apiece.evaluate.rates import Judged, f1_of
from apiece.outcomes import MISSES, Outcome, Outcomes
from apiece.stats.draws import block_draws
from apiece.stats.interval import Difference, Drawn, Verdict
from apiece.stats.ratio import Ratio
from apiece.study.arms import Source

# The figures that are compared, by name: what each is called, which direction is better, and its sums image by image.
#
# Keys that `metrics.json` has as well mean the same here (docs/metrics.md). Shapes: I images, N detections, M labels.


@dataclass(frozen=True, slots=True)
class Figure:
    """What a figure is.

    Attributes:
        label: For people.
        group: Heading it stands under.
        higher_is_better: `None` where neither is.
    """

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
    """What the figure of a key is; also of probes (`probes/a1/entropy`) and telemetry (`window_var/...`)."""
    if key in FIGURES:
        return FIGURES[key]
    family, _, rest = key.partition("/")
    if family == "probes":
        context, _, name = rest.rpartition("/")
        label, better = _PROBES[name]
        return Figure(f"{context}: {label}" if context else label, PROBES, better)
    assert family == "window_var", f"unknown figure {key}"
    return Figure(f"variance of {rest}", TELEMETRY, False)


def lenient_draws(
    ratio: Ratio, detections: Detections, outcomes: Outcomes, weights: FloatArray, *, block: int = 1 << 22
) -> FloatArray:
    """`f1/lenient` of every draw `[B]`: the median score of the true positives is that of the draw.

    Args:
        ratio: Of `f1/f1`.
        detections: Detections.
        outcomes: Their outcomes.
        weights: `[B, I]` how often each image is in each draw.
        block: Draws times detections held in memory at a time.
    """
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


# How steady the loss terms of two arms were: variances over a window of steps, compared step by step.
#
# A window of 100 steps, logged every 10, shares most of its steps with the next one. So steps are drawn in blocks as
# long as the window (circular block bootstrap, Politis and Romano 1992), the same blocks for both arms. Only the
# later half of the steps is compared: before that, the variance is that of a loss still falling.
#
# Shapes: S seeds of an arm, R rows (logged steps), B draws.


LEAST_BLOCKS = 4
"""Fewer give no interval."""
DEFAULT_WINDOW = 100
"""Where the config of a run is gone: the default of `train.telemetry_window`."""


class Steady(Protocol):
    """A run whose terms were watched."""

    @property
    def path(self) -> Path:
        """Folder of the run, or of one of its dumps."""

    @property
    def step(self) -> int | None:
        """The last one that counts."""

    @property
    def telemetry(self) -> Mapping[str, Mapping[int, float]]:
        """Variances by key: value by step."""

    @property
    def telemetry_window(self) -> int | None:
        """Steps that each of them is taken over."""


@dataclass(frozen=True, slots=True, eq=False)
class TelemetryDraws:
    """One variance in both arms.

    Attributes:
        a: In A.
        b: In B.
        blocks: How many blocks of a window's length there are.
    """

    a: Drawn
    b: Drawn
    blocks: int


def telemetry_draws(
    a: Sequence[Steady], b: Sequence[Steady], draws: int, seed: int
) -> tuple[dict[str, TelemetryDraws], tuple[str, ...]]:
    """Every variance that all sources of both arms have, drawn; and what the reader should be told.

    Args:
        a: The runs of one arm.
        b: The runs of the other.
        draws: B.
        seed: Of the draws.
    """
    sources = (*a, *b)
    if not any(source.telemetry for source in sources) or len({_run_of(source) for source in sources}) < 2:
        return {}, ()
    keys = [set(source.telemetry) for source in sources]
    shared = sorted(set.intersection(*keys))
    remarks = []
    if rest := sorted(set.union(*keys) - set(shared)):
        names = ", ".join(key.removeprefix("window_var/") for key in rest)
        remarks.append(f"variances that not all runs have are left out: {names}")
    found = {}
    few = set()
    for key in shared:
        last = min((source.step or max(source.telemetry[key])) for source in sources)
        common = set.intersection(*(set(source.telemetry[key]) for source in sources))
        steps = sorted(step for step in common if last / 2 < step <= last)
        if not steps:
            continue
        rows = [np.array([source.telemetry[key][step] for step in steps]) for source in sources]
        window = max(source.telemetry_window or DEFAULT_WINDOW for source in sources)
        length = _block(steps, window)
        weights = block_draws(len(steps), length, draws, seed)
        drawn = [(float(row.mean()), weights @ row) for row in rows]
        points, values = np.array([p for p, _ in drawn]), np.array([v for _, v in drawn])
        blocks = len(steps) // length
        found[key] = TelemetryDraws(
            Drawn(points[: len(a)], values[: len(a)]), Drawn(points[len(a) :], values[len(a) :]), blocks
        )
        if blocks < LEAST_BLOCKS:
            few.add(f"steps {steps[0]} to {steps[-1]} hold {blocks} windows of {window} steps")
    remarks += [f"variances have no interval: {text}, {LEAST_BLOCKS} are needed" for text in sorted(few)]
    return found, tuple(remarks)


def _run_of(source: Steady) -> Path:
    """The folder of a source's run: two dumps of one run share their telemetry."""
    path = source.path.resolve()
    return path.parents[1] if path.parent.name == DUMPS else path


def _block(steps: list[int], window: int) -> int:
    """How many logged rows a window spans, at most all."""
    apart = float(np.median(np.diff(steps))) if len(steps) > 1 else float(window)
    return min(max(math.ceil(window / max(apart, 1.0)), 1), len(steps))


# Why F1 and AP disagree: which outcomes of predictions account for the change of each.
#
# For every outcome, B is scored once more with just those predictions as in A: what the figure would then be says what
# the change of that outcome is worth. Effects overlap, so they do not add up.


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


SCHEMA = 1
_SHOWN = 5
_WIDTH = 100
_STYLES = {
    Verdict.BETTER: "green",
    Verdict.WORSE: "red",
    Verdict.HIGHER: "bold",
    Verdict.LOWER: "bold",
    Verdict.SAME: "dim",
    Verdict.CANNOT_TELL: "dim",
}


@dataclass(frozen=True, slots=True)
class Row:
    """One figure.

    Attributes:
        key: As in `metrics.json` where it is there.
        figure: What it is.
        found: Its values, difference and verdict.
        n: Images (telemetry: blocks of steps) that it rests on.
        more_images: How many more images would tell, if the difference stays; `None` if it is told, or never would be.
    """

    key: str
    figure: Figure
    found: Difference
    n: int
    more_images: int | None

    def as_json(self) -> dict[str, Any]:
        """Its line in `comparison.json`."""
        return {
            "key": self.key,
            "label": self.figure.label,
            "group": self.figure.group,
            "a": self.found.a,
            "b": self.found.b,
            "difference": self.found.difference,
            "lo": self.found.lo,
            "hi": self.found.hi,
            "verdict": str(self.found.verdict),
            "more_images": self.more_images,
            "higher_is_better": self.figure.higher_is_better,
            "n": self.n,
        }


@dataclass(frozen=True, slots=True)
class Changed:
    """An image: its F1 in A and in B (means over the seeds)."""

    id: str
    a: float
    b: float
    difference: float


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """B held against A.

    Attributes:
        a: Name of the one arm.
        b: Name of the other.
        runs: Arm and run, of all.
        rows: Figures in order.
        changed: Images whose F1 changed most, from the best change to the worst.
        remarks: What the reader should know.
        protocol: Of the comparison and of what is compared.
    """

    a: str
    b: str
    runs: tuple[tuple[str, Source], ...]
    rows: tuple[Row, ...]
    changed: tuple[Changed, ...]
    remarks: tuple[str, ...]
    protocol: Mapping[str, Any]

    def as_json(self) -> dict[str, Any]:
        """One block of `comparison.json`."""
        return {
            "schema": SCHEMA,
            "a": self.a,
            "b": self.b,
            "runs": [
                {"name": run.name, "path": str(run.path), "step": run.step, "seed": run.seed, "arm": arm}
                for arm, run in self.runs
            ],
            "rows": [row.as_json() for row in self.rows],
            "changed": [{"id": c.id, "a": c.a, "b": c.b, "difference": c.difference} for c in self.changed],
            "remarks": list(self.remarks),
            "protocol": dict(self.protocol),
        }


def print_comparison(comparison: Comparison, console: Console | None = None) -> None:
    """Print a comparison: coloured on a terminal, plain text elsewhere; it takes 100 columns."""
    console = console or Console()
    if console.width < _WIDTH:
        console = Console(width=_WIDTH)
    protocol = comparison.protocol
    arms = {name: [run for arm, run in comparison.runs if arm == name] for name in (comparison.a, comparison.b)}
    for letter, (name, runs) in zip("AB", arms.items(), strict=True):
        steps = ", ".join(dict.fromkeys(f"step {run.step}" for run in runs if run.step is not None))
        seeds = f"{len(runs)} seeds, " if len(runs) > 1 else ""
        console.print(f"{letter}  [bold]{escape(name)}[/bold]  {seeds}{steps}", highlight=False)
    console.print(
        f"{protocol['images']:,} images, the same in both; B - A has a {protocol['level']:.0%} interval",
        highlight=False,
    )
    console.print()
    console.print(_table(comparison))
    hidden = sum(_nothing(row) for row in comparison.rows)
    if hidden:
        console.print(f"figures that are 0 in both, not shown: {hidden}", style="dim", highlight=False)
    _print_changed(comparison, console)
    verdicts = [row.found for row in comparison.rows if row.found.lo is not None and not _nothing(row)]
    told = sum(found.verdict not in (Verdict.CANNOT_TELL, Verdict.SAME) for found in verdicts)
    chance = (1 - protocol["level"]) * len(verdicts)
    console.print()
    console.print(
        f"{told} of {len(verdicts)} figures differ; by chance alone about {chance:.1f} would",
        highlight=False,
    )
    for remark in comparison.remarks:
        console.print(f"- {escape(remark)}", highlight=False)


def _table(comparison: Comparison) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1), header_style="bold")
    table.add_column("", no_wrap=True, max_width=29, overflow="ellipsis")
    for head in ("A", "B", "B - A", "95 % interval"):
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    table.add_column("more images", justify="right", no_wrap=True)
    for group in GROUPS:
        rows = [row for row in comparison.rows if row.figure.group == group and not _nothing(row)]
        if rows:
            table.add_row(f"[bold]{group}[/bold]")
        for row in rows:
            found = row.found
            verdict = f"[{_STYLES[found.verdict]}]{found.verdict}[/]"
            more = "" if row.more_images is None else _count(row.more_images)
            table.add_row(f"  {escape(row.figure.label)}", *_numbers(found), verdict, more)
    return table


def _print_changed(comparison: Comparison, console: Console) -> None:
    better = [c for c in comparison.changed if c.difference > 0][:_SHOWN]
    worse = [c for c in comparison.changed if c.difference < 0][-_SHOWN:][::-1]
    for head, rows in (("higher", better), ("lower", worse)):
        if not rows:
            continue
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column(f"F1 {head} most", no_wrap=True, max_width=40)
        for column in ("A", "B", "B - A"):
            table.add_column(column, justify="right", no_wrap=True)
        for row in rows:
            table.add_row(escape(row.id), f"{row.a:.3f}", f"{row.b:.3f}", f"{row.difference:+.3f}")
        console.print()
        console.print(table)


def _nothing(row: Row) -> bool:
    return row.found.a == 0 == row.found.b


def _numbers(found: Difference) -> tuple[str, str, str, str]:
    """A, B, B - A and the interval as text, all with the same decimals."""
    size = max((abs(value) for value in (found.a, found.b) if value is not None), default=0.0)
    form = ".1e" if 0 < size < 0.001 else ".4f" if size < 100 else ".1f"

    def text(value: float | None, sign: str = "") -> str:
        return "-" if value is None else f"{value:{sign}{form}}"

    interval = "-" if found.lo is None else f"{text(found.lo, '+')} {text(found.hi, '+')}"
    return text(found.a), text(found.b), text(found.difference, "+"), interval


def _count(number: int) -> str:
    return f"{number:,}" if number < 100_000 else f"{number / 1e6:.1f} M" if number < 1e9 else "> 1,000 M"
