"""A result file: one arm and seed, with every figure, and per-image counts from which intervals can be made again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apiece.compare.ap import ap_of_draws
from apiece.errors import UserError
from apiece.evaluate.f1 import CROWDING, crowding_of_counts
from apiece.experiment.split import AP, Split
from apiece.files import write_json

SCHEMA = 1
_DIGITS = 6


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """What became of one arm and seed.

    Attributes:
        ladder: Name of the ladder.
        arms: All arms of the ladder, in order.
        references: Arms that the others are held against.
        arm: Name of the arm.
        seed: Of the run.
        made_from: All that decided it.
        protocol: What its figures depend on beside the model: must be equal in all that is compared.
        match: `steps` or `compute`.
        steps: Of training.
        batch_size: Samples in a step.
        flops: `step`, `run` and `of_reference`.
        telemetry: Variances of the geometry terms by key: value by step.
        telemetry_window: Steps that each of them is taken over.
        speed: Samples a second in training.
        metrics: Flat figures of `metrics.json`, and under `true/` those on complete truth.
        seconds: `evaluate` and `probe`.
        machine: Where it was made.
        test: The test set.
        panel: The panel with its probes.
        diagnosis: What explains the long boxes on it: `verdict`, `long_boxes` and `explanations` of docs/diagnosing.md.
    """

    ladder: str
    arms: tuple[str, ...]
    references: tuple[str, ...]
    arm: str
    seed: int
    made_from: Mapping[str, Any]
    protocol: Mapping[str, Any]
    match: str
    steps: int
    batch_size: int
    flops: Mapping[str, float]
    telemetry: Mapping[str, Mapping[int, float]]
    telemetry_window: int
    speed: float
    metrics: Mapping[str, float]
    seconds: Mapping[str, float]
    machine: Mapping[str, Any]
    test: Split
    panel: Split
    diagnosis: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Of its file."""
        return f"{self.arm}_seed{self.seed}"

    @property
    def path(self) -> Path:
        """What tells its run from others, where they are compared step by step."""
        return Path(self.name)

    @property
    def step(self) -> int:
        """The last step of its run."""
        return self.steps


def values_of(split: Split, chosen: NDArray[np.bool_] | None = None) -> dict[str, float]:
    """Every figure of some images, all by default; those with nothing to divide are left out."""
    rows = np.ones(split.images, dtype=bool) if chosen is None else chosen
    found = {}
    for key, ratio in split.ratios.items():
        if whole := float(ratio.whole[rows].sum()):
            found[key] = float(ratio.part[rows].sum()) / whole
    for prefix, matches in split.ap.items():
        if matches.labels[rows].any():
            pair = ap_of_draws(matches, rows[None].astype(np.uint16))
            found |= {f"{prefix}{key}": float(value[0]) for key, value in zip(AP, pair, strict=True)}
    return found


def by_crowding(split: Split) -> dict[str, dict[str, float]]:
    """The same for the images of each row of `CROWDING`, by how many objects they have."""
    bucket = crowding_of_counts(split.objects)
    return {name: values_of(split, bucket == i) for i, name in enumerate(CROWDING) if (bucket == i).any()}


def write_result(path: Path, result: Result) -> None:
    """Write a result file; equal results give equal bytes."""
    test, panel = values_of(result.test), values_of(result.panel)
    crowded, probed = by_crowding(result.test), by_crowding(result.panel)
    write_json(
        path,
        {
            "schema": SCHEMA,
            "ladder": result.ladder,
            "arms": list(result.arms),
            "references": list(result.references),
            "arm": result.arm,
            "seed": result.seed,
            "match": result.match,
            "steps": result.steps,
            "batch_size": result.batch_size,
            "flops": dict(result.flops),
            "figures": _rounded({**result.metrics, **test, **panel, "speed/samples_per_s": result.speed}),
            "by_crowding": {name: _rounded({**crowded[name], **probed.get(name, {})}) for name in crowded},
            "telemetry_window": result.telemetry_window,
            "telemetry": {k: {str(s): _round(v) for s, v in row.items()} for k, row in result.telemetry.items()},
            "diagnosis": dict(result.diagnosis),
            "seconds": _rounded(result.seconds),
            "machine": dict(result.machine),
            "protocol": dict(result.protocol),
            "made_from": dict(result.made_from),
            "test": result.test.as_json(),
            "panel": result.panel.as_json(),
        },
    )


def read_result(path: Path) -> Result:
    """Read a result file.

    Raises:
        UserError: It is none, or of another version.
    """
    fix = "remove it and run its arm and seed again: apiece ladder LADDER.yaml"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["schema"] != SCHEMA:
            raise UserError(f"expected a result of version {SCHEMA}, found {data['schema']}", where=path, fix=fix)
        figures = data["figures"]
        return Result(
            ladder=data["ladder"],
            arms=tuple(data["arms"]),
            references=tuple(data["references"]),
            arm=data["arm"],
            seed=data["seed"],
            made_from=data["made_from"],
            protocol=data["protocol"],
            match=data["match"],
            steps=data["steps"],
            batch_size=data["batch_size"],
            flops=data["flops"],
            telemetry={k: {int(s): float(v) for s, v in row.items()} for k, row in data["telemetry"].items()},
            telemetry_window=data["telemetry_window"],
            speed=figures["speed/samples_per_s"],
            metrics=figures,
            seconds=data["seconds"],
            machine=data["machine"],
            test=Split.from_json(data["test"], str(path)),
            panel=Split.from_json(data["panel"], str(path)),
            diagnosis=data.get("diagnosis", {}),
        )
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", where=path) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"expected a result of `apiece ladder`, found something else: {error!r}", where=path, fix=fix
        ) from error


def _rounded(figures: Mapping[str, float]) -> dict[str, float]:
    return {key: _round(value) for key, value in figures.items()}


def _round(value: float) -> float:
    """To six digits that count: what is committed is to be read, and is no more certain than that."""
    return value if isinstance(value, int) else float(f"{value:.{_DIGITS}g}")
