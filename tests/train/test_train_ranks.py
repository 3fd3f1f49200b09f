"""Two processes give the run that one gives."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import small_config, small_scenes
from safetensors.torch import load_file

from apiece.config.dump import dump_config
from apiece.errors import UserError
from apiece.train.checkpoint import complete_checkpoints
from apiece.train.distributed import World
from apiece.train.loop import check_world, train


@pytest.mark.slow
def test_two_gloo_ranks_equal_one(tmp_path: Path, tiny_checkpoint: Path) -> None:
    data = small_scenes(tmp_path / "s")
    changes = {"train__steps": 3, "train__micro_batch_size": 1, "optim__lr": 1e-4}
    alone = train(small_config(tmp_path, tiny_checkpoint, data, **changes), "alone").run
    config = tmp_path / "pair.yaml"
    config.write_text(dump_config(small_config(tmp_path, tiny_checkpoint, data, **changes)))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*torchrun, "-m", "apiece", "train", str(config)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    one, two = (
        load_file(complete_checkpoints(run)[-1] / "model" / "model.safetensors")
        for run in (alone, tmp_path / "runs" / "pair")
    )
    start = load_file(tiny_checkpoint / "model.safetensors")
    for name in one:
        # AdamW divides by the gradient's own size, so rounding in tiny gradients can show; the update is 3e-4 at most.
        torch.testing.assert_close(two[name], one[name], rtol=0, atol=2e-5)
    assert any(not torch.equal(one[name], start[name]) for name in one)


@pytest.mark.parametrize(
    ("batch", "micro", "ranks", "fix"),
    [(4, None, 3, "multiple of 3"), (4, 2, 4, "multiple of 8"), (2, None, 4, "multiple of 4")],
    ids=["uneven", "micro-batches uneven", "more ranks than samples"],
)
def test_uneven_ranks_are_refused(
    tmp_path: Path, tiny_checkpoint: Path, batch: int, micro: int | None, ranks: int, fix: str
) -> None:
    changes = {"train__batch_size": batch} | ({"train__micro_batch_size": micro} if micro else {})
    config = small_config(tmp_path, tiny_checkpoint, tmp_path / "x.jsonl", **changes)
    with pytest.raises(UserError, match=f"does not split evenly over {ranks} processes(?s:.*){fix}"):
        check_world(config, World(0, ranks, torch.device("cpu")))
