"""Official COCO AP by hotcoco: of a split, of many draws of its images, and of its labels after pixel -> bin -> pixel.

The protocol of https://cocodataset.org/#detection-eval: AP over IoU 0.50:0.05:0.95, original boxes, `iscrowd` regions
ignored, size ranges by annotation area, at most 100 detections of a class in an image. The figures equal pycocotools';
its -1 for "no label to find" is kept.

Shapes: I images, C classes, N rows, T IoU thresholds, B draws, D detections of a class.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import hotcoco
import numpy as np
from numpy.typing import NDArray

from apiece.boxes import FloatArray, xyxy_to_xywh
from apiece.codec.bins import Bins
from apiece.evaluate.forms import Detections, GroundTruth
from apiece.types import IntArray

FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
"""In the order in which pycocotools prints them."""


@dataclass(frozen=True, slots=True)
class CocoScores:
    """Figures of a split by the COCO protocol, -1 where there is no label to find."""

    figures: dict[str, float]  # the 12 of `FIGURES`
    by_class: dict[str, dict[str, float]]  # class name to its `AP` and `AP50`
    by_subset: dict[str, dict[str, float]]  # subset name to the 12 figures of its images alone


def coco_scores(
    truth: GroundTruth, detections: Detections, subsets: Mapping[str, IntArray] | None = None
) -> CocoScores:
    """Score detections by the official COCO protocol.

    At equal scores AP depends on the order of the detections. `subsets` are image numbers (indices into `truth.images`)
    by name, to be scored by themselves as well.
    """
    evaluator = _evaluator(truth, detections)
    evaluator.evaluate()
    evaluator.accumulate()
    evaluator.summary_lines()  # fills `stats` as summarize() does, without printing
    stats: list[float] = np.asarray(evaluator.stats).tolist()
    assert evaluator.eval is not None
    return CocoScores(
        figures=dict(zip(FIGURES, stats, strict=True)),
        by_class=_by_class(evaluator.eval["precision"], truth.names),
        by_subset=_by_subset(evaluator, subsets or {}),
    )


@dataclass(frozen=True, slots=True, eq=False)
class CocoMatches:
    """What the protocol decides image by image: AP of any choice of images follows from it."""

    # `[N]` index into the images, for the detections that count (at most 100 an image and class), in the order in which
    # AP goes through them: by class, falling score, then as written
    image: IntArray
    category: IntArray  # `[N]` index into the classes
    found: NDArray[np.bool_]  # `[T, N]` whether each is a true positive at IoU 0.50:0.05:0.95
    ignored: NDArray[np.bool_]  # `[T, N]` whether each is neither right nor wrong
    labels: IntArray  # `[I, C]` labels to find


def coco_matches(truth: GroundTruth, detections: Detections) -> CocoMatches:
    """Match by the official COCO protocol, all areas, and keep every decision."""
    evaluator = _evaluator(truth, detections)
    evaluator.params.area_rng = evaluator.params.area_rng[:1]
    evaluator.params.area_rng_lbl = evaluator.params.area_rng_lbl[:1]
    evaluator.evaluate()
    cells = [cell for cell in evaluator.eval_imgs if cell is not None]
    labels = np.zeros((len(truth.images), len(truth.categories)), dtype=np.int64)
    for cell in cells:
        labels[cell["image_id"] - 1, cell["category_id"] - 1] = np.count_nonzero(~np.asarray(cell["gtIgnore"], bool))
    thresholds = len(evaluator.params.iou_thrs)
    lengths = [len(cell["dtScores"]) for cell in cells]
    image, category = (
        np.repeat(np.array([cell[key] - 1 for cell in cells], dtype=np.int64), lengths)
        for key in ("image_id", "category_id")
    )
    score = np.concatenate([np.zeros(0), *(np.asarray(cell["dtScores"], dtype=np.float64) for cell in cells)])
    empty = np.zeros((thresholds, 0), dtype=bool)
    found, ignored = (
        np.concatenate([empty, *(np.asarray(cell[key], dtype=bool).reshape(thresholds, -1) for cell in cells)], axis=1)
        for key in ("dtMatched", "dtIgnore")
    )
    order = np.lexsort((image, -score, category))  # stable: within an image as the protocol ranked them
    return CocoMatches(
        image=image[order],
        category=category[order],
        found=(found & ~ignored)[:, order],
        ignored=ignored[:, order],
        labels=labels,
    )


def _evaluator(truth: GroundTruth, detections: Detections) -> hotcoco.COCOeval:
    detections.check_against(truth)
    # Numbered from 1: evaluators take annotation id 0 for "unmatched". The order by id is kept, as it decides ties.
    labels = hotcoco.COCO.from_arrays(
        [{"id": i + 1} for i in range(len(truth.images))],
        [{"id": i + 1, "name": category.name} for i, category in enumerate(truth.categories)],
        truth.image + 1,
        truth.category + 1,
        truth.bbox_xywh,
        ids=np.arange(1, len(truth) + 1),
        area=truth.area,
        iscrowd=truth.iscrowd.astype(np.int64),
    )
    rows = np.column_stack([detections.image + 1, detections.bbox_xywh, detections.score, detections.category + 1])
    return hotcoco.COCOeval(labels, labels.load_res(rows), "bbox")


def _by_class(precision: FloatArray, names: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """AP and AP50 of each class from the precision array `[IoU, recall, class, area range, detections]`."""
    ap = precision[:, :, :, 0, -1]  # all areas, 100 detections
    return {
        name: {"AP": _mean_known(ap[:, :, number]), "AP50": _mean_known(ap[0, :, number])}
        for number, name in enumerate(names)
    }


def _mean_known(values: FloatArray) -> float:
    known = values[values > -1]
    return float(known.mean()) if known.size else -1.0


def _by_subset(evaluator: hotcoco.COCOeval, subsets: Mapping[str, IntArray]) -> dict[str, dict[str, float]]:
    if not subsets:
        return {}
    slices = evaluator.slice_by({name: (images + 1).tolist() for name, images in subsets.items()})
    return {name: {figure: float(slices[name][figure]) for figure in FIGURES} for name in subsets}


def _through_codec(truth: GroundTruth, num_bins: int) -> FloatArray:
    """Boxes `[N, 4]` (`xyxy` pixels) of all labels after pixel -> bin -> pixel."""
    bins = Bins(num_bins)
    boxes = truth.bbox_xyxy
    decoded = np.zeros_like(boxes)
    order = np.argsort(truth.image, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(truth.image[order])) + 1):
        if len(rows):
            size_wh = truth.images[truth.image[rows[0]]].size_wh
            decoded[rows] = bins.to_pixels(bins.to_bins(boxes[rows], size_wh), size_wh)
    return decoded


def codec_ceiling(truth: GroundTruth, num_bins: int = 1000) -> dict[str, float]:
    """The AP of a model that writes every label's own bins, and `codec/max_error_px`, the largest shift of any edge.

    No model that answers in bins can place boxes better, so the grid may be the cause of a low AP75 on small objects.
    Labels of no area and labels beyond 100 of a class in one image cannot be found by COCO's rules and lower the
    ceiling as well.
    """
    decoded = _through_codec(truth, num_bins)
    rows = np.flatnonzero(~truth.iscrowd)
    detections = Detections(
        image=truth.image[rows],
        category=truth.category[rows],
        bbox_xywh=xyxy_to_xywh(decoded[rows]),
        score=np.ones(len(rows)),
    )
    figures = coco_scores(truth, detections).figures
    error = np.abs(decoded[rows] - truth.bbox_xyxy[rows])
    ceiling = {f"codec/{name}": figures[name] for name in ("AP", "AP50", "AP75", "APs", "APm", "APl")}
    return {**ceiling, "codec/max_error_px": float(error.max(initial=0.0))}


RECALLS = np.linspace(0.0, 1.0, 101)
_CELLS_AT_ONCE = 1 << 17  # draws times detections: more does not stay in the cache and takes twice as long


def ap_of_draws(matches: CocoMatches, weights: NDArray[np.generic]) -> tuple[FloatArray, FloatArray]:
    """AP and AP50 of every draw, `[B]` each; NaN for a draw without a label to find.

    `weights` `[B, I]` are how often each image is in each draw. The protocol matches image by image and only then ranks
    all detections, so no draw has to be matched again: an image drawn k times counts k times in the sums. A class
    without labels in a draw is left out of its mean.
    """
    thresholds = len(matches.found)
    known = np.flatnonzero(matches.labels.sum(0) > 0)
    starts = np.searchsorted(matches.category, [known, known + 1])
    total, total50 = np.zeros(len(weights)), np.zeros(len(weights))
    classes = np.zeros(len(weights), dtype=np.int64)
    for category, (start, end) in zip(known.tolist(), starts.T.tolist(), strict=True):
        labels = weights.astype(np.float64) @ matches.labels[:, category]
        block = max(_CELLS_AT_ONCE // max(end - start, 1), 1)
        for begin in range(0, len(weights), block):
            rows = slice(begin, begin + block)
            ap = _class_ap(matches, slice(start, end), weights[rows], labels[rows])
            total[rows] += ap.sum(0) / thresholds
            total50[rows] += ap[0]
        classes += labels > 0
    some = classes > 0
    ap, ap50 = (np.divide(x, classes, out=np.full(len(x), np.nan), where=some) for x in (total, total50))
    return ap, ap50


def _class_ap(matches: CocoMatches, detections: slice, weights: NDArray[np.generic], labels: FloatArray) -> FloatArray:
    """AP `[T, B]` of one class at each threshold; 0 for a draw without its labels."""
    drawn = weights[:, matches.image[detections]].astype(np.float64)  # [B, D]
    found, ignored = matches.found[:, detections], matches.ignored[:, detections]
    counted = np.cumsum(drawn, axis=1)
    ap = np.zeros((len(found), len(weights)))
    for i, (hit, ignore) in enumerate(zip(found, ignored, strict=True)):
        at = np.flatnonzero(hit)
        if not len(at):
            continue
        # Precision is highest, and recall moves, at true positives only: the others are needed as counts alone.
        right = np.cumsum(drawn[:, at], axis=1)
        whole = counted[:, at] - np.cumsum(drawn * ignore, axis=1)[:, at] if ignore.any() else counted[:, at]
        precision = np.divide(right, whole, out=np.zeros_like(right), where=whole > 0)
        best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        recall = np.divide(right, labels[:, None], out=np.zeros_like(right), where=labels[:, None] > 0)
        passed = np.searchsorted(RECALLS, recall, side="right") * (right > 0)
        ap[i] = (best * np.diff(passed, axis=1, prepend=0)).sum(1) / len(RECALLS)
    return ap
