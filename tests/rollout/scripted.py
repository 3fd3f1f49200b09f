"""A model that writes what it is told to: each row of a batch follows its own script of ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from apiece.data.collate import EncodedSample
from apiece.model.load import TextSide

SURE = 50.0


class Scripted(nn.Module):
    """The whole model, with the little that the engine reads of it.

    Its "logits" are those of the script's next token. Which script a row follows is kept where a real model keeps its
    state, in the cache, so a row that loses its place there loses its script; how far it is, the positions say.
    """

    def __init__(self, scripts: Sequence[Sequence[int]], side: TextSide, config: Any) -> None:
        super().__init__()
        self.config = config
        self.scripts, self.vocabulary = scripts, max(side.vocab.end_id, side.renderer.eos_id + 1)
        self.batch_sizes: list[int] = []
        self.model = SimpleNamespace(get_rope_index=self._get_rope_index)
        self.lm_head = nn.Identity()
        self.weight = nn.Parameter(torch.zeros(1))
        self.prefix = 0
        self.check = True

    def _get_rope_index(self, ids: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """All of the prefix at position 0, so that script token i stands at position i + 1."""
        self.prefix = ids.shape[1]
        return torch.zeros(3, *ids.shape, dtype=torch.int64), torch.zeros(len(ids), 1)

    def forward(self, input_ids: Tensor, position_ids: Tensor, past_key_values: Any, **kwargs: Any) -> Any:
        reads_prefix = "pixel_values" in kwargs
        # The prefix ends with the number of the script.
        number = input_ids[:, self.prefix - 1] if reads_prefix else torch.zeros(len(input_ids))
        state = number.float()[:, None, None, None].expand(-1, 1, input_ids.shape[1], 1)
        for layer in range(self.config.text_config.num_hidden_layers):
            kept, _ = past_key_values.update(state, state, layer)
        if not reads_prefix:
            self.batch_sizes.append(len(input_ids))
        scripts = kept[:, 0, self.prefix - 1 if reads_prefix else 0, 0].long().tolist()
        at = position_ids[0]
        if self.check and not reads_prefix:
            # What follows the first token may be a wrong guess.
            assert input_ids[:, 0].tolist() == [self.scripts[n][p - 1] for n, p in zip(scripts, at[:, 0], strict=True)]
        lines = zip(scripts, at.tolist(), strict=True)
        ids = torch.tensor([[self.scripts[n][min(p, len(self.scripts[n]) - 1)] for p in line] for n, line in lines])
        logits = nn.functional.one_hot(ids, self.vocabulary) * SURE
        keep = kwargs.get("logits_to_keep", 0)
        return SimpleNamespace(logits=self.lm_head(logits[:, -keep:] if keep else logits))


def questions(count: int, lengths: Sequence[int] | None = None) -> list[EncodedSample]:
    """Question i asks for script i; prefixes of the given lengths (all 3 by default)."""
    pixels = np.zeros((1, 1), dtype=np.float32)
    blank = EncodedSample("", np.zeros(0, dtype=np.int64), pixels, (1, 1, 1))
    ids = [np.array([*[1] * (n - 1), i], dtype=np.int64) for i, n in enumerate(lengths or [3] * count)]
    return [replace(blank, sample_id=f"q{i}", prefix_ids=row) for i, row in enumerate(ids)]
