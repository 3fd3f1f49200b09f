"""Arithmetic of a Qwen3-VL by count, without running it: multiplications and additions of its matrices and attention.

Norms, activations and rotations are left out: they are small.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig

from apiece.model.find import resolve_checkpoint
from apiece.model.load import SUPPORTED


def empty_model(checkpoint: str) -> Any:
    """The model of a checkpoint without memory for its weights: to be counted, not run."""
    config = AutoConfig.from_pretrained(resolve_checkpoint(checkpoint))
    with torch.device("meta"):
        return SUPPORTED[config.model_type]._from_config(config)


@dataclass(frozen=True)
class Counts:
    """FLOPs of one forward pass through parts of a model; a multiplication and an addition are two."""

    model: Any
    _linear: dict[str, int] = field(default_factory=dict)

    def vision(self, grid_thw: Sequence[tuple[int, int, int]]) -> float:
        """The tower and its mergers; every image attends to itself."""
        tower = self.model.model.visual
        mergers = [tower.merger, *tower.deepstack_merger_list]
        merged = tower.spatial_merge_size**2
        patches = [t * h * w for t, h, w in grid_thw]
        each = self._weights("blocks", tower.blocks) + tower.patch_embed.proj.weight.numel()
        dense = 2 * sum(patches) * (each + sum(linear_weights(m) for m in mergers) / merged)
        return dense + 4 * tower.config.hidden_size * tower.config.depth * sum(n * n for n in patches)

    def language(self, queries: int, before: int) -> float:
        """The layers, for `queries` tokens behind `before` tokens that are cached or computed already."""
        language = self.model.model.language_model
        config = language.config
        pairs = queries * before + queries * (queries + 1) / 2
        width = config.num_attention_heads * config.head_dim
        return 2 * queries * self._weights("language", language.layers) + 4 * width * config.num_hidden_layers * pairs

    def head(self, rows: float) -> float:
        """Logits of `rows` hidden states over the whole vocabulary."""
        return 2.0 * rows * self.model.lm_head.weight.numel()

    @property
    def vocabulary(self) -> int:
        """Rows of the head."""
        return int(self.model.lm_head.weight.shape[0])

    def _weights(self, name: str, module: nn.Module) -> int:
        if name not in self._linear:
            self._linear[name] = linear_weights(module)
        return self._linear[name]


def linear_weights(module: nn.Module) -> int:
    """Numbers in the weight matrices of all linear layers inside."""
    return sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.Linear))
