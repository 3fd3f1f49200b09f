"""Short stretches of answers run again with other tokens in place, all at once: each sees only what stood before it.

What an object's own slots say depends on nothing behind them, so for a change in one object only the tokens of its own
box need to run again: for all objects of all samples of a batch in one pass, kept apart by the attention mask.

Shapes: B samples, N windows, L tokens of a window, W tokens of all windows of a sample, M positions of the first pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from apiece.model.families import language_of
from apiece.model.prefix import FirstPass, ReadPrefix, run_layers


def window_pass(model: Any, first: FirstPass, embeds_NLD: Tensor, sample_N: Tensor, start_N: Tensor) -> Tensor:
    """Run windows of the answers again.

    Args:
        model: In evaluation mode.
        first: Of the same batch.
        embeds_NLD: Input embeddings of each window.
        sample_N: Which sample it is of.
        start_N: Index of its first token in the answer.

    Returns:
        Hidden states `[N, L, D]` after the final norm: row i predicts the token behind the window's token i.
    """
    (length, width), device = embeds_NLD.shape[1:], embeds_NLD.device
    samples, most = first.embeds_BTD.shape[0], int(torch.bincount(sample_N).max())
    place_N = _places(sample_N)
    embeds = embeds_NLD.new_zeros(samples, most, length, width)
    embeds[sample_N, place_N] = embeds_NLD
    begin = torch.zeros(samples, most, dtype=torch.int64, device=device)
    prefix = first.positions.shape[2] - (first.embeds_BTD.shape[1] - 1)
    begin[sample_N, place_N] = prefix + start_N
    total = first.positions.shape[2]
    within = (begin[..., None] + torch.arange(length, device=device)).view(samples, -1)
    positions = first.positions.gather(2, within.clamp_max(total - 1).expand(3, -1, -1))
    with _dense_attention(model):
        hidden = run_layers(
            model,
            embeds.view(samples, most * length, width),
            positions,
            _mask(first.key_mask, begin, length, total),
            ReadPrefix(first.kept, None),
        )
    hidden = language_of(model).norm(hidden).view(samples, most, length, width)
    return hidden[sample_N, place_N]


def _places(sample_N: Tensor) -> Tensor:
    """Number of each window among those of its sample, `[N]`, in order."""
    same = sample_N[:, None] == sample_N[None]
    return same.tril(-1).sum(1)


def _mask(key_mask: Tensor | None, begin: Tensor, length: int, total: int) -> Tensor:
    """`[B, 1, W, M + W]`: what stood before the window, and the window itself up to the token."""
    samples, most = begin.shape
    before = torch.arange(total, device=begin.device) < begin[..., None]
    if key_mask is not None:
        before = before & key_mask[:, None]
    before = before.repeat_interleave(length, dim=1)
    own = torch.eye(most, dtype=torch.bool, device=begin.device)
    causal = torch.ones(length, length, dtype=torch.bool, device=begin.device).tril()
    inside = (own[:, None, :, None] & causal[None, :, None, :]).reshape(most * length, most * length)
    return torch.cat([before, inside.expand(samples, -1, -1)], dim=2)[:, None]


@contextmanager
def _dense_attention(model: Any) -> Iterator[None]:
    """FlashAttention takes no mask of its own shape: windows run under the one that every build has."""
    config = model.config.text_config
    before = config._attn_implementation
    if before.startswith("flash"):
        config._attn_implementation = "sdpa"
    try:
        yield
    finally:
        config._attn_implementation = before
