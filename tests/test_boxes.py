"""Box algebra: closed forms, degenerate boxes, and what must hold for any boxes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.testing import assert_allclose, assert_array_equal

from apiece import boxes as b

UNIT = [0.0, 0.0, 10.0, 10.0]
POINT = [5.0, 5.0, 5.0, 5.0]


@st.composite
def box_lists(draw: st.DrawFn, min_size: int = 0) -> np.ndarray:
    """`[N, 4]` boxes, x1 <= x2 and y1 <= y2, with exact quarters so that ties and zero areas are common."""
    count = draw(st.integers(min_size, 6))
    corners = draw(arrays.arrays(np.int64, (count, 2, 2), elements=st.integers(-40, 400))) / 4
    return np.sort(corners, axis=1).reshape(count, 4)


@pytest.mark.parametrize(
    ("what", "a", "c", "inter", "iou", "share"),
    [
        ("the same", UNIT, UNIT, 100, 1, 1),
        ("half to the right", UNIT, [5, 0, 15, 10], 50, 1 / 3, 0.5),
        ("a quarter", UNIT, [5, 5, 15, 15], 25, 25 / 175, 0.25),
        ("inside", UNIT, [2, 2, 4, 7], 10, 0.1, 0.1),
        ("around", [2, 2, 4, 7], UNIT, 10, 0.1, 1),
        ("a cross", [0, 4, 10, 6], [4, 0, 6, 10], 4, 4 / 36, 0.2),
        ("edges touch", UNIT, [10, 0, 20, 10], 0, 0, 0),
        ("corners touch", UNIT, [10, 10, 20, 20], 0, 0, 0),
        ("apart on both axes", UNIT, [20, 20, 30, 30], 0, 0, 0),
        ("apart on one axis", UNIT, [0, 20, 10, 30], 0, 0, 0),
        ("a point inside", UNIT, POINT, 0, 0, 0),
        ("a point on itself", POINT, POINT, 0, 0, 0),
        ("a line on itself", [0, 5, 10, 5], [0, 5, 10, 5], 0, 0, 0),
        ("inverted", [10, 10, 0, 0], UNIT, 0, 0, 0),
        ("negative", [-10, -10, 0, 0], [-5, -5, 5, 5], 25, 25 / 175, 0.25),
    ],
)
def test_a_pair(what: str, a: list[float], c: list[float], inter: float, iou: float, share: float) -> None:
    assert_allclose(b.intersection([a], [c]), [[inter]])
    assert_allclose(b.iou([a], [c]), [[iou]])
    assert_allclose(b.intersection_over_area([a], [c]), [[share]])


def test_area() -> None:
    rows = [UNIT, POINT, [0, 0, 10, 0], [10, 0, 0, 10], [10, 10, 0, 0], [-2, -3, 0, 0], [0.25, 0, 0.75, 4]]
    assert_allclose(b.area(rows), [100, 0, 0, 0, 0, 6, 2])


def test_every_a_with_every_b() -> None:
    table = b.iou([UNIT, [0, 0, 5, 10]], [UNIT, POINT, [0, 0, 10, 5]])
    assert_allclose(table, [[1, 0, 0.5], [0.5, 0, 25 / 75]])


@pytest.mark.parametrize("pair", [b.intersection, b.iou, b.intersection_over_area])
def test_no_boxes(pair) -> None:
    assert pair([], []).shape == (0, 0)
    assert pair([UNIT, UNIT], []).shape == (2, 0)
    assert pair([], [UNIT]).shape == (0, 1)


@pytest.mark.parametrize("one", [b.as_boxes, b.xywh_to_xyxy, b.xyxy_to_xywh, lambda rows: b.clip(rows, (5, 5))])
@pytest.mark.parametrize("empty", [[], (), np.zeros((0, 4)), np.zeros(0, dtype=np.int64)])
def test_none_stay_none(one, empty) -> None:
    assert one(empty).shape == (0, 4)
    assert one(empty).dtype == np.float64


@pytest.mark.parametrize("wrong", [[1, 2, 3, 4], [[1, 2, 3]], [[[1, 2, 3, 4]]], [[1, 2, 3, 4, 5]]])
def test_wrong_shapes_are_refused(wrong: list) -> None:
    with pytest.raises(ValueError, match=r"boxes must have shape \[N, 4\], got \["):
        b.as_boxes(wrong)


def test_huge_and_tiny_boxes() -> None:
    assert_allclose(b.iou([[0, 0, 1e9, 1e9]], [[0, 0, 1e9, 5e8]]), [[0.5]])
    assert_allclose(b.iou([[0, 0, 1e-9, 1e-9]], [[0, 0, 1e-9, 5e-10]]), [[0.5]])


def test_clip() -> None:
    assert_array_equal(
        b.clip([[-5, -5, 50, 50], [1, 2, 3, 4], [70, 80, 90, 99]], (20, 30)),
        [
            [0, 0, 20, 30],
            [1, 2, 3, 4],
            [20, 30, 20, 30],
        ],
    )


def test_inputs_are_not_changed() -> None:
    rows = np.array([[-5.0, -5.0, 50.0, 50.0]])
    before = rows.copy()
    b.clip(rows, (20, 30)), b.xywh_to_xyxy(rows), b.xyxy_to_xywh(rows), b.iou(rows, rows), b.area(rows)
    assert_array_equal(rows, before)


def test_xywh() -> None:
    assert_array_equal(b.xywh_to_xyxy([[1, 2, 3, 4]]), [[1, 2, 4, 6]])
    assert_array_equal(b.xyxy_to_xywh([[1, 2, 4, 6]]), [[1, 2, 3, 4]])


@given(box_lists(), box_lists())
def test_iou_of_any_boxes(a: np.ndarray, c: np.ndarray) -> None:
    table = b.iou(a, c)
    assert table.shape == (len(a), len(c))
    assert ((table >= 0) & (table <= 1)).all()
    assert_array_equal(table, b.iou(c, a).T)
    assert_allclose(b.iou(a, a).diagonal(), (b.area(a) > 0).astype(float))
    assert (table <= b.intersection_over_area(a, c) + 1e-12).all()


@given(box_lists(), box_lists(), st.integers(-100, 100), st.integers(1, 8))
def test_iou_does_not_depend_on_place_or_scale(a: np.ndarray, c: np.ndarray, shift: int, scale: int) -> None:
    assert_allclose(b.iou(a * scale + shift, c * scale + shift), b.iou(a, c))


@given(box_lists(), box_lists())
def test_intersection_counts_cells(a: np.ndarray, c: np.ndarray) -> None:
    """Against a count of grid cells, the definition itself (quarters are the grid's cells)."""
    for i, p in enumerate(a):
        for j, q in enumerate(c):
            x = set(range(int(p[0] * 4), int(p[2] * 4))) & set(range(int(q[0] * 4), int(q[2] * 4)))
            y = set(range(int(p[1] * 4), int(p[3] * 4))) & set(range(int(q[1] * 4), int(q[3] * 4)))
            assert b.intersection(a, c)[i, j] == len(x) * len(y) / 16


@given(box_lists())
def test_there_and_back(rows: np.ndarray) -> None:
    assert_array_equal(b.xywh_to_xyxy(b.xyxy_to_xywh(rows)), rows)


@given(box_lists(), st.integers(1, 100), st.integers(1, 100))
def test_clipped_boxes_lie_in_the_image(rows: np.ndarray, width: int, height: int) -> None:
    clipped = b.clip(rows, (width, height))
    assert_array_equal(b.clip(clipped, (width, height)), clipped)
    assert (clipped >= 0).all()
    assert (clipped <= [width, height, width, height]).all()
    assert_allclose(b.area(clipped), b.intersection(rows, [[0, 0, width, height]])[:, 0])
