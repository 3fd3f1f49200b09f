"""AP over the orders of equal scores: closed forms, all orders one by one, and random sets."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from splits import forms, grid_box, random_coco, split

from apiece.evaluate.ap import THRESHOLDS, ap_range, coco_scores, has_ties, ranked, tie_orders

CUP, FAR = ("cup", grid_box(0)), ("cup", grid_box(9))


def ap_of(truth, detections) -> float:
    return coco_scores(truth, detections).figures["AP"]


def ranges(*images) -> tuple[float, float, float]:
    truth, detections = split(*images)
    ap = ap_of(truth, detections)
    low, high = ap_range(truth, detections, ap)
    return low, ap, high


@pytest.mark.parametrize(
    ("images", "low", "high"),
    [
        ([([], [])], -1, -1),  # nothing there, nothing said
        ([([CUP], [])], 0, 0),  # nothing said
        ([([], [(*CUP, 0.5)] * 2)], -1, -1),  # nothing there
        ([([CUP], [(*CUP, 0.5)])], 1, 1),  # one
        ([([CUP], [(*CUP, 0.6), (*FAR, 0.5)])], 1, 1),  # no tie: the order is the scores'
        ([([CUP], [(*CUP, 0.5), (*FAR, 0.5)])], 0.5, 1),
        ([([CUP], [(*FAR, 0.5), (*CUP, 0.5)])], 0.5, 1),  # whatever order it was given in
        ([([CUP], [(*CUP, 0.5)]), ([], [(*CUP, 0.5)])], 0.5, 1),  # a tie of two images
        ([([CUP], [(*CUP, 0.5)] * 5)], 1, 1),  # the first of equal copies is right in any order
        ([([CUP], [(*CUP, 0.5), ("mug", grid_box(9), 0.5)])], 1, 1),  # of two classes
        ([([CUP], [(*CUP, 0.9), (*CUP, 0.5), (*FAR, 0.5)])], 1, 1),  # found already: both are wrong
        ([([CUP], [(*CUP, 0.5), *[(*FAR, 0.5)] * 9])], 0.1, 1),
        ([([("cup", grid_box(0), True)], [(*CUP, 0.5)] * 3)], -1, -1),  # only a crowd region
    ],
)
def test_closed_forms(images, low, high) -> None:
    found = ranges(*images)
    assert (found[0], found[2]) == pytest.approx((low, high))
    assert found[0] <= found[1] <= found[2]


def test_the_worst_order_keeps_copies_with_their_box() -> None:
    """Two labels, four copies of one box, one of the other: wrong copies come early, but not before the right one."""
    labels = [CUP, ("cup", grid_box(2))]
    low, _, high = ranges((labels, [*[(*CUP, 0.5)] * 4, (*labels[1], 0.5)]))
    # Found at ranks 1 and 5: precision 1 up to recall .5, then 2/5. Recall levels: 51 and 50 of 101.
    assert low == pytest.approx((51 * 1 + 50 * 0.4) / 101)
    assert high == pytest.approx(1)


def test_ties_are_of_one_class_and_one_score() -> None:
    assert not has_ties(split(([], []))[1])
    assert not has_ties(split(([], [(*CUP, 0.5), ("mug", grid_box(0), 0.5), (*CUP, 0.4)]))[1])
    assert has_ties(split(([], [(*CUP, 0.5)]), ([], [(*CUP, 0.5)]))[1])


def test_thresholds_are_cocos() -> None:
    assert THRESHOLDS.tolist() == pytest.approx([0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95])


def tied_scene(rng: np.random.Generator, labels: int, step: float):
    """Boxes around labels `step` apart in a row, and beyond them, three an image of two scores."""
    images = []
    for _ in range(2):
        count = int(rng.integers(1, labels + 1))
        rows = []
        for _ in range(3):
            at = int(rng.integers(0, count + 1))
            x = at * step + float(rng.choice([0, 0, 1, 2, 3])) + 100 * (at == count)
            width = 10 - float(rng.choice([0, 1, 2]))
            rows.append(("a", (x, 0.0, x + width, 10.0), float(rng.choice([0.3, 0.6], p=[0.3, 0.7]))))
        images.append(([("a", (i * step, 0.0, i * step + 10, 10.0)) for i in range(count)], rows))
    return split(*images)


def every_ap(truth, detections) -> list[float]:
    """AP of every order of the detections in which scores do not rise."""
    orders = {
        tuple(order[np.argsort(-detections.score[order], kind="stable")].tolist())
        for order in map(np.array, itertools.permutations(range(len(detections))))
    }
    return [ap_of(truth, replace(detections, score=ranked(np.array(order)))) for order in sorted(orders)]


@pytest.mark.parametrize(("step", "share"), [(12.0, 0.97), (3.0, 0.9)], ids=["apart", "overlapping"])
def test_the_range_is_that_of_all_orders(step, share) -> None:
    """Never wider than what orders give, and nearly as wide, however boxes compete for labels."""
    rng = np.random.default_rng(0)
    widths, found = [], []
    for _ in range(25):
        truth, detections = tied_scene(rng, 3, step)
        aps = every_ap(truth, detections)
        ap = ap_of(truth, detections)
        low, high = ap_range(truth, detections, ap)
        assert low <= ap <= high
        assert min(aps) - 1e-12 <= low <= high <= max(aps) + 1e-12
        widths.append(max(aps) - min(aps))
        found.append(high - low)
    assert sum(widths) > 2
    assert sum(found) >= share * sum(widths)


@pytest.mark.parametrize("seed", range(4))
def test_random_sets_and_random_orders_stay_inside(seed, tmp_path) -> None:
    truth, detections = forms(*random_coco(seed), tmp_path)
    low, high = ap_range(truth, detections, ap_of(truth, detections))
    rng = np.random.default_rng(seed)
    assert low < high
    for _ in range(5):
        order = np.lexsort((rng.random(len(detections)), -detections.score))
        assert low <= ap_of(truth, replace(detections, score=ranked(order))) <= high
    for order in tie_orders(truth, detections):
        assert sorted(order.tolist()) == list(range(len(detections)))
        assert (np.diff(detections.score[order]) <= 0).all(), "scores come first"
