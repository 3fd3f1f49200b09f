"""The order in which an answer names its objects; it never depends on the order of the labels.

Shapes: N objects.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from apiece.config.schema import ObjectOrder

SAME_ROW = 0.5
"""Two objects stand in one row if their heights overlap by this share of the smaller one or more."""


def answer_order(
    boxes_xyxy: Sequence[Sequence[float]], descs: Sequence[str], order: ObjectOrder = ObjectOrder.SORTED
) -> list[int]:
    """Indices `[N]` in the order written.

    `sorted` is by (y1, x1), `left_to_right` by (x1, y1), `reading` row by row and in a row by (x1, y1). All with ties
    by the far corner, then by the name.

    Args:
        boxes_xyxy: N boxes.
        descs: N names.
        order: Any but `random`, which needs a generator.
    """
    if order is ObjectOrder.RANDOM:
        raise ValueError("a random order is drawn by the caller, who has the generator")
    rows = _rows(np.asarray(boxes_xyxy, dtype=np.float64)) if order is ObjectOrder.READING and len(descs) else None
    by = (1, 0, 3, 2) if order is ObjectOrder.SORTED else (0, 1, 2, 3)
    return sorted(
        range(len(descs)), key=lambda i: (0 if rows is None else rows[i], *(boxes_xyxy[i][j] for j in by), descs[i])
    )


def _rows(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Where the row of each box lies, `[N]`: equal for boxes of one row, growing downwards.

    The tallest box begins a row and what overlaps its height joins it; then the tallest of the rest. All are held
    against the first of the row, not against each other, so that a slope does not become one row. Rows follow each
    other by the centre of their tallest box.
    """
    top, bottom = boxes[:, 1], boxes[:, 3]
    height, centre = bottom - top, (top + bottom) / 2
    first = np.full(len(boxes), -1)
    for seed in np.lexsort((boxes[:, 2], boxes[:, 0], top, -height)):
        if first[seed] >= 0:
            continue
        shared = np.minimum(bottom, bottom[seed]) - np.maximum(top, top[seed])
        joins = (first < 0) & (shared >= SAME_ROW * np.minimum(height, height[seed]))
        first[joins] = seed
    return centre[first]
