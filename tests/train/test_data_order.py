"""Runs stop and go on with the same samples: every shuffle, with and without workers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import small_config, small_scenes
from test_train_loop import interrupt_at, weights

from apiece.config.schema import Config
from apiece.train.loop import train

ORDERS = [("full", {}), ("buffer", {"data__buffer_size": 8}), ("none", {})]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_scenes(tmp_path_factory.mktemp("scenes") / "s", 10)


def config_of(root: Path, checkpoint: Path, scenes: Path, shuffle: str, **changes: object) -> Config:
    small = {"train__steps": 5, "train__batch_size": 4, "data__flip": True, "data__shuffle": shuffle}
    return small_config(root, checkpoint, scenes, **small, **changes)


def same_bits(one: Path, two: Path) -> bool:
    before, after = weights(one), weights(two)
    return before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("shuffle", "more"), ORDERS, ids=[name for name, _ in ORDERS])
def test_a_run_goes_on_with_the_sample_at_which_it_stopped(
    tmp_path: Path,
    tiny_checkpoint: Path,
    scenes: Path,
    monkeypatch: pytest.MonkeyPatch,
    shuffle: str,
    more: dict[str, int],
    workers: int,
) -> None:
    """Ten samples in batches of four: the stop is in the middle of an epoch, and of a block of two batches."""
    config = config_of(tmp_path, tiny_checkpoint, scenes, shuffle, data__workers=workers, **more)
    whole = train(config, "whole")
    with monkeypatch.context() as patch:
        interrupt_at(patch, 4)
        first = train(config, "parts")
    assert (first.step, first.finished) == (4, False)
    second = train(config, "parts", resume=first.run)
    assert whole.finished and second.finished
    assert same_bits(whole.run, second.run)


def test_workers_change_nothing(tmp_path: Path, tiny_checkpoint: Path, scenes: Path) -> None:
    order = {"data__shuffle": "buffer", "data__buffer_size": 8, "train__steps": 3}
    runs = [
        train(small_config(tmp_path, tiny_checkpoint, scenes, data__workers=n, **order), f"w{n}").run for n in (0, 2)
    ]
    assert same_bits(*runs)


def test_resuming_on_other_data_is_said(
    tmp_path: Path,
    tiny_checkpoint: Path,
    scenes: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    data = scenes.with_name("other.jsonl")
    data.write_text(scenes.read_text())
    config = small_config(tmp_path, tiny_checkpoint, data, train__steps=2, optim__warmup_steps=1)
    with monkeypatch.context() as patch:
        interrupt_at(patch, 1)
        first = train(config, "x")
    lines = data.read_text().splitlines()
    data.write_text("\n".join(reversed(lines)))
    train(config, "x", resume=first.run)
    assert f"{data} has changed since the run began: its batches differ from here on" in caplog.text
