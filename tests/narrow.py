"""A Qwen3-VL with random weights, as narrow as it gets, but with the patches of the published ones: merged 2 x 2,
two frames deep, with deep-stack features. What `extend` starts from, without any download.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from apiece.model.load import save_pretrained

WIDTH = 32
PATCH, MERGE = 12, 2


def without_coords(tiny_checkpoint: Path, folder: Path) -> PreTrainedTokenizerFast:
    """The tiny tokenizer before its coordinate tokens were added."""
    spec = json.loads((tiny_checkpoint / "tokenizer.json").read_text())
    spec["added_tokens"] = [t for t in spec["added_tokens"] if not t["content"].startswith("<|coord_")]
    file = folder / "narrow_tokenizer.json"
    file.write_text(json.dumps(spec))
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(file), eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = (tiny_checkpoint / "chat_template.jinja").read_text()
    return tokenizer


def as_qwen2_5(text: dict[str, Any], vision: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The same sizes for the other family: no head width, no deep stack, windows in the tower."""
    rope = {k: v for k, v in text["rope_parameters"].items() if k != "mrope_interleaved"}
    text = {k: v for k, v in text.items() if k != "head_dim"} | {"rope_parameters": rope}
    own = ("num_position_embeddings", "deepstack_visual_indexes")
    vision = {k: v for k, v in vision.items() if k not in own} | {
        "window_size": 2 * vision["patch_size"] * vision["spatial_merge_size"],
        "fullatt_block_indexes": [vision["depth"] - 1],
    }
    return text, vision


def write_narrow(
    tokenizer: Any,
    rows: int,
    tied: bool,
    out: Path,
    dtype: torch.dtype = torch.bfloat16,
    *,
    family: str = "qwen3_vl",
    context: int = 512,
) -> None:
    """Save a random model of `rows` embedding rows with this tokenizer."""
    vocabulary = tokenizer.get_vocab()
    text = {
        "vocab_size": rows,
        "hidden_size": WIDTH,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "max_position_embeddings": context,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": [4, 2, 2],
            "mrope_interleaved": True,
        },
        "tie_word_embeddings": tied,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {
        "depth": 2,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 1,
        "patch_size": PATCH,
        "spatial_merge_size": MERGE,
        "temporal_patch_size": 2,
        "out_hidden_size": WIDTH,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0],
    }
    names = ("image_pad", "video_pad", "vision_start", "vision_end")
    image, video, start, end = (vocabulary[f"<|{name}|>"] for name in names)
    config_class, model_class = Qwen3VLConfig, Qwen3VLForConditionalGeneration
    if family == "qwen2_5_vl":
        config_class, model_class = Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
        text, vision = as_qwen2_5(text, vision)
    config = config_class(
        text_config=text,
        vision_config=vision,
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
        tie_word_embeddings=tied,
    )
    torch.manual_seed(0)
    model = model_class(config).to(dtype)
    with torch.no_grad():  # rows of pretrained models are neither centred nor of the initial size
        model.get_input_embeddings().weight.mul_(1.5).add_(0.01)
        if not tied:
            model.get_output_embeddings().weight.mul_(3).sub_(0.02)
        for table in (model.get_input_embeddings().weight, model.get_output_embeddings().weight):
            table[len(tokenizer) :] = 5.0  # padding is no token: it must not count in means
    processor = Qwen2VLImageProcessorPil(
        patch_size=PATCH,
        temporal_patch_size=2,
        merge_size=MERGE,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        size={"shortest_edge": (PATCH * MERGE) ** 2, "longest_edge": 192 * 192},
    )
    save_pretrained(model, tokenizer, processor, out)
