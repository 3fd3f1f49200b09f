"""Rates, their intervals against a direct loop, places in the answer, the range of F1, and shapes."""

from __future__ import annotations

import numpy as np
import pytest
from splits import forms, grid_box, random_coco, split

from apiece.boxes import iou
from apiece.evaluate.metrics import shape_figures
from apiece.evaluate.rates import (
    Bootstrap,
    by_position,
    lenient_f1,
    match_split,
    near_duplicates,
    outcome_rates,
    places,
    strips,
    total_scores,
)
from apiece.outcomes import NONE, Fate, Outcome, label_outcomes

CUP = ("cup", grid_box(0))


def outcomes_of(truth, detections):
    return label_outcomes(truth, detections, match_split(truth, detections))


def test_intervals_equal_a_direct_loop() -> None:
    rng = np.random.default_rng(0)
    images, groups, values = 15, 3, 4
    image = rng.integers(images - 3, size=200)  # three images without items
    group, value = (image % 3 + rng.integers(0, 2, 200)) % 3, rng.integers(0, values, 200)
    group[group == 2] = rng.integers(0, 2, (group == 2).sum())
    group[image == 4] = 2  # a group that many draws do not have
    bootstrap = Bootstrap(images, draws=150, seed=3)
    rates = bootstrap.rates(image, group, value, groups=groups, values=values)
    assert (bootstrap.weights.sum(1) == images).all()
    for g in range(groups):
        for v in range(values):
            own = value[group == g] == v
            assert rates.count[g, v] == own.sum()
            assert rates.rate[g, v] == pytest.approx(own.mean())
            drawn = []
            for weights in bootstrap.weights:
                chosen = [i for i, times in enumerate(weights.tolist()) for _ in range(times)]
                items = [value[j] == v for i in chosen for j in np.flatnonzero((image == i) & (group == g))]
                if items:
                    drawn.append(np.mean(items))
            low, high = np.percentile(drawn, [2.5, 97.5])
            assert rates.lo[g, v] == pytest.approx(low)
            assert rates.hi[g, v] == pytest.approx(high)
    assert (rates.row(0, 1, "x")) == {"x": rates.rate[0, 1], "x_lo": rates.lo[0, 1], "x_hi": rates.hi[0, 1]}


def test_equal_seeds_give_equal_draws_and_nothing_gives_zero() -> None:
    assert (Bootstrap(9, seed=1).weights == Bootstrap(9, seed=1).weights).all()
    assert (Bootstrap(9, seed=1).weights != Bootstrap(9, seed=2).weights).any()
    nothing = np.zeros(0, dtype=np.int64)
    for images in (0, 4):
        rates = Bootstrap(images).rates(nothing, nothing, nothing, groups=2, values=3)
        assert rates.rate.tolist() == rates.lo.tolist() == rates.hi.tolist() == [[0.0] * 3] * 2


def test_rates_of_a_split(tmp_path) -> None:
    truth, detections = forms(*random_coco(1), tmp_path)
    outcomes = outcomes_of(truth, detections)
    rates = outcome_rates(truth, detections, outcomes, Bootstrap(len(truth.images)))
    assert rates.overall.rate.sum() == pytest.approx(1)
    assert rates.overall.count[0].tolist() == list(outcomes.counts().values())
    for table in (rates.by_class, rates.by_crowding):
        assert table.count.sum(0).tolist() == rates.overall.count[0].tolist()
    assert (rates.overall.lo <= rates.overall.hi).all()
    misses = outcomes.miss_counts()
    assert rates.merged.rate[0, 1] == pytest.approx(misses["merged"] / sum(misses.values()))


def test_by_position() -> None:
    assert places(np.array([1, 0, 1, 1, 0])).tolist() == [0, 0, 1, 2, 1]
    first = ([CUP, ("cup", grid_box(1))], [(*CUP, 0.1), (*CUP, 0.9), ("cup", grid_box(1), 0.5)])
    second = ([CUP], [("cup", (0, 0, 10, 8), 0.5)])
    truth, detections = split(first, second)
    table = by_position(detections, outcomes_of(truth, detections))
    assert table["1"] == {
        "predictions": 2,
        "tp": 1.0,
        "duplicate": 0.0,
        "mean_iou": 0.9,
        "recall": pytest.approx(2 / 3),
    }
    assert table["2-5"] == {"predictions": 2, "tp": 0.5, "duplicate": 0.5, "mean_iou": 1.0, "recall": 1.0}
    assert table["41+"] == {"predictions": 0, "tp": 0.0, "duplicate": 0.0, "mean_iou": 0.0, "recall": 1.0}


def test_lenient_f1_leaves_out_confident_background() -> None:
    found = [(*CUP, 0.4), ("cup", grid_box(1), 0.6), ("cup", grid_box(2), 0.8)]
    labels = [row[:2] for row in found]
    away = [("cup", grid_box(10 + i), score) for i, score in enumerate((0.59, 0.6, 0.99))]
    truth, detections = split((labels, [*found, *away, (*CUP, 0.99)]))  # the copy is wrong whatever is labelled
    scores = total_scores(match_split(truth, detections))
    assert scores.f1 == pytest.approx(6 / 10)
    assert lenient_f1(scores, detections, outcomes_of(truth, detections)) == pytest.approx(6 / 8)
    truth, detections = split(([CUP], away))
    scores = total_scores(match_split(truth, detections))
    assert lenient_f1(scores, detections, outcomes_of(truth, detections)) == 0


@pytest.mark.parametrize("seed", range(4))
def test_near_duplicates_equal_all_pairs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(6):
        boxes = [rng.uniform(0, 50, 2) for _ in range(6)]
        rows = []
        for at in boxes:
            size = rng.uniform(0, 60, 2) * rng.integers(0, 4, 1).clip(0, 1)
            for _ in range(5):
                corner = at + rng.normal(0, 0.02, 2) * size
                rows.append((str(rng.choice(["a", "b"])), (*corner, *(corner + size)), 0.5))
        images.append(([("a", (0.0, 0.0, 9.0, 9.0))], rows))
    truth, detections = split(*images)
    every = np.arange(len(detections))
    boxes = detections.bbox_xyxy
    alike = (detections.image[:, None] == detections.image) & (detections.category[:, None] == detections.category)
    expected = np.argwhere(np.triu(alike & (iou(boxes, boxes) >= 0.9), 1))
    assert len(expected) > 20
    assert near_duplicates(truth, detections, every).tolist() == expected.tolist()
    half = every[::2]
    assert set(near_duplicates(truth, detections, half).ravel().tolist()) <= set(half.tolist())


def test_near_duplicates_at_the_border_and_of_nothing() -> None:
    truth, detections = split(([], [(*CUP, 0.5), ("cup", (0, 0, 10, 9), 0.5), ("cup", (0, 0, 10, 8.9), 0.5)]))
    assert near_duplicates(truth, detections, np.arange(3)).tolist() == [[0, 1], [1, 2]]
    assert near_duplicates(truth, detections, np.zeros(0, dtype=np.int64)).tolist() == []
    n = 20
    truth, detections = split(([], [(*CUP, 0.5)] * n))
    assert len(near_duplicates(truth, detections, np.arange(n))) == n * (n - 1) // 2


def test_shape_figures() -> None:
    """A prediction is a repeat if an earlier one is near it, however many are; a pair is a pair."""
    star = [(0, 0, 10, 10), (0, 0, 10, 9), (0, 1, 10, 10)]  # the last two are near the first, not each other
    rows = [("cup", box, 0.5) for box in (*star, (0, 100, 400, 110), (200, 200, 300, 300))]
    truth, detections = split(([], rows), ([], [(*CUP, 0.5)] * 4))
    figures = shape_figures(truth, detections, np.arange(9), Bootstrap(2))
    assert figures["shape/near_duplicate_pairs"] == 2 + 6
    assert figures["shape/near_duplicate"] == pytest.approx((2 + 3) / 9)
    assert figures["shape/strip"] == pytest.approx(1 / 9)
    # The bootstrap draws whole images: an interval goes from one of them to the other.
    assert (figures["shape/near_duplicate_lo"], figures["shape/near_duplicate_hi"]) == pytest.approx((2 / 5, 3 / 4))
    assert (figures["shape/strip_lo"], figures["shape/strip_hi"]) == pytest.approx((0, 1 / 5))
    some = shape_figures(truth, detections, np.array([0, 1, 3]), Bootstrap(2))
    assert (some["shape/near_duplicate"], some["shape/strip"]) == pytest.approx((1 / 3, 1 / 3))


def test_strips() -> None:
    # Of 640 x 480: 1 % is 3072 square pixels.
    boxes = [(0, 0, 320, 40), (0, 0, 320.1, 40), (0, 0, 40, 321), (0, 0, 100, 3), (0, 0, 200, 15.3), (0, 0, 200, 15.4)]
    truth, detections = split(([], [("cup", box, 0.5) for box in boxes]))
    assert strips(truth, detections).tolist() == [False, True, True, False, False, True]
    truth, detections = split(([], [("cup", (0, 0, 640, 0), 0.5)]))
    assert strips(truth, detections).tolist() == [False]


def test_fates_and_outcomes_have_their_own_names() -> None:
    assert not {o.label for o in Outcome} & {f.label for f in Fate}
    assert NONE not in [*Outcome, *Fate]
