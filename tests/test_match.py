"""Matching: degenerate cases, closed forms, and every small problem against brute force."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from apiece import boxes, match
from apiece.match import inside_crowd, match_boxes, match_groups, match_instances
from apiece.types import Detection, Instance

A = (0, 0, 10, 10)
A_CLOSE = (0, 0, 10, 9)  # IoU .9 with A
A_HALF = (0, 0, 10, 5)  # IoU .5 with A, exactly
A_LESS = (0, 0, 10, 4.99)
FAR = (50, 50, 60, 60)


@pytest.mark.parametrize(
    ("pred", "pred_desc", "truth", "truth_desc", "pairs"),
    [
        ([], "", [], "", []),  # nothing at all
        ([A], "c", [], "", []),  # no truth
        ([], "", [A], "c", []),  # no prediction
        ([A], "c", [A], "c", [(0, 0)]),  # perfect
        ([A], "c", [A], "d", []),  # wrong class
        ([A_HALF], "c", [A], "c", [(0, 0)]),  # exactly at the threshold
        ([A_LESS], "c", [A], "c", []),  # just below it
        ([A, A, A], "ccc", [A], "c", [(0, 0)]),  # copies: the first
        ([A_CLOSE, A], "cc", [A], "c", [(1, 0)]),  # the better of two
        ([A], "c", [A_CLOSE, A], "cc", [(0, 1)]),  # the better of two truths
        ([A, A], "cd", [A, A], "dc", [(0, 1), (1, 0)]),  # by class, not by place
        ([FAR, A], "cc", [A, FAR], "cc", [(0, 1), (1, 0)]),  # crossed order
        ([(5, 5, 5, 9)], "c", [(5, 5, 5, 9)], "c", []),  # no area: IoU is 0
        ([(9, 9, 0, 0)], "c", [A], "c", []),  # inverted
    ],
)
def test_small_cases(pred, pred_desc, truth, truth_desc, pairs) -> None:
    result = match_boxes(pred, pred_desc, truth, truth_desc)
    assert result.pairs.tolist() == [list(pair) for pair in pairs]
    assert result.pairs.shape == (len(pairs), 2)
    assert sorted([*result.pairs[:, 0], *result.unmatched_predictions]) == list(range(len(pred)))
    assert sorted([*result.pairs[:, 1], *result.unmatched_truths]) == list(range(len(truth)))


def test_one_more_pair_beats_a_higher_iou() -> None:
    # Prediction 0 is perfect on truth 0, but then prediction 1 has none left: two worse pairs win.
    pred, truth = [(0, 0, 10, 10), (0, 0, 10, 18)], [(0, 0, 10, 10), (0, 0, 10, 6)]
    assert boxes.iou(pred, truth)[1, 1] < 0.5
    assert match_boxes(pred, "cc", truth, "cc").pairs.tolist() == [[0, 1], [1, 0]]


def test_iou_is_that_of_the_boxes_module() -> None:
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 5, (30, 2))
    pred = np.concatenate([corner, corner + rng.uniform(5, 9, (30, 2))], axis=1)
    truth = pred + rng.normal(0, 0.5, pred.shape)
    result = match_boxes(pred, ["c"] * 30, truth, ["c"] * 30)
    assert len(result.iou) > 10
    assert_array_equal(result.iou, boxes.iou(pred, truth)[result.pairs[:, 0], result.pairs[:, 1]])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([A], "cc", [A], "c"), "predictions: got 1 boxes and 2 classes"),
        (([A], "c", [A], ""), "truths: got 1 boxes and 0 classes"),
        (([A], "c", [A], "c", 0.0), r"iou_min must be in \(0, 1\], got 0.0"),
        (([A], "c", [A], "c", 1.5), r"iou_min must be in \(0, 1\], got 1.5"),
        (([[0, 0, 1]], "c", [A], "c"), r"boxes must have shape \[N, 4\], got \[1, 3\]"),
    ],
)
def test_refusals(arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        match_boxes(*arguments)


interval = st.tuples(st.integers(0, 6), st.integers(1, 6)).map(lambda x: (x[0], x[0] + x[1]))
box = st.tuples(interval, interval).map(lambda x: (x[0][0], x[1][0], x[0][1], x[1][1]))
labelled = st.lists(st.tuples(box, st.sampled_from("ab")), max_size=5)


def best_by_brute_force(iou: np.ndarray, allowed: np.ndarray) -> tuple[int, float]:
    """Most pairs, then highest total IoU, over every one-to-one assignment."""
    if iou.shape[0] > iou.shape[1]:
        iou, allowed = iou.T, allowed.T
    best = (0, 0.0)
    for columns in permutations(range(iou.shape[1]), iou.shape[0]):
        pairs = [(row, column) for row, column in enumerate(columns) if allowed[row, column]]
        best = max(best, (len(pairs), sum(iou[pair] for pair in pairs)))
    return best


@settings(max_examples=300, deadline=None)
@given(labelled, labelled, st.sampled_from([0.1, 0.3, 0.5]))
def test_optimal(pred, truth, iou_min) -> None:
    pred_boxes, truth_boxes = [x[0] for x in pred], [x[0] for x in truth]
    result = match_boxes(pred_boxes, [x[1] for x in pred], truth_boxes, [x[1] for x in truth], iou_min)
    iou = boxes.iou(pred_boxes, truth_boxes)
    same = np.array([[a == b for _, b in truth] for _, a in pred], dtype=bool).reshape(iou.shape)
    allowed = same & (iou >= iou_min)
    count, total = best_by_brute_force(iou, allowed)
    assert all(allowed[p, t] for p, t in result.pairs)
    assert len(set(result.pairs[:, 0])) == len(set(result.pairs[:, 1])) == len(result.pairs) == count
    assert result.iou.sum() == pytest.approx(total, abs=1e-9)


@pytest.mark.parametrize("pairs_at_once", [1, 7, 1 << 20])
def test_groups_match_as_their_images_do_one_by_one(pairs_at_once, monkeypatch) -> None:
    monkeypatch.setattr(match, "_PAIRS_AT_ONCE", pairs_at_once)
    rng = np.random.default_rng(3)

    def random_boxes(count: int) -> np.ndarray:
        corner = rng.uniform(0, 10, (count, 2))
        return np.concatenate([corner, corner + rng.uniform(2, 12, (count, 2))], axis=1)

    pred, truth = random_boxes(150), random_boxes(90)
    pred_group, truth_group = rng.integers(0, 8, 150), rng.integers(0, 8, 90)
    together = match_groups(pred, pred_group, truth, truth_group, 0.3)
    pairs = []
    for group in range(8):
        p, t = np.flatnonzero(pred_group == group), np.flatnonzero(truth_group == group)
        alone = match_boxes(pred[p], ["c"] * len(p), truth[t], ["c"] * len(t), 0.3).pairs
        pairs += zip(p[alone[:, 0]].tolist(), t[alone[:, 1]].tolist(), strict=True)
    assert together.pairs.tolist() == [list(pair) for pair in sorted(pairs)]
    assert len(pairs) > 40


def test_instances_leave_crowd_regions_out_and_keep_indices() -> None:
    truth = [Instance("c", A, iscrowd=True), Instance("c", FAR), Instance("c", A)]
    result = match_instances([Detection("c", A, 1.0)], truth)
    assert result.pairs.tolist() == [[0, 2]]
    assert result.unmatched_truths.tolist() == [1]
    nothing = match_instances([], [])
    assert nothing.pairs.shape == (0, 2)


@pytest.mark.parametrize(
    ("box_xyxy", "group", "expected"),
    [
        ((0, 0, 10, 10), 0, True),  # all inside
        ((15, 0, 25, 10), 0, True),  # half of it
        ((15.1, 0, 25.1, 10), 0, False),  # a little less
        ((0, 0, 10, 10), 1, False),  # another class
        ((5, 5, 5, 5), 0, False),  # no area
    ],
)
def test_inside_crowd(box_xyxy, group, expected) -> None:
    crowd = np.array([[0.0, 0, 20, 20]])
    found = inside_crowd(np.array([box_xyxy], dtype=float), np.array([group]), crowd, np.array([0]))
    assert found.tolist() == [expected]
