"""Ladders for tests: small enough to be run in a few seconds, and results made by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from apiece.evaluate.detections import samples_to_ground_truth
from apiece.evaluate.forms import Detections, GroundTruth
from apiece.stats.ratio import Ratio
from apiece.study.arms import RunBoxes
from apiece.study.results import Counts, Result, count_split
from compared import Picture, split_of

BENCHMARK = """\
name: toy
drawings: 1
size: 64
families: [sparse, shelf]
train: {n: 6, seed: 1}
panel: {n: 2, seed: 2}
test: {n: 4, seed: 3}
unlabelled: [0.0, 0.5]
"""
LADDER = """\
name: small
start: {start}
data:
  scenes: {{benchmark: {root}/benchmark.yaml, unlabelled: 0.5, dir: {root}/data}}
seeds: [0, 1]
reference: two
dir: {root}/runs
results: {root}/study
shared:
  - model.precision=fp32
  - data.workers=0
  - optim.warmup_steps=0
  - train.steps=2
  - train.batch_size=2
  - train.log_every=1
  - train.save_every=1
  - train.device=cpu
  - eval.samples=1
  - generate.max_new_tokens=24
  - monitor.every_steps=2
  - monitor.pictures=false
  - monitor.panel.size=1
arms:
  two: {{config: {root}/base.yaml}}
  one: {{config: {root}/base.yaml, set: [stage2_ab.n_softctx_iter=1]}}
"""


def write_ladder(root: Path, start: Path) -> Path:
    """A ladder of two arms and two seeds in a folder."""
    (root / "benchmark.yaml").write_text(BENCHMARK)
    (root / "base.yaml").write_text("stage2_ab:\n  n_softctx_iter: 2\n")
    (root / "ladder.yaml").write_text(LADDER.format(root=root, start=start))
    return root / "ladder.yaml"


def source_of(pictures: Sequence[Picture], name: str, seed: int) -> RunBoxes:
    """Pictures as `apiece compare` takes them."""
    truth, detections = split_of(pictures)
    return RunBoxes(
        name=name, path=Path(name), kind="evaluation", truth=truth, detections=detections, protocol={},
        complete=complete_of(pictures, truth), seed=seed, config={},
    )  # fmt: skip


def complete_of(pictures: Sequence[Picture], truth: GroundTruth) -> GroundTruth | None:
    """Labels and hidden instances, where these are known."""
    if any(picture.hidden is None for picture in pictures):
        return None
    everything = [Picture(p.id, (*p.labels, *(p.hidden or ()))).sample for p in pictures]
    return samples_to_ground_truth(everything).with_classes(truth.names)


def result_of(pictures: Sequence[Picture], arm: str, seed: int, **changes: Any) -> Result:
    """The result of an arm and seed that predicted so."""
    truth, detections = split_of(pictures)
    return made_result(
        arm, seed, count_split(truth, detections, complete_of(pictures, truth), on_truth=True), **changes
    )


def made_result(arm: str, seed: int, test: Counts, **changes: Any) -> Result:
    """A result around a test set."""
    steady = {step: 0.1 + 0.001 * step * (1 + 0.01 * seed) for step in range(5, 101, 5)}
    made_from = {"start": {"model.safetensors": "00"}, "data": {"test": "11"}, "probes": {}, "settings": {"arm": arm}}
    values: dict[str, Any] = {
        "ladder": "small", "arms": ("a", "b"), "references": ("a",), "arm": arm, "seed": seed,
        "made_from": made_from, "protocol": {"data": "11"}, "match": "steps", "steps": 100, "batch_size": 4,
        "flops": {"step": 2e9, "run": 2e11, "of_reference": 1.0},
        "telemetry": {"window_var/last/bbox_geo/ciou": steady},
        "telemetry_window": 5, "speed": 10.0 + seed, "metrics": {}, "seconds": {}, "machine": {},
        "test": test, "panel": panel_of(seed),
    }  # fmt: skip
    return Result(**{**values, **changes})


def panel_of(seed: int, images: int = 12) -> Counts:
    """A panel with one probe figure."""
    rng = np.random.default_rng(seed)
    count = np.full(images, 8.0)
    return Counts(np.arange(1, images + 1), {"probes/a1/entropy": Ratio(rng.uniform(1, 3, images) * count, count)})


def nothing() -> tuple[GroundTruth, Detections]:
    """A split without images."""
    return split_of([])


def by_key(comparison: Any) -> Mapping[str, Any]:
    """Rows of a comparison."""
    return {row.key: row.found for row in comparison.rows}
