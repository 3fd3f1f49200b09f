"""Means and shares with their bootstrap intervals over images.

A percentile interval of few images is too narrow, so below `FEWEST_IMAGES` images there is none: `lo` and `hi` are then
`None`, and whoever decides by them cannot tell.

Shapes: I images, N items, G groups, B draws.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from apiece.boxes import FloatArray
from apiece.evaluate.rates import LEVEL, Bootstrap
from apiece.types import IntArray

FEWEST_IMAGES = 10
"""Images with at least one of the items, below which no interval is given."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One number and how sure it is.

    Attributes:
        value: `None` where there was nothing to divide.
        lo: Lower end of the 95 % interval.
        hi: Upper end.
        items: How many items it is made of.
        images: In how many images they are.
    """

    value: float | None
    lo: float | None
    hi: float | None
    items: int
    images: int

    def as_dict(self, digits: int = 5) -> dict[str, float | int | None]:
        """For JSON."""
        ends = (None if x is None else round(x, digits) for x in (self.value, self.lo, self.hi))
        return {**dict(zip(("value", "lo", "hi"), ends, strict=True)), "items": self.items, "images": self.images}

    def above(self, limit: float) -> bool:
        """The whole interval is above `limit`."""
        return self.lo is not None and self.lo > limit

    def below(self, limit: float) -> bool:
        """The whole interval is below `limit`."""
        return self.hi is not None and self.hi < limit

    def text(self, unit: str = "", digits: int = 2, percent: bool = False) -> str:
        """`0.31 [0.25, 0.38]` with a unit, for sentences."""
        if self.value is None:
            return "unknown"

        def show(x: float) -> str:
            return f"{x:.1%}" if percent else f"{x:.{digits}f}"

        interval = "" if self.lo is None or self.hi is None else f" [{show(self.lo)}, {show(self.hi)}]"
        return f"{show(self.value)}{unit}{interval}"


class Sampler:
    """Figures of one split, all with the same draws of its images."""

    def __init__(self, images: int, *, seed: int = 0) -> None:
        self.bootstrap = Bootstrap(images, seed=seed)
        self._weights = self.bootstrap.weights.astype(np.float64)

    def mean(self, image: IntArray, value: ArrayLike) -> Figure:
        """Mean of items; NaN ones are left out."""
        return self.ratio(image, value, np.ones(len(image)))

    def ratio(self, image: IntArray, part: ArrayLike, whole: ArrayLike) -> Figure:
        """Sum of `part` over sum of `whole`."""
        top, bottom, items, images = self._sums(image, part, whole)
        return self._figure(top, bottom, None, items, images)

    def difference(self, image: IntArray, value: ArrayLike, here: NDArray[np.bool_]) -> tuple[Figure, Figure, Figure]:
        """Mean of the items that are `here`, of the others, and the first minus the second."""
        values = np.asarray(value, dtype=np.float64)
        sides = [self._sums(image[rows], values[rows], np.ones(int(rows.sum()))) for rows in (here, ~here)]
        first, second = (self._figure(top, bottom, None, items, images) for top, bottom, items, images in sides)
        items, images = sides[0][2] + sides[1][2], min(sides[0][3], sides[1][3])
        apart = self._figure(sides[0][0], sides[0][1], (sides[1][0], sides[1][1]), items, images)
        return first, second, apart

    def means(self, image: IntArray, group: IntArray, value: ArrayLike, groups: int) -> list[Figure]:
        """The mean in each of G groups."""
        values = np.asarray(value, dtype=np.float64)
        order = np.argsort(group, kind="stable")
        bounds = np.searchsorted(group[order], np.arange(groups + 1))
        return [
            self.mean(image[order[bounds[g] : bounds[g + 1]]], values[order[bounds[g] : bounds[g + 1]]])
            for g in range(groups)
        ]

    def _sums(self, image: IntArray, part: ArrayLike, whole: ArrayLike) -> tuple[FloatArray, FloatArray, int, int]:
        """Sums of both for each image, `[I]`, and how many items and images are in them."""
        top, bottom = np.asarray(part, dtype=np.float64), np.asarray(whole, dtype=np.float64)
        known = np.isfinite(top) & np.isfinite(bottom)
        place, size = image[known], self.bootstrap.images
        sums = [np.bincount(place, weights=x[known], minlength=size).astype(np.float64) for x in (top, bottom)]
        return sums[0], sums[1], int(known.sum()), len(np.unique(place))

    def _figure(
        self,
        top: FloatArray,
        bottom: FloatArray,
        minus: tuple[FloatArray, FloatArray] | None,
        items: int,
        images: int,
    ) -> Figure:
        def share(a: FloatArray, b: FloatArray) -> FloatArray:
            return np.divide(a, b, out=np.full(np.shape(a), np.nan), where=b > 0)

        one = np.ones((1, len(top)))
        value = share(one @ top, one @ bottom)[0]
        if minus is not None:
            value -= share(one @ minus[0], one @ minus[1])[0]
        if not np.isfinite(value):
            return Figure(None, None, None, items, images)
        if images < FEWEST_IMAGES:
            return Figure(float(value), None, None, items, images)
        drawn = share(self._weights @ top, self._weights @ bottom)
        if minus is not None:
            drawn = drawn - share(self._weights @ minus[0], self._weights @ minus[1])
        drawn = drawn[np.isfinite(drawn)]
        lo, hi = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return Figure(float(value), float(lo), float(hi), items, images)
