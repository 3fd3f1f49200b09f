"""How steady the loss terms of two arms were: variances over a window of steps, compared step by step.

A window of 100 steps, logged every 10, shares most of its steps with the next one. So steps are drawn in blocks as long
as the window (circular block bootstrap, Politis and Romano 1992), the same blocks for both arms. Only the later half of
the steps is compared: before that, the variance is that of a loss still falling.

Shapes: S seeds of an arm, R rows (logged steps), B draws.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from apiece.boxes import FloatArray
from apiece.compare.interval import Drawn
from apiece.records.folder import DUMPS

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
        weights = _weights(len(steps), length, draws, seed)
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


def _weights(rows: int, length: int, draws: int, seed: int) -> FloatArray:
    """`[B, R]` shares of the rows in each draw: blocks of `length` rows from anywhere, the end joined to the start."""
    rng = np.random.default_rng([seed, 2])
    blocks = math.ceil(rows / length)
    start = rng.integers(rows, size=(draws, blocks))
    taken = (start[:, :, None] + np.arange(length)) % rows
    counts = np.zeros((draws, rows))
    np.add.at(counts, (np.arange(draws)[:, None, None], taken), 1.0)
    return counts / (blocks * length)
