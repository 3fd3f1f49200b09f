"""Whole runs: files, resuming to the same bits, interruption, refusals."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from helpers import small_config, small_scenes
from safetensors.torch import load_file

from apiece.config.resolve import load_config
from apiece.errors import UserError
from apiece.files import file_hash
from apiece.train import loop
from apiece.train.checkpoint import complete_checkpoints
from apiece.train.loop import train


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_scenes(tmp_path_factory.mktemp("scenes") / "s")


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(complete_checkpoints(run)[-1] / "model" / "model.safetensors")


def interrupt_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Send this process a Ctrl-C in the middle of a step."""
    done = 0
    real = loop.train_step

    def counted(*args: object, **kwargs: object) -> object:
        nonlocal done
        done += 1
        if done == step:
            os.kill(os.getpid(), signal.SIGINT)
        return real(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "train_step", counted)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("stop", [1, 4])
def test_resumed_run_ends_with_the_same_bits(
    tmp_path: Path, tiny_checkpoint: Path, scenes: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str, stop: int
) -> None:
    config = small_config(
        tmp_path, tiny_checkpoint, scenes, optim__name=optimizer, data__flip=True, data__object_order="random"
    )
    whole = train(config, "whole")
    with monkeypatch.context() as patch:
        interrupt_at(patch, stop)
        first = train(config, "parts")
    assert (first.step, first.finished) == (stop, False)
    second = train(config, "parts", resume=first.run)
    assert (second.step, second.finished) == (6, True)
    assert whole.finished
    before, after = weights(whole.run), weights(second.run)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_coordinates_to_read_are_moved_where_the_config_says_so(
    tmp_path: Path, tiny_checkpoint: Path, scenes: Path
) -> None:
    runs = []
    for share in (0.0, 0.3):
        config = small_config(tmp_path, tiny_checkpoint, scenes, train__steps=3, data__context_jitter=share)
        runs.append(weights(train(config, f"moved_{share}").run))
    plain, moved = runs
    assert any(not torch.equal(plain[key], moved[key]) for key in plain)


def test_run_folder_holds_what_is_needed_to_repeat_it(plain_run: Path, finished_data: Path) -> None:
    run = plain_run
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["data"][str(finished_data)] == file_hash(finished_data)
    assert manifest["seed"] == 0
    assert {"apiece", "torch", "transformers"} <= manifest["versions"].keys()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 4]
    assert "eval/f1/f1" in lines[-1]
    assert (run / "eval" / "step_000004" / "metrics.json").is_file()
    assert len((run / "eval" / "step_000004" / "predictions.jsonl").read_text().splitlines()) == 3
    assert "step 4" in (run / "train.log").read_text()


def test_logged_atoms_add_up_to_the_total(plain_run: Path) -> None:
    rows = [json.loads(line) for line in (plain_run / "metrics.jsonl").read_text().splitlines()]
    for figures in rows[:-1]:  # the last is of the evaluation
        atoms = [v for k, v in figures.items() if k.startswith("loss/") and k != "loss/total"]
        assert sum(atoms) == pytest.approx(figures["loss/total"], rel=1e-6)
        assert len(atoms) >= 7


def test_a_name_is_never_overwritten(plain_run: Path) -> None:
    config = load_config(plain_run / "config.yaml").config
    with pytest.raises(UserError, match=r"exists already, and runs are never overwritten\n.*--resume"):
        train(config, "run")


def test_metrics_after_the_resumed_step_are_dropped(
    tmp_path: Path, tiny_checkpoint: Path, scenes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(tmp_path, tiny_checkpoint, scenes)
    with monkeypatch.context() as patch:
        interrupt_at(patch, 2)
        run = train(config, "run").run
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 5, "loss/total": 1}\n{"step": 6, "lo')  # a crash left later and broken lines
    train(config, "run", resume=run)
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_old_checkpoints_go_and_the_newest_stay(plain_run: Path) -> None:
    assert [p.name for p in complete_checkpoints(plain_run)] == ["step_000003", "step_000004"]


def test_crowded_images_are_left_out_with_a_count(tmp_path: Path, tiny_checkpoint: Path, scenes: Path) -> None:
    config = small_config(tmp_path, tiny_checkpoint, scenes, train__steps=3, data__max_objects=8)
    run = train(config, "run").run
    crowded = sum(len(json.loads(line)["objects"]) > 8 for line in scenes.read_text().splitlines())
    assert 0 < crowded < 12
    assert json.loads((run / "manifest.json").read_text())["samples_over_max_objects"] == crowded


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__train": "missing.jsonl"}, "missing.jsonl"),
        ({"model__checkpoint": "nowhere"}, "expected a checkpoint folder"),
        ({"data__max_objects": 1, "train__steps": 3}, "no image to train on|above data.max_objects"),
    ],
    ids=["no data", "no checkpoint", "all too crowded"],
)
def test_refused_before_anything_is_written(
    tmp_path: Path, tiny_checkpoint: Path, scenes: Path, changes: dict[str, object], message: str
) -> None:
    if "data__max_objects" in changes:
        kept = [line for line in scenes.read_text().splitlines() if len(json.loads(line)["objects"]) > 1]
        crowded = scenes.with_name("crowded.jsonl")
        crowded.write_text("\n".join(kept) + "\n")
        changes = changes | {"data__train": crowded}
    config = small_config(tmp_path, tiny_checkpoint, scenes, **changes)
    with pytest.raises(UserError, match=message):
        train(config, "run")
    assert not (tmp_path / "runs" / "run").exists()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_sample_that_cannot_be_read_is_named_without_a_traceback(
    tmp_path: Path, tiny_checkpoint: Path, workers: int
) -> None:
    data = small_scenes(tmp_path / "s", 4)
    for line in data.read_text().splitlines():
        (tmp_path / "s" / json.loads(line)["image"]).write_bytes(b"no image")
    config = small_config(tmp_path, tiny_checkpoint, data, train__steps=3, data__workers=workers)
    with pytest.raises(UserError) as caught:
        train(config, "run")
    assert "Traceback" not in str(caught.value)
    assert ".png" in str(caught.value)


def test_an_answer_longer_than_the_context_is_refused_before_anything_is_written(
    tmp_path: Path, tiny_checkpoint: Path
) -> None:
    data, checkpoint = small_scenes(tmp_path / "s", 6), tmp_path / "short"
    shutil.copytree(tiny_checkpoint, checkpoint)
    config_json = json.loads((checkpoint / "config.json").read_text())
    config_json["text_config"]["max_position_embeddings"] = 100
    (checkpoint / "config.json").write_text(json.dumps(config_json))
    with pytest.raises(UserError, match=r"sample \S+ needs \d+ tokens, the model takes 100 (?s:.*)data.max_objects"):
        train(small_config(tmp_path, checkpoint, data, train__steps=3), "run")
    assert not (tmp_path / "runs" / "run").exists()


def test_images_without_objects_are_trained_on_as_empty_lists(tmp_path: Path, tiny_checkpoint: Path) -> None:
    data = small_scenes(tmp_path / "s", 4)
    lines = [json.loads(line) | {"objects": []} for line in data.read_text().splitlines()]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    changes = {"train__steps": 3, "stage2_ab__n_softctx_iter": 2}
    run = train(small_config(tmp_path, tiny_checkpoint, data, **changes), "run").run
    figures = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [f["items/objects"] for f in figures] == [0, 0, 0]
    assert figures[-1]["loss/a1/token_ce/struct"] > 0
    assert figures[-1]["loss/a2/bbox_geo/ciou"] == figures[-1]["loss/a2/coord_reg/soft_ce"] == 0
