"""Figures of one distribution against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from apiece.probes.slots import cross_instance_mass, entropy, exp_argmax_gap, mass_near, modes, reach, slot_figures

K = 1000
INDEX = np.arange(K)


def peaks(*parts: tuple[float, float, float]) -> NDArray[np.float64]:
    """A mixture of Gaussians (weight, centre, sigma); sigma 0 is all mass on one bin."""
    p = np.zeros(K)
    for weight, centre, sigma in parts:
        one = np.exp(-((INDEX - centre) ** 2) / (2 * sigma**2)) if sigma else (centre == INDEX).astype(float)
        p += weight * one / one.sum()
    return p


def uniform(low: int = 0, high: int = K) -> NDArray[np.float64]:
    p = ((low <= INDEX) & (high > INDEX)).astype(float)
    return p / p.sum()


def test_entropy_of_known_distributions() -> None:
    p = np.stack([peaks((1, 7, 0)), uniform(), uniform(0, 2), peaks((1, 500, 20))])
    gaussian = 0.5 * math.log(2 * math.pi * math.e * 20**2)
    assert entropy(p) == pytest.approx([0, math.log(K), math.log(2), gaussian], abs=1e-6)


def test_gap_between_expectation_and_argmax() -> None:
    p = np.stack([peaks((1, 400, 5)), peaks((0.6, 100, 0), (0.4, 300, 0)), peaks((0.5, 0, 0), (0.5, 999, 0))])
    assert exp_argmax_gap(p) == pytest.approx([0, 0.4 * 200, 999 / 2], abs=1e-9)


@pytest.mark.parametrize(
    ("p", "expected"),
    [
        pytest.param(peaks((1, 500, 0)), 1, id="one bin"),
        pytest.param(peaks((1, 0, 0)), 1, id="first bin"),
        pytest.param(peaks((1, 999, 0)), 1, id="last bin"),
        pytest.param(peaks((1, 500, 60)), 1, id="one broad hill"),
        pytest.param(peaks((0.6, 100, 3), (0.4, 300, 3)), 2, id="two hills"),
        pytest.param(peaks((0.5, 100, 0), (0.5, 104, 0)), 1, id="two bins closer than twice the smoothing"),
        pytest.param(peaks((0.5, 100, 0), (0.5, 110, 0)), 2, id="two bins farther apart"),
        pytest.param(peaks((0.91, 100, 3), (0.09, 300, 3)), 1, id="the second is too small"),
        pytest.param(peaks((0.9, 100, 3), (0.1, 300, 3)), 2, id="the second is just large enough"),
        pytest.param(peaks(*((0.1, 50 + 100 * i, 3) for i in range(10))), 10, id="ten equal ones"),
        pytest.param(peaks(*((0.05, 20 + 50 * i, 3) for i in range(20))), 0, id="twenty small bumps"),
        pytest.param(uniform(), 1, id="a plateau over everything"),
        pytest.param(uniform(200, 400), 1, id="a plateau"),
        pytest.param((uniform(100, 200) + uniform(600, 700)) / 2, 2, id="two plateaus"),
        pytest.param((peaks((1, 0, 0)) + peaks((1, 999, 0))) / 2, 2, id="both ends"),
    ],
)
def test_modes(p: NDArray[np.float64], expected: int) -> None:
    assert modes(p[None])[0] == expected
    assert modes(p[None].astype(np.float32).astype(np.float64))[0] == expected
    assert modes(p[None, ::-1])[0] == expected


def test_modes_keep_their_leading_axes() -> None:
    p = np.stack([peaks((1, 5, 0)), peaks((0.5, 100, 3), (0.5, 300, 3))] * 3)
    assert modes(p.reshape(3, 2, K)).tolist() == [[1, 2]] * 3
    assert modes(np.zeros((0, 4, K))).shape == (0, 4)


def test_mass_near_counts_the_rim_and_stops_at_the_ends() -> None:
    p = np.stack([uniform()] * 4)
    assert mass_near(p, np.array([500, 0, 999, 3]), 6) * K == pytest.approx([13, 7, 7, 10])
    bins = np.stack([peaks((1, 506, 0)), peaks((1, 507, 0)), peaks((1, 494, 0)), peaks((1, 493, 0))])
    assert mass_near(bins, np.full(4, 500), 6).tolist() == [1, 0, 1, 0]


def test_reach_is_three_sigma() -> None:
    assert [reach(s) for s in (2.0, 1.0, 0.5, 0.1 + 0.2)] == [6, 3, 1, 0]


def test_cross_instance_mass_is_that_of_the_others_alone() -> None:
    # Three books with one y1; a person; a book of another image.
    target = np.array([[100, 50, 190, 300], [200, 50, 290, 300], [300, 50, 390, 300], [500, 60, 600, 400], [700] * 4])
    group = np.array([0, 0, 0, 1, 2])
    p = np.tile(peaks((0.5, 100, 0), (0.2, 200, 0), (0.1, 306, 0), (0.1, 500, 0), (0.1, 700, 0)), (5, 4, 1))
    found = cross_instance_mass(p, target, group, 6)
    assert found[:, 0] == pytest.approx([0.3, 0.6, 0.7, 0, 0])
    assert found[0, 1:] == pytest.approx([0, 0, 0])  # y1 and y2 are shared: near the own is not another's
    own = mass_near(p, target, 6)
    assert own[:, 0] == pytest.approx([0.5, 0.2, 0.1, 0.1, 0.1])
    assert (own + found <= 1 + 1e-12).all()


def test_mass_near_several_others_counts_once() -> None:
    target = np.array([[100] * 4, [200] * 4, [203] * 4])
    p = np.tile(peaks((1, 202, 0)), (3, 4, 1))
    assert cross_instance_mass(p, target, np.zeros(3, dtype=np.int64), 6)[0].tolist() == [1] * 4


def test_twins_have_no_cross_instance_mass() -> None:
    target = np.tile(np.array([10, 20, 30, 40]), (3, 1))
    assert not cross_instance_mass(np.tile(uniform(), (3, 4, 1)), target, np.zeros(3, dtype=np.int64), 6).any()


@pytest.mark.parametrize("count", [0, 1, 60])
def test_all_figures_of_any_number_of_objects(count: int) -> None:
    rng = np.random.default_rng(count)
    p = rng.dirichlet(np.full(K, 0.1), size=(count, 4)).astype(np.float32)
    target = rng.integers(0, K, (count, 4))
    figures = slot_figures(p, target, rng.integers(0, 3, count), 2.0)
    for value in (figures.entropy, figures.own_mass, figures.cross_instance_mass, figures.exp_argmax_gap):
        assert value.shape == (count, 4)
        assert np.isfinite(value).all()
    assert (figures.argmax == p.argmax(-1)).all()


def test_images_do_not_touch_each_other() -> None:
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.full(K, 0.05), size=(6, 4))
    target, group = rng.integers(0, K, (6, 4)), np.array([0, 0, 0, 1, 1, 1])
    whole = cross_instance_mass(p, target, group, 6)
    parts = [cross_instance_mass(p[s], target[s], group[s], 6) for s in (slice(3), slice(3, 6))]
    assert whole == pytest.approx(np.concatenate(parts))


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected targets \[N, 4\]"):
        slot_figures(np.ones((2, 4, K)) / K, np.zeros((3, 4), dtype=np.int64), np.zeros(2, dtype=np.int64), 2.0)
