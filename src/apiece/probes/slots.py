"""What one slot's distribution says: spread, peaks, mass on its own and on other instances, mean against mode.

Each figure is defined in docs/guides/diagnosing.md. Arrays in, arrays out; any number of images at once.

Shapes: N objects, 4 coordinates (x1, y1, x2, y2), K bins, S any number of slots.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d

from apiece.boxes import FloatArray
from apiece.match import pairs_in_groups
from apiece.types import IntArray

SMOOTHING = 2.0
"""Sigma, in bins, of the Gaussian under which local maxima are counted."""
MODE_MASS = 0.1
"""Mass from which on a local maximum is a mode."""
_FLAT = 1e-6  # relative height below which a step of the smoothed curve is rounding, not a slope


@dataclass(frozen=True, slots=True, eq=False)
class SlotFigures:
    """The figures of N objects' slots, each `[N, 4]`.

    Attributes:
        argmax: Most likely bin.
        entropy: Nats.
        modes: Local maxima that hold `MODE_MASS` or more.
        own_mass: Mass within `reach` of the target.
        cross_instance_mass: Mass within `reach` of the same coordinate of another instance of the group only.
        exp_argmax_gap: Bins between the expectation and the most likely bin.
    """

    argmax: IntArray
    entropy: FloatArray
    modes: IntArray
    own_mass: FloatArray
    cross_instance_mass: FloatArray
    exp_argmax_gap: FloatArray


def reach(sigma: float) -> int:
    """Bins within which two values count as the same place: three times the width of the training target."""
    return int(3 * sigma + 1e-9)


def slot_figures(p_N4K: NDArray[np.floating], target_N4: IntArray, group_N: IntArray, sigma: float) -> SlotFigures:
    """All figures of the slots of N objects.

    Args:
        p_N4K: Distributions over the bins.
        target_N4: True bins.
        group_N: Objects of one image and name share a number.
        sigma: Width of the training target, bins.
    """
    p = np.asarray(p_N4K, dtype=np.float64)
    if p.shape[:2] != target_N4.shape or len(group_N) != len(p):
        raise ValueError(f"expected targets [N, 4] and groups [N] of {p.shape}, got {target_N4.shape}, {group_N.shape}")
    return SlotFigures(
        argmax=p.argmax(-1).astype(np.int64),
        entropy=entropy(p),
        modes=modes(p),
        own_mass=mass_near(p, target_N4, reach(sigma)),
        cross_instance_mass=cross_instance_mass(p, target_N4, group_N, reach(sigma)),
        exp_argmax_gap=exp_argmax_gap(p),
    )


def entropy(p_SK: FloatArray) -> FloatArray:
    """Entropy in nats, `[S]`, with any leading axes."""
    return -(p_SK * np.log(np.where(p_SK > 0, p_SK, 1.0))).sum(-1)


def exp_argmax_gap(p_SK: FloatArray) -> FloatArray:
    """Bins between the expectation and the most likely bin, `[S]`: 0 for a symmetric peak, large between two peaks."""
    expectation = p_SK @ np.arange(p_SK.shape[-1], dtype=np.float64)
    return np.abs(expectation - p_SK.argmax(-1))


def modes(p_SK: FloatArray) -> IntArray:
    """How many local maxima of the smoothed distribution hold `MODE_MASS` or more, `[S]`.

    The smoothed curve is cut at its valleys; a maximum holds the mass that the distribution itself has between its two
    cuts. A plateau is one maximum. 0 means that the mass is spread over many small bumps.
    """
    if not p_SK.size:
        return np.zeros(p_SK.shape[:-1], dtype=np.int64)
    rows = p_SK.reshape(-1, p_SK.shape[-1])
    smooth = gaussian_filter1d(rows, SMOOTHING, axis=1, mode="reflect")
    step = np.diff(np.round(smooth / (smooth.max(1, keepdims=True) * _FLAT)), axis=1)
    # The direction that holds at each step: the last one that was not flat, upwards before the first.
    place = np.where(step != 0, np.arange(step.shape[1]), -1)
    place = np.maximum.accumulate(place, axis=1)
    falling = (np.take_along_axis(step, np.maximum(place, 0), axis=1) < 0) & (place >= 0)
    valley = falling[:, :-1] & ~falling[:, 1:]
    piece = np.zeros(rows.shape, dtype=np.int64)
    piece[:, 2:] = np.cumsum(valley, axis=1)
    number = int(piece.max()) + 1
    cell = np.arange(len(rows))[:, None] * number + piece
    held = np.bincount(cell.ravel(), weights=rows.ravel(), minlength=len(rows) * number).reshape(len(rows), number)
    return (held >= MODE_MASS - 1e-9).sum(1).reshape(p_SK.shape[:-1])


def mass_near(p_SK: FloatArray, center_S: IntArray, radius: int) -> FloatArray:
    """Mass at most `radius` bins from each centre, `[S]`; any leading axes, the same of both."""
    last = p_SK.shape[-1] - 1
    summed = np.concatenate([np.zeros((*p_SK.shape[:-1], 1)), np.cumsum(p_SK, axis=-1)], axis=-1)
    low, high = np.clip(center_S - radius, 0, last), np.clip(center_S + radius, 0, last) + 1
    ends = (np.take_along_axis(summed, at[..., None], axis=-1)[..., 0] for at in (high, low))
    return next(ends) - next(ends)


def cross_instance_mass(p_N4K: FloatArray, target_N4: IntArray, group_N: IntArray, radius: int) -> FloatArray:
    """Mass near the same coordinate of another instance of the group and not near the own, `[N, 4]`.

    Bins near several others count once, so that this and `mass_near` of the target never exceed 1 together.
    """
    count, _, bins = p_N4K.shape
    low, high = np.clip(target_N4 - radius, 0, bins - 1), np.clip(target_N4 + radius, 0, bins - 1) + 1
    edges = np.zeros((count, 4, bins + 1), dtype=np.int64)
    coordinate = np.arange(4)
    for own, other in pairs_in_groups(group_N, group_N):
        own, other = own[own != other], other[own != other]
        np.add.at(edges, (own[:, None], coordinate, low[other]), 1)
        np.add.at(edges, (own[:, None], coordinate, high[other]), -1)
    near_other = np.cumsum(edges, axis=-1)[..., :-1] > 0
    index = np.arange(bins)
    near_own = (index >= low[..., None]) & (index < high[..., None])
    return (p_N4K * (near_other & ~near_own)).sum(-1)
