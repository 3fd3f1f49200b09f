"""Trackers get what `metrics.jsonl` gets."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from helpers import small_config, small_scenes

from apiece.errors import UserError
from apiece.train import loop
from apiece.train.loop import train
from apiece.train.trackers import TensorBoard


class Notebook:
    calls: list[tuple[str, object]]

    def start(self, run: Path, config: object) -> None:
        Notebook.calls = [("start", run)]

    def log(self, step: int, figures: dict[str, float]) -> None:
        Notebook.calls.append(("log", {"step": step, **figures}))

    def close(self) -> None:
        Notebook.calls.append(("close", None))


def test_a_tracker_sees_every_line_of_the_metrics(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(loop.TRACKERS, "tensorboard", Notebook)
    data = small_scenes(tmp_path / "s", 4)
    config = small_config(tmp_path, tiny_checkpoint, data, train__steps=3, train__trackers="[tensorboard]")
    run = train(config, "run").run
    kinds = [kind for kind, _ in Notebook.calls]
    assert kinds == ["start", "log", "log", "log", "close"]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [what for kind, what in Notebook.calls if kind == "log"] == lines
    assert "window_var/a1/bbox_geo/ciou" in lines[-1]
    assert "window_var/a1/bbox_geo/ciou" not in lines[1]  # two values say nothing of a variance
    assert 0 <= lines[-1]["clip_rate"] <= 1


def test_tensorboard_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match=r"train.trackers names tensorboard, which is not installed(?s:.*)pip install"):
        TensorBoard().start(tmp_path, {})


def test_tensorboard_writes_events(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    board = TensorBoard()
    board.start(tmp_path, {})
    board.log(1, {"loss/total": 2.0})
    board.close()
    assert list((tmp_path / "tensorboard").glob("events.*"))
