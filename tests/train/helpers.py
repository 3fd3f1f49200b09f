"""Small runs for the tests of training: a few scenes, a random tiny model, float32."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from apiece.config.resolve import load_config
from apiece.config.schema import Config
from apiece_scenes.scene import SceneSettings
from apiece_scenes.write import write_scenes

TOOLS = Path(__file__).parents[2] / "tools"
sys.path.insert(0, str(TOOLS))
LORA: dict[str, Any] = {"model__lora__rank": 4, "model__gradient_checkpointing": True, "train__steps": 4}
BOTH: dict[str, Any] = {
    "stage2_ab__b_ratio": 0.5,
    "stage2_ab__b_redundancy_weight": 1.0,
    "generate__max_objects": 4,
    "generate__max_new_tokens": 60,
}


def small_scenes(folder: Path, n: int = 12) -> Path:
    write_scenes(folder, n, SceneSettings(size=96), seed=3)
    return folder / "complete.jsonl"


def small_config(root: Path, checkpoint: Path, data: Path, **changes: Any) -> Config:
    settings = {
        "model.checkpoint": checkpoint,
        "model.precision": "fp32",
        "data.train": data,
        "data.workers": 0,
        "run.dir": root / "runs",
        "optim.lr": 1e-3,
        "optim.warmup_steps": 2,
        "train.steps": 6,
        "train.batch_size": 4,
        "train.log_every": 1,
        "train.device": "cpu",
    }
    settings |= {key.replace("__", "."): value for key, value in changes.items()}
    return load_config(None, [f"{key}={value}" for key, value in settings.items()]).config
