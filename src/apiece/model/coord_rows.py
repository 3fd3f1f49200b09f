"""First values of the coordinate rows of an embedding: smooth in the bin, so that neighbours start close."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def ordinal_rows(num_bins: int, width: int, *, scale: float, mean: Tensor | None = None) -> Tensor:
    """Sinusoidal features of the bin, `[num_bins, width]`.

    Wavelengths run geometrically from four bins to four times the number of bins, so that the rows tell both the
    neighbourhood and the exact bin (Vaswani et al. 2017, section 3.5, with the wavelengths fitted to the grid).

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
