"""What is compared: one run at one step, or one evaluation, in the form that every figure is computed from.

Shapes: I images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from apiece.boxes import FloatArray
from apiece.evaluate.forms import Detections, GroundTruth


@dataclass(frozen=True, slots=True, eq=False)
class Ratio:
    """A figure that is a sum over images divided by another one.

    Attributes:
        part: `[I]` what is summed above the line.
        whole: `[I]` below it.
    """

    part: FloatArray
    whole: FloatArray

    @property
    def value(self) -> float:
        """The figure over all images; NaN with nothing to divide."""
        whole = float(self.whole.sum())
        return float(self.part.sum()) / whole if whole else float("nan")


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """One run at one step, or one evaluation.

    Attributes:
        name: Of the run, for people.
        path: As it was named.
        kind: `panel` (a run's dump) or `evaluation` (what `apiece evaluate` wrote).
        truth: Labels; the images' names are the sample ids.
        detections: The predictions.
        protocol: What the figures depend on: must be equal in all that is compared.
        complete: Complete truth, where it is known.
        min_score: Detections below it are left out of all but AP.
        dropped: Dropped records / records seen, by image, where it is known.
        probes: Probe figures by key, such as `probes/a1/entropy`.
        probe_protocol: What the figures of the `last` pass depend on; `None` where no probes were run.
        step: Of the checkpoint.
        seed: Of the run, from its config.
        config: The run's settings by dotted path, without seed, name and folder; `None` where they are not known.
        telemetry: Variances of the run's telemetry by key (`window_var/...`): value by step.
        telemetry_window: Steps that each of them is taken over.
        remarks: What the reader should be told.
    """

    name: str
    path: Path
    kind: str
    truth: GroundTruth
    detections: Detections
    protocol: Mapping[str, Any]
    complete: GroundTruth | None = None
    min_score: float = 0.0
    dropped: Ratio | None = None
    probes: Mapping[str, Ratio] = field(default_factory=dict)
    probe_protocol: Mapping[str, Any] | None = None
    step: int | None = None
    seed: int | None = None
    config: Mapping[str, Any] | None = None
    telemetry: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    telemetry_window: int | None = None
    remarks: tuple[str, ...] = ()

    @property
    def ids(self) -> tuple[str, ...]:
        """Sample ids in order."""
        return tuple(image.name for image in self.truth.images)


@dataclass(frozen=True, slots=True, eq=False)
class Arm:
    """What is held against another one: one run, or several that differ in their seed alone."""

    name: str
    sources: tuple[Source, ...]


def per_image(values: FloatArray, image: np.ndarray, images: int) -> FloatArray:
    """Sum of the values of each image, `[I]`."""
    return np.bincount(image, weights=values, minlength=images).astype(np.float64)
