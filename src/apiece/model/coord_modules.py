"""Embedding and head whose coordinate rows are trained while all other rows stay as they are.

The rows are a small parameter of their own, so their gradient, their optimizer state and what is saved of them are
those of 1000 rows and not of the whole table. Shapes: K bins, D width, V vocabulary, R hidden states.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, linear

from apiece.model.families import language_of


def ordinal_rows(num_bins: int, width: int, *, scale: float, mean: Tensor | None = None) -> Tensor:
    """Sinusoidal features of the bin, `[num_bins, width]`.

    Smooth in the bin, so that neighbours start close. Wavelengths run geometrically from four bins to four times the
    number of bins, so that rows say both the neighbourhood and the exact bin (Vaswani et al. 2017, section 3.5, with
    the wavelengths fitted to the grid).

    Args:
        scale: Standard deviation of the rows around `mean`: that of the rows already in the table.
        mean: `[width]` added to every row: the mean of the existing rows of a pretrained model.
    """
    half = (width + 1) // 2
    wavelengths = torch.logspace(math.log10(4.0), math.log10(4.0 * num_bins), half, dtype=torch.float64)
    phase = 2 * math.pi * torch.arange(num_bins, dtype=torch.float64)[:, None] / wavelengths
    rows = torch.stack([phase.sin(), phase.cos()], dim=-1).flatten(1)[:, :width] * math.sqrt(2) * scale
    if mean is not None:
        rows = rows + mean.double()
    return rows.float()


class CoordEmbedding(nn.Module):
    """An embedding whose rows from `first` on, those of the coordinate tokens, are replaced by `rows_KD`."""

    def __init__(self, base: nn.Embedding, first: int, rows_KD: nn.Parameter) -> None:
        super().__init__()
        self.base, self.first, self.rows = base, first, rows_KD

    def forward(self, ids: Tensor) -> Tensor:
        bins = self.rows.shape[0]
        within = (ids >= self.first) & (ids < self.first + bins)
        own = embedding((ids - self.first).clamp(0, bins - 1), self.rows)
        return torch.where(within[..., None], own, self.base(ids))


class CoordHead(nn.Module):
    """A head with other rows for the coordinate tokens; where head and embedding are tied, the two share them."""

    def __init__(self, base: nn.Linear, first: int, rows_KD: nn.Parameter) -> None:
        super().__init__()
        self.base, self.first, self.rows = base, first, rows_KD

    def forward(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self.base(hidden)
        # In place: a second copy of the logits would be the largest tensor of the step.
        logits[..., self.first : self.first + self.rows.shape[0]] = linear(hidden, self.rows)
        return logits


def separate_coord_rows(model: Any, first: int, bins: int) -> None:
    """Give a model's coordinate rows parameters of their own, starting from what they are."""
    head, table = model.lm_head, model.get_input_embeddings()
    rows_KD = nn.Parameter(table.weight.detach()[first : first + bins].clone())
    tied = head.weight is table.weight
    head_KD = rows_KD if tied else nn.Parameter(head.weight.detach()[first : first + bins].clone())
    language_of(model).embed_tokens = CoordEmbedding(table, first, rows_KD)
    model.lm_head = CoordHead(head, first, head_KD)


def coord_rows(model: Any, first: int, bins: int) -> tuple[Tensor, Tensor]:
    """The coordinate tokens' rows of head and embedding, `[K, D]` each; one tensor where the two are tied.

    To be called once a step: where rows are cut out of a table, the gradient of each cut is as large as the table.
    """
    head, table = model.lm_head, model.get_input_embeddings()
    if isinstance(table, CoordEmbedding):
        return head.rows, table.rows
    head_KD = head.weight[first : first + bins]
    return head_KD, head_KD if head.weight is table.weight else table.weight[first : first + bins]
