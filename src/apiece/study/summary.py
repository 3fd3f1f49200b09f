"""Results of a ladder to figures: each arm's mean over its seeds and its difference to others, both with intervals.

Made from result files alone, in the way of `apiece compare` (study/comparison.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from apiece.errors import UserError
from apiece.progress import track
from apiece.stats import DRAWS
from apiece.stats.interval import LEVEL
from apiece.stats.ratio import CROWDING
from apiece.study.comparison import ALL, LEFT_OUT, Comparison, Row, Table, ordered, telemetry_rows
from apiece.study.jobs import differences, filled
from apiece.study.results import Result, same_images

SCOPES = (ALL, *CROWDING[1:])
AP_SCOPES = (ALL, CROWDING[-1])  # where AP is drawn: it takes longer than all else
SPEED = "speed/samples_per_s"


@dataclass(frozen=True, slots=True)
class Mean:
    """A figure of an arm: mean over its seeds (`None` where one has none), its interval, and the value of each seed."""

    value: float | None
    lo: float | None
    hi: float | None
    by_seed: tuple[float, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Summary:
    """The figures of a ladder."""

    ladder: str
    results: Mapping[str, tuple[Result, ...]]  # by arm, in the order of the arms, each in the order of seeds
    references: tuple[str, ...]  # arms that the others are compared with
    images: Mapping[str, int]  # how many images of the test set count, by scope
    means: Mapping[tuple[str, str, str], Mean]  # by arm, scope and key
    # by reference, arm, scope and key: the arm minus the reference
    differences: Mapping[tuple[str, str, str, str], Row]
    draws: int  # B
    remarks: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Nested by arm, scope and key."""
        arms: dict[str, Any] = {
            arm: {"seeds": [r.seed for r in rows], "steps": rows[0].steps, "flops": dict(rows[0].flops), "figures": {}}
            for arm, rows in self.results.items()
        }
        for (arm, scope, key), mean in self.means.items():
            row: dict[str, Any] = {"value": mean.value, "lo": mean.lo, "hi": mean.hi}
            row["by_seed"] = [v if math.isfinite(v) else None for v in mean.by_seed]
            arms[arm]["figures"].setdefault(scope, {})[key] = row
        pairs: dict[str, Any] = {}
        for (reference, arm, scope, key), found in self.differences.items():
            whole = found.as_json()
            kept = {name: whole[name] for name in ("difference", "lo", "hi", "verdict")}
            pairs.setdefault(reference, {}).setdefault(arm, {}).setdefault(scope, {})[key] = kept
        return {
            "ladder": self.ladder,
            "level": LEVEL,
            "draws": self.draws,
            "images": dict(self.images),
            "arms": arms,
            "differences": pairs,
            "remarks": list(self.remarks),
        }


def comparisons(summary: Summary, reference: str) -> list[Comparison]:
    """Every arm compared with the reference, in the form of `apiece compare`."""
    found = []
    for arm, group in summary.results.items():
        if arm == reference:
            continue
        both = {reference: summary.results[reference], arm: group}
        keys = ordered(
            key for ref, name, scope, key in summary.differences if (ref, name, scope) == (reference, arm, ALL)
        )
        found.append(
            Comparison(
                a=reference,
                b=arm,
                runs=tuple((name, result.measured) for name, results in both.items() for result in results),
                rows=tuple(summary.differences[reference, arm, ALL, key] for key in keys),
                remarks=summary.remarks,
                protocol={"draws": summary.draws, "unit": "images and seeds", "images": summary.images[ALL]},
            )
        )
    return found


def summarise(
    results: Sequence[Result],
    references: Sequence[str],
    *,
    arms: Sequence[str] = (),
    draws: int = DRAWS,
    seed: int = 0,
    scopes: Sequence[str] = SCOPES,
) -> Summary:
    """Every figure of every arm of one ladder, and every difference to the `references`, with B `draws`.

    `arms` gives their order; others follow by name. A `UserError` if results were made on different data or settings,
    or a reference has none.
    """
    names = [*arms, *sorted({result.arm for result in results} - set(arms))]
    by_arm = {name: tuple(sorted((r for r in results if r.arm == name), key=lambda r: r.seed)) for name in names}
    grouped = {name: rows for name, rows in by_arm.items() if rows}
    for reference in references:
        if reference not in grouped:
            raise UserError(
                f"there is no result of the reference '{reference}'",
                fix=f"run it (apiece ladder LADDER.yaml --arm {reference}), or name another; "
                f"there are {', '.join(grouped)}",
            )
    _require_comparable(grouped)
    remarks = []
    if single := [arm for arm, runs in grouped.items() if len(runs) == 1]:
        remarks.append(f"one seed alone, so that intervals do not say what another one would give: {', '.join(single)}")
    arms_measured = {arm: [result.measured for result in group] for arm, group in grouped.items()}
    means: dict[tuple[str, str, str], Mean] = {}
    rows: dict[tuple[str, str, str, str], Row] = {}
    images = {}
    for scope in track(scopes, "draws"):
        table = Table.of(arms_measured, draws, seed, scope=scope, with_ap=scope in AP_SCOPES)
        images[scope] = len(table.images)
        for arm in grouped:
            for key in table.keys(arm):
                found, own = table.mean(arm, key), table.drawn[arm][key]
                means[arm, scope, key] = Mean(found.value, found.lo, found.hi, tuple(own.point.tolist()))
            for reference in references:
                if arm != reference:
                    for key in table.keys(arm, reference):
                        rows[reference, arm, scope, key] = table.difference(reference, arm, key)
    means |= _plain_means(grouped)
    for reference in references:
        for arm in grouped:
            if arm != reference:
                steady, said = telemetry_rows(arms_measured[reference], arms_measured[arm], draws, seed)
                rows |= {(reference, arm, ALL, row.key): row for row in steady}
                remarks += [one for one in said if not one.startswith(LEFT_OUT)]
    return Summary(
        ladder=results[0].ladder,
        results=grouped,
        references=tuple(references),
        images=images,
        means=means,
        differences=rows,
        draws=draws,
        remarks=tuple(dict.fromkeys(remarks)),
    )


def _require_comparable(grouped: Mapping[str, Sequence[Result]]) -> None:
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


def _plain_means(grouped: Mapping[str, Sequence[Result]]) -> dict[tuple[str, str, str], Mean]:
    """Figures without an interval: speed, and the mean variances of the later half of the steps."""
    means = {}
    for arm, group in grouped.items():
        rows = {SPEED: [result.speed for result in group]}
        for key in sorted(set.intersection(*(set(result.telemetry) for result in group))):
            rows[key] = [
                float(np.mean([v for step, v in result.telemetry[key].items() if step > result.steps / 2] or [np.nan]))
                for result in group
            ]
        for key, values in rows.items():
            known = bool(np.isfinite(values).all())
            means[arm, ALL, key] = Mean(float(np.mean(values)) if known else None, None, None, tuple(values))
    return means
