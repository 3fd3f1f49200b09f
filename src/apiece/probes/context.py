"""What a box of several slots says: whose box it began, whether it mixes instances, and whether it is finished.

Each figure is defined in docs/diagnosing.md. Functions take the objects of one image (or of a few: N x N is kept).

Shapes: N objects, 4 coordinates (x1, y1, x2, y2), K bins, F rows of `follow`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from apiece.boxes import FloatArray
from apiece.probes.slots import mass_near
from apiece.types import IntArray

NONE = -1
"""In place of a neighbour: there is none."""


@dataclass(frozen=True, slots=True, eq=False)
class Follow:
    """Where the mass of x2 or y2 goes after another instance's x1, y1; `[F]` each. The three masses add up to 1.

    Attributes:
        object: Whose slot it is.
        neighbour: Whose x1, y1 stood in the input.
        coordinate: 2 for x2, 3 for y2.
        near_neighbour: Mass near the neighbour's coordinate: the model finishes the box that the input began.
        near_own: Mass near the object's own.
        elsewhere: The rest.
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
    """Whether x1, y1 as believed are nearer (L1) to those of another instance of the group than to the own, `[N]`."""
    distance = np.abs(argmax_N4[:, None, :2] - truth_N4[None, :, :2]).sum(-1)
    own = np.diagonal(distance)
    return ((distance < own[:, None]) & _others(group_N)).any(1)


def chimeras(context_N4: IntArray, truth_N4: IntArray, group_N: IntArray, slack: int) -> NDArray[np.bool_]:
    """Whether the four values of a box belong to two or more instances of its group, `[N]`.

    A value belongs to the instance whose same coordinate is nearest, and to each that is at most `slack` bins farther
    off: books on a shelf share y1 and y2. A box is a chimera if no single instance has all four.
    """
    same = group_N[:, None] == group_N[None]
    distance = np.abs(context_N4[:, None] - truth_N4[None]).astype(np.float64)
    distance[~same] = np.inf
    belongs = distance <= distance.min(axis=1, keepdims=True, initial=np.inf) + slack
    belongs[~same] = False
    return ~belongs.all(2).any(1)


def neighbours(truth_N4: IntArray, group_N: IntArray, radius: int) -> IntArray:
    """For each object the instance of its group that is nearest in x1, y1 (L1) and yet another place, `[N]`.

    Another place is more than `radius` bins off in x1 or in y1. The earlier instance at a tie; `NONE` without any.
    """
    apart = np.abs(truth_N4[:, None, :2] - truth_N4[None, :, :2])
    able = _others(group_N) & (apart.max(-1) > radius)
    distance = np.where(able, apart.sum(-1).astype(np.float64), np.inf)
    if not len(truth_N4):
        return np.zeros(0, dtype=np.int64)
    return np.where(able.any(1), distance.argmin(1), NONE)


def follow(
    p_F2K: NDArray[np.floating], object_F: IntArray, neighbour_F: IntArray, truth_N4: IntArray, radius: int
) -> Follow:
    """Where the mass of x2 and y2 goes.

    Where a coordinate of the two lies within twice `radius`, near the one is near the other: such rows are left out.

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
