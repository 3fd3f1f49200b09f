"""Arithmetic of a forward pass through parts of a model, by count.

A multiplication and an addition are two FLOPs. Norms, activations and rotations are left out: they are small.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from apiece.codec.bins import NUM_BINS
from apiece.planning.shapes import ModelShape

Grid = tuple[int, int, int]
"""Patches of an image by time, rows and columns."""


@dataclass(frozen=True, slots=True)
class ForwardFlops:
    """FLOPs of parts of one model.

    Attributes:
        shape: Of the model.
        causal: Whether attention in the language model leaves out what a query does not see. Kernels that are handed
            a mask, and torch's counter, work on all pairs.
    """

    shape: ModelShape
    causal: bool = True

    def patches(self, grids_thw: Sequence[Grid]) -> float:
        """Patches to hidden states."""
        return 2.0 * _count(grids_thw) * self.shape.vision.patch_values * self.shape.vision.width

    def blocks(self, grids_thw: Sequence[Grid]) -> float:
        """The blocks of the tower; every image attends to itself, in some models within windows."""
        v = self.shape.vision
        pairs = v.whole * sum((t * h * w) ** 2 for t, h, w in grids_thw)
        if v.window:
            windows = sum(t * _squares(h, v.window) * _squares(w, v.window) for t, h, w in grids_thw)
            pairs += (v.depth - v.whole) * windows
        return 2.0 * _count(grids_thw) * v.depth * v.block_matrices + 4.0 * v.width * pairs

    def mergers(self, grids_thw: Sequence[Grid]) -> float:
        """Patches to image tokens."""
        v = self.shape.vision
        return 2.0 * _count(grids_thw) / v.merge**2 * v.mergers * v.merger_matrices

    def vision(self, grids_thw: Sequence[Grid]) -> float:
        """The tower and its mergers."""
        return self.patches(grids_thw) + self.blocks(grids_thw) + self.mergers(grids_thw)

    def layers(self, queries: int) -> float:
        """The weight matrices of the language model's layers, for `queries` tokens."""
        return 2.0 * queries * self.shape.language.layers * self.shape.language.layer_matrices

    def attention(self, queries: int, before: int) -> float:
        """The language model's attention, for `queries` tokens behind `before` tokens that were computed already."""
        t = self.shape.language
        pairs = queries * before + (queries * (queries + 1) / 2 if self.causal else queries**2)
        return 4.0 * t.query_width * t.layers * pairs

    def language(self, queries: int, before: int) -> float:
        """The language model's layers, for `queries` tokens behind `before` tokens."""
        return self.layers(queries) + self.attention(queries, before)

    def head(self, rows: float) -> float:
        """Logits of `rows` hidden states over the whole vocabulary."""
        return 2.0 * rows * self.shape.language.table

    def coordinates(self, rows: float) -> float:
        """Logits of `rows` hidden states over the coordinate tokens, or as many means of their embeddings."""
        return 2.0 * rows * NUM_BINS * self.shape.language.width


def _count(grids_thw: Sequence[Grid]) -> int:
    return sum(t * h * w for t, h, w in grids_thw)


def _squares(side: int, window: int) -> int:
    """The sum of the squares of the pieces that a side is cut into."""
    return side // window * window**2 + (side % window) ** 2
