"""Whose box was begun, which boxes mix instances, and which are finished: constructed cases."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from apiece.probes.labels import NONE, chimeras, flips, follow, neighbours
from apiece.types import IntArray

# Three books on a shelf, side by side: y1 and y2 are the same.
SHELF = np.array([[100, 50, 190, 300], [200, 50, 290, 300], [300, 50, 390, 300]])
ONE_NAME = np.zeros(3, dtype=np.int64)
EMPTY, NOBODY = np.zeros((0, 4), dtype=np.int64), np.zeros(0, dtype=np.int64)


@pytest.mark.parametrize(
    ("box", "flip", "chimera"),
    [
        pytest.param([100, 50, 190, 300], False, False, id="its own"),
        pytest.param([104, 47, 185, 306], False, False, id="its own, a little off"),
        pytest.param([200, 50, 290, 300], True, False, id="the neighbour's, whole"),
        pytest.param([200, 50, 190, 300], True, True, id="begun as the neighbour's, ended as its own"),
        pytest.param([100, 50, 390, 300], False, True, id="a strip over the row"),
        pytest.param([150, 50, 190, 300], False, False, id="in the middle between two: as near to the own"),
        pytest.param([153, 50, 190, 300], True, False, id="hardly nearer to the neighbour: both may own it"),
        pytest.param([160, 50, 190, 300], True, True, id="clearly nearer to the neighbour"),
        pytest.param([100, 900, 190, 300], False, False, id="y1 is shared: wherever it is, it belongs to all"),
    ],
)
def test_a_box_in_a_row(box: list[int], flip: bool, chimera: bool) -> None:
    boxes = np.array([box, *SHELF[1:].tolist()])
    assert flips(boxes, SHELF, ONE_NAME).tolist() == [flip, False, False]
    assert chimeras(boxes, SHELF, ONE_NAME, 6).tolist() == [chimera, False, False]


@pytest.mark.parametrize(
    ("truth", "group"),
    [
        pytest.param(EMPTY, NOBODY, id="nothing"),
        pytest.param(SHELF[:1], np.array([0]), id="alone"),
        pytest.param(SHELF, np.array([0, 1, 2]), id="three names"),
    ],
)
def test_without_a_neighbour_nothing_is_mixed_up(truth: IntArray, group: IntArray) -> None:
    anywhere = np.full_like(truth, 700)
    assert not flips(anywhere, truth, group).any()
    assert not chimeras(anywhere, truth, group, 6).any()
    assert (neighbours(truth, group, 6) == NONE).all()
    assert len(neighbours(truth, group, 6)) == len(truth)


def test_twins_are_neither_flipped_nor_mixed() -> None:
    twins = np.tile(SHELF[0], (2, 1))
    assert not flips(twins, twins, np.zeros(2, dtype=np.int64)).any()
    assert not chimeras(twins, twins, np.zeros(2, dtype=np.int64), 6).any()


def test_neighbour_is_the_nearest_that_is_somewhere_else() -> None:
    truth = np.array([[100, 50, 190, 300], [105, 52, 150, 200], [300, 50, 390, 300], [220, 50, 260, 300]])
    assert neighbours(truth, np.zeros(4, dtype=np.int64), 6).tolist() == [3, 3, 3, 2]
    assert neighbours(truth, np.array([0, 0, 0, 1]), 6).tolist() == [2, 2, 1, NONE]
    row = np.array([[100, 0, 9, 9], [200, 0, 9, 9], [300, 0, 9, 9]])
    assert neighbours(row, np.zeros(3, dtype=np.int64), 6).tolist() == [1, 0, 1]  # the earlier one at a tie


def spikes(*rows: dict[int, float]) -> NDArray[np.float32]:
    p = np.zeros((len(rows), 1000), dtype=np.float32)
    for row, masses in zip(p, rows, strict=True):
        for k, mass in masses.items():
            row[k] = mass
    return p


def test_follow_tells_where_the_mass_goes() -> None:
    p = spikes({290: 0.5, 284: 0.1, 283: 0.1, 190: 0.2, 700: 0.1}, {300: 1})[None]
    found = follow(p, np.array([0]), np.array([1]), SHELF, 6)
    # y2 is the same for both: no row tells anything there.
    assert (found.object.tolist(), found.neighbour.tolist(), found.coordinate.tolist()) == ([0], [1], [2])
    assert found.near_neighbour == pytest.approx([0.6])
    assert found.near_own == pytest.approx([0.2])
    assert found.elsewhere == pytest.approx([0.2])


@pytest.mark.parametrize(("apart", "rows"), [(12, 0), (13, 1)])
def test_rows_that_overlap_are_left_out(apart: int, rows: int) -> None:
    truth = np.array([[100, 50, 190, 300], [200, 50, 190 + apart, 300]])
    p = spikes({190 + apart: 1}, {300: 1})[None]
    found = follow(p, np.array([0]), np.array([1]), truth, 6)
    assert len(found) == rows
    if rows:
        assert (found.near_neighbour + found.near_own + found.elsewhere).tolist() == [1]


def test_follow_of_nobody() -> None:
    assert len(follow(np.zeros((0, 2, 1000)), NOBODY, NOBODY, EMPTY, 6)) == 0
