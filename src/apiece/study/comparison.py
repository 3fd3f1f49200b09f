"""Arms to figures: draws of their images and seeds, differences with verdicts, and the form they are stored in.

Both `apiece compare` and `apiece ladder` go this way: runs as `Measured`, all figures of an arm in the same draws
(`Table`), the difference of two arms (`Row`), and all differences of a pair (`Comparison`, docs/guides/comparing.md).

Shapes: I images that count, B draws, S seeds of an arm.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from apiece.boxes import FloatArray
from apiece.dumps.folder import DUMPS
from apiece.evaluate.ap import ap_of_draws, coco_scores
from apiece.evaluate.forms import Detections, GroundTruth
from apiece.evaluate.rates import f1_of
from apiece.outcomes import Outcome
from apiece.progress import track
from apiece.stats import DRAWS
from apiece.stats.draws import RatioDraws, block_draws, draw_ratios, image_draws, seeds_rng
from apiece.stats.interval import LEVEL, Difference, Drawn, Estimate, compare_drawn, estimate
from apiece.stats.ratio import CROWDING, crowding_of_counts
from apiece.study.arms import Arm, RunBoxes, align, probes_in_common, require_comparable, require_two
from apiece.study.results import (
    AP,
    FIGURES,
    TRUE,
    Counts,
    Figure,
    Measured,
    Side,
    count_split,
    figure_of,
    lenient_draws,
)
from apiece.types import IntArray

SCHEMA = 1
CHANGED = 20  # how many of the images that changed most are kept, each way
ALL = "all"  # the scope of all images; others are rows of `CROWDING`


@dataclass(frozen=True, slots=True)
class Row:
    """One figure of two arms; `n`: images (telemetry: blocks of steps) that it rests on."""

    key: str
    found: Difference
    n: int
    images: int  # drawn from; 0 where more of them would not help

    @property
    def figure(self) -> Figure:
        return figure_of(self.key)

    @property
    def more_images(self) -> int | None:
        """How many more images would settle it if the difference stays; `None` if it is settled, or never would be."""
        if self.found.growth is None or not self.images:
            return None
        return max(math.ceil(self.images * (self.found.growth - 1)), 1)

    def as_json(self) -> dict[str, Any]:
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


class Changed(NamedTuple):
    """An image: its F1 in A and in B (means over the seeds)."""

    id: str
    a: float
    b: float
    difference: float


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """B minus A."""

    a: str
    b: str
    runs: tuple[tuple[str, Measured], ...]  # name of the arm, and run
    rows: tuple[Row, ...]
    remarks: tuple[str, ...]
    protocol: Mapping[str, Any]  # what the comparison and the figures depend on
    changed: tuple[Changed, ...] = ()  # images whose F1 changed most, from the best change to the worst

    def as_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "a": self.a,
            "b": self.b,
            "runs": [
                {"name": run.name, "path": str(run.path), "step": run.step, "seed": run.seed, "arm": arm}
                for arm, run in self.runs
            ],
            "rows": [row.as_json() for row in self.rows],
            "changed": [changed._asdict() for changed in self.changed],
            "remarks": list(self.remarks),
            "protocol": dict(self.protocol),
        }


def comparison_json(comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """The document of `comparison.json`: one comparison, or for more than two arms one for each pair."""
    blocks = [comparison.as_json() for comparison in comparisons]
    if len(blocks) == 1:
        return blocks[0]
    runs = list({run["path"] + str(run["step"]): run for block in blocks for run in block["runs"]}.values())
    return {"schema": SCHEMA, "runs": runs, "pairs": blocks}


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """All figures of all arms in the same draws of the images of one scope."""

    images: IntArray  # `[I]` numbers of the images that count
    seed: int  # of the draws
    drawn: Mapping[str, Mapping[str, Drawn]]  # figures by arm and key
    bearing: Mapping[str, Mapping[str, NDArray[np.bool_]]]  # by arm and key: `[I]` which images the figure rests on

    @classmethod
    def of(
        cls, arms: Mapping[str, Sequence[Measured]], draws: int, seed: int, *, scope: str = ALL, with_ap: bool = True
    ) -> Table:
        """Draw all figures of all runs; those that a run of an arm lacks are left out of the arm."""
        every = [run for group in arms.values() for run in group]
        rows = [_images_of(same, scope) for same in zip(*(run.counts for run in every), strict=True)]
        weights = [image_draws(len(found), draws, seed) for found in rows]
        drawn: dict[str, dict[str, Drawn]] = {}
        bearing: dict[str, dict[str, NDArray[np.bool_]]] = {}
        for arm, group in arms.items():
            runs: list[dict[str, RatioDraws]] = [{} for _ in group]
            for run, figures in zip(group, runs, strict=True):
                for counts, chosen, weight in zip(run.counts, rows, weights, strict=True):
                    if len(chosen):
                        figures |= _draw(counts, chosen, weight, with_ap)
            keys = [key for key in runs[0] if all(key in figures for figures in runs)]
            known = [run.seed for run in group if run.seed is not None]
            seeds = tuple(known) if len(known) == len(group) else None
            drawn[arm] = {key: _stacked([figures[key] for figures in runs], seeds) for key in keys}
            bearing[arm] = {key: np.any([figures[key].bearing for figures in runs], axis=0) for key in keys}
        return cls(rows[0], seed, drawn, bearing)

    def keys(self, *arms: str) -> list[str]:
        """Figures that all of these arms have."""
        return [key for key in self.drawn[arms[0]] if all(key in self.drawn[arm] for arm in arms)]

    def mean(self, arm: str, key: str) -> Estimate:
        return estimate(self.drawn[arm][key], int(self.bearing[arm][key].sum()), seeds_rng(self.seed, key))

    def difference(self, a: str, b: str, key: str) -> Row:
        units = int((self.bearing[a][key] | self.bearing[b][key]).sum())
        pair, better = (self.drawn[a][key], self.drawn[b][key]), figure_of(key).higher_is_better
        found = compare_drawn(*pair, units, seeds_rng(self.seed, key), higher_is_better=better)
        return Row(key, found, units, len(self.images))


def ordered(keys: Iterable[str]) -> list[str]:
    """Keys in the order of `FIGURES`, the complete truth's before the labels', then all others as they come."""
    rank = {key: number for number, key in enumerate(FIGURES)}
    return sorted(keys, key=lambda key: (rank.get(key.removeprefix(TRUE), len(rank)), not key.startswith(TRUE)))


def _images_of(same: Sequence[Counts], scope: str) -> IntArray:
    """Numbers of the images of a scope that have an object or, in any run, a prediction; others say nothing."""
    some = same[0].objects > 0
    for counts in same:
        if "count/per_image" in counts.ratios:
            some = some | (counts.ratios["count/per_image"].part > 0) | (counts.ratios["f1/recall"].whole > 0)
    if scope != ALL:
        some = some & (crowding_of_counts(same[0].objects) == CROWDING.index(scope))
    return np.flatnonzero(some)


def _draw(counts: Counts, rows: IntArray, weights: NDArray[np.uint16], with_ap: bool) -> dict[str, RatioDraws]:
    drawn = draw_ratios((ratio.of(rows) for ratio in counts.ratios.values()), weights)
    found = dict(zip(counts.ratios, drawn, strict=True))
    full = np.zeros((len(weights) + 1, counts.images), dtype=np.uint16)
    full[:-1, rows], full[-1, rows] = weights, 1  # the last draw is every image once: the figure itself
    if counts.side is not None:
        values = lenient_draws(counts.ratios["f1/f1"], counts.side, full.astype(np.float64))
        found["f1/lenient"] = RatioDraws(float(values[-1]), values[:-1], found["f1/f1"].bearing)
    if with_ap:
        for prefix, matches in counts.ap.items():
            for key, values in zip(AP, ap_of_draws(matches, full), strict=True):
                found[f"{prefix}{key}"] = RatioDraws(float(values[-1]), values[:-1], np.ones(len(rows), dtype=bool))
    return found


def _stacked(runs: Sequence[RatioDraws], seeds: tuple[int, ...] | None) -> Drawn:
    parts = [run.part for run in runs if run.part is not None]
    points, draws = np.array([run.point for run in runs]), np.stack([run.draws for run in runs])
    return Drawn(points, draws, np.stack(parts) if parts else None, seeds)


def compare(
    arms: Sequence[Arm],
    *,
    draws: int = DRAWS,
    seed: int = 0,
    remarks: Sequence[str] = (),
    may_differ: Collection[str] = (),
) -> list[Comparison]:
    """Compare every arm with the first; a `UserError` for fewer than two arms, or figures that do not mean the same.

    Args:
        draws: B.
        seed: Equal seeds give equal intervals.
        may_differ: Keys of the protocols that may differ (`score_policy`); all others must be equal.
    """
    require_two(arms)
    sources = [source for arm in arms for source in arm.sources]
    require_comparable(sources, may_differ)
    aligned, lost = align(sources)
    probes, left_out = probes_in_common(aligned)
    measured = iter([_measured(source, probes) for source in track(aligned, "compare")])
    runs = {arm.name: tuple(next(measured) for _ in arm.sources) for arm in arms}
    table = Table.of(runs, draws, seed)
    said = (*remarks, *dict.fromkeys(remark for source in sources for remark in source.remarks), *lost, *left_out)
    if not len(table.images):
        said = (*said, "no image has a label or a prediction: there is nothing to compare")
    first, *others = arms
    protocols = {arm.name: arm.sources[0].protocol for arm in arms}
    found = []
    for other in others:
        a, b = first.name, other.name
        rows = [table.difference(a, b, key) for key in ordered(table.keys(a, b))]
        rows = [row for row in rows if row.found.a is not None or row.found.b is not None]
        steady, unsteady = telemetry_rows(runs[a], runs[b], draws, seed)
        both = {name: runs[name] for name in (a, b)}
        found.append(
            Comparison(
                a=a,
                b=b,
                runs=tuple((name, run) for name, group in both.items() for run in group),
                rows=(*rows, *steady),
                changed=_changed(runs[a], runs[b], table.images, aligned[0].ids),
                remarks=(
                    *said,
                    *unsteady,
                    *_seed_remarks(both),
                    *_disagreement(rows, aligned[0].truth, runs[a], runs[b]),
                ),
                protocol={
                    "draws": draws,
                    "level": LEVEL,
                    "unit": "images" if sum(map(len, both.values())) == 2 else "images and seeds",
                    "images": len(table.images),
                    "images_without_label_or_prediction": len(aligned[0].ids) - len(table.images),
                    "seed": seed,
                    **_shared(protocols[a], protocols[b]),
                },
            )
        )
    return found


def _measured(source: RunBoxes, probes: Collection[str]) -> Measured:
    counts = count_split(
        source.truth, source.detections, source.complete, min_score=source.min_score, dropped=source.dropped
    )
    of_probes = {key: ratio for key, ratio in source.probes.items() if key in probes}
    return Measured(
        name=source.name,
        path=source.path,
        step=source.step,
        seed=source.seed,
        counts=(replace(counts, ratios={**counts.ratios, **of_probes}),),
        telemetry=source.telemetry,
        telemetry_window=source.telemetry_window,
    )


def _shared(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    """Settings common to both; both values of one that was allowed to differ."""
    found: dict[str, Any] = {}
    for key, value in a.items():
        other = b.get(key)
        differs = value != other and None not in (value, other)
        found[key] = [value, other] if differs else list(value) if isinstance(value, tuple) else value
    return found


def _changed(a: Sequence[Measured], b: Sequence[Measured], rows: IntArray, names: Sequence[str]) -> tuple[Changed, ...]:
    """The images whose F1 rose or fell most, from the best change to the worst; F1 of an empty image is 1."""

    def by_image(run: Measured) -> FloatArray:
        ratio = run.counts[0].ratios["f1/f1"]
        part, whole = ratio.part[rows], ratio.whole[rows]
        return np.divide(part, whole, out=np.ones(len(rows)), where=whole > 0)

    in_a, in_b = (np.mean([by_image(run) for run in group], axis=0) for group in (a, b))
    apart = in_b - in_a
    order = np.argsort(-apart, kind="stable")
    best = [i for i in order[:CHANGED].tolist() if apart[i] > 0]
    worst = [i for i in order[-CHANGED:].tolist() if apart[i] < 0]
    return tuple(Changed(names[rows[i]], float(in_a[i]), float(in_b[i]), float(apart[i])) for i in (*best, *worst))


def _seed_remarks(arms: Mapping[str, Sequence[Measured]]) -> list[str]:
    single = [name for name, group in arms.items() if len(group) == 1]
    verb = "is one run" if len(single) == 1 else "are one run each"
    note = f"{' and '.join(single)} {verb}: the intervals do not say what another seed would give"
    return [note] if single else []


# How steady the loss terms of two arms were: variances over a window of steps, compared step by step.
#
# A window of 100 steps, logged every 10, shares most of its steps with the next one. So steps are drawn in blocks as
# long as the window (circular block bootstrap, Politis and Romano 1992), the same blocks for both arms. Only the
# later half of the steps is compared: before that, the variance is that of a loss still falling.

LEAST_BLOCKS = 4  # fewer give no interval
DEFAULT_WINDOW = 100  # where the config of a run is gone: the default of `train.telemetry_window`
LEFT_OUT = "variances that not all runs have are left out"


def telemetry_rows(
    a: Sequence[Measured], b: Sequence[Measured], draws: int, seed: int
) -> tuple[list[Row], tuple[str, ...]]:
    """Every variance that all runs of both arms have, and remarks for the reader."""
    runs = (*a, *b)
    if not any(run.telemetry for run in runs) or len({_folder_of(run) for run in runs}) < 2:
        return [], ()
    keys = [set(run.telemetry) for run in runs]
    shared = sorted(set.intersection(*keys))
    remarks = []
    if rest := sorted(set.union(*keys) - set(shared)):
        names = ", ".join(key.removeprefix("window_var/") for key in rest)
        remarks.append(f"{LEFT_OUT}: {names}")
    found = []
    few = set()
    for key in shared:
        last = min((run.step or max(run.telemetry[key])) for run in runs)
        common = set.intersection(*(set(run.telemetry[key]) for run in runs))
        steps = sorted(step for step in common if last / 2 < step <= last)
        if not steps:
            continue
        rows = [np.array([run.telemetry[key][step] for step in steps]) for run in runs]
        window = max(run.telemetry_window or DEFAULT_WINDOW for run in runs)
        length = _block(steps, window)
        weights = block_draws(len(steps), length, draws, seed)
        points, values = np.array([float(row.mean()) for row in rows]), np.array([weights @ row for row in rows])
        arms = Drawn(points[: len(a)], values[: len(a)]), Drawn(points[len(a) :], values[len(a) :])
        blocks = len(steps) // length
        enough = blocks >= LEAST_BLOCKS
        difference = compare_drawn(
            *arms, blocks, seeds_rng(seed, key), higher_is_better=figure_of(key).higher_is_better, interval=enough
        )
        found.append(Row(key, difference, blocks, 0))
        if not enough:
            few.add(f"steps {steps[0]} to {steps[-1]} hold {blocks} windows of {window} steps")
    remarks += [f"variances have no interval: {text}, {LEAST_BLOCKS} are needed" for text in sorted(few)]
    return found, tuple(remarks)


def _folder_of(run: Measured) -> Path:
    """The folder of a run: two dumps of one run share their telemetry."""
    path = run.path.resolve()
    return path.parents[1] if path.parent.name == DUMPS else path


def _block(steps: list[int], window: int) -> int:
    """How many logged rows a window spans, at most all."""
    apart = float(np.median(np.diff(steps))) if len(steps) > 1 else float(window)
    return min(max(math.ceil(window / max(apart, 1.0)), 1), len(steps))


# Why F1 and AP disagree: which outcomes of predictions account for the change of each.
#
# For every outcome, B is scored once more with just those predictions as in A: what the figure would then be says what
# the change of that outcome is worth. Effects overlap, so they do not add up.


_WORTH_NAMING = 0.5  # share of the largest effect from which on a second outcome is named


class _Effect(NamedTuple):
    """What the change of one outcome is worth.

    `a`, `b`: how many there are (means over the runs); `f1`, `ap`: B's figure less what it would be with these as in A.
    """

    outcome: Outcome
    a: float
    b: float
    f1: float
    ap: float


def _disagreement(
    rows: Sequence[Row], truth: GroundTruth, a: Sequence[Measured], b: Sequence[Measured]
) -> tuple[str, ...]:
    """Which outcomes account for it where F1 and AP move in opposite directions; nothing where they do not."""
    found = {row.key: row.found for row in rows}
    f1, ap = found.get("f1/f1"), found.get("coco/AP")
    if f1 is None or ap is None or f1.b is None or ap.b is None:
        return ()
    up, down = f1.difference, ap.difference
    if up is None or down is None or not up * down < 0:
        return ()
    sides = [[side for run in group if (side := run.counts[0].side) is not None] for group in (a, b)]
    worth = _effects(truth, *sides)
    iou = [float(np.mean([_mean_iou(side) for side in group])) for group in sides]
    head = f"F1 {'rises' if up > 0 else 'falls'} by {abs(up):.4f} while AP {'rises' if down > 0 else 'falls'} by "
    in_f1 = _sentence("F1", f1.b, up, [(e, e.f1) for e in worth], iou)
    in_ap = _sentence("AP", ap.b, down, [(e, e.ap) for e in worth], iou)
    return (f"{head}{abs(down):.4f}. {in_f1} {in_ap}",)


def _effects(truth: GroundTruth, a: Sequence[Side], b: Sequence[Side]) -> list[_Effect]:
    """The change of every outcome and its effect, for runs paired in order (the shorter arm ends it)."""
    pairs = list(zip(a, b, strict=False))
    found = []
    for outcome in (o for o in Outcome if o is not Outcome.IGNORED):
        counts = [tuple(len(side.judged.outcomes.predictions(outcome)) for side in pair) for pair in pairs]
        if any(map(any, counts)):
            f1 = [_f1(y, 0, outcome) - _f1(y, m - n, outcome) for (_, y), (m, n) in zip(pairs, counts, strict=True)]
            ap = [_ap(truth, y.detections) - _ap(truth, _swapped(x, y, outcome)) for x, y in pairs]
            found.append(_Effect(outcome, *(float(v) for v in (*np.mean(counts, axis=0), np.mean(f1), np.mean(ap)))))
    return found


def _sentence(name: str, value: float, change: float, worth: list[tuple[_Effect, float]], iou: list[float]) -> str:
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
    f1 = f1_of(tp + change, fp, fn - change) if outcome is Outcome.TP else f1_of(tp, fp + change, fn)
    return f1 or 0.0


def _swapped(a: Side, b: Side, outcome: Outcome) -> Detections:
    """The predictions of B, with those of an outcome taken from A."""
    rows_a = a.judged.outcomes.predictions(outcome)
    rows_b = np.flatnonzero(b.judged.outcomes.of_prediction != outcome)
    columns = ("image", "category", "bbox_xywh", "score")
    return Detections(
        **{c: np.concatenate([getattr(b.detections, c)[rows_b], getattr(a.detections, c)[rows_a]]) for c in columns}
    )


def _ap(truth: GroundTruth, detections: Detections) -> float:
    return coco_scores(truth, detections).figures["AP"]


def _mean_iou(side: Side) -> float:
    iou = side.judged.match.iou
    return float(iou.mean()) if len(iou) else 0.0
