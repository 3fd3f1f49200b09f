"""Figures that are ratios of sums over images: precision is true positives over predictions, both by image.

The draws need only the counts by image, so no figure keeps its boxes. Shapes: I images, N items.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from apiece.boxes import FloatArray
from apiece.types import IntArray

CROWDING = ("0", "1-5", "6-15", "16+")  # images by how many labels they have, crowd regions not counted
_CROWDING_STARTS = (1, 6, 16)


@dataclass(frozen=True, slots=True, eq=False)
class Ratio:
    """A sum over images divided by another one."""

    part: FloatArray  # `[I]` terms of the numerator
    whole: FloatArray  # `[I]` terms of the denominator

    @property
    def value(self) -> float:
        """The figure over all images; NaN with nothing to divide."""
        whole = float(self.whole.sum())
        return float(self.part.sum()) / whole if whole else float("nan")

    def of(self, images: IntArray | NDArray[np.bool_]) -> Ratio:
        return Ratio(self.part[images], self.whole[images])


def per_image(values: FloatArray, image: IntArray, images: int) -> FloatArray:
    """The sum of the values `[N]` of each image, `[I]`."""
    return np.bincount(image, weights=values, minlength=images).astype(np.float64)


def mean_ratio(image: IntArray, value: FloatArray, images: int) -> Ratio:
    """The mean of values `[N]`, each of an image; NaN ones are left out."""
    known = np.isfinite(value)
    count = np.bincount(image[known], minlength=images).astype(np.float64)
    return Ratio(per_image(value[known], image[known], images), count)


def crowding_of_counts(labels: ArrayLike) -> IntArray:
    """Index into `CROWDING` for each number of labels."""
    return np.asarray(np.searchsorted(_CROWDING_STARTS, labels, side="right"))
