"""Data workers end with their run, however it ends: they pass over stop signals, so nothing else would end them."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import small_config, small_scenes

from apiece.errors import UserError
from apiece.train import loop
from apiece.train.loop import train


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return small_scenes(tmp_path / "scenes", 8)


def spoil(data: Path) -> None:
    for image in data.parent.rglob("*.png"):
        image.write_bytes(image.read_bytes()[:200])


@pytest.mark.parametrize("error", [UserError("not finite"), KeyboardInterrupt(), ZeroDivisionError()])
def test_no_worker_outlives_a_step_that_fails(
    tmp_path: Path, tiny_checkpoint: Path, data: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(loop, "train_step", fail)
    with pytest.raises(type(error)) as caught:
        train(small_config(tmp_path, tiny_checkpoint, data, data__workers=2), "run")
    # Its traceback, with every frame, is alive; a message for users is told with how to go on.
    assert error in (caught.value, caught.value.__cause__)
    assert multiprocessing.active_children() == []


def test_no_worker_outlives_a_sample_that_cannot_be_read(tmp_path: Path, tiny_checkpoint: Path, data: Path) -> None:
    spoil(data)
    with pytest.raises(UserError, match="truncated") as caught:
        train(small_config(tmp_path, tiny_checkpoint, data, data__workers=1), "run")
    assert caught.tb is not None
    assert multiprocessing.active_children() == []


@pytest.mark.slow
def test_the_command_ends_after_the_message(tmp_path: Path, tiny_checkpoint: Path, data: Path) -> None:
    spoil(data)
    (tmp_path / "c.yaml").write_text(
        f"model: {{checkpoint: {tiny_checkpoint}}}\ndata: {{train: {data}, workers: 1}}\noptim: {{warmup_steps: 1}}\n"
        f"train: {{steps: 2, batch_size: 2}}\nrun: {{dir: {tmp_path}/runs}}\n"
    )
    command = [sys.executable, "-m", "apiece", "train", str(tmp_path / "c.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)  # it took forever
    assert done.returncode == 1
    assert "image is truncated or damaged" in done.stderr and "Traceback" not in done.stderr
