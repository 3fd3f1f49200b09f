"""A distribution over the bins in a few bytes: at most 64 cells, each the square root of its mass in one byte.

Shapes: K bins.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from apiece.boxes import FloatArray

MAX_CELLS = 64
"""Bytes of a curve at most."""
LEVELS = 255
"""The byte of the greatest cell."""
TAIL = 1e-3
"""Cells below this share of the peak may be left out at both ends."""


def encode_curve(mass_K: ArrayLike) -> dict[str, Any] | None:
    """Pack a distribution, as docs/records.md describes it.

    Cells are as wide as they must be for `MAX_CELLS` to hold all that is not tail, and lie on a grid from bin 0.

    Args:
        mass_K: `[K]` masses, not negative.

    Returns:
        `start`, `step`, `peak` and `values`; `None` where there is no distribution (not finite, negative, or all 0).
    """
    mass = np.asarray(mass_K, dtype=np.float64)
    if mass.ndim != 1:
        raise ValueError(f"a distribution must have shape [K], got {list(mass.shape)}")
    if not np.isfinite(mass).all() or (mass < 0).any() or not mass.any():
        return None
    step = 0
    while True:
        step += 1
        cells = np.add.reduceat(mass, np.arange(0, len(mass), step))
        peak = cells.max()
        inside = np.flatnonzero(cells >= TAIL * peak)
        first, last = inside[0], inside[-1]
        if last - first < MAX_CELLS:
            break
    values = np.rint(LEVELS * np.sqrt(cells[first : last + 1] / peak)).astype(np.uint8)
    return {
        "start": int(first * step),
        "step": step,
        "peak": float(f"{peak:.6g}"),
        "values": base64.b64encode(values.tobytes()).decode("ascii"),
    }


def decode_curve(curve: Mapping[str, Any], num_bins: int) -> FloatArray:
    """The masses `[K]` of a packed distribution; each cell's mass is spread evenly over its bins.

    Raises:
        ValueError: It is not a curve over `num_bins` bins.
    """
    try:
        start, step, peak = int(curve["start"]), int(curve["step"]), float(curve["peak"])
        values = np.frombuffer(base64.b64decode(curve["values"], validate=True), dtype=np.uint8)
    except (KeyError, TypeError, ValueError, OverflowError, binascii.Error) as error:
        raise ValueError(f"not a curve: {error!r}") from error
    # The last cell may reach beyond the last bin.
    if not (start >= 0 and step >= 1 and start + (len(values) - 1) * step < num_bins and len(values) <= MAX_CELLS):
        raise ValueError(
            f"not a curve over {num_bins} bins: start {start}, step {step}, {len(values)} values (at most {MAX_CELLS})"
        )
    if not (np.isfinite(peak) and peak >= 0):
        raise ValueError(f"the peak of a curve must be a finite mass, got {peak}")
    mass_K = np.zeros(num_bins)
    for cell, mass in enumerate((values / LEVELS) ** 2 * peak):
        left, right = start + cell * step, min(start + (cell + 1) * step, num_bins)
        mass_K[left:right] = mass / (right - left)
    return mass_K
