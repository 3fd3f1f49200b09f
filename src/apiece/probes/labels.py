"""What a box of several slots says: whose box it began, whether it mixes instances, and whether it is finished.

docs/guides/diagnosing.md defines each figure. Functions take the objects of one image (or of a few: N x N is kept).

Shapes: N objects, 4 coordinates (x1, y1, x2, y2), K bins, F rows of `follow`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from apiece.boxes import FloatArray
from apiece.dumps.form import PASS_FIGURES, ProbePass, Probes
from apiece.probes.slots import SlotFigures, mass_near, reach, slot_figures
from apiece.types import IntArray

NONE = -1
"""In place of a neighbour: there is none."""
_DECIMALS = 4


@dataclass(frozen=True, slots=True, eq=False)
class Follow:
    """Where the mass of x2 or y2 goes after another instance's x1, y1; `[F]` each. The three masses add up to 1.

    Attributes:
        object: Whose slot it is.
        neighbour: Whose x1, y1 stood in the input.
        coordinate: 2 for x2, 3 for y2.
        near_neighbour: Mass near the neighbour's coordinate: the model finishes the box that the input began.
        near_own: Mass near the object's own coordinate.
    """

    object: IntArray
    neighbour: IntArray
    coordinate: IntArray
    near_neighbour: FloatArray
    near_own: FloatArray
    elsewhere: FloatArray

    def __len__(self) -> int:
        return len(self.object)


def flips(argmax_N4: IntArray, truth_N4: IntArray, group_N: IntArray) -> NDArray[np.bool_]:
    """Whether the believed x1, y1 are nearer (L1) to another instance of the group than to the own, `[N]`."""
    distance = np.abs(argmax_N4[:, None, :2] - truth_N4[None, :, :2]).sum(-1)
    own = np.diagonal(distance)
    return ((distance < own[:, None]) & _others(group_N)).any(1)


def chimeras(context_N4: IntArray, truth_N4: IntArray, group_N: IntArray, slack: int) -> NDArray[np.bool_]:
    """Whether the four values of a box belong to two or more instances of its group, `[N]`.

    A value belongs to the instance whose same coordinate is nearest, and to each that is at most `slack` bins farther
    away: books on a shelf share y1 and y2. A box is a chimera if no single instance has all four.
    """
    same = group_N[:, None] == group_N[None]
    distance = np.abs(context_N4[:, None] - truth_N4[None]).astype(np.float64)
    distance[~same] = np.inf
    belongs = distance <= distance.min(axis=1, keepdims=True, initial=np.inf) + slack
    belongs[~same] = False
    return ~belongs.all(2).any(1)


def neighbours(truth_N4: IntArray, group_N: IntArray, radius: int) -> IntArray:
    """For each object the nearest instance of its group in x1, y1 (L1) that is at another place, `[N]`.

    Another place is more than `radius` bins away in x1 or in y1. The earlier instance at a tie; `NONE` without any.
    """
    gap = np.abs(truth_N4[:, None, :2] - truth_N4[None, :, :2])
    able = _others(group_N) & (gap.max(-1) > radius)
    distance = np.where(able, gap.sum(-1).astype(np.float64), np.inf)
    if not len(truth_N4):
        return np.zeros(0, dtype=np.int64)
    return np.where(able.any(1), distance.argmin(1), NONE)


def follow(
    p_F2K: NDArray[np.floating], object_F: IntArray, neighbour_F: IntArray, truth_N4: IntArray, radius: int
) -> Follow:
    """Where the mass of x2 and y2 goes.

    Rows are left out where the coordinates of the two lie within twice `radius`: near the one is near the other.

    Args:
        p_F2K: Distributions at x2 and y2 of F objects, with a neighbour's x1, y1 in the input.
        object_F: The objects.
        neighbour_F: Their neighbours.
        truth_N4: True bins of all objects.
        radius: How near is near, bins.
    """
    p = np.asarray(p_F2K, dtype=np.float64)
    own, other = truth_N4[object_F][:, 2:], truth_N4[neighbour_F][:, 2:]
    row, which = np.nonzero(np.abs(own - other) > 2 * radius)
    chosen = p[row, which]
    near_neighbour = mass_near(chosen, other[row, which], radius)
    near_own = mass_near(chosen, own[row, which], radius)
    return Follow(
        object=object_F[row],
        neighbour=neighbour_F[row],
        coordinate=which.astype(np.int64) + 2,
        near_neighbour=near_neighbour,
        near_own=near_own,
        elsewhere=np.clip(1 - near_neighbour - near_own, 0, 1),
    )


def _others(group_N: IntArray) -> NDArray[np.bool_]:
    """Which objects `[N, N]` are of one group, and not the same one."""
    same = group_N[:, None] == group_N[None]
    np.fill_diagonal(same, False)
    return same


@dataclass(frozen=True, slots=True, eq=False)
class LabelProbes:
    """What a model believes at the slots of an image's own labels.

    Attributes:
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
        follow: How a box is finished that was begun as a neighbour's.
    """

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

    def as_json(self) -> Probes:
        """As it stands in a dump entry."""
        follow = self.follow
        return {
            "passes": self.passes,
            "slots": {
                "object": np.repeat(self.objects, 4).tolist(),
                "coordinate": np.tile(np.arange(4), len(self.objects)).tolist(),
                "target": self.target_N4.ravel().tolist(),
                "a1": _figures(self.a1),
                "last": _figures(self.last),
                "drift": [*self.drift_N4.ravel().tolist()],
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
    """All figures of one image from its distributions; the arguments not named here are those of `LabelProbes`.

    Args:
        group_N: Objects of one name share a number.
        context_N4: Bins in the input of the last pass.
        follow: By `follow`; its indices are rows of the other arrays.
        sigma: Width of the training target, bins.
    """
    a1, last = (slot_figures(p, target_N4, group_N, sigma) for p in (a1_N4K, last_N4K))
    return LabelProbes(
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


def _figures(figures: SlotFigures) -> ProbePass:
    rounded = {name: np.round(getattr(figures, name).ravel(), _DECIMALS).tolist() for name in PASS_FIGURES}
    return cast(ProbePass, rounded)
