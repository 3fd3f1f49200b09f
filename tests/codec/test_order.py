"""The order in which an answer names its objects."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apiece.codec import answer_order
from apiece.config.schema import ObjectOrder

FIXED = [ObjectOrder.SORTED, ObjectOrder.LEFT_TO_RIGHT, ObjectOrder.READING]


def test_order_by_hand() -> None:
    boxes = [(0, 9, 5, 20), (7, 3, 9, 8), (2, 3, 9, 8), (2, 3, 9, 7), (2, 3, 8, 8), (2, 3, 8, 8)]
    names = ["a", "a", "a", "a", "b", "a"]
    # By y1, then x1, then y2, then x2, then the name.
    assert answer_order(boxes, names) == [3, 5, 4, 2, 1, 0]
    # By x1, then y1, then x2, then y2, then the name.
    assert answer_order(boxes, names, ObjectOrder.LEFT_TO_RIGHT) == [0, 5, 4, 3, 2, 1]
    # The first box is a row of its own, below the others.
    assert answer_order(boxes, names, ObjectOrder.READING) == [5, 4, 3, 2, 1, 0]


@pytest.mark.parametrize("order", FIXED)
def test_nothing_has_an_order(order) -> None:
    assert answer_order([], [], order) == []


def test_reading_goes_row_by_row() -> None:
    upper = [(60, 12, 70, 40), (10, 10, 20, 38), (35, 5, 45, 39)]
    lower = [(12, 42, 22, 70), (50, 45, 60, 71)]
    tall = [(80, 38, 95, 75)]  # its heights hold those of the lower row
    boxes = lower + upper + tall
    assert answer_order(boxes, ["person"] * 6, ObjectOrder.READING) == [3, 4, 2, 0, 1, 5]


def test_a_pile_stands_in_the_row_of_its_neighbours() -> None:
    book, upper, lower, next_book = (0, 0, 10, 60), (12, 20, 50, 39), (12, 40, 50, 60), (52, 5, 60, 60)
    boxes = [next_book, lower, upper, book]
    assert answer_order(boxes, ["book"] * 4, ObjectOrder.READING) == [3, 2, 1, 0]


def test_a_slope_is_not_one_row() -> None:
    # Each overlaps the next by more than half; of the others only the second overlaps the tallest that much.
    steps = [(100 - 10 * i, 8 * i, 108 - 10 * i, 8 * i + (21 if i == 0 else 20)) for i in range(4)]
    assert answer_order(steps, ["a"] * 4, ObjectOrder.READING) == [1, 0, 3, 2]


@pytest.mark.parametrize(("overlap", "one_row"), [(10, True), (9, False)])
def test_half_of_the_smaller_height_makes_a_row(overlap, one_row) -> None:
    boxes = [(50, 0, 60, 20), (0, 20 - overlap, 10, 40 - overlap)]
    assert answer_order(boxes, ["a", "a"], ObjectOrder.READING) == ([1, 0] if one_row else [0, 1])


def test_a_random_order_is_not_drawn_here() -> None:
    with pytest.raises(ValueError, match="drawn by the caller"):
        answer_order([(0, 0, 1, 1)], ["a"], ObjectOrder.RANDOM)


@pytest.mark.parametrize("order", FIXED)
@given(data=st.data())
def test_order_does_not_depend_on_the_order_of_the_labels(order, data) -> None:
    few = st.integers(0, 2)  # many ties
    size = st.integers(1, 2)
    box = st.tuples(few, few, size, size).map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]))
    items = data.draw(st.lists(st.tuples(st.sampled_from("ab"), box), max_size=8))
    other = data.draw(st.permutations(items))

    def ordered(labels):
        boxes, names = [box for _, box in labels], [desc for desc, _ in labels]
        return [labels[i] for i in answer_order(boxes, names, order)]

    assert ordered(items) == ordered(other)
