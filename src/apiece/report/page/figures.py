"""Curves of a run over its steps: the figures logged in training, and those counted from the dumps of the panel."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from apiece.records.record import ProbePass, Record
from apiece.report.palette import FATES, OUTCOMES

MAX_POINTS = 600
"""Of a curve on the page; of longer ones the lowest and the highest value of each stretch are kept."""
Points = dict[int, float | None]


@dataclass(slots=True)
class PanelCounter:
    """Sums over the panel at one step, and the rates that follow."""

    counts: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    fates: Counter[str] = field(default_factory=Counter)
    sums: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(lambda: [0.0, 0.0]))

    def add(self, record: Record) -> None:
        """Count one record."""
        self.counts.update({key: record["counts"][key] for key in ("gt", "pred", "matched", "ignored")})
        self.outcomes.update(row["outcome"] or "" for row in record["predictions"])
        self.fates.update(row["fate"] or "" for row in record["objects"] if not row["iscrowd"])
        self._mean("shape/near_duplicate", (row["near_duplicate"] for row in record["predictions"]))
        self._mean("shape/strip", (row["strip"] for row in record["predictions"]))
        self._mean("answer/unclosed", [not record["answer"]["closed"]])
        probes = record["probes"]
        if probes is None:
            return
        for name in ("a1", "last"):
            self._pass(name, probes["slots"][name])
        self._mean("probes/drift", probes["slots"]["drift"])
        # As `apiece compare` has them: of the objects that have a neighbour of their class, with whom to be confused.
        labels, rows = record["objects"], probes["objects"]
        names = Counter(row["desc"] for row in labels if not row["iscrowd"])
        many = {i for i, row in enumerate(labels) if names[row["desc"]] > 1}
        self._mean("probes/flip", (v for i, v in zip(rows["object"], rows["flip"], strict=False) if i in many))
        self._mean("probes/chimera", (v for i, v in zip(rows["object"], rows["chimera"], strict=False) if i in many))
        self._mean("probes/follow/near_neighbour", (row["near_neighbour"] for row in probes["follow"]))
        self._mean("probes/follow/near_own", (row["near_own"] for row in probes["follow"]))
        self._mean("probes/follow/elsewhere", (row["elsewhere"] for row in probes["follow"]))

    def figures(self) -> dict[str, float]:
        """Every rate that has something to divide by."""
        gt, predicted, matched = (self.counts[key] for key in ("gt", "pred", "matched"))
        judged = predicted - self.counts["ignored"]
        ratios = {
            "panel/f1": (2 * matched, judged + gt),
            "panel/precision": (matched, judged),
            "panel/recall": (matched, gt),
            "panel/boxes_per_label": (predicted, gt),
            **{f"rates/{name}": (self.outcomes[name], predicted) for name in OUTCOMES},
            **{f"misses/{name}": (self.fates[name], gt) for name in FATES if name != "matched"},
            **{key: (total, count) for key, (total, count) in self.sums.items()},
        }
        return {key: part / whole for key, (part, whole) in ratios.items() if whole}

    def _pass(self, name: str, figures: ProbePass) -> None:
        for key in ("own_mass", "cross_instance_mass", "exp_argmax_gap", "entropy", "modes"):
            self._mean(f"probes/{name}/{key}", figures[key])

    def _mean(self, key: str, values: Iterable[float | None]) -> None:
        known = [float(value) for value in values if value is not None]
        self.sums[key][0] += sum(known)
        self.sums[key][1] += len(known)


def logged_figures(rows: Sequence[Mapping[str, Any]]) -> dict[str, Points]:
    """Every figure of `metrics.jsonl` by name; a value that was not finite is a gap (`None`)."""
    found: dict[str, Points] = {}
    for row in rows:
        for key, value in row.items():
            if key != "step" and (value is None or isinstance(value, int | float)):
                finite = None if value is None or not math.isfinite(value) else float(value)
                found.setdefault(key, {})[row["step"]] = finite
    return found


def curve(points: Mapping[int, float | None]) -> list[list[float | None]]:
    """Steps and values of a figure, ascending, thinned to `MAX_POINTS`."""
    steps = sorted(points)
    if len(steps) > MAX_POINTS:
        steps = _thinned(steps, points)
    values = (points[step] for step in steps)
    return [[*steps], [None if value is None else float(f"{value:.5g}") for value in values]]


def _thinned(steps: list[int], points: Mapping[int, float | None]) -> list[int]:
    """The steps of the lowest and the highest value of each stretch, and both ends: spikes stay where they were."""
    width = -(-len(steps) * 2 // MAX_POINTS)
    kept = {steps[0], steps[-1]}
    for at in range(0, len(steps), width):
        stretch = [step for step in steps[at : at + width] if points[step] is not None]
        if stretch:
            kept |= {min(stretch, key=lambda s: points[s] or 0.0), max(stretch, key=lambda s: points[s] or 0.0)}
        else:
            kept.add(steps[at])
    return sorted(kept)
