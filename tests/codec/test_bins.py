"""Bins: by hand, at the edges, and within half a bin everywhere."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from apiece.codec import Bins, objects_to_bins

SIZES = st.tuples(st.integers(1, 8000), st.integers(1, 8000))


@pytest.mark.parametrize(
    ("box", "size", "bins"),
    [
        ((0, 0, 640, 480), (640, 480), (0, 0, 999, 999)),  # the whole image: the last bin is the far edge
        ((64, 48, 320, 240), (640, 480), (100, 100, 500, 500)),  # 99.9 and 499.5 (half to even)
        ((64, 48, 320, 240), (1280, 480), (50, 100, 250, 500)),  # x by the width, y by the height
        ((-5, -0.1, 700, 480.4), (640, 480), (0, 0, 999, 999)),  # beyond the edges
        ((0, 0, 1, 1), (1, 1), (0, 0, 999, 999)),  # an image of one pixel
        ((639, 479, 640, 480), (640, 480), (997, 997, 999, 999)),  # the last pixel
    ],
)
def test_by_hand(box, size, bins) -> None:
    assert Bins().to_bins([box], size).tolist() == [list(bins)]


def test_the_ends_of_the_grid_are_the_edges_exactly() -> None:
    assert Bins().to_pixels([(0, 0, 999, 999)], (641, 427)).tolist() == [[0, 0, 641, 427]]


def test_no_boxes() -> None:
    assert Bins().to_bins([], (640, 480)).shape == (0, 4)
    assert Bins().to_pixels([], (640, 480)).shape == (0, 4)


@given(size=SIZES, shares=st.lists(st.floats(0, 1), min_size=4, max_size=4))
def test_a_round_trip_is_off_by_at_most_half_a_bin(size, shares) -> None:
    width, height = size
    sides = np.array([width, height, width, height])
    box = np.array(shares) * sides
    back = Bins().to_pixels(Bins().to_bins([box], size), size)[0]
    assert (np.abs(back - box) <= sides / 999 / 2 * (1 + 1e-9)).all()


@settings(max_examples=20)
@given(size=SIZES)
def test_every_bin_comes_back(size) -> None:
    bins = np.arange(1000).repeat(4).reshape(-1, 4)
    assert_array_equal(Bins().to_bins(Bins().to_pixels(bins, size), size), bins)


def test_bins_are_evenly_spaced() -> None:
    pixels = Bins().to_pixels(np.arange(1000).repeat(4).reshape(-1, 4), (999, 1998))
    assert_allclose(np.diff(pixels[:, 0]), 1)
    assert_allclose(np.diff(pixels[:, 1]), 2)


@pytest.mark.parametrize(
    ("box", "kept"),
    [
        ((0, 0, 640, 480), True),  # all of it
        ((10, 10, 10, 20), False),  # no width
        ((10, 10, 10.2, 20), False),  # under half a bin
        ((10, 10, 20, 10.1), False),  # the same in height
        ((10, 10, 11, 11), True),  # a pixel
        ((650, 10, 700, 20), False),  # beyond the edge: clamped to nothing
    ],
)
def test_boxes_that_collapse_are_left_out(box, kept) -> None:
    beside = (0, 0, 320, 240)
    records = objects_to_bins([box, beside], ["thin", "beside"], (640, 480), Bins())
    assert [desc for desc, _ in records] == (["thin", "beside"] if kept else ["beside"])
    assert records[-1] == ("beside", (0, 0, 500, 500))


def test_records_hold_plain_numbers() -> None:
    (_, bins), *_ = objects_to_bins(np.array([[0, 0, 320, 240]]), ["a"], (640, 480), Bins())
    assert [type(k) for k in bins] == [int] * 4
