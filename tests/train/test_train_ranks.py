"""Two processes, replicated or sharded, give the run that one gives."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import small_config, small_scenes
from safetensors.torch import load_file

from apiece.config.dump import dump_config
from apiece.config.load import load_config
from apiece.errors import UserError
from apiece.train.checkpoint import complete_checkpoints
from apiece.train.distributed import World, join_world
from apiece.train.loop import check_world, train

STEPS = 4


def torchrun(*arguments: str) -> None:
    """`apiece train` on two gloo processes."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launcher, "-m", "apiece", "train", *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss/total"] for line in lines if "loss/total" in line]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> dict[str, Path]:
    """The same run of self-context: alone, replicated on two processes, sharded over two."""
    root = tmp_path_factory.mktemp("ranks")
    data = small_scenes(root / "s")
    changes = {
        "stage2_ab__n_softctx_iter": 2,
        "optim__lr": 1e-4,
        "train__steps": STEPS,
        "train__micro_batch_size": 1,
        "train__save_every": 2,
        "data__eval": data,
        "eval__samples": 2,
        "eval__every_steps": 2,
        "generate__max_new_tokens": 4,
    }
    for parallel in ("ddp", "fsdp"):
        config = small_config(root, tiny_checkpoint, data, train__parallel=parallel, **changes)
        (root / f"{parallel}.yaml").write_text(dump_config(config))
        torchrun(str(root / f"{parallel}.yaml"))
    train(config, "alone")  # one process has nothing to share
    return {name: root / "runs" / name for name in ("alone", "ddp", "fsdp")}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_two_gloo_ranks_equal_one(runs: dict[str, Path], tiny_checkpoint: Path, name: str) -> None:
    assert len(losses(runs["alone"])) == STEPS
    assert losses(runs[name]) == pytest.approx(losses(runs["alone"]), rel=1e-6)
    one, two = (load_file(complete_checkpoints(runs[n])[-1] / "model" / "model.safetensors") for n in ("alone", name))
    start = load_file(tiny_checkpoint / "model.safetensors")
    assert one.keys() == two.keys()
    for key in one:
        # AdamW divides by the gradient's own size, so rounding in tiny gradients can show; the update is 4e-4 at most.
        torch.testing.assert_close(two[key], one[key], rtol=0, atol=2e-5)
    assert any(not torch.equal(one[key], start[key]) for key in one)


@pytest.mark.slow
def test_sharded_runs_write_what_others_write(runs: dict[str, Path]) -> None:
    for checkpoints in zip(*(complete_checkpoints(runs[n]) for n in ("alone", "fsdp")), strict=True):
        one, two = ({p.relative_to(c) for p in c.rglob("*")} for c in checkpoints)
        assert one == two
        one, two = ((c / "model" / "config.json").read_text() for c in checkpoints)
        assert one == two
        for file in ("model/model.safetensors", "optimizer.safetensors"):
            one, two = ({k: (v.shape, v.dtype) for k, v in load_file(c / file).items()} for c in checkpoints)
            assert one == two
    for step in (2, STEPS):
        metrics = json.loads((runs["fsdp"] / "eval" / f"step_{step:06d}" / "metrics.json").read_text())
        assert "f1/f1" in metrics


@pytest.mark.slow
@pytest.mark.parametrize(("name", "ranks"), [("alone", 2), ("fsdp", 1)], ids=["from one to two", "from two to one"])
def test_a_run_goes_on_with_another_number_of_ranks(
    runs: dict[str, Path], tmp_path: Path, name: str, ranks: int
) -> None:
    run = tmp_path / name
    shutil.copytree(runs[name], run)
    shutil.rmtree(complete_checkpoints(run)[-1])
    if ranks == 1:
        train(load_config(run / "config.yaml").config, name, resume=run)
    else:
        torchrun("--resume", str(run))
    assert losses(run)[:2] == losses(runs[name])[:2]
    assert losses(run) == pytest.approx(losses(runs[name]), rel=1e-6)


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"no CUDA device found(?s:.*)train\.device=cpu"):
        join_world("cuda")


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
