"""Twenty steps of both channels on the embedded checkpoint give the figures that they gave, to the last bit."""

from __future__ import annotations

import shutil

import pytest
from guarding import GOLDEN, HERE, CommandLine, holds_training, read_lines

CONFIG = """\
seed: 3
run: {name: both, dir: runs}
model: {checkpoint: tiny}
data: {train: scenes/observed.jsonl, object_order: reading, flip: true, workers: 0}
stage2_ab: {b_ratio: 0.5, n_softctx_iter: 2}
objective:
  bbox_geo: {config: {a1_ciou_weight: 0.1}}
  coord_reg: {config: {coord_ce_weight: 0.1, a1_soft_ce_weight: 0.1, text_gate_weight: 0.1}}
optim: {lr: 3.0e-4, warmup_steps: 2}
train: {steps: 20, batch_size: 2, micro_batch_size: 1, save_every: 20, log_every: 1, device: cpu}
generate: {max_objects: 6}
"""


@pytest.mark.slow
def test_twenty_steps_of_both_channels(apiece: CommandLine) -> None:
    shutil.copytree(HERE / "scenes", "scenes")
    (apiece.folder / "both.yaml").write_text(CONFIG)
    apiece("train", "both.yaml")
    run = apiece.folder / "runs" / "both"
    lines = read_lines(run / "metrics.jsonl")
    assert len(lines) == 20
    assert {line.get("b/step_share", 0.0) for line in lines} == {0.0, 1.0}, "both channels have steps"
    assert any(key.startswith("loss/a2/") for line in lines for key in line), "and Channel-A its second pass"
    holds_training(GOLDEN / "training.jsonl", run)
