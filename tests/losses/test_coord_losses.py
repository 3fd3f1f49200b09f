"""Losses on the distribution over bins: closed forms, an outside oracle, and the floors that they can reach."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from scipy.stats import entropy, norm, wasserstein_distance

from apiece.losses.coord import coord_ce, log_coord_mass, log_text_mass, soft_ce, soft_targets, w1

CPU = torch.device("cpu")
BINS = 1000


def random_logits(count: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, BINS, generator=torch.Generator().manual_seed(seed)) * 3


def delta_logits(*bins: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(bins), BINS) * 1e4


@pytest.mark.parametrize(("sigma", "truncate"), [(2.0, 8), (1.0, 8), (4.0, 16), (0.3, 1), (50.0, 2000)])
def test_targets_are_truncated_gaussians(sigma, truncate) -> None:
    targets = soft_targets(BINS, sigma, truncate, CPU)
    assert targets.q_KK.dtype == torch.float32
    assert_allclose(targets.q_KK.sum(1), 1, atol=1e-6)
    distance = np.abs(np.subtract.outer(np.arange(BINS), np.arange(BINS)))
    q = targets.q_KK.numpy()
    assert (q[distance > truncate] == 0).all()
    for t in (0, 1, 7, 500, 998, 999):
        inside = norm.pdf(np.arange(BINS), loc=t, scale=sigma) * (distance[t] <= truncate)
        assert_allclose(q[t], inside / inside.sum(), atol=1e-6)
        assert q[t].argmax() == t
        assert_allclose(targets.entropy_K[t], entropy(q[t].astype(np.float64)), rtol=1e-5)
    assert_allclose(targets.cdf_KK, q.astype(np.float64).cumsum(1), atol=1e-6)


@pytest.mark.parametrize(("sigma", "floor", "peak"), [(2.0, 2.11, 0.20), (1.0, 1.42, 0.40)])
def test_the_floor_and_the_peak_that_the_design_states(sigma, floor, peak) -> None:
    targets = soft_targets(BINS, sigma, 8, CPU)
    assert float(targets.entropy_K[500]) == pytest.approx(floor, abs=0.005)
    assert float(targets.q_KK[500, 500]) == pytest.approx(peak, abs=0.005)
    # At an edge half of the Gaussian is missing: less to be unsure of.
    assert float(targets.entropy_K[0]) < floor - 0.5


@pytest.mark.parametrize(("sigma", "truncate"), [(2.0, 8), (1.0, 8), (4.0, 16)])
def test_soft_ce_reaches_its_floor_at_the_target_and_nowhere_below(sigma, truncate) -> None:
    targets = soft_targets(BINS, sigma, truncate, CPU)
    t = torch.tensor([0, 3, 500, 998, 999])
    floor = targets.entropy_K[t]
    at_target = targets.q_KK[t].clamp_min(1e-30).log()
    assert_allclose(soft_ce(at_target, t, targets), floor, atol=2e-5)
    assert (soft_ce(random_logits(5), t, targets) > floor).all()
    assert (soft_ce(delta_logits(*t.tolist()), t, targets) > floor).all()  # too sure is wrong, too
    uniform = soft_ce(torch.zeros(5, BINS), t, targets)
    assert_allclose(uniform, math.log(BINS), rtol=1e-6)


def test_soft_ce_pulls_towards_the_target() -> None:
    targets = soft_targets(BINS, 2.0, 8, CPU)
    logits = random_logits(3).requires_grad_()
    t = torch.tensor([0, 40, 999])
    soft_ce(logits, t, targets).sum().backward()
    assert_allclose(logits.grad, logits.detach().softmax(-1) - targets.q_KK[t], atol=1e-6)


def test_coord_ce_is_minus_the_log_probability_of_the_bin() -> None:
    logits = random_logits(4)
    t = torch.tensor([0, 1, 500, 999])
    p = logits.double().softmax(-1)
    assert_allclose(coord_ce(logits, t), [-math.log(p[s, k]) for s, k in enumerate(t.tolist())], rtol=1e-5)
    assert_allclose(coord_ce(torch.zeros(4, BINS), t), math.log(BINS), rtol=1e-6)
    assert_allclose(coord_ce(delta_logits(0, 1, 500, 999), t), 0)


@pytest.mark.parametrize(("sigma", "truncate"), [(2.0, 8), (4.0, 16)])
def test_w1_is_scipys_wasserstein_distance(sigma, truncate) -> None:
    targets = soft_targets(BINS, sigma, truncate, CPU)
    logits, t = random_logits(6), torch.tensor([0, 2, 250, 500, 991, 999])
    bins = np.arange(BINS)
    expected = [
        wasserstein_distance(bins, bins, p, targets.q_KK[k].double().numpy()) / (BINS - 1)
        for p, k in zip(logits.double().softmax(-1).numpy(), t.tolist(), strict=True)
    ]
    assert_allclose(w1(logits, t, targets), expected, atol=1e-6)


@pytest.mark.parametrize(("at", "target"), [(0, 0), (0, 999), (999, 0), (500, 501), (123, 456)])
def test_w1_between_two_points_is_their_distance(at, target) -> None:
    point = soft_targets(BINS, 0.01, 1, CPU)
    distance = w1(delta_logits(at), torch.tensor([target]), point)
    assert_allclose(distance, abs(at - target) / 999, atol=1e-6)


def test_w1_is_zero_at_the_target() -> None:
    targets = soft_targets(BINS, 2.0, 8, CPU)
    t = torch.tensor([0, 500, 999])
    assert_allclose(w1(targets.q_KK[t].clamp_min(1e-30).log(), t, targets), 0, atol=1e-6)


VOCABULARY, FIRST, COORDS = 1300, 120, 1000


@pytest.mark.parametrize("first", [0, FIRST, VOCABULARY - COORDS])
def test_gates_are_the_masses_of_the_full_softmax(first) -> None:
    logits = torch.randn(5, VOCABULARY, generator=torch.Generator().manual_seed(1)) * 2
    mass = logits.double().softmax(-1)[:, first : first + COORDS].sum(-1)
    assert_allclose(log_coord_mass(logits, first, COORDS), mass.log(), rtol=1e-5, atol=1e-6)
    assert_allclose(log_text_mass(logits, first, COORDS), (1 - mass).log(), rtol=1e-5, atol=1e-6)
    uniform = torch.zeros(1, VOCABULARY)
    assert_allclose(log_coord_mass(uniform, first, COORDS), math.log(1000 / 1300), rtol=1e-5)
    assert_allclose(log_text_mass(uniform, first, COORDS), math.log(300 / 1300), rtol=1e-5)


def test_gates_stay_exact_where_the_other_side_has_all_the_mass() -> None:
    # One coordinate token 100 nats above everything else: 1 - mass would round to 0, and its log to -inf.
    logits = torch.zeros(1, VOCABULARY)
    logits[0, FIRST] = 100.0
    assert float(log_text_mass(logits, FIRST, COORDS)) == pytest.approx(math.log(300) - 100, rel=1e-6)
    assert float(log_coord_mass(logits, FIRST, COORDS)) == pytest.approx(0, abs=1e-6)
    logits[0, FIRST], logits[0, 0] = 0.0, 100.0
    assert float(log_coord_mass(logits, FIRST, COORDS)) == pytest.approx(math.log(1000) - 100, rel=1e-6)


@pytest.mark.parametrize(
    "loss",
    [
        coord_ce,
        lambda x, t: soft_ce(x, t, soft_targets(BINS, 2.0, 8, CPU)),
        lambda x, t: w1(x, t, soft_targets(BINS, 2.0, 8, CPU)),
        lambda x, t: -log_coord_mass(x, 10, 900),
        lambda x, t: -log_text_mass(x, 10, 900),
    ],
)
def test_no_slots_and_extreme_logits(loss) -> None:
    assert loss(torch.zeros(0, BINS), torch.zeros(0, dtype=torch.int64)).shape == (0,)
    logits = (delta_logits(3, 990) - 5e3).float().requires_grad_()
    value = loss(logits, torch.tensor([999, 0])).sum()
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(logits.grad).all()
