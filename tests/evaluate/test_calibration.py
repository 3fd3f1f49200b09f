"""Calibration: closed forms, ties, and a direct computation."""

from __future__ import annotations

import numpy as np
import pytest

from apiece.evaluate.metrics import calibration


def found(score, right, **options):
    result = calibration(np.array(score, dtype=float), np.array(right, dtype=bool), **options)
    assert result is not None
    return result


def test_nothing() -> None:
    assert (found([], [])[0], found([], [])[1]) == (None, {})


@pytest.mark.parametrize(
    ("score", "right", "ece"),
    [
        ([1.0], [True], 0.0),
        ([1.0], [False], 1.0),
        ([0.0], [True], 1.0),
        ([0.5, 0.5], [True, False], 0.0),
        ([1.0] * 4, [True, False, False, False], 0.75),  # `constant`: 1 - precision
        ([0.1, 0.1, 0.9, 0.9], [True, True, False, False], 0.9),  # upside down: right where it is unsure
        ([0.8] * 10, [True] * 8 + [False] * 2, 0.0),
        ([0.25, 0.75], [False, True], 0.25),  # a bin each: .25 off, both
    ],
)
def test_closed_forms(score, right, ece) -> None:
    assert found(score, right)[0] == pytest.approx(ece)


def test_bins_hold_equal_counts_and_equal_scores_share_one() -> None:
    score = np.arange(100) / 100
    curve = found(score, score > 0.5)[1]
    assert [row["count"] for row in curve.values()] == [10] * 10
    assert curve["1"] == {"from": 0.0, "to": 0.09, "score": pytest.approx(0.045), "tp": 0.0, "count": 10}
    assert list(curve) == [str(i) for i in range(1, 11)]
    tied = found([0.1] + [0.5] * 18 + [0.9], [True] * 20, bins=2)[1]  # ties go over the middle
    assert [(row["from"], row["to"], row["count"]) for row in tied.values()] == [(0.1, 0.5, 19), (0.9, 0.9, 1)]


@pytest.mark.parametrize("seed", range(3))
def test_equals_a_direct_computation(seed) -> None:
    rng = np.random.default_rng(seed)
    score = rng.random(1000)  # no ties: bins are blocks of 100
    right = rng.random(1000) < score**2
    order = np.argsort(score)
    gaps = [abs(score[rows].mean() - right[rows].mean()) for rows in np.split(order, 10)]
    assert found(score, right)[0] == pytest.approx(np.mean(gaps))
    shuffled = rng.permutation(1000)
    assert found(score[shuffled], right[shuffled]) == found(score, right)
    assert 0.1 < found(score, right)[0] < 0.25  # E[s - s^2] = 1/6


@pytest.mark.parametrize("score", [[0.5, 1.5], [-0.1, 0.5]])
def test_scores_that_are_no_probabilities_have_none(score) -> None:
    assert calibration(np.array(score), np.array([True, False])) is None
