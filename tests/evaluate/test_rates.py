"""Rates, their intervals against a direct loop, places in the answer, the range of F1, and shapes."""

from __future__ import annotations

import numpy as np
import pytest
from splits import forms, grid_box, random_coco, split

from apiece.boxes import iou
from apiece.evaluate.metrics import evaluate_detections
from apiece.evaluate.rates import (
    by_position,
    image_ratios,
    judge,
    lenient_f1,
    match_split,
    near_duplicates,
    places,
    strips,
    total_scores,
)
from apiece.outcomes import NONE, Fate, Outcome, label_outcomes

CUP = ("cup", grid_box(0))


def outcomes_of(truth, detections):
    return label_outcomes(truth, detections, match_split(truth, detections))


def test_rates_of_a_split(tmp_path) -> None:
    truth, detections = forms(*random_coco(1), tmp_path)
    judged = judge(truth, detections)
    ratios = image_ratios(truth, detections, judged)
    rates = [ratios[f"rates/{o.label}"] for o in Outcome if o is not Outcome.UNLABELLED]
    assert sum(rate.value for rate in rates) == pytest.approx(1)
    counts = judged.outcomes.counts()
    assert [rate.part.sum() for rate in rates] == [n for label, n in counts.items() if label != "unlabelled"]
    misses = judged.outcomes.miss_counts()
    assert ratios["rates/merged"].value == pytest.approx(misses["merged"] / sum(misses.values()))
    metrics = evaluate_detections(truth, detections, policy="x")
    for table in (metrics["by_class"], metrics["by_crowding"]):
        for label, count in counts.items():
            assert sum(row[f"outcomes/{label}"] for row in table.values()) == count
    for rows in (metrics, *metrics["by_class"].values()):
        assert all(rows[f"{key}_lo"] is None or rows[f"{key}_lo"] <= rows[key] for key in rows if f"{key}_lo" in rows)


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
    assert table["41+"] == {"predictions": 0, "tp": None, "duplicate": None, "mean_iou": None, "recall": 1.0}


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
    metrics = evaluate_detections(truth, detections, policy="x")
    assert metrics["shape/near_duplicate_pairs"] == 2 + 6
    assert metrics["shape/near_duplicate"] == pytest.approx((2 + 3) / 9)
    assert metrics["shape/strip"] == pytest.approx(1 / 9)


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
