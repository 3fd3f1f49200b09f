"""Watched runs: the same bits as unwatched ones, dumps at the right steps, and after an interruption the same dumps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import small_config, small_scenes
from safetensors.torch import load_file
from test_train_loop import interrupt_at

from apiece.config.resolve import load_config
from apiece.dumps.folder import open_run
from apiece.errors import UserError
from apiece.train.checkpoint import complete_checkpoints
from apiece.train.loop import train

WATCHED = {
    "monitor__every_steps": 2,
    "monitor__panel__size": 3,
    "generate__max_new_tokens": 16,
    "train__steps": 5,
    "eval__samples": 1,
    "data__flip": True,
    "data__object_order": "random",
}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_scenes(tmp_path_factory.mktemp("scenes") / "s")


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(complete_checkpoints(run)[-1] / "model" / "model.safetensors")


def lines(run: Path, step: int) -> str:
    return (run / "dumps" / f"step_{step:06d}" / "records.jsonl").read_text()


def test_a_watched_run_ends_with_the_same_bits(tmp_path: Path, tiny_checkpoint: Path, scenes: Path) -> None:
    changes: dict[str, Any] = WATCHED | {"data__eval": scenes}
    alone = {key: value for key, value in changes.items() if not key.startswith("monitor")}
    plain = train(small_config(tmp_path, tiny_checkpoint, scenes, **alone), "plain").run
    watched = train(small_config(tmp_path, tiny_checkpoint, scenes, **changes), "watched").run
    assert not (plain / "dumps").exists()
    assert open_run(watched).steps == (0, 2, 4, 5)
    before, after = weights(plain), weights(watched)
    assert all(torch.equal(before[name], after[name]) for name in before)
    drop = ("speed/", "memory/")
    for one, two in zip(open_run(plain).metrics, open_run(watched).metrics, strict=True):
        assert {k: v for k, v in one.items() if not k.startswith(drop)} == {
            k: v for k, v in two.items() if not k.startswith(drop)
        }


def test_the_panel_is_the_same_at_every_step_and_in_the_manifest(
    tmp_path: Path, tiny_checkpoint: Path, scenes: Path
) -> None:
    config = small_config(
        tmp_path, tiny_checkpoint, scenes, **WATCHED, data__eval=scenes, data__complete=scenes.with_suffix(".json")
    )
    run = open_run(train(config, "run").run)
    assert run.panel is not None
    assert run.manifest["data"].keys() >= {str(scenes), str(scenes.with_suffix(".json"))}
    assert len(run.panel["ids"]) == 3
    dumps = [run.dump(step) for step in run.steps]
    for dump in dumps:
        assert [record["id"] for record in dump.entries] == run.panel["ids"]
        assert len(dump.pictures) == 3
        assert all(record["hidden"] == [] for record in dump.entries)
        assert all(record["counts"]["f1_true"] == record["counts"]["f1"] for record in dump.entries)
    assert lines(run.path, 0) != lines(run.path, 5)
    again = small_config(tmp_path, tiny_checkpoint, scenes, **WATCHED, data__eval=scenes, seed=9)
    again = load_config(None, _overrides(again, f"monitor.panel.from={run.path}", "monitor.panel.size=16")).config
    other = open_run(train(again, "other").run)
    assert other.panel is not None
    assert (other.panel["ids"], other.panel["from"]) == (run.panel["ids"], str(run.path))


def _overrides(config: Any, *more: str) -> list[str]:
    """A config and more on top, as arguments."""
    return [f"{key}={json.dumps(value)}" for key, value in config.model_dump(mode="json").items()] + list(more)


@pytest.mark.slow
@pytest.mark.parametrize("stop", [1, 4])
def test_a_resumed_run_has_the_dumps_of_an_unbroken_one(
    tmp_path: Path, tiny_checkpoint: Path, scenes: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    config = small_config(tmp_path, tiny_checkpoint, scenes, **WATCHED, data__eval=scenes, monitor__pictures="false")
    whole = train(config, "whole").run
    with monkeypatch.context() as patch:
        interrupt_at(patch, stop)
        parts = train(config, "parts").run
    first = open_run(parts)
    assert first.steps == tuple(step for step in (0, 2, 4) if step < stop)
    stamp = (parts / "dumps" / "step_000000" / "records.jsonl").stat()
    train(config, "parts", resume=parts)
    second = open_run(parts)
    assert second.steps == (0, 2, 4, 5)
    assert second.panel == first.panel
    assert (parts / "dumps" / "step_000000" / "records.jsonl").stat() == stamp
    for step in second.steps:
        assert lines(parts, step) == lines(whole, step)


def test_a_full_disk_does_not_stop_the_training(
    tmp_path: Path, tiny_checkpoint: Path, scenes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("apiece.monitor.dump.save_png", full)
    outcome = train(small_config(tmp_path, tiny_checkpoint, scenes, **WATCHED, data__eval=scenes), "run")
    assert outcome.finished
    assert open_run(outcome.run).steps == ()
    assert (outcome.run / "train.log").read_text().count("no more dumps from here on") == 1


def test_monitoring_that_is_switched_on_later_gets_its_panel(
    tmp_path: Path, tiny_checkpoint: Path, scenes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = {key: value for key, value in WATCHED.items() if not key.startswith("monitor")}
    with monkeypatch.context() as patch:
        interrupt_at(patch, 3)
        run = train(small_config(tmp_path, tiny_checkpoint, scenes, **plain, data__eval=scenes), "run").run
    assert open_run(run).panel is None
    config = small_config(tmp_path, tiny_checkpoint, scenes, **WATCHED, data__eval=scenes)
    train(config, "run", resume=run)
    assert open_run(run).steps == (4, 5)
    panel = open_run(run).panel
    assert panel is not None
    assert len(panel["ids"]) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"monitor__panel__ids": "[nobody]", "monitor__panel__size": 0}, "none of the panel's 1 samples can be shown"),
        ({"data__complete": "missing.json"}, "missing.json: the complete truth not found"),
    ],
)
def test_a_panel_that_cannot_be_is_refused_before_anything_is_written(
    tmp_path: Path, tiny_checkpoint: Path, scenes: Path, changes: dict[str, Any], message: str
) -> None:
    config = small_config(tmp_path, tiny_checkpoint, scenes, **(WATCHED | {"data__eval": scenes} | changes))
    with pytest.raises(UserError, match=message):
        train(config, "run")
    assert not (tmp_path / "runs" / "run").exists()
