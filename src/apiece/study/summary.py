"""Result files to figures: each arm's mean over its seeds and its difference to others, both with intervals.

Made from result files alone, by the draws and corrections of `apiece compare`: images are drawn with replacement, the
same for all arms, and so are the seeds of an arm.

Shapes: I images, B draws, S seeds of an arm.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from apiece.boxes import FloatArray
from apiece.errors import UserError
from apiece.evaluate.ap import ap_of_draws
from apiece.progress import track
from apiece.stats.draws import DRAWS, image_draws, seeds_rng
from apiece.stats.interval import LEVEL, Difference, Drawn, compare_drawn, estimate
from apiece.stats.ratio import CROWDING, crowding_of_counts
from apiece.study.jobs import differences, filled
from apiece.study.results import AP, TRUE, Result, Split, read_result, same_images
from apiece.study.verdicts import LEAST_BLOCKS, Figure, figure_of, telemetry_draws
from apiece.types import IntArray

ALL = "all"
SCOPES = (ALL, *CROWDING[1:])
"""All images, and those with so many objects."""
AP_SCOPES = (ALL, CROWDING[-1])
"""Where AP is drawn: it takes longer than all else."""
SPEED = "speed/samples_per_s"
_RESULTS = "name a folder that `apiece ladder LADDER.yaml` has put results into, docs/study/NAME by default"


@dataclass(frozen=True, slots=True)
class Mean:
    """A figure of an arm.

    Attributes:
        value: Mean over its seeds; `None` where one has none.
        lo: Lower end of the interval; `None` where there is none.
        hi: Upper end.
        by_seed: Of each seed, in order.
    """

    value: float | None
    lo: float | None
    hi: float | None
    by_seed: tuple[float, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Summary:
    """What a ladder's results say.

    Attributes:
        ladder: Its name.
        results: By arm, in the order of the arms, each in the order of seeds.
        references: Arms that the others are held against.
        images: Of the test set, how many count, by scope.
        means: By arm, scope and key.
        differences: By reference, arm, scope and key: the arm minus the reference.
        draws: B.
        remarks: What the reader should know.
    """

    ladder: str
    results: Mapping[str, tuple[Result, ...]]
    references: tuple[str, ...]
    images: Mapping[str, int]
    means: Mapping[tuple[str, str, str], Mean]
    differences: Mapping[tuple[str, str, str, str], Difference]
    draws: int
    remarks: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """All of it, nested by arm, scope and key."""
        arms: dict[str, Any] = {
            arm: {"seeds": [r.seed for r in rows], "steps": rows[0].steps, "flops": dict(rows[0].flops), "figures": {}}
            for arm, rows in self.results.items()
        }
        for (arm, scope, key), mean in self.means.items():
            row = {"value": mean.value, "lo": mean.lo, "hi": mean.hi, "by_seed": [_or_none(v) for v in mean.by_seed]}
            arms[arm]["figures"].setdefault(scope, {})[key] = row
        pairs: dict[str, Any] = {}
        for (reference, arm, scope, key), found in self.differences.items():
            told = {"difference": found.difference, "lo": found.lo, "hi": found.hi, "verdict": str(found.verdict)}
            pairs.setdefault(reference, {}).setdefault(arm, {}).setdefault(scope, {})[key] = told
        return {
            "ladder": self.ladder,
            "level": LEVEL,
            "draws": self.draws,
            "images": dict(self.images),
            "arms": arms,
            "differences": pairs,
            "remarks": list(self.remarks),
        }


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def study_figure(key: str) -> Figure:
    """What the figure of a key is; those under `true/` are judged on complete truth."""
    if key.startswith(TRUE):
        figure = figure_of(key.removeprefix(TRUE))
        return replace(figure, label=f"{figure.label}, complete truth")
    return figure_of(key)


def read_results(folder: Path) -> list[Result]:
    """All result files of a folder.

    Raises:
        UserError: There are none, or one cannot be read.
    """
    if not folder.is_dir():
        raise UserError("expected a folder of results, found none", where=folder, fix=_RESULTS, exit_code=2)
    paths = sorted(folder.glob("*_seed*.json"))
    if not paths:
        raise UserError("expected result files (ARM_seedS.json), found none", where=folder, fix=_RESULTS, exit_code=2)
    return [read_result(path) for path in paths]


def summarise(
    results: Sequence[Result],
    references: Sequence[str],
    *,
    arms: Sequence[str] = (),
    draws: int = DRAWS,
    seed: int = 0,
    scopes: Sequence[str] = SCOPES,
) -> Summary:
    """Every figure of every arm, and every difference to the references.

    Args:
        results: Of one ladder.
        references: Arms that all others are held against.
        arms: Their order; others follow by name.
        draws: B.
        seed: Of the draws; equal seeds give equal intervals.
        scopes: Some of `SCOPES`.

    Raises:
        UserError: The results were made on different data or settings, or a reference has none.
    """
    grouped = _grouped(results, arms)
    for reference in references:
        if reference not in grouped:
            raise UserError(
                f"there is no result of the reference '{reference}'",
                fix=f"run it (apiece ladder LADDER.yaml --arm {reference}), or name another; "
                f"there are {', '.join(grouped)}",
            )
    _require_comparable(grouped)
    remarks = _few_seeds(grouped)
    tables = {scope: _Table.of(grouped, scope, draws, seed) for scope in track(scopes, "draws")}
    means, pairs = {}, {}
    for scope, table in tables.items():
        for arm in grouped:
            for key in table.keys(arm):
                means[arm, scope, key] = table.mean(arm, key, seed)
            for reference in references:
                if arm != reference:
                    for key in table.keys(arm, reference):
                        pairs[reference, arm, scope, key] = table.difference(reference, arm, key, seed)
    means |= _plain_means(grouped)
    for reference in references:
        found, told = _telemetry(grouped, reference, draws, seed)
        pairs |= found
        remarks += told
    return Summary(
        ladder=results[0].ladder,
        results=grouped,
        references=tuple(references),
        images={scope: table.images for scope, table in tables.items()},
        means=means,
        differences=pairs,
        draws=draws,
        remarks=tuple(dict.fromkeys(remarks)),
    )


def _grouped(results: Sequence[Result], arms: Sequence[str]) -> dict[str, tuple[Result, ...]]:
    names = [*arms, *sorted({result.arm for result in results} - set(arms))]
    found = {name: tuple(sorted((r for r in results if r.arm == name), key=lambda r: r.seed)) for name in names}
    return {name: rows for name, rows in found.items() if rows}


def _require_comparable(grouped: Mapping[str, Sequence[Result]]) -> None:
    """Refuse results whose figures do not mean the same."""
    rows = [result for group in grouped.values() for result in group]
    first = rows[0]
    for other in rows[1:]:
        lines = differences(first.protocol, other.protocol)
        for key in ("start", "data", "probes"):
            lines += differences({key: first.made_from.get(key)}, {key: other.made_from.get(key)})
        if not (same_images([first.test, other.test]) and same_images([first.panel, other.panel])):
            lines.append("the images")
        if lines:
            raise UserError(
                f"{first.name} and {other.name} cannot be compared, these differ: {'; '.join(lines)}",
                fix="do those again that are of an earlier state: apiece ladder LADDER.yaml --redo",
            )
    for arm, group in grouped.items():
        settings = [filled(result.made_from)["settings"] for result in group]
        if any(one != settings[0] for one in settings):
            raise UserError(f"the seeds of {arm} differ in more than their seed", fix="do them again with --redo")


def _few_seeds(grouped: Mapping[str, Sequence[Result]]) -> list[str]:
    single = [arm for arm, rows in grouped.items() if len(rows) == 1]
    if not single:
        return []
    return [f"one seed alone, so that intervals do not say what another one would give: {', '.join(single)}"]


@dataclass(frozen=True, slots=True, eq=False)
class _Table:
    """All figures of all results in the draws of one scope.

    Attributes:
        images: How many images of the test set count.
        points: By arm and key: `[S]`.
        drawn: By arm and key: `[S, B]`.
        bearing: By arm and key: `[I]` which images the figure rests on.
        parts: By arm and key, of ratios: `[S, I]` what each image adds to the numerator.
        seeds: By arm: `[S]`.
    """

    images: int
    points: Mapping[str, Mapping[str, FloatArray]]
    drawn: Mapping[str, Mapping[str, FloatArray]]
    bearing: Mapping[str, Mapping[str, NDArray[np.bool_]]]
    parts: Mapping[str, Mapping[str, FloatArray]]
    seeds: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(cls, grouped: Mapping[str, Sequence[Result]], scope: str, draws: int, seed: int) -> _Table:
        every = [result for group in grouped.values() for result in group]
        rows = {name: _scope_rows([getattr(r, name) for r in every], scope) for name in ("test", "panel")}
        weights = {name: image_draws(len(found), draws, seed) for name, found in rows.items() if len(found)}
        points: dict[str, dict[str, FloatArray]] = {}
        drawn: dict[str, dict[str, FloatArray]] = {}
        bearing: dict[str, dict[str, NDArray[np.bool_]]] = {}
        counted: dict[str, dict[str, FloatArray]] = {}
        for arm, group in grouped.items():
            parts = [
                _drawn_split(getattr(result, name), rows[name], weights[name], scope in AP_SCOPES)
                for result in group
                for name in weights
            ]
            merged = [
                {key: row for part in parts[i : i + len(weights)] for key, row in part.items()}
                for i in range(0, len(parts), max(len(weights), 1))
            ]
            keys = [key for key in merged[0] if all(key in one for one in merged)] if merged else []
            points[arm] = {key: np.array([one[key].point for one in merged]) for key in keys}
            drawn[arm] = {key: np.stack([one[key].draws for one in merged]) for key in keys}
            bearing[arm] = {key: np.any([one[key].bearing for one in merged], axis=0) for key in keys}
            counted[arm] = {key: np.stack(own) for key in keys if (own := _parts([one[key] for one in merged]))}
        seeds = {arm: tuple(result.seed for result in group) for arm, group in grouped.items()}
        return cls(len(rows["test"]), points, drawn, bearing, counted, seeds)

    def keys(self, *arms: str) -> Iterable[str]:
        """Figures that all of these arms have."""
        return [key for key in self.points[arms[0]] if all(key in self.points[arm] for arm in arms)]

    def of_arm(self, arm: str, key: str) -> Drawn:
        """A figure of all seeds of an arm."""
        return Drawn(self.points[arm][key], self.drawn[arm][key], self.parts[arm].get(key), self.seeds[arm])

    def mean(self, arm: str, key: str, seed: int) -> Mean:
        """Of an arm, with its interval: its difference to nothing."""
        own = self.of_arm(arm, key)
        found = estimate(own, int(self.bearing[arm][key].sum()), seeds_rng(seed, key))
        return Mean(found.value, found.lo, found.hi, tuple(own.point.tolist()))

    def difference(self, a: str, b: str, key: str, seed: int) -> Difference:
        """B minus A, as `apiece compare` gives it."""
        units = int((self.bearing[a][key] | self.bearing[b][key]).sum())
        better = study_figure(key).higher_is_better
        return compare_drawn(
            self.of_arm(a, key), self.of_arm(b, key), units, seeds_rng(seed, key), higher_is_better=better
        )


def _scope_rows(splits: Sequence[Split], scope: str) -> IntArray:
    """Numbers of the images of a scope that have an object or, in any result, a prediction."""
    objects = splits[0].objects
    some = objects > 0
    for split in splits:
        if "count/per_image" in split.ratios:
            some = some | (split.ratios["count/per_image"].part > 0)
    if scope != ALL:
        some = some & (crowding_of_counts(objects) == CROWDING.index(scope))
    return np.flatnonzero(some)


class _OneDrawn(NamedTuple):
    """A figure of one result: its value, `[B]` drawn, `[I]` which images it rests on, `[I]` their numerators."""

    point: float
    draws: FloatArray
    bearing: NDArray[np.bool_]
    part: FloatArray | None = None


def _parts(drawn: Iterable[_OneDrawn]) -> list[FloatArray]:
    return [part for one in drawn if (part := one.part) is not None]


def _drawn_split(split: Split, rows: IntArray, weights: NDArray[np.uint16], with_ap: bool) -> dict[str, _OneDrawn]:
    """Every figure of one result, by key."""
    keys = list(split.ratios)
    floats = weights.astype(np.float64)
    tops, bottoms = (
        np.stack([getattr(split.ratios[key], name)[rows] for key in keys], axis=1) for name in ("part", "whole")
    )
    whole = floats @ bottoms
    drawn = np.divide(floats @ tops, whole, out=np.full(whole.shape, np.nan), where=whole > 0)
    total = bottoms.sum(0)
    point = np.divide(tops.sum(0), total, out=np.full(total.shape, np.nan), where=total > 0)
    found = {key: _OneDrawn(float(point[i]), drawn[:, i], bottoms[:, i] > 0, tops[:, i]) for i, key in enumerate(keys)}
    if with_ap and split.ap:
        full = np.zeros((len(weights) + 1, split.images), dtype=np.uint16)
        full[:-1, rows], full[-1, rows] = weights, 1
        for prefix, matches in split.ap.items():
            for key, values in zip(AP, ap_of_draws(matches, full), strict=True):
                found[f"{prefix}{key}"] = _OneDrawn(float(values[-1]), values[:-1], np.ones(len(rows), dtype=bool))
    return found


def _plain_means(grouped: Mapping[str, Sequence[Result]]) -> dict[tuple[str, str, str], Mean]:
    """Figures without an interval: speed, and the mean variances of the later half of the steps."""
    means = {}
    for arm, group in grouped.items():
        rows = {SPEED: [result.speed for result in group]}
        for key in set.intersection(*(set(result.telemetry) for result in group)):
            rows[key] = [
                float(np.mean([v for step, v in result.telemetry[key].items() if step > result.steps / 2] or [np.nan]))
                for result in group
            ]
        for key, values in rows.items():
            known = bool(np.isfinite(values).all())
            means[arm, ALL, key] = Mean(float(np.mean(values)) if known else None, None, None, tuple(values))
    return means


def _telemetry(
    grouped: Mapping[str, Sequence[Result]], reference: str, draws: int, seed: int
) -> tuple[dict[tuple[str, str, str, str], Difference], list[str]]:
    """Differences of variances, step by step."""
    found, remarks = {}, []
    for arm, group in grouped.items():
        if arm == reference:
            continue
        steady, told = telemetry_draws(grouped[reference], group, draws, seed)
        remarks += [one for one in told if not one.startswith("variances that not all runs have")]
        for key, variance in steady.items():
            found[reference, arm, ALL, key] = compare_drawn(
                variance.a,
                variance.b,
                variance.blocks,
                seeds_rng(seed, key),
                higher_is_better=False,
                interval=variance.blocks >= LEAST_BLOCKS,
            )
    return found, remarks
