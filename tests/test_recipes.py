"""The recipes for full-size models, from a downloaded checkpoint to the report, with nothing changed but sizes.

The model is of the real class with the real tokenizer, but narrow and with random weights.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from apiece.cli import app
from apiece.config.resolve import load_config

RECIPES = Path(__file__).parents[1] / "configs" / "recipes"


def apiece(*arguments: object) -> str:
    """A command of the package, as a user gives it."""
    import apiece.cli.commands  # noqa: F401  registers all

    result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def narrow(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `source` (what a download would be), `extended`, and `data.jsonl`."""
    from transformers import AutoTokenizer

    from apiece.model.find import resolve_checkpoint
    from apiece.model.load import read_tokenizer
    from apiece_scenes.scene import SceneSettings
    from apiece_scenes.write import write_scenes
    from narrow import write_narrow

    root = tmp_path_factory.mktemp("recipes")
    tokenizer = AutoTokenizer.from_pretrained(shared_data / "qwen3-tokenizer")
    tokenizer.chat_template = read_tokenizer(resolve_checkpoint("tiny")).chat_template  # Qwen3's own has no images
    write_narrow(tokenizer, 151_936, True, root / "source", context=2048)  # rows as published
    apiece("model", "extend", "--from", root / "source", "--out", root / "extended")
    write_scenes(root / "data", 4, SceneSettings(size=96), seed=5)
    return root


def sizes(root: Path, checkpoint: Path, data: Path, b_steps: bool) -> list[str]:
    """All that a narrow model, few images and one core change of a recipe."""
    small = {
        "run.dir": root / "runs",
        "model.checkpoint": checkpoint,
        "data.train": data,
        "data.eval": data,
        "data.workers": 0,
        "data.max_objects": 20,
        "optim.warmup_steps": 1,
        "train.steps": 2,
        "train.batch_size": 2,
        "train.micro_batch_size": 1,
        "train.save_every": 2,
        "train.log_every": 1,
        "train.device": "cpu",
        "generate.max_objects": 2,
        "generate.labels": "[person, book]",  # free names of a random model go on and on
        "eval.every_steps": 2,
        "eval.samples": 2,
    }
    if b_steps:
        small |= {"monitor.every_steps": 2, "monitor.panel.size": 2}
    return [f"{key}={value}" for key, value in small.items()]


def logged(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.parametrize("size", ["2b", "4b"])
def test_a_recipe_from_download_to_report(narrow: Path, tmp_path: Path, size: str) -> None:
    first, second = (RECIPES / f"qwen3vl_{size}_coco_stage{n}.yaml" for n in (1, 2))
    data = narrow / "data" / "complete.jsonl"
    apiece("train", first, *sizes(tmp_path, narrow / "extended", data, False))
    run = tmp_path / "runs" / first.stem
    assert {key.split("/")[1] for line in logged(run) for key in line if key.startswith("loss/")} == {"a1", "total"}
    start = run
    if size == "4b":  # adapters: merged in between, as the recipe's head says
        assert list(run.glob("checkpoints/step_*/model/adapter_model.safetensors"))
        start = tmp_path / "merged"
        apiece("model", "merge", run, "--out", start)
    apiece("train", second, *sizes(tmp_path, start, data, True))
    run = tmp_path / "runs" / second.stem
    lines = logged(run)
    assert [line.get("b/step_share", 0.0) for line in lines if "loss/total" in line] == [0.0, 1.0]
    assert any(key.startswith("loss/a2/") for line in lines for key in line)
    apiece("evaluate", run, "--data", data, "--out", tmp_path / "results",
           "generate.max_objects=2", "generate.labels=[person]", "--device", "cpu")  # fmt: skip
    assert "f1/f1" in json.loads((tmp_path / "results" / "metrics.json").read_text())
    apiece("report", run, "--out", tmp_path / "page")
    assert (tmp_path / "page" / "index.html").is_file()


@pytest.mark.parametrize("size", ["2b", "4b"])
def test_the_second_stage_starts_where_the_first_ends(size: str) -> None:
    first, second = (load_config(RECIPES / f"qwen3vl_{size}_coco_stage{n}.yaml").config for n in (1, 2))
    assert first.data == second.data
    assert first.prompt == second.prompt
    assert first.model.lora == second.model.lora
    assert (first.stage2_ab.b_ratio, second.stage2_ab.b_ratio) == (0.0, 0.5)
    assert (first.stage2_ab.n_softctx_iter, second.stage2_ab.n_softctx_iter) == (1, 2)
    head = (RECIPES / f"qwen3vl_{size}_coco_stage1.yaml").read_text()
    assert second.model.checkpoint in (f"runs/qwen3vl_{size}_coco_stage1", f"models/qwen3vl-{size}-stage1")
    assert second.model.checkpoint.startswith("runs") or f"--out {second.model.checkpoint}" in head


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda p: p.stem)
def test_a_recipe_says_how_it_is_run_and_that_it_was_not(path: Path) -> None:
    head = path.read_text().partition("\nextends:")[0]
    assert f"apiece train recipes/{path.stem}" in head
    assert "Hardware: " in head and "NOT YET RUN ON A GPU" in head and "ESTIMATES: " in head
