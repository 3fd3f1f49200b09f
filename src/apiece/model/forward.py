"""Rotary positions of a batch: always handed to the model, never left for it to find.

Shapes: B samples, P prefix tokens, T answer tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from apiece.data.collate import Prefix


def rope_positions(model: Any, prefix: Prefix, num_answer: int) -> Tensor:
    """Three-axis rotary positions `[3, B, P + T]` of the prefix and `num_answer` text tokens behind it.

    They are always passed: the model drops to plain positions silently where it is left to find them by itself.
    """
    positions, _ = model.model.get_rope_index(
        prefix.ids, prefix.image_mask.int(), image_grid_thw=prefix.grid_thw, attention_mask=prefix.mask.int()
    )
    start = positions.amax(dim=(0, 2)) + 1
    answer = start[:, None] + torch.arange(num_answer, device=start.device)
    return torch.cat([positions, answer.expand(3, -1, -1)], dim=2)
