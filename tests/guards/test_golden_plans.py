"""`apiece plan` on every recipe says what it said: parameters, tokens and FLOPs exactly, memory within 15 %."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from guarding import GOLDEN, HERE, PINNING, REPOSITORY, CommandLine, fails, leaves

GOLDEN_PLANS = GOLDEN / "plans.json"
MEMORY = {"rel_tol": 0.15, "abs_tol": 2**20}
CONFIGS = REPOSITORY / "configs"
KNOBS = ("desc_first_a_only", "desc_first_a_only_n1", "desc_first_a_only_n4", "ab_mixed", "b_only", "recommended")
"""Of `stage2_two_channel/prod`: the others differ in losses, which no plan counts."""
OF_4B = [CONFIGS / "stage2_two_channel" / "prod" / f"{name}.yaml" for name in KNOBS]
RECIPES = sorted((CONFIGS / "recipes").glob("*.yaml"))
TINY = HERE / "runs" / "old" / "checkpoints" / "step_000006" / "model"
TEXT_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
PATCHES = {"image_processor_type": "Qwen2VLImageProcessor", "patch_size": 16, "merge_size": 2}
OBJECTS = (0, 3, 12, 7, 5, 1, 30, 2)
"""On each image of the data."""


@pytest.fixture
def models(apiece: CommandLine) -> Path:
    """Folders `2b` and `4b`: the published sizes with the embedded checkpoint's tokenizer, without weights."""
    for name in ("2b", "4b"):
        (folder := apiece.folder / name).mkdir()
        config = json.loads((HERE / "models" / f"{name}.json").read_text(encoding="utf-8"))
        config["image_token_id"] = json.loads((TINY / "config.json").read_text(encoding="utf-8"))["image_token_id"]
        (folder / "config.json").write_text(json.dumps(config))
        for file in TEXT_FILES:
            (folder / file).write_bytes((TINY / file).read_bytes())
        (folder / "preprocessor_config.json").write_text(json.dumps(PATCHES))
    return apiece.folder


def write_data(path: Path) -> Path:
    """Images that do not exist, with objects."""
    lines = []
    for index, count in enumerate(OBJECTS):
        boxes = [{"desc": "person" if k % 2 else "traffic light", "bbox": [k, 3, k + 9, 30]} for k in range(count)]
        record = {"image": f"{index}.png", "width": 640 + 16 * index, "height": 480, "objects": boxes}
        lines.append(json.dumps(record) + "\n")
    path.write_text("".join(lines))
    return path


def key_figures(plan: dict[str, Any]) -> dict[str, Any]:
    """What is held of a plan."""
    steps = {
        step["kind"]: {"in_this_run": step["in_this_run"], "flops": step["flops"], "memory": step["memory"]["total"]}
        for step in plan["steps"]
    }
    return {
        "parameters": {key: plan["parameters"][key] for key in ("all", "trained")},
        "tokens": plan["samples"]["tokens"],
        "steps": steps,
    }


def same(key: str, golden: Any, found: Any) -> bool:
    """Whether a figure is the golden one, or memory near it."""
    if key.endswith(".memory") and isinstance(golden, float | int) and isinstance(found, float | int):
        return math.isclose(golden, found, **MEMORY)
    return repr(golden) == repr(found)


@pytest.mark.slow
def test_plans_of_the_recipes(apiece: CommandLine, models: Path) -> None:
    data = write_data(models / "data.jsonl")
    found = {}
    for config in [*RECIPES, *OF_4B]:
        model = models / ("2b" if "2b" in config.stem else "4b")
        settings = (f"model.checkpoint={model}", f"data.train={data}", f"data.eval={data}")
        apiece("plan", config, *settings, "--gpu", "h200:8", "--json", "plan.json")
        found[config.stem] = key_figures(json.loads((models / "plan.json").read_text(encoding="utf-8")))
    if PINNING:
        GOLDEN_PLANS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        return
    golden = json.loads(GOLDEN_PLANS.read_text(encoding="utf-8"))
    new = dict(leaves(found))
    told = [
        f"{k}: {v!r} -> {new.get(k, 'gone')!r}" for k, v in leaves(golden) if k not in new or not same(k, v, new[k])
    ]
    if told:
        fails(GOLDEN_PLANS, told)
