"""Class-aware one-to-one matching of boxes: as many pairs as possible, and among those the highest total IoU.

Boxes can only pair within one group (a class of an image) and at IoU >= `iou_min`, so the problem falls apart into the
connected components of the candidate graph. Most components are stars (one box on one side) and are solved for a whole
data set at once; the Hungarian method runs on the few others.

Shapes: N predictions, M truths, K pairs. Boxes are `xyxy` in any one unit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from apiece.boxes import FloatArray, area, as_boxes, paired_intersection
from apiece.types import Detection, Instance, IntArray, Match

_PAIRS_AT_ONCE = 1 << 20


def match_boxes(
    pred_xyxy: ArrayLike,
    pred_desc: Sequence[str],
    truth_xyxy: ArrayLike,
    truth_desc: Sequence[str],
    iou_min: float = 0.5,
) -> Match:
    """Match the predictions of one image to its truths, each with at most one of the same name, at IoU >= `iou_min`.

    Boxes are `[N, 4]` and `[M, 4]`, without crowd regions. The result has the most pairs, then the highest total IoU;
    pairs are in order of predictions.

    Example:
        >>> match_boxes([[0, 0, 10, 10], [0, 0, 10, 9]], ["cup", "cup"], [[0, 0, 10, 10]], ["cup"]).pairs.tolist()
        [[0, 0]]
    """
    pred_group, truth_group = number_names(pred_desc, truth_desc)
    return match_groups(pred_xyxy, pred_group, truth_xyxy, truth_group, iou_min)


def match_instances(predictions: Sequence[Detection], truth: Sequence[Instance], iou_min: float = 0.5) -> Match:
    """`match_boxes` for labels with crowd regions among them; those are neither matched nor missed."""
    objects = np.array([i for i, instance in enumerate(truth) if not instance.iscrowd], dtype=np.int64)
    match = match_boxes(
        [prediction.bbox_xyxy for prediction in predictions],
        [prediction.desc for prediction in predictions],
        [truth[i].bbox_xyxy for i in objects],
        [truth[i].desc for i in objects],
        iou_min,
    )
    pairs = np.stack([match.pairs[:, 0], objects[match.pairs[:, 1]]], axis=1)
    return Match(pairs, match.iou, match.unmatched_predictions, objects[match.unmatched_truths])


def match_groups(
    pred_xyxy: ArrayLike, pred_group: IntArray, truth_xyxy: ArrayLike, truth_group: IntArray, iou_min: float = 0.5
) -> Match:
    """`match_boxes` for many images at once: boxes pair only where their group numbers (image and class) are equal."""
    if not 0 < iou_min <= 1:
        raise ValueError(f"iou_min must be in (0, 1], got {iou_min}")
    pred, truth = as_boxes(pred_xyxy), as_boxes(truth_xyxy)
    for boxes, group, what in ((pred, pred_group, "predictions"), (truth, truth_group, "truths")):
        if len(boxes) != len(group):
            raise ValueError(f"{what}: got {len(boxes)} boxes and {len(group)} classes; expected one class a box")
    p, t, iou = _candidates(pred, pred_group, truth, truth_group, iou_min)
    chosen = _assign(p, t, iou)
    p, t, iou = p[chosen], t[chosen], iou[chosen]
    order = np.argsort(p)
    return Match(
        pairs=np.stack([p[order], t[order]], axis=1),
        iou=iou[order],
        unmatched_predictions=np.setdiff1d(np.arange(len(pred)), p, assume_unique=True),
        unmatched_truths=np.setdiff1d(np.arange(len(truth)), t, assume_unique=True),
    )


def pairs_in_groups(a_group: IntArray, b_group: IntArray) -> Iterator[tuple[IntArray, IntArray]]:
    """Yield blocks of all `(a, b)` index pairs with equal groups, ordered by a, then b, about a million at a time."""
    order = np.argsort(b_group, kind="stable")
    ordered = b_group[order]
    first = np.searchsorted(ordered, a_group, side="left")
    count = np.searchsorted(ordered, a_group, side="right") - first
    block = np.cumsum(count) // _PAIRS_AT_ONCE
    for rows in np.split(np.arange(len(a_group)), np.flatnonzero(np.diff(block)) + 1):
        a = np.repeat(rows, count[rows])
        within = np.arange(len(a)) - np.repeat(np.cumsum(count[rows]) - count[rows], count[rows])
        yield a, order[np.repeat(first[rows], count[rows]) + within]


def inside_crowd(
    boxes_xyxy: FloatArray, group: IntArray, crowds_xyxy: FloatArray, crowd_group: IntArray, share: float = 0.5
) -> NDArray[np.bool_]:
    """Whether `share` or more of each box `[N, 4]` lies inside one crowd region of its group, `[N]`.

    Such a prediction is neither right nor wrong: objects are there, but not labelled one by one. A box of no area is
    never inside.
    """
    inside = np.zeros(len(boxes_xyxy), dtype=bool)
    own = area(boxes_xyxy)
    for b, c in pairs_in_groups(group, crowd_group):
        covered = paired_intersection(boxes_xyxy[b], crowds_xyxy[c])
        inside[b[(covered >= share * own[b]) & (own[b] > 0)]] = True
    return inside


def number_names(*columns: Sequence[str]) -> list[IntArray]:
    """Columns of names as numbers: equal names have equal numbers in all columns."""
    number: dict[str, int] = {}
    return [np.array([number.setdefault(name, len(number)) for name in names], dtype=np.int64) for names in columns]


def _candidates(
    pred: FloatArray, pred_group: IntArray, truth: FloatArray, truth_group: IntArray, iou_min: float
) -> tuple[IntArray, IntArray, FloatArray]:
    """All pairs of one group at IoU >= `iou_min`: prediction rows, truth rows and IoU, each `[E]`."""
    pred_area, truth_area = area(pred), area(truth)
    blocks: list[tuple[IntArray, IntArray, FloatArray]] = []
    for p, t in pairs_in_groups(pred_group, truth_group):
        inter = paired_intersection(pred[p], truth[t])
        union = pred_area[p] + truth_area[t] - inter
        iou = np.divide(inter, union, out=np.zeros_like(inter), where=union > 0)
        keep = iou >= iou_min
        blocks.append((p[keep], t[keep], iou[keep]))
    p, t, iou = (np.concatenate(column) for column in zip(*blocks, strict=True))
    return p, t, iou


def _assign(p: IntArray, t: IntArray, iou: FloatArray) -> IntArray:
    """Indices of the candidate edges in the best one-to-one assignment."""
    if len(p) == 0:
        return np.zeros(0, dtype=np.int64)
    p_nodes, p_node = np.unique(p, return_inverse=True)
    t_nodes, t_node = np.unique(t, return_inverse=True)
    nodes = len(p_nodes) + len(t_nodes)
    graph = coo_array((np.ones(len(p), dtype=np.int8), (p_node, t_node + len(p_nodes))), shape=(nodes, nodes))
    count, label = connected_components(graph, directed=False)
    component = label[p_node]
    p_count = np.bincount(label[: len(p_nodes)], minlength=count)
    t_count = np.bincount(label[len(p_nodes) :], minlength=count)
    star = (np.minimum(p_count, t_count) == 1)[component]
    # In a star one pair can be made: the edge of highest IoU, the earlier prediction and truth at a tie.
    edges = np.flatnonzero(star)
    edges = edges[np.lexsort((t[edges], p[edges], -iou[edges], component[edges]))]
    _, first = np.unique(component[edges], return_index=True)
    chosen = [edges[first]]
    rest = np.flatnonzero(~star)
    rest = rest[np.argsort(component[rest], kind="stable")]
    chosen += [
        edges[_hungarian(p_node[edges], t_node[edges], iou[edges])]
        for edges in np.split(rest, np.flatnonzero(np.diff(component[rest])) + 1)
        if len(edges)
    ]
    return np.concatenate(chosen)


def _hungarian(p: IntArray, t: IntArray, iou: FloatArray) -> NDArray[np.bool_]:
    """Which edges `[E]` of one component are in its best assignment.

    An edge is worth its IoU plus the largest possible number of pairs, so that one more pair always outweighs any
    gain in IoU.
    """
    rows, row = np.unique(p, return_inverse=True)
    columns, column = np.unique(t, return_inverse=True)
    worth = np.zeros((len(rows), len(columns)))
    worth[row, column] = iou + min(worth.shape)
    pairs = np.zeros(worth.shape, dtype=bool)
    pairs[linear_sum_assignment(worth, maximize=True)] = True
    return pairs[row, column]
