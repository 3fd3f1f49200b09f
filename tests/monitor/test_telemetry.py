"""Running variance against numpy and a library regression."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from apiece.train.meter import Telemetry


def filled(values: np.ndarray, items: np.ndarray, window: int = 100) -> dict[str, float]:
    telemetry = Telemetry(window)
    for value, count in zip(values, items, strict=True):
        telemetry.add({"x": float(value)}, {"x": float(count)})
    return telemetry.figures()


def test_mean_and_variance_are_numpys_over_the_window() -> None:
    rng = np.random.default_rng(0)
    values, items = rng.normal(size=50), rng.integers(1, 30, 50)
    figures = filled(values, items, window=20)
    assert figures["window_mean/x"] == pytest.approx(values[-20:].mean())
    assert figures["window_var/x"] == pytest.approx(values[-20:].var(ddof=1))


def test_what_is_left_after_regressing_on_items_is_scipys() -> None:
    rng = np.random.default_rng(1)
    items = rng.integers(1, 30, 40).astype(float)
    values = 3 + 0.2 * items + rng.normal(size=40)
    line = stats.linregress(items, values)
    rest = values - line.intercept - line.slope * items
    figures = filled(values, items)
    assert figures["window_var_given_items/x"] == pytest.approx((rest**2).sum() / 38)
    assert figures["window_var_given_items/x"] < 0.7 * figures["window_var/x"]


def test_a_figure_that_items_explain_wholly_leaves_nothing() -> None:
    items = np.array([1.0, 2, 3, 4])
    assert filled(2 * items, items)["window_var_given_items/x"] == pytest.approx(0, abs=1e-20)


@pytest.mark.parametrize("count", [1, 2], ids=["one value", "two values"])
def test_too_few_values_say_nothing(count: int) -> None:
    assert filled(np.ones(count), np.ones(count)) == {}


def test_constant_items_leave_the_plain_variance() -> None:
    figures = filled(np.array([1.0, 2, 4]), np.array([5.0, 5, 5]))
    assert figures["window_var_given_items/x"] == figures["window_var/x"] == pytest.approx(7 / 3)
