"""The sizes of a Qwen3-VL or Qwen2.5-VL, counted on the model's own class without memory for its weights."""

from __future__ import annotations

from collections import Counter
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from apiece.codec.bins import NUM_BINS
from apiece.config.schema import Part
from apiece.model.families import FAMILIES, count_parameters, part_of
from apiece.model.load import read_model_config, reading


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a model."""

    config: Any
    parameters: dict[Part, int]  # by part; a head that is the embedding is counted once
    # numbers in the weight matrices of linear layers, by part; the head is of the part `coord`
    matrices: dict[Part, int]
    sides: dict[Part, int]  # inputs plus outputs of these layers: the parameters of an adapter of rank 1
    outputs: dict[Part, int]  # their outputs alone

    @classmethod
    def of(cls, config: Any, where: Path | str = "config.json", rows: int | None = None) -> ModelShape:
        """The sizes of a model with this config, or with another number of rows in its embedding."""
        config = deepcopy(config)
        if rows is not None:
            config.text_config.vocab_size = rows
        fix = "copy config.json from the original model again"
        with reading(Path(where), "the model cannot be built", fix), torch.device("meta"):
            model = FAMILIES[config.model_type].model_class(config)
        parameters = {part: total for part, (_, total) in count_parameters(model).items()}
        matrices, sides, outputs = Counter[Part](), Counter[Part](), Counter[Part]()
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear):
                part = part_of(name)
                matrices[part] += module.weight.numel()
                sides[part] += module.in_features + module.out_features
                outputs[part] += module.out_features
        return cls(config, parameters, matrices, sides, outputs)

    @classmethod
    def read(cls, folder: Path, rows: int | None = None) -> ModelShape:
        """The sizes of the checkpoint in a folder; its weights may be missing."""
        config = read_model_config(folder)
        return cls.of(config, folder / "config.json", rows)

    @property
    def vision(self) -> Any:
        return self.config.vision_config

    @property
    def text(self) -> Any:
        return self.config.text_config

    @property
    def tied(self) -> bool:
        return bool(self.config.tie_word_embeddings)

    @property
    def coordinate_rows(self) -> int:
        """Parameters in the rows of the coordinate tokens, which are part of the table."""
        return NUM_BINS * self.text.hidden_size * (1 if self.tied else 2)

    @property
    def table(self) -> int:
        return int(self.text.vocab_size * self.text.hidden_size)

    @property
    def query_width(self) -> int:
        """Width of a token's queries."""
        t = self.text
        return int(t.num_attention_heads * (getattr(t, "head_dim", None) or t.hidden_size // t.num_attention_heads))

    @property
    def key_width(self) -> int:
        """Width of a token's keys, and of its values."""
        return int(self.query_width // self.text.num_attention_heads * self.text.num_key_value_heads)

    @property
    def patch_values(self) -> int:
        v = self.vision
        return int(v.in_channels * v.temporal_patch_size * v.patch_size**2)

    @property
    def merged(self) -> int:
        """Width of the patches of an image token, side by side."""
        return int(self.vision.hidden_size * self.vision.spatial_merge_size**2)

    @property
    def mergers(self) -> int:
        """One after the last block, one for each deep-stack output."""
        return 1 + len(getattr(self.vision, "deepstack_visual_indexes", ()))

    @property
    def gated(self) -> bool:
        """Whether this is a Qwen2.5-VL: a gate in the tower's MLP, windows, no norms of queries and keys."""
        return hasattr(self.vision, "window_size")

    @property
    def windows(self) -> tuple[int, int]:
        """Side in patches of the windows that most blocks attend in, and how many blocks see the whole image."""
        v = self.vision
        if not self.gated:
            return 0, v.depth
        # Windows are whole image tokens, as the library cuts them.
        side = v.window_size // v.patch_size // v.spatial_merge_size * v.spatial_merge_size
        return side, len(v.fullatt_block_indexes)
