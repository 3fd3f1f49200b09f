"""Where one of several processes fails, all stop soon, its message comes first, and the run goes on."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from helpers import small_config, small_scenes
from test_train_ranks import HERE, on_two

from apiece.config.reference import dump_config
from apiece.train.checkpoint import complete_checkpoints, step_of
from apiece.train.loop import train

SOON_S = 60.0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "parallel", "first"),
    [
        ("error", "ddp", "error: photo.png: this photo is gone"),
        ("killed", "fsdp", "another process of this run has ended"),
    ],
)
def test_all_stop_when_one_fails(tmp_path: Path, tiny_checkpoint: Path, how: str, parallel: str, first: str) -> None:
    data = small_scenes(tmp_path / "s")
    config = small_config(
        tmp_path, tiny_checkpoint, data, train__steps=4, train__save_every=1, train__parallel=parallel
    )
    (tmp_path / "run.yaml").write_text(dump_config(config))
    done = on_two(str(HERE / "failing_rank.py"), str(tmp_path / "run.yaml"), how, str(tmp_path / "stamp"))
    took = time.time() - float((tmp_path / "stamp").read_text())
    assert done.returncode == 1
    assert took < SOON_S
    told = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert first in told[0], done.stderr[-3000:]
    assert "apiece/train" not in done.stderr, done.stderr[-3000:]  # no frame of ours: only torchrun shows its own
    run = tmp_path / "runs" / "run"
    assert [step_of(folder) for folder in complete_checkpoints(run)] == [1, 2]
    assert train(config, "run", resume=run).finished
