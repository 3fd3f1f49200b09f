"""All probes of one image's labels, and their JSON form (docs/records.md).

Shapes: N objects, 4 coordinates (x1, y1, x2, y2), K bins.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apiece.probes.context import Follow, chimeras, flips
from apiece.probes.slots import SlotFigures, reach, slot_figures
from apiece.types import IntArray

FIGURES = ("argmax", "entropy", "modes", "own_mass", "cross_instance_mass", "exp_argmax_gap")
"""Of a slot, as they stand in a record, once for each pass."""
PASSES = ("a1", "last")
_DECIMALS = 4


@dataclass(frozen=True, slots=True, eq=False)
class LabelProbes:
    """What a model believes at the slots of an image's own labels.

    Attributes:
        sample_id: Of the image.
        passes: How many there were; `last` is the last of them.
        objects: `[N]` indices into the sample's objects, ascending: neither crowd regions nor boxes
            thinner than a bin.
        target_N4: True bins.
        a1_N4K: Distributions with the true coordinates in the input.
        last_N4K: Distributions with the model's own beliefs in the input.
        a1: Figures of the first pass.
        last: Figures of the last pass.
        drift_N4: Bins between the most likely bin of the two.
        flip_N: The box was begun as another instance's (`flips`, on the first pass).
        chimera_N: The box in the input of the last pass mixes instances (`chimeras`).
        follow: What is made of a box that was begun as a neighbour's.
    """

    sample_id: str
    passes: int
    objects: IntArray
    target_N4: IntArray
    a1_N4K: NDArray[np.float32]
    last_N4K: NDArray[np.float32]
    a1: SlotFigures
    last: SlotFigures
    drift_N4: IntArray
    flip_N: NDArray[np.bool_]
    chimera_N: NDArray[np.bool_]
    follow: Follow

    def record(self) -> dict[str, Any]:
        """`PROBES` of docs/records.md: numbers and lists alone."""
        rows = {name: _figures(getattr(self, name)) for name in PASSES}
        follow = self.follow
        return {
            "passes": self.passes,
            "slots": {
                "object": np.repeat(self.objects, 4).tolist(),
                "coordinate": np.tile(np.arange(4), len(self.objects)).tolist(),
                "target": self.target_N4.ravel().tolist(),
                **rows,
                "drift": self.drift_N4.ravel().tolist(),
            },
            "objects": {
                "object": self.objects.tolist(),
                "flip": self.flip_N.tolist(),
                "chimera": self.chimera_N.tolist(),
            },
            "follow": [
                {
                    "object": int(self.objects[follow.object[i]]),
                    "neighbour": int(self.objects[follow.neighbour[i]]),
                    "coordinate": int(follow.coordinate[i]),
                    "near_neighbour": round(float(follow.near_neighbour[i]), _DECIMALS),
                    "near_own": round(float(follow.near_own[i]), _DECIMALS),
                    "elsewhere": round(float(follow.elsewhere[i]), _DECIMALS),
                }
                for i in range(len(follow))
            ],
        }


def probe_labels(
    sample_id: str,
    passes: int,
    objects: IntArray,
    target_N4: IntArray,
    group_N: IntArray,
    a1_N4K: NDArray[np.float32],
    last_N4K: NDArray[np.float32],
    context_N4: IntArray,
    follow: Follow,
    *,
    sigma: float,
) -> LabelProbes:
    """All figures of one image from its distributions.

    Args:
        sample_id: Of the image.
        passes: How many there were.
        objects: `[N]` indices into the sample's objects, ascending.
        target_N4: True bins.
        group_N: Objects of one name share a number.
        a1_N4K: Distributions of the first pass.
        last_N4K: Distributions of the last pass.
        context_N4: Bins in the input of the last pass.
        follow: By `apiece.probes.context.follow`; its indices are rows of the other arrays.
        sigma: Width of the training target, bins.
    """
    a1, last = (slot_figures(p, target_N4, group_N, sigma) for p in (a1_N4K, last_N4K))
    return LabelProbes(
        sample_id=sample_id,
        passes=passes,
        objects=objects,
        target_N4=target_N4,
        a1_N4K=a1_N4K,
        last_N4K=last_N4K,
        a1=a1,
        last=last,
        drift_N4=np.abs(last.argmax - a1.argmax),
        flip_N=flips(a1.argmax, target_N4, group_N),
        chimera_N=chimeras(context_N4, target_N4, group_N, reach(sigma)),
        follow=follow,
    )


def _figures(figures: SlotFigures) -> dict[str, list[float]]:
    return {name: np.round(getattr(figures, name).ravel(), _DECIMALS).tolist() for name in FIGURES}
