"""Pixels to bins and back: the only place that knows how many bins there are and where the last one is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from apiece.boxes import as_boxes

NUM_BINS = 1000
COORDINATE_NAMES = ("x1", "y1", "x2", "y2")


@dataclass(frozen=True, slots=True)
class Bins:
    """The grid of coordinates: bin k of K stands for the share k / (K - 1) of an image side.

    COCO boxes may end at x = W exactly, so the last bin is the true edge. A round trip is off by at most half a bin:
    `W / (2 * (K - 1))` pixels.
    """

    num_bins: int = NUM_BINS

    @property
    def last(self) -> int:
        return self.num_bins - 1

    def to_bins(self, boxes_xyxy: ArrayLike, size_wh: tuple[int, int]) -> NDArray[np.int64]:
        """Boxes `[N, 4]` in pixels of an image of `size_wh` to bins `[N, 4]`, clamped to the image."""
        shares = as_boxes(boxes_xyxy) / _sides(size_wh)
        return np.clip(np.rint(shares * self.last), 0, self.last).astype(np.int64)

    def to_pixels(self, bins_xyxy: ArrayLike, size_wh: tuple[int, int]) -> NDArray[np.float64]:
        """Bins `[N, 4]` to boxes `[N, 4]` in pixels of an image of `size_wh`."""
        return as_boxes(bins_xyxy) / self.last * _sides(size_wh)


def _sides(size_wh: tuple[int, int]) -> NDArray[np.float64]:
    width, height = size_wh
    return np.array([width, height, width, height], dtype=np.float64)
