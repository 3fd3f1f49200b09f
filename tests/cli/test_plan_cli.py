"""`apiece plan` as it is typed: tables, JSON, what does not fit, and every mistake with its message."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import apiece.cli.commands  # noqa: F401  registers them
from apiece.cli import app
from apiece.config.resolve import load_config
from apiece.errors import UserError

sys.path.insert(0, str(Path(__file__).parents[1] / "planning"))
from checkpoints import published_with_tiny_text, without_weights, write_data


def plan(*arguments: object) -> str:
    """Output of the command; its errors are raised."""
    result = CliRunner().invoke(app, ["plan", *map(str, arguments)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.output


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (path := tmp_path / "c.yaml").write_text("train: {steps: 100, batch_size: 16, micro_batch_size: 4}\n")
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_data(tmp_path / "d.jsonl", [0, 3, 12, 7, 5, 1], (640, 480))


@pytest.fixture
def big(tmp_path: Path, tiny_checkpoint: Path) -> Path:
    return published_with_tiny_text("2b", tiny_checkpoint, tmp_path / "2b")


def test_a_small_run(config: Path, data: Path, tmp_path: Path, tiny_checkpoint: Path) -> None:
    folder, out = without_weights(tiny_checkpoint, tmp_path / "tiny"), tmp_path / "plan.json"
    text = plan(config, f"model.checkpoint={folder}", f"data.train={data}", "--gpu", "l4", "--json", out)
    assert "fits:" in text
    assert "1 x NVIDIA L4, one process" in text
    made = json.loads(out.read_text())
    assert made["fits"] is True
    assert made["changes"] == []
    assert [step["kind"] for step in made["steps"]] == ["A, N = 1", "A, N = 2", "A, N = 4", "B"]
    assert [step["in_this_run"] for step in made["steps"]] == [True, False, False, False]
    flops = [step["flops"] for step in made["steps"]]
    assert flops[0] < flops[1] < flops[2]
    assert made["parameters"]["trained"] == made["parameters"]["all"]
    assert made["samples"]["tokens"]["image"]["max"] == 140  # 14 x 10 patches: the tiny processor's own limit
    assert 0 < made["samples"]["share_supervised"] < 1
    assert [row["gpus"] for row in made["scaling"]][::2] == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]
    for step in made["steps"]:
        memory = step["memory"]
        parts = ("weights", "optimizer", "gradients", "activations", "logits", "exchange")
        assert memory["total"] == pytest.approx(sum(memory[name] for name in parts))


def test_a_full_size_model_without_weights(config: Path, data: Path, big: Path, tmp_path: Path) -> None:
    out = tmp_path / "plan.json"
    settings = (f"model.checkpoint={big}", f"data.train={data}", "stage2_ab.b_ratio=0.5", "optim.lr_vision=0.0")
    text = plan(config, *settings, "--gpu", "h100:2", "--utilisation", "0.5", "--json", out)
    made = json.loads(out.read_text())
    assert 1.6e9 < made["parameters"]["all"] < 2.2e9  # the tiny tokenizer's rows are in a table of 151,936
    assert made["parameters"]["parts"]["vision"]["trained"] == 0
    assert made["assumed"]["share_of_peak"] == 0.5
    assert [step["in_this_run"] for step in made["steps"]] == [True, False, False, True]
    assert made["steps"][3]["seconds"]["rollout"] > 0
    assert "planned as after `apiece model extend`" not in text  # the tiny tokenizer has the coordinate tokens


def test_what_does_not_fit_is_refused_with_what_would(config: Path, data: Path, big: Path, tmp_path: Path) -> None:
    out = tmp_path / "plan.json"
    settings = (f"model.checkpoint={big}", f"data.train={data}", "train.batch_size=64", "train.micro_batch_size=32")
    message = r"the run does not fit on a100-40:1: \d+\.\d GiB needed, 35\.6 usable\n  fix: "
    with pytest.raises(UserError, match=message) as caught:
        plan(config, *settings, "--gpu", "a100-40:1", "--json", out)
    assert caught.value.exit_code == 1
    made = json.loads(out.read_text())
    assert made["fits"] is False
    assert made["needs"] > made["room"]
    assert made["changes"]
    assert all(change["needs"] <= change["room"] for change in made["changes"])
    first: dict[str, Any] = made["changes"][0]
    assert first["change"] in str(caught.value)
    for change in made["changes"]:  # every one of them is a config that can be loaded
        load_config(config, [*settings, *(one for one in change["change"].split() if "=" in one)])
    assert any("model.lora.rank" in change["settings"] for change in made["changes"])
    typed = [one for one in first["change"].split() if "=" in one]
    assert "fits:" in plan(config, *settings, *typed, "--gpu", first["gpu"])


def test_no_change_is_enough(config: Path, data: Path, tmp_path: Path, tiny_checkpoint: Path) -> None:
    folder = published_with_tiny_text("8b", tiny_checkpoint, tmp_path / "8b")
    with pytest.raises(UserError, match="the run does not fit on rtx3090"):
        plan(config, f"model.checkpoint={folder}", f"data.train={data}", "--gpu", "rtx3090")


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (["--gpu", "h10"], r"--gpu: unknown GPU 'h10' \(did you mean 'h100'\?\)", 2),
        (["--gpu", ""], "unknown GPU ''", 2),
        (["--gpu", "h100:"], "expected a number of GPUs from 1 to 512, found ''", 2),
        (["--gpu", "h100:0"], "expected a number of GPUs from 1 to 512, found '0'", 2),
        (["--gpu", "h100:513"], "expected a number of GPUs from 1 to 512, found '513'", 2),
        (["--gpu", "h100:-1"], "expected a number of GPUs from 1 to 512, found '-1'", 2),
        (["data.train=nothing.jsonl"], "expected a data file at nothing.jsonl, found nothing", 1),
        (["model.checkpoint=./nothing"], "expected a checkpoint folder or a run folder, found nothing", 1),
        (["--gpu", "h100:3"], "does not split evenly over 3 processes in micro-batches of 4", 1),
    ],
)
def test_mistakes(
    arguments: list[str], message: str, code: int, config: Path, data: Path, tiny_checkpoint: Path
) -> None:
    settings = [f"model.checkpoint={tiny_checkpoint}", f"data.train={data}"]
    with pytest.raises(UserError, match=message) as caught:
        plan(config, *settings, *arguments)
    assert caught.value.exit_code == code


def test_no_data_and_no_config(config: Path) -> None:
    with pytest.raises(UserError, match=r"data\.train is not set"):
        plan(config)
    with pytest.raises(UserError, match="CONFIG comes first"):
        plan("seed=1")
    with pytest.raises(UserError, match="config file not found"):
        plan("nothing.yaml")


def test_help_does_not_load_torch() -> None:
    code = (
        "import sys; from apiece.cli import main; sys.argv = ['apiece', 'plan', '--help']\n"
        "try: main()\nexcept SystemExit: pass\n"
        "assert not {'torch', 'transformers'} & sys.modules.keys(), 'loaded'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
