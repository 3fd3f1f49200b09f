"""All bootstrap draws: images with replacement, blocks of logged steps, whole units such as arms.

Equal seeds give equal draws in every command, so a figure of the same images has the same interval everywhere.

Shapes: I images, R logged steps, B draws, U units, K figures.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from apiece.boxes import FloatArray
from apiece.stats import DRAWS
from apiece.stats.interval import Drawn, Estimate, compare_drawn, estimate
from apiece.stats.ratio import Ratio


def image_draws(images: int, draws: int = DRAWS, seed: int = 0) -> NDArray[np.uint16]:
    """How often each image is in each draw, `[B, I]`."""
    if not images:
        return np.zeros((draws, 0), dtype=np.uint16)
    rng = np.random.default_rng([seed, 0])
    return rng.multinomial(images, np.full(images, 1 / images), size=draws).astype(np.uint16)


def seeds_rng(seed: int, key: str) -> np.random.Generator:
    """A generator for one figure's training seeds: its interval does not depend on which others are computed."""
    return np.random.default_rng([seed, 1, zlib.crc32(key.encode())])


def block_draws(rows: int, length: int, draws: int = DRAWS, seed: int = 0) -> FloatArray:
    """Shares of the rows in each draw `[B, R]`, of blocks of `length` rows from anywhere, the end joined to the start.

    For logged values that depend on their neighbours (circular block bootstrap, Politis and Romano 1992).
    """
    rng = np.random.default_rng([seed, 2])
    blocks = math.ceil(rows / length)
    start = rng.integers(rows, size=(draws, blocks))
    taken = (start[:, :, None] + np.arange(length)) % rows
    counts = np.zeros((draws, rows))
    np.add.at(counts, (np.arange(draws)[:, None, None], taken), 1.0)
    return counts / (blocks * length)


def unit_draws(units: int, draws: int = DRAWS) -> NDArray[np.int64]:
    """The units in each draw, `[B, U]`."""
    return np.random.default_rng(0).integers(units, size=(draws, units))


class RatioDraws(NamedTuple):
    """A ratio's value, its draws `[B]`, the images that it rests on `[I]`, and their numerators `[I]`."""

    point: float
    draws: FloatArray
    bearing: NDArray[np.bool_]
    part: FloatArray | None = None


def draw_ratios(ratios: Iterable[Ratio], weights: NDArray[np.generic]) -> list[RatioDraws]:
    """Every ratio in every draw, NaN with nothing to divide; `weights` `[B, I]` are those of `image_draws`."""
    ratios = list(ratios)
    if not ratios:
        return []
    floats = weights.astype(np.float64)
    part = floats @ np.stack([ratio.part for ratio in ratios], axis=1)
    whole = floats @ np.stack([ratio.whole for ratio in ratios], axis=1)
    values = np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)
    return [RatioDraws(r.value, values[:, i], r.whole > 0, r.part) for i, r in enumerate(ratios)]


class ImageDraws:
    """The draws of one set of images, made once for all of its figures.

    Only images are drawn that have a label or a prediction: `counted`, `[I]`.
    """

    def __init__(self, counted: NDArray[np.bool_], *, draws: int = DRAWS, seed: int = 0) -> None:
        self.images, self.counted, self.seed = len(counted), np.flatnonzero(counted), seed
        self.weights = image_draws(len(self.counted), draws, seed)

    def ratio_draws(self, ratios: Iterable[Ratio]) -> list[RatioDraws]:
        of_counted = [ratio.of(self.counted) for ratio in ratios]
        some = np.any([ratio.whole > 0 for ratio in of_counted], axis=0)  # others add nothing: a class is on few images
        return draw_ratios([ratio.of(some) for ratio in of_counted], self.weights[:, some])

    def estimates(self, ratios: Mapping[str, Ratio]) -> dict[str, Estimate]:
        found = {}
        for key, drawn in zip(ratios, self.ratio_draws(ratios.values()), strict=True):
            own = Drawn(np.array([drawn.point]), drawn.draws[None])
            found[key] = estimate(own, int(drawn.bearing.sum()), seeds_rng(self.seed, key))
        return found

    def difference(self, a: Ratio, b: Ratio) -> Estimate:
        """B minus A on the same images; units are the images of the rarer kind of items."""
        drawn = self.ratio_draws([a, b])
        sides = [Drawn(np.array([one.point]), one.draws[None]) for one in drawn]
        units = min(int(one.bearing.sum()) for one in drawn)
        found = compare_drawn(sides[0], sides[1], units, seeds_rng(self.seed, ""), higher_is_better=None)
        return Estimate(found.difference, found.lo, found.hi, units)
