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


class _Reader(nn.Module):
    """Stands for the layers: its "hidden state" is the logits of the script's next token.

    Which row is which is kept where a real model keeps its state: in the cache. So a row that loses its place there
    loses its script.
    """

    def __init__(self, scripts: Sequence[Sequence[int]], vocabulary: int) -> None:
        super().__init__()
        self.scripts, self.vocabulary = scripts, vocabulary
        self.batch_sizes: list[int] = []

    def get_rope_index(self, ids: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return torch.zeros(3, *ids.shape, dtype=torch.int64), torch.zeros(len(ids), 1)

    def forward(self, input_ids: Tensor, past_key_values: Any, **kwargs: Any) -> Any:
        start = past_key_values.get_seq_length()
        # The prefix ends with the number of the script.
        number = input_ids[:, -1] if start == 0 else past_key_values.layers[0].keys[:, 0, 0, 0].long()
        state = number.float()[:, None, None, None].expand(-1, 1, input_ids.shape[1], 1)
        past_key_values.update(state, state, 0)
        if start == 0:
            self.prefix = input_ids.shape[1]
        step = start + input_ids.shape[1] - self.prefix
        self.batch_sizes.append(len(number))
        if step:
            assert input_ids[:, 0].tolist() == [self.scripts[n][step - 1] for n in number.tolist()]
        ids = torch.tensor([self.scripts[n][step] for n in number.tolist()])
        return SimpleNamespace(last_hidden_state=nn.functional.one_hot(ids, self.vocabulary)[:, None] * SURE)


class Scripted(nn.Module):
    """The whole model, with the little that the engine reads of it."""

    def __init__(self, scripts: Sequence[Sequence[int]], side: TextSide, config: Any) -> None:
        super().__init__()
        self.config = config
        self.model = _Reader(scripts, side.vocab.end_id)
        self.lm_head = nn.Identity()
        self.weight = nn.Parameter(torch.zeros(1))


def questions(count: int, lengths: Sequence[int] | None = None) -> list[EncodedSample]:
    """Question i asks for script i; prefixes of the given lengths (all 3 by default)."""
    pixels = np.zeros((1, 1), dtype=np.float32)
    blank = EncodedSample("", np.zeros(0, dtype=np.int64), pixels, (1, 1, 1))
    ids = [np.array([*[1] * (n - 1), i], dtype=np.int64) for i, n in enumerate(lengths or [3] * count)]
    return [replace(blank, sample_id=f"q{i}", prefix_ids=row) for i, row in enumerate(ids)]
