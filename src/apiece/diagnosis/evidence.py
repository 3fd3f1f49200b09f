"""Outcomes and probes of a split side by side, as columns: what a diagnosis reads.

Shapes: I images, N predictions, M labels, O probed labels, S their slots (4 O), F rows of `follow`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from apiece.boxes import FloatArray, area, paired_intersection
from apiece.data.overlaps import same_class_overlaps
from apiece.evaluate.complete import align_complete, hidden_instances
from apiece.evaluate.f1 import match_split
from apiece.evaluate.forms import Detections, GroundTruth
from apiece.evaluate.shape import strips
from apiece.match import pairs_in_groups
from apiece.outcomes import COVERED, NONE, Outcome, Outcomes, label_outcomes
from apiece.types import IntArray

SLOT_FIGURES = ("entropy", "modes", "own_mass", "cross_instance_mass", "exp_argmax_gap")
PASSES = ("a1", "last")
FOLLOW = ("near_neighbour", "near_own", "elsewhere")


@dataclass(frozen=True, slots=True, eq=False)
class ProbeColumns:
    """Probes of a split; `label` is a row of the ground truth.

    Attributes:
        label: `[O]` the probed labels.
        slots: `a1/entropy`, ..., `last/exp_argmax_gap`, `drift` to `[O, 4]`.
        flip: `[O]`.
        chimera: `[O]`.
        follow_label: `[F]` whose x1, y1 were replaced.
        follow_coordinate: `[F]` 2 or 3.
        follow: `near_neighbour`, `near_own`, `elsewhere` to `[F]`.
    """

    label: IntArray
    slots: Mapping[str, FloatArray]
    flip: NDArray[np.bool_]
    chimera: NDArray[np.bool_]
    follow_label: IntArray
    follow_coordinate: IntArray
    follow: Mapping[str, FloatArray]

    @classmethod
    def of(cls, truth: GroundTruth, probes: Mapping[str, Mapping[str, Any] | None]) -> Self:
        """From `PROBES` of docs/records.md by sample id; a figure that is `null` there is NaN.

        Args:
            truth: Labels, in each image in the order of the data.
            probes: Images without any are left out.
        """
        first = np.searchsorted(truth.image, np.arange(len(truth.images)))
        images = [(int(first[i]), found) for i, image in enumerate(truth.images) if (found := probes.get(image.name))]
        label = [start + i for start, found in images for i in found["objects"]["object"]]
        place = {row: i for i, row in enumerate(label)}
        # Where each slot goes: a label that has no row among the objects has none here either.
        at = [
            (place.get(start + i, -1), c)
            for start, found in images
            for i, c in zip(found["slots"]["object"], found["slots"]["coordinate"], strict=True)
        ]
        row, coordinate = np.array(at, dtype=np.int64).reshape(-1, 2).T

        def slot_column(values: Iterable[Any]) -> FloatArray:
            column = np.full((len(label), 4), np.nan)
            column[row[row >= 0], coordinate[row >= 0]] = np.array(list(values), dtype=np.float64)[row >= 0]
            return column

        slots = {
            f"{which}/{figure}": slot_column(v for _, found in images for v in found["slots"][which][figure])
            for which in PASSES
            for figure in SLOT_FIGURES
        }
        follow = [(start, line) for start, found in images for line in found["follow"]]
        return cls(
            label=np.array(label, dtype=np.int64),
            slots={**slots, "drift": slot_column(v for _, found in images for v in found["slots"]["drift"])},
            flip=np.array([v for _, found in images for v in found["objects"]["flip"]], dtype=bool),
            chimera=np.array([v for _, found in images for v in found["objects"]["chimera"]], dtype=bool),
            follow_label=np.array([start + line["object"] for start, line in follow], dtype=np.int64),
            follow_coordinate=np.array([line["coordinate"] for _, line in follow], dtype=np.int64),
            follow={name: np.array([line[name] for _, line in follow], dtype=np.float64) for name in FOLLOW},
        )

    def objects(self, chosen: NDArray[np.bool_]) -> Self:
        """Those of some of the labels `[M]`."""
        rows, follow = chosen[self.label], chosen[self.follow_label]
        return replace(
            self,
            label=self.label[rows],
            slots={name: values[rows] for name, values in self.slots.items()},
            flip=self.flip[rows],
            chimera=self.chimera[rows],
            follow_label=self.follow_label[follow],
            follow_coordinate=self.follow_coordinate[follow],
            follow={name: values[follow] for name, values in self.follow.items()},
        )


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """All that a diagnosis is made from.

    Attributes:
        truth: Labels.
        detections: Predictions.
        complete: Everything that is on the images, where it is known.
        outcomes: Of both.
        probes: Of the labels; empty where none were run.
        long: `[N]` predictions to be explained: `group`, and strips that are no true positive.
        under_long: `[M]` labels that one of them covers by half or more.
        has_neighbour: `[M]` labels with another of their class in the image; crowd regions are none.
        labelled_groups: `[M]` labels that hold two or more of their own class, as in `apiece data check`; among what
            is there, where that is known.
    """

    truth: GroundTruth
    detections: Detections
    complete: GroundTruth | None
    outcomes: Outcomes
    probes: ProbeColumns
    long: NDArray[np.bool_]
    under_long: NDArray[np.bool_]
    has_neighbour: NDArray[np.bool_]
    labelled_groups: NDArray[np.bool_]

    @classmethod
    def of(
        cls,
        truth: GroundTruth,
        detections: Detections,
        probes: Mapping[str, Mapping[str, Any] | None],
        complete: GroundTruth | None = None,
    ) -> Self:
        """Name everything, and lay the probes beside it."""
        hidden = None
        if complete is not None:
            truth, complete = align_complete(complete, truth)
            hidden = hidden_instances(complete, truth)
        outcomes = label_outcomes(truth, detections, match_split(truth, detections), hidden)
        harmless = np.isin(outcomes.of_prediction, (Outcome.TP, Outcome.IGNORED, NONE))
        long = (outcomes.of_prediction == Outcome.GROUP) | (strips(truth, detections) & ~harmless)
        group = truth.image * len(truth.categories) + truth.category
        alike = np.bincount(group[~truth.iscrowd], minlength=int(group.max(initial=0)) + 1)
        return cls(
            truth=truth,
            detections=detections,
            complete=complete,
            outcomes=outcomes,
            probes=ProbeColumns.of(truth, probes),
            long=long,
            under_long=_covered(truth, detections, np.flatnonzero(long)),
            has_neighbour=(alike[group] >= 2) & ~truth.iscrowd,
            labelled_groups=labelled_groups(truth, hidden),
        )


def labelled_groups(truth: GroundTruth, hidden: GroundTruth | None = None) -> NDArray[np.bool_]:
    """Which labels `[M]` hold two or more boxes of their own class: among the labels, and what is hidden if known."""
    parts = [truth] if hidden is None else [truth, hidden]
    boxes = np.concatenate([part.bbox_xyxy for part in parts])
    classes = len(truth.categories)
    group = np.concatenate([part.image * classes + part.category for part in parts])
    crowd = np.concatenate([part.iscrowd for part in parts])
    group[crowd] = -1 - np.flatnonzero(crowd)  # a crowd region holds many by its nature
    return same_class_overlaps(boxes, group).contained[: len(truth)] >= 2


def _covered(truth: GroundTruth, detections: Detections, rows: IntArray) -> NDArray[np.bool_]:
    """Which labels lie by half or more in one of the detections of `rows` of their class."""
    classes = len(truth.categories)
    objects = np.flatnonzero(~truth.iscrowd)
    found = np.zeros(len(truth), dtype=bool)
    boxes, truth_boxes, size = detections.bbox_xyxy, truth.bbox_xyxy, area(truth.bbox_xyxy)
    of_row = detections.image[rows] * classes + detections.category[rows]
    for p, t in pairs_in_groups(of_row, truth.image[objects] * classes + truth.category[objects]):
        label = objects[t]
        shared = paired_intersection(boxes[rows[p]], truth_boxes[label])
        found[label[(shared >= COVERED * size[label]) & (size[label] > 0)]] = True
    return found
