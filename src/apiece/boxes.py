"""Box algebra on `xyxy` arrays in numpy: area, intersection, IoU, intersection over area, clip.

Shapes: N, M counts of boxes. Boxes are `[N, 4]` float arrays x1, y1, x2, y2 in any one unit, x1 <= x2, y1 <= y2.
Geometry is continuous: a box from 10 to 20 is 10 wide (no +1).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]


def as_boxes(boxes_xyxy: ArrayLike) -> FloatArray:
    """Boxes as `[N, 4]` float64; an empty list becomes `[0, 4]`. Any other shape is a `ValueError`."""
    boxes = np.asarray(boxes_xyxy, dtype=np.float64)
    if boxes.size == 0:
        return boxes.reshape(0, 4)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"boxes must have shape [N, 4], got {list(boxes.shape)}")
    return boxes


def area(boxes_xyxy: ArrayLike) -> FloatArray:
    """Areas `[N]`; an inverted box has area 0."""
    boxes = as_boxes(boxes_xyxy)
    return np.clip(boxes[:, 2] - boxes[:, 0], 0, None) * np.clip(boxes[:, 3] - boxes[:, 1], 0, None)


def intersection(a_xyxy: ArrayLike, b_xyxy: ArrayLike) -> FloatArray:
    """Intersection areas `[N, M]` of every a with every b."""
    a, b = as_boxes(a_xyxy)[:, None], as_boxes(b_xyxy)[None]
    low, high = np.maximum(a[..., :2], b[..., :2]), np.minimum(a[..., 2:], b[..., 2:])
    return np.clip(high - low, 0, None).prod(-1)


def paired_intersection(a_xyxy: FloatArray, b_xyxy: FloatArray) -> FloatArray:
    """Intersection areas `[K]` of `[K, 4]` boxes row by row."""
    width = np.minimum(a_xyxy[:, 2], b_xyxy[:, 2]) - np.maximum(a_xyxy[:, 0], b_xyxy[:, 0])
    height = np.minimum(a_xyxy[:, 3], b_xyxy[:, 3]) - np.maximum(a_xyxy[:, 1], b_xyxy[:, 1])
    return np.clip(width, 0, None) * np.clip(height, 0, None)


def iou(a_xyxy: ArrayLike, b_xyxy: ArrayLike) -> FloatArray:
    """IoU `[N, M]`; 0 where both areas are 0."""
    inter = intersection(a_xyxy, b_xyxy)
    union = area(a_xyxy)[:, None] + area(b_xyxy)[None] - inter
    return np.divide(inter, union, out=np.zeros_like(inter), where=union > 0)


def intersection_over_area(a_xyxy: ArrayLike, b_xyxy: ArrayLike) -> FloatArray:
    """Share of each a that lies inside each b, `[N, M]`: intersection / area(a); 0 where area(a) is 0."""
    inter = intersection(a_xyxy, b_xyxy)
    own = np.broadcast_to(area(a_xyxy)[:, None], inter.shape)
    return np.divide(inter, own, out=np.zeros_like(inter), where=own > 0)


def clip(boxes_xyxy: ArrayLike, size_wh: tuple[int, int]) -> FloatArray:
    """Boxes `[N, 4]` clipped to an image of `size_wh` pixels."""
    width, height = size_wh
    return np.clip(as_boxes(boxes_xyxy), 0, np.array([width, height, width, height], dtype=np.float64))


def xywh_to_xyxy(boxes_xywh: ArrayLike) -> FloatArray:
    """COCO's `[x, y, width, height]` to `xyxy`, `[N, 4]`."""
    boxes = as_boxes(boxes_xywh)
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


def xyxy_to_xywh(boxes_xyxy: ArrayLike) -> FloatArray:
    """`xyxy` to COCO's `[x, y, width, height]`, `[N, 4]`."""
    boxes = as_boxes(boxes_xyxy)
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
