"""The sizes of published models, as their config.json files give them, without weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import Qwen2_5_VLConfig, Qwen3VLConfig

# name: (width, inner, layers, heads, tied), (vision depth, width, inner, deep-stack blocks)
_SIZES: dict[str, tuple[tuple[int, int, int, int, bool], tuple[int, int, int, list[int]]]] = {
    "2b": ((2048, 6144, 28, 16, True), (24, 1024, 4096, [5, 11, 17])),
    "4b": ((2560, 9728, 36, 32, True), (24, 1024, 4096, [5, 11, 17])),
    "8b": ((4096, 12288, 36, 32, False), (27, 1152, 4304, [8, 16, 24])),
}
# Of Qwen2.5-VL: width, inner, layers, heads, key heads, vocabulary, tied.
_OTHER_SIZES = {
    "2.5-3b": (2048, 11008, 36, 16, 2, 151936, True),
    "2.5-7b": (3584, 18944, 28, 28, 4, 152064, False),
}
NAMES, OTHER_NAMES = tuple(_SIZES), tuple(_OTHER_SIZES)


def published_config(name: str) -> Any:
    """The config of a published model."""
    if name in _OTHER_SIZES:
        return Qwen2_5_VLConfig(**flat_config(name))
    (width, inner, layers, heads, tied), (depth, vision_width, vision_inner, deepstack) = _SIZES[name]
    text = {
        "vocab_size": 151936,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 262144,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 5e6,
            "mrope_section": [24, 20, 20],
            "mrope_interleaved": True,
        },
        "tie_word_embeddings": tied,
    }
    vision = {
        "depth": depth,
        "hidden_size": vision_width,
        "intermediate_size": vision_inner,
        "num_heads": 16,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "out_hidden_size": width,
        "num_position_embeddings": 2304,
        "deepstack_visual_indexes": deepstack,
    }
    return Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=tied)


def flat_config(name: str) -> dict[str, Any]:
    """The config.json of a published Qwen2.5-VL, whose language model has no section of its own."""
    width, inner, layers, heads, kv_heads, vocabulary, tied = _OTHER_SIZES[name]
    return {
        "model_type": "qwen2_5_vl",
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary,
        "max_position_embeddings": 128000,
        "rope_theta": 1e6,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "tie_word_embeddings": tied,
        "use_sliding_window": False,
        "vision_config": {
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 112,
            "fullatt_block_indexes": [7, 15, 23, 31],
            "out_hidden_size": width,
        },
    }


def write_published(name: str, folder: Path) -> dict[str, Any]:
    """Write config.json alone."""
    folder.mkdir(parents=True, exist_ok=True)
    config: dict[str, Any] = published_config(name).to_dict()
    (folder / "config.json").write_text(json.dumps(config))
    return config
