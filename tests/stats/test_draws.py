"""Draws: of ratios against a direct loop, with nothing to divide, and how wide an interval is."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from apiece.stats.draws import ImageDraws, image_draws
from apiece.stats.ratio import Ratio, mean_ratio


def test_intervals_equal_a_direct_loop() -> None:
    rng = np.random.default_rng(0)
    images = 15
    image = rng.integers(images - 3, size=200)  # three images without items
    value = rng.random(200)
    counted = np.ones(images, dtype=bool)
    counted[-1] = False
    draws = ImageDraws(counted, draws=150, seed=3)
    assert (draws.weights.sum(1) == images - 1).all()
    found = draws.estimates({"x": mean_ratio(image, value, images)})["x"]
    drawn = []
    for weights in draws.weights:
        chosen = [i for i, times in enumerate(weights.tolist()) for _ in range(times)]
        drawn.append(np.mean(np.concatenate([value[image == i] for i in chosen])))
    assert found.value == pytest.approx(value.mean())
    units = images - 3
    low, high = np.percentile(np.array(drawn) - np.mean(drawn), [2.5, 97.5])
    wider = math.sqrt(units / (units - 1)) * stats.t.ppf(0.975, units - 1) / stats.norm.ppf(0.975)
    assert (found.lo, found.hi) == pytest.approx((found.value + low * wider, found.value + high * wider))
    assert found.units == units


def test_equal_seeds_give_equal_draws() -> None:
    assert (image_draws(9, seed=1) == image_draws(9, seed=1)).all()
    assert (image_draws(9, seed=1) != image_draws(9, seed=2)).any()


@pytest.mark.parametrize("images", [0, 4])
def test_nothing_to_divide_is_none(images: int) -> None:
    nothing = Ratio(np.zeros(images), np.zeros(images))
    found = ImageDraws(np.ones(images, dtype=bool)).estimates({"x": nothing})["x"]
    assert (found.value, found.lo, found.hi, found.units) == (None, None, None, 0)
    assert math.isnan(nothing.value)


def test_what_could_not_be_computed_counts_nowhere() -> None:
    ratio = mean_ratio(np.array([0, 0, 2]), np.array([1.0, np.nan, 4.0]), 3)
    assert (ratio.part.tolist(), ratio.whole.tolist()) == ([1, 0, 4], [1, 0, 1])


def test_a_difference_rests_on_the_rarer_kind() -> None:
    draws = ImageDraws(np.ones(6, dtype=bool))
    here, off = Ratio(np.array([1.0, 1, 0, 0, 0, 0]), np.array([1.0, 2, 1, 0, 0, 0])), Ratio(np.zeros(6), np.ones(6))
    found = draws.difference(off, here)
    assert (found.value, found.units) == (0.5, 3)
    assert found.lo is not None and found.hi is not None
    assert found.lo < 0.5 < found.hi
