"""A Qwen3-VL of two layers for the tiny tokenizer, in float64 throughout, with opinions: its beliefs differ by slot."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as other_library
from transformers.models.qwen3_vl import modeling_qwen3_vl as library

from apiece.model.tiny import tiny_config
from narrow import as_qwen2_5

WIDTH = 32


def small_model(side: Any, *, tied: bool = True, seed: int = 0, layers: int = 2, family: str = "qwen3_vl") -> Any:
    """Random weights, much larger than an initialisation's, so that what stands in the input matters."""
    config: dict[str, Any] = tiny_config(len(side.tokenizer), side.tokenizer.get_vocab()).to_dict()
    config["tie_word_embeddings"] = tied
    config["text_config"] |= {
        "hidden_size": WIDTH,
        "intermediate_size": 48,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "tie_word_embeddings": tied,
    }
    config["text_config"]["rope_parameters"] |= {"mrope_section": [2, 1, 1]}
    config["vision_config"] |= {
        "depth": 2,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_heads": 2,
        "out_hidden_size": WIDTH,
        "num_position_embeddings": 16,
    }
    torch.manual_seed(seed)
    if family == "qwen2_5_vl":
        ids = {key: value for key, value in config.items() if key.endswith("_token_id")}
        text, vision = as_qwen2_5(_plain(config["text_config"]), _plain(config["vision_config"]))
        other = Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=tied, **ids)
        model = Qwen2_5_VLForConditionalGeneration._from_config(other, attn_implementation="sdpa").double()
    else:
        model = Qwen3VLForConditionalGeneration._from_config(Qwen3VLConfig(**config), attn_implementation="sdpa")
        model = model.double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            matrix = parameter.dim() > 1 and "norm" not in name
            parameter.copy_(noise * 0.3 if matrix else parameter + noise * 0.1)
    return model


def _plain(section: dict[str, Any]) -> dict[str, Any]:
    """Without what names the family."""
    return {
        key: value for key, value in section.items() if key not in ("model_type", "layer_types", "transformers_version")
    }


def _rms_norm(self: Any, hidden: Tensor) -> Tensor:
    return self.weight * (hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))


def _rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    cos, sin = cos.unsqueeze(-2).to(q.dtype), sin.unsqueeze(-2).to(q.dtype)
    return q * cos + library.rotate_half(q) * sin, k * cos + library.rotate_half(k) * sin


@contextmanager
def float64_throughout() -> Iterator[None]:
    """The library rounds to float32 in norms and in the vision tower's rotation, whatever the weights are in."""
    with (
        mock.patch.object(library.Qwen3VLTextRMSNorm, "forward", _rms_norm),
        mock.patch.object(library, "apply_rotary_pos_emb_vision", _rotate),
        mock.patch.object(other_library.Qwen2_5_VLRMSNorm, "forward", _rms_norm),
        mock.patch.object(other_library, "apply_rotary_pos_emb_vision", _rotate),
    ):
        yield
