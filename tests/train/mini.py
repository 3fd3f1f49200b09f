"""A checkpoint of a Qwen3-VL of two narrow layers, for runs that are started many times: a step takes milliseconds."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "channels"))

import torch
from small import small_model

from apiece.model.load import load_text_side, save_pretrained


def write_mini(folder: Path) -> Path:
    """Write the checkpoint; it speaks the embedded model's language."""
    side = load_text_side("tiny")
    model = small_model(side).to(torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= (
                0.3  # the model of the other tests is opinionated: in float32 and for training it is too much so
            )
    model.config.dtype = torch.float32
    save_pretrained(model, side.tokenizer, side.images.processor, folder)
    return folder
