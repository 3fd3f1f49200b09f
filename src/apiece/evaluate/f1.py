"""F1, precision, recall and mean IoU at IoU 0.5, over a split, by class and by crowding.

One class-aware one-to-one match for the whole split (`apiece.match`) gives the true positives. Every other prediction
is a false positive, unless half or more of it lies inside a crowd region of its class (those objects are there, but
not labelled one by one); every other label that is not a crowd region is a miss. Counts are summed over images before
they are divided (micro).

Shapes: N detections, M labels, K pairs, I images, G groups of a table.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from apiece.evaluate.forms import Detections, GroundTruth
from apiece.outcomes import IOU_MIN, SplitMatch, match_labels
from apiece.types import IntArray

__all__ = [
    "CROWDING",
    "IOU_MIN",
    "Scores",
    "SplitMatch",
    "class_scores",
    "crowding_of_counts",
    "crowding_of_images",
    "crowding_scores",
    "match_split",
    "total_scores",
]

CROWDING = ("0", "1-5", "6-15", "16+")
"""Images by how many labels they have, crowd regions not counted."""
_CROWDING_STARTS = (1, 6, 16)


@dataclass(frozen=True, slots=True)
class Scores:
    """Counts of a match and the rates that follow; a rate with nothing to divide is 0.

    Attributes:
        tp: Matched pairs.
        fp: Predictions that are neither matched nor ignored.
        fn: Labels left over.
        ignored: Unmatched predictions inside a crowd region of their class.
        iou_total: Sum of the pairs' IoU.
    """

    tp: int
    fp: int
    fn: int
    ignored: int
    iou_total: float

    @property
    def precision(self) -> float:
        """tp / (tp + fp)."""
        return _ratio(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> float:
        """tp / (tp + fn)."""
        return _ratio(self.tp, self.tp + self.fn)

    @property
    def f1(self) -> float:
        """2 tp / (2 tp + fp + fn)."""
        return _ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn)

    @property
    def mean_iou(self) -> float:
        """Mean IoU of the matched pairs."""
        return _ratio(self.iou_total, self.tp)

    def as_dict(self) -> dict[str, float]:
        """Rates and counts by name."""
        return {
            "f1": self.f1,
            "precision": self.precision,
            "recall": self.recall,
            "mean_iou": self.mean_iou,
            "tp": self.tp,
            "fp": self.fp,
            "fn": self.fn,
            "ignored": self.ignored,
        }


def match_split(truth: GroundTruth, detections: Detections, *, min_score: float = 0.0) -> SplitMatch:
    """Match all detections scored `min_score` or more to the labels of their image and class.

    Raises:
        ValueError: A detection's image or class is not one of `truth`.
    """
    detections.check_against(truth)
    kept = np.flatnonzero(detections.score >= min_score)
    return match_labels(truth, detections, kept)


def total_scores(match: SplitMatch) -> Scores:
    """Scores over all images and classes."""
    return Scores(
        tp=len(match.pairs),
        fp=len(match.false_positives),
        fn=len(match.misses),
        ignored=len(match.ignored),
        iou_total=float(match.iou.sum()),
    )


def class_scores(match: SplitMatch, truth: GroundTruth, detections: Detections) -> dict[str, Scores]:
    """Scores of each class that has a label or a detection, by name in category order."""
    scores = _grouped(match, detections.category, truth.category, len(truth.categories))
    return {name: score for name, score in zip(truth.names, scores, strict=True) if _seen(score)}


def crowding_scores(match: SplitMatch, truth: GroundTruth, detections: Detections) -> dict[str, Scores]:
    """Scores of the images of each row of `CROWDING`."""
    bucket = crowding_of_images(truth)
    scores = _grouped(match, bucket[detections.image], bucket[truth.image], len(CROWDING))
    return dict(zip(CROWDING, scores, strict=True))


def crowding_of_images(truth: GroundTruth) -> IntArray:
    """Index into `CROWDING` for each image, `[I]`."""
    return crowding_of_counts(truth.objects_per_image)


def crowding_of_counts(labels: IntArray) -> IntArray:
    """Index into `CROWDING` for numbers of labels."""
    return np.searchsorted(_CROWDING_STARTS, labels, side="right")


def _grouped(match: SplitMatch, of_detection: IntArray, of_label: IntArray, groups: int) -> list[Scores]:
    """Scores of each of G groups, from the group number of every detection `[N]` and label `[M]`."""
    paired = of_label[match.pairs[:, 1]]
    columns = (
        np.bincount(paired, minlength=groups),
        np.bincount(of_detection[match.false_positives], minlength=groups),
        np.bincount(of_label[match.misses], minlength=groups),
        np.bincount(of_detection[match.ignored], minlength=groups),
        np.bincount(paired, weights=match.iou, minlength=groups),
    )
    return [Scores(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]


def _seen(score: Scores) -> bool:
    return score.tp + score.fp + score.fn + score.ignored > 0


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
