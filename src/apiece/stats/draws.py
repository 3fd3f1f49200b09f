"""Bootstrap draws, made here alone: images with replacement, blocks of logged steps, whole units such as arms.

Equal seeds give equal draws in every command, so a figure of the same images has one interval wherever it stands.

Shapes: I images, R logged steps, B draws, U units, K figures.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from apiece.boxes import FloatArray
from apiece.stats.ratio import Ratio

DRAWS = 1000


def image_draws(images: int, draws: int = DRAWS, seed: int = 0) -> NDArray[np.uint16]:
    """`[B, I]` how often each image is in each draw."""
    if not images:
        return np.zeros((draws, 0), dtype=np.uint16)
    rng = np.random.default_rng([seed, 0])
    return rng.multinomial(images, np.full(images, 1 / images), size=draws).astype(np.uint16)


def seeds_rng(seed: int, key: str) -> np.random.Generator:
    """Draws the training seeds for one figure: its interval does not depend on which others are computed."""
    return np.random.default_rng([seed, 1, zlib.crc32(key.encode())])


def block_draws(rows: int, length: int, draws: int = DRAWS, seed: int = 0) -> FloatArray:
    """`[B, R]` shares of the rows in each draw: blocks of `length` rows from anywhere, the end joined to the start.

    For logged values that share steps with their neighbours (circular block bootstrap, Politis and Romano 1992).
    """
    rng = np.random.default_rng([seed, 2])
    blocks = math.ceil(rows / length)
    start = rng.integers(rows, size=(draws, blocks))
    taken = (start[:, :, None] + np.arange(length)) % rows
    counts = np.zeros((draws, rows))
    np.add.at(counts, (np.arange(draws)[:, None, None], taken), 1.0)
    return counts / (blocks * length)


def unit_draws(units: int, draws: int = DRAWS) -> NDArray[np.int64]:
    """`[B, U]` numbers of the units in each draw."""
    return np.random.default_rng(0).integers(units, size=(draws, units))


class RatioDraws(NamedTuple):
    """A ratio drawn: its value, `[B]` its values in the draws, `[I]` the images it rests on, `[I]` their numerators."""

    point: float
    draws: FloatArray
    bearing: NDArray[np.bool_]
    part: FloatArray | None = None


def draw_ratios(ratios: Iterable[Ratio], weights: NDArray[np.generic]) -> list[RatioDraws]:
    """Every ratio in every draw, NaN where there is nothing to divide.

    Args:
        ratios: K, all of the same I images.
        weights: `[B, I]` how often each image is in each draw.
    """
    ratios = list(ratios)
    if not ratios:
        return []
    floats = weights.astype(np.float64)
    part = floats @ np.stack([ratio.part for ratio in ratios], axis=1)
    whole = floats @ np.stack([ratio.whole for ratio in ratios], axis=1)
    values = np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)
    return [RatioDraws(r.value, values[:, i], r.whole > 0, r.part) for i, r in enumerate(ratios)]
