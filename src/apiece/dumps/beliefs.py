"""Probe figures of any number of images as columns, one row a value: all means of them are made from these.

Shapes: N values of one figure, I images.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from apiece.boxes import FloatArray
from apiece.dumps.form import FOLLOW, PASSES, ObjectRow
from apiece.stats.ratio import Ratio, mean_ratio
from apiece.types import IntArray

SLOT_FIGURES = ("entropy", "modes", "own_mass", "cross_instance_mass", "exp_argmax_gap")


@dataclass(frozen=True, slots=True, eq=False)
class Column:
    """The values of one figure.

    Attributes:
        image: `[N]` number of the image.
        object: `[N]` index into the labels of the image.
        coordinate: `[N]` 0 to 3 for x1, y1, x2, y2; -1 for a figure of the whole box.
        value: `[N]`; NaN where it could not be computed.
    """

    image: IntArray
    object: IntArray
    coordinate: IntArray
    value: FloatArray


def belief_columns(probes: Sequence[Mapping[str, Any] | None]) -> dict[str, Column]:
    """The probes of I images by figure: `a1/entropy`, ..., `drift`, `flip`, `chimera`, `follow/near_own`, ...

    Args:
        probes: `probes` of the dump entries, image by image; `None` where none were run.
    """
    rows: dict[str, list[tuple[int, int, int, float | None]]] = defaultdict(list)
    for image, found in enumerate(probes):
        if found is None:
            continue
        slots, objects = found["slots"], found["objects"]
        figures = {f"{which}/{key}": slots[which][key] for which in PASSES for key in SLOT_FIGURES}
        for key, values in {**figures, "drift": slots["drift"]}.items():
            at = zip(slots["object"], slots["coordinate"], values, strict=True)
            rows[key] += [(image, label, coordinate, value) for label, coordinate, value in at]
        for key in ("flip", "chimera"):
            rows[key] += [(image, label, -1, v) for label, v in zip(objects["object"], objects[key], strict=True)]
        for key in FOLLOW:
            rows[f"follow/{key}"] += [(image, r["object"], r["coordinate"], r[key]) for r in found["follow"]]
    return {key: _column(found) for key, found in rows.items()}


def _column(rows: Sequence[tuple[int, int, int, float | None]]) -> Column:
    image, label, coordinate, value = zip(*rows, strict=True) if rows else ((), (), (), ())
    at = [np.array(x, dtype=np.int64) for x in (image, label, coordinate)]
    return Column(at[0], at[1], at[2], np.array(value, dtype=np.float64))


def probe_ratios(records: Sequence[tuple[Sequence[ObjectRow], Mapping[str, Any] | None]]) -> dict[str, Ratio]:
    """Probe figures as sums and counts by image, by keys such as `probes/a1/entropy`.

    What could not be computed counts nowhere; flips and chimeras are those of labels with a neighbour of their class,
    as only such a box can be taken for another.

    Args:
        records: The labels of every image, and its probes.
    """
    ratios = {}
    for key, column in belief_columns([probes for _, probes in records]).items():
        image, value = column.image, column.value
        if key in ("flip", "chimera"):
            crowded = [_crowded(objects) for objects, _ in records]
            near = np.array([crowded[i][o] for i, o in zip(image, column.object, strict=True)], dtype=bool)
            image, value = image[near], value[near]
        ratio = mean_ratio(image, value, len(records))
        if ratio.whole.any():
            ratios[f"probes/{key}"] = ratio
    return ratios


def _crowded(objects: Sequence[ObjectRow]) -> list[bool]:
    """Which labels of an image have a class that more than one of its labels has."""
    of_class = Counter(row["desc"] for row in objects if not row["iscrowd"])
    return [of_class[row["desc"]] > 1 for row in objects]
