"""The ceiling of the coordinate bins: what a model that writes every label's own bins would score.

No model that answers in bins can be better placed than this, so a low AP75 on small objects may be the grid's doing.
"""

from __future__ import annotations

import numpy as np

from apiece.boxes import FloatArray, xyxy_to_xywh
from apiece.codec.bins import Bins
from apiece.evaluate.coco import coco_scores
from apiece.evaluate.forms import Detections, GroundTruth


def through_codec(truth: GroundTruth, num_bins: int = 1000) -> FloatArray:
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
    """AP of the labels themselves sent through the codec, and the largest error it makes.

    Args:
        truth: Labels; crowd regions are not sent.
        num_bins: Bins of the codec.

    Returns:
        `codec/AP`, `AP50`, `AP75`, `APs`, `APm`, `APl` (-1 without labels, as COCO has it) and
        `codec/max_error_px`, the largest shift of any edge in pixels (0 without labels). Labels of no area and labels
        beyond 100 of a class in one image cannot be found by COCO's rules and lower the ceiling as well.
    """
    decoded = through_codec(truth, num_bins)
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
