"""Two processes, replicated or sharded, give the run of one: steps, answers, evaluations, dumps, checkpoints."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import ranks
import torch
from helpers import small_config
from ranks import HALF, STEPS, config
from safetensors.torch import load_file

from apiece.config.resolve import load_config
from apiece.errors import UserError
from apiece.model.extend import export_checkpoint
from apiece.model.load import load_model, read_shards
from apiece.train.checkpoint import complete_checkpoints, problem_of, step_of
from apiece.train.distributed import World, join_world
from apiece.train.loop import train
from apiece.train.setup import check_world

HERE = Path(__file__).parent
CPU = World(0, 1, torch.device("cpu"))
MANY = ("ddp", "fsdp", "one to two", "sharded one to two")


def on_two(*what: str, timeout_s: float = 1500) -> subprocess.CompletedProcess[str]:
    """A script, or a module, on two gloo processes."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    paths = os.pathsep.join([*sys.path, str(HERE)])
    return subprocess.run(
        [*launcher, *what],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths},
        timeout=timeout_s,
    )


def lines(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def losses(run: Path) -> list[float]:
    return [line["loss/total"] for line in lines(run) if "loss/total" in line]


def weights(run: Path) -> dict[str, torch.Tensor]:
    folder = complete_checkpoints(run)[-1] / "model"
    whole = folder / "model.safetensors"
    return load_file(whole) if whole.exists() else read_shards(folder)


def half(run: Path, to: Path) -> None:
    """The run as it was after half of its steps."""
    shutil.copytree(run, to)
    shutil.rmtree(complete_checkpoints(to)[-1])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> dict[str, Path]:
    """All runs of this file: one process makes some, and one launch of two processes (ranks.py) all others."""
    root = tmp_path_factory.mktemp("ranks")
    ranks.scenes(root / "s")
    shutil.copytree(tiny_checkpoint, root / "mini")
    alone = train(config(root), "alone").run
    sharded = train(config(root, train__sharded_checkpoints="true"), "sharded").run
    half(alone, root / "runs" / "one to two")
    half(sharded, root / "runs" / "sharded one to two")
    train(ranks.lora_config(root, "ddp"), "lora alone")
    done = on_two(str(HERE / "ranks.py"), str(root))
    assert done.returncode == 0, done.stderr[-3000:]
    return {path.name: path for path in (root / "runs").iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("name", MANY)
def test_two_ranks_equal_one_in_every_step_of_both_channels(runs: dict[str, Path], name: str) -> None:
    alone, many = lines(runs["alone"]), lines(runs[name])
    assert len(losses(runs["alone"])) == STEPS
    assert losses(runs[name]) == pytest.approx(losses(runs["alone"]), rel=1e-6)
    assert [line["step"] for line in many] == [line["step"] for line in alone]
    assert sum("b/f1" in line for line in many) == STEPS // 2
    for one, two in zip(alone, many, strict=True):
        for key in one:
            if key.startswith(("b/outcome", "b/finish", "b/dropped", "b/objects", "b/f1", "items/", "eval/")):
                assert two[key] == pytest.approx(one[key], abs=1e-6), (one["step"], key)
    one_weights, two_weights = weights(runs["alone"]), weights(runs[name])
    assert one_weights.keys() == two_weights.keys()
    for key, value in one_weights.items():
        # AdamW divides by the gradient's own size, so rounding in tiny gradients can show.
        torch.testing.assert_close(two_weights[key], value, rtol=0, atol=STEPS * 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", MANY)
def test_what_two_ranks_ask_is_what_one_asks(runs: dict[str, Path], name: str) -> None:
    """Shares are unequal: five samples are evaluated, three dumped."""
    for step in (HALF, STEPS):
        folders = [runs[n] / "eval" / f"step_{step:06d}" for n in ("alone", name)]
        one, two = ([json.loads(x) for x in (f / "predictions.jsonl").read_text().splitlines()] for f in folders)
        assert [row["id"] for row in two] == [row["id"] for row in one]
        assert len(one) == 5
        for key in ("objects", "finish_reason", "dropped"):
            assert [_rough(row[key]) for row in two] == [_rough(row[key]) for row in one]
        folders = [runs[n] / "dumps" / f"step_{step:06d}" for n in ("alone", name)]
        one, two = ([json.loads(x) for x in (f / "records.jsonl").read_text().splitlines()] for f in folders)
        assert [(row["id"], row["answer"]["ids"]) for row in two] == [(row["id"], row["answer"]["ids"]) for row in one]
        for before, after in zip(one, two, strict=True):
            assert _rough(after["counts"]) == _rough(before["counts"])
            assert (after["probes"] is None) == (before["probes"] is None)


def _rough(value: Any) -> Any:
    """Floats to three digits: what is asked together with what differs in the last ones."""
    if isinstance(value, dict):
        return {k: _rough(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_rough(v) for v in value]
    return round(value, 3) if isinstance(value, float) else value


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lora ddp", "lora fsdp"])
def test_two_ranks_with_adapters_equal_one(runs: dict[str, Path], name: str) -> None:
    assert losses(runs[name]) == pytest.approx(losses(runs["lora alone"]), rel=1e-5)
    folders = [complete_checkpoints(runs[n])[-1] / "model" for n in ("lora alone", name)]
    one, two = (load_file(folder / "adapter_model.safetensors") for folder in folders)
    assert one.keys() == two.keys()
    for key in one:
        torch.testing.assert_close(two[key], one[key], rtol=0, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("shuffle", ranks.ORDERS)
def test_two_ranks_resume_with_the_same_samples(runs: dict[str, Path], shuffle: str) -> None:
    whole, parts = weights(runs[f"{shuffle} whole"]), weights(runs[f"{shuffle} parts"])
    assert [step_of(folder) for folder in complete_checkpoints(runs[f"{shuffle} parts"])] == [4, 5]
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


@pytest.mark.slow
def test_shards_are_safetensors_and_json_alone_and_every_file_is_named(runs: dict[str, Path]) -> None:
    for name, count in (("fsdp", 2), ("sharded", 1)):
        folder = complete_checkpoints(runs[name])[-1]
        assert {p.suffix for p in folder.rglob("*") if p.is_file()} == {".safetensors", ".json", ".jinja"}
        for part in ("model", "optimizer"):
            assert len(list((folder / part).glob("shard-*.safetensors"))) == count
            assert not list((folder / part).glob("model*.safetensors"))
        assert problem_of(folder, CPU) is None
    files = json.loads((folder / "manifest.json").read_text())["files"]
    assert files.keys() == {
        p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p != folder / "manifest.json"
    }


@pytest.mark.slow
def test_a_missing_shard_is_named(runs: dict[str, Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs["fsdp"], run)
    gone = "shard-00002-model-00001-of-00001.safetensors"
    (complete_checkpoints(run)[-1] / "optimizer" / gone).unlink()
    with pytest.raises(UserError, match=f"step_000020: this checkpoint is not used: optimizer/{gone} is missing"):
        train(load_config(run / "config.yaml").config, "run", resume=run)
    model = complete_checkpoints(run)[-1] / "model"
    (model / gone.replace("00002", "00001", 1)).unlink()
    with pytest.raises(UserError, match=r"a file of weights is missing: there is only a part of \S+"):
        load_model(str(model))


@pytest.mark.slow
def test_shards_are_put_together_on_demand(runs: dict[str, Path], tmp_path: Path) -> None:
    """`apiece model export`, and every command that loads a checkpoint."""
    export_checkpoint(str(runs["fsdp"]), tmp_path / "one", "float32")
    exported = load_file(tmp_path / "one" / "model.safetensors")
    whole = read_shards(complete_checkpoints(runs["fsdp"])[-1] / "model")
    assert exported.keys() == whole.keys()
    assert all(torch.equal(exported[name], whole[name]) for name in whole)
    assert load_model(str(runs["fsdp"]), dtype="auto").dtype == torch.float32


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_one_goes_on_with_what_two_have_begun(runs: dict[str, Path], tmp_path: Path, name: str) -> None:
    run = tmp_path / "run"
    half(runs[name], run)
    train(load_config(run / "config.yaml").config, "run", resume=run)
    assert losses(run)[:HALF] == losses(runs[name])[:HALF]
    assert losses(run) == pytest.approx(losses(runs[name]), rel=1e-6)


@pytest.mark.slow
def test_one_process_writes_the_same_bits_in_shards(runs: dict[str, Path]) -> None:
    one, two = weights(runs["alone"]), weights(runs["sharded"])
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.slow
def test_what_is_not_finite_on_one_rank_stops_all(runs: dict[str, Path]) -> None:
    root = runs["alone"].parents[1]
    first, second = ((root / f"said_{rank}").read_text() for rank in (0, 1))
    assert first == second
    assert first.startswith("step 2: a1/token_ce/struct, ")
    assert "nonfinite/step_000002.json" in first
    report = json.loads((root / "runs" / "not finite" / "nonfinite" / "step_000002.json").read_text())
    assert {row["rank"] for row in report["found"]} == {1}
    assert report["world_size"] == 2
    assert len(report["samples"]) == 4
    assert [step_of(folder) for folder in complete_checkpoints(root / "runs" / "not finite")] == [1]


@pytest.mark.slow
def test_a_signal_to_one_rank_stops_all_and_the_run_goes_on(runs: dict[str, Path]) -> None:
    root = runs["alone"].parents[1]
    first, second = (json.loads((root / f"ends_{rank}").read_text()) for rank in (0, 1))
    assert first == [[3, False, None], [HALF, False, 15], [STEPS, True, None]]
    assert second == [[3, False, 15], [HALF, False, None], [STEPS, True, None]]
    stopped = root / "runs" / "stopped"
    assert losses(stopped) == losses(runs["ddp"])
    assert [row["step"] for row in lines(stopped)] == [row["step"] for row in lines(runs["ddp"])]
    one, two = weights(stopped), weights(runs["ddp"])
    assert all(torch.equal(one[name], two[name]) for name in two)


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


@pytest.mark.slow
def test_processes_leave_and_end_with_their_own_code(tmp_path: Path) -> None:
    done = on_two(str(HERE / "ending_rank.py"), str(tmp_path), timeout_s=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (done.stdout.count("left 100 times"), done.stdout.count("left at once")) == (2, 2)
