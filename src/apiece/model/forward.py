"""One teacher-forced pass: hidden states at the rows that predict the answer, and logits where a loss reads them.

Shapes: B samples, P prefix tokens, T answer tokens, D width, V vocabulary, K bins, S slots, R text rows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from apiece.data.collate import Batch, Prefix


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


def answer_hidden(model: Any, batch: Batch) -> Tensor:
    """Hidden states `[B, T, D]`: row t is the one that predicts answer token t.

    This is the only place where the shift between a token and the row of its logits is made.
    """
    prefix = batch.prefix
    length = prefix.ids.shape[1]
    # Right padding needs no mask under causal attention, so one is built only where a prefix is padded.
    mask = None if bool(prefix.mask.all()) else torch.cat([prefix.mask, batch.answer_mask], dim=1)
    out = model.model(
        input_ids=torch.cat([prefix.ids, batch.answer_ids], dim=1),
        attention_mask=mask,
        position_ids=rope_positions(model, prefix, batch.answer_ids.shape[1]),
        pixel_values=prefix.pixel_values,
        image_grid_thw=prefix.grid_thw,
        mm_token_type_ids=torch.nn.functional.pad(prefix.image_mask, (0, batch.answer_ids.shape[1])).int(),
        use_cache=False,
    )
    hidden: Tensor = out.last_hidden_state[:, length - 1 : -1]
    return hidden


def coord_logits(model: Any, hidden_SD: Tensor, first_id: int, num_bins: int) -> Tensor:
    """Logits `[S, K]` of the coordinate tokens alone."""
    return torch.nn.functional.linear(hidden_SD, model.lm_head.weight[first_id : first_id + num_bins])
