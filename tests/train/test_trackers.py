"""Trackers get what `metrics.jsonl` gets."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from helpers import small_config, small_scenes

from apiece.errors import UserError
from apiece.train import run as runs
from apiece.train.loop import train
from apiece.train.run import TensorBoard


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
    monkeypatch.setitem(runs.TRACKERS, "tensorboard", Notebook)
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


def test_every_figure_is_logged_and_shown(tmp_path: Path, tiny_checkpoint: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    data = small_scenes(tmp_path / "s", 4)
    changes = {"stage2_ab__n_softctx_iter": 2, "train__steps": 3, "train__trackers": "[tensorboard]"}
    run = train(small_config(tmp_path, tiny_checkpoint, data, **changes), "run").run
    line = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    terms = {
        *(f"{context}/token_ce/{part}" for context in ("a1", "a2") for part in ("struct", "desc", "eos")),
        *(f"{context}/bbox_geo/{part}" for context in ("a1", "a2") for part in ("smoothl1", "ciou")),
        *(f"{context}/coord_reg/{part}" for context in ("a1", "a2") for part in ("soft_ce", "w1", "coord_ce")),
        *(f"{context}/coord_reg/soft_ce_above_floor" for context in ("a1", "a2")),
        "a2/coord_reg/coord_gate",
    }
    each = ("raw", "window_mean", "window_var", "window_var_given_items")
    assert {f"{kind}/{term}" for kind in each for term in terms} <= line.keys()
    assert {"loss/total", "loss/a1/token_ce/desc", "loss/a2/coord_reg/coord_gate"} <= line.keys()
    assert {"items/tokens", "items/objects", "items/slots", "items/collapsed", "grad_norm", "clip_rate"} <= line.keys()
    assert {"lr/language", "lr/vision", "lr/merger", "lr/coord", "padding_share", "memory/peak_mb"} <= line.keys()
    assert {"speed/tokens_per_s", "speed/samples_per_s"} <= line.keys()
    shown = accumulator.EventAccumulator(str(run / "tensorboard"))
    shown.Reload()
    assert set(shown.Tags()["scalars"]) == line.keys() - {"step"}
    assert shown.Scalars("loss/total")[-1].value == pytest.approx(line["loss/total"])


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
