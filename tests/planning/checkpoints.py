"""Checkpoint folders for the planner: config and tokenizer, no weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from published import published_config
from transformers import Qwen2VLImageProcessorPil

TEXT_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "preprocessor_config.json")


def text_files(source: Path, folder: Path) -> None:
    """Copy the text side of a checkpoint, and not its weights."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in TEXT_FILES:
        if (source / name).is_file():
            shutil.copy(source / name, folder / name)


def without_weights(source: Path, folder: Path) -> Path:
    """A checkpoint's folder as it is before the weights are downloaded."""
    text_files(source, folder)
    shutil.copy(source / "config.json", folder / "config.json")
    return folder


def published_with_tiny_text(name: str, tiny: Path, folder: Path) -> Path:
    """A full-size model's config with the tiny tokenizer, and the image placeholder of that."""
    text_files(tiny, folder)
    Qwen2VLImageProcessorPil(patch_size=16, merge_size=2).save_pretrained(folder)
    config: dict[str, Any] = published_config(name).to_dict()
    config["image_token_id"] = json.loads((tiny / "config.json").read_text())["image_token_id"]
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def write_data(path: Path, objects: list[int], size_wh: tuple[int, int] = (96, 80)) -> Path:
    """A data file with these numbers of objects on its images, which do not exist."""
    lines = []
    for index, count in enumerate(objects):
        boxes = [{"desc": "person" if k % 2 else "traffic light", "bbox": [k, 3, k + 9, 30]} for k in range(count)]
        record = {
            "image": f"{index}.png",
            "width": size_wh[0] + 16 * (index % 3),
            "height": size_wh[1],
            "objects": boxes,
        }
        lines.append(json.dumps(record))
    path.write_text("".join(f"{line}\n" for line in lines))
    return path
