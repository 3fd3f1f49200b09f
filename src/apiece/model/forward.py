"""Rotary positions of a batch: always handed to the model, never left for it to find.

Shapes: B samples, P prefix tokens, T answer tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from apiece.data.collate import Prefix
from apiece.model.families import family_of


def rope_positions(model: Any, prefix: Prefix, num_answer: int) -> Tensor:
    """Three-axis rotary positions `[3, B, P + T]` of the prefix and `num_answer` text tokens behind it.

    They are always passed: the model drops to plain positions silently where it is left to find them by itself.
    """
    positions = family_of(model).rope_positions(model, prefix)
    start = positions.amax(dim=(0, 2)) + 1
    answer = start[:, None] + torch.arange(num_answer, device=start.device)
    return torch.cat([positions, answer.expand(3, -1, -1)], dim=2)
