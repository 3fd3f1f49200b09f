"""Decoding and box losses: closed forms, a plain formula, and gradients against finite differences."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from torch import tensor

from apiece.losses.box import ciou, decode_expectation, decode_straight_through, order_corners, smoothl1

BINS = 1000


def logits_of(**mass: float) -> torch.Tensor:
    """Logits of one slot with this mass on these bins, written `b10=.5`."""
    p = torch.full((1, BINS), 1e-30)
    for name, share in mass.items():
        p[0, int(name[1:])] = share
    return p.log()


@pytest.mark.parametrize(
    ("mass", "expectation", "straight"),
    [
        ({"b0": 1.0}, 0, 0),  # near edge
        ({"b999": 1.0}, 1, 1),  # far edge
        ({"b500": 1.0}, 500 / 999, 500 / 999),  # sure
        ({"b100": 0.5, "b300": 0.5}, 200 / 999, 100 / 999),  # two modes: their average, or the first
        ({"b100": 0.25, "b300": 0.75}, 250 / 999, 300 / 999),  # the heavier one
        ({f"b{k}": 1e-3 for k in range(BINS)}, 0.5, 0),  # uniform
    ],
)
def test_decoding(mass, expectation, straight) -> None:
    assert_allclose(decode_expectation(logits_of(**mass)), expectation, atol=1e-6)
    assert_allclose(decode_straight_through(logits_of(**mass)), straight, atol=1e-6)


@pytest.mark.parametrize("decode", [decode_expectation, decode_straight_through])
def test_both_decodings_have_the_expectations_gradient(decode) -> None:
    drawn = torch.randn(3, BINS, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 4
    logits = drawn.clone().requires_grad_()
    decode(logits).sum().backward()
    p, k = drawn.softmax(-1), torch.arange(BINS, dtype=torch.float64) / (BINS - 1)
    assert_allclose(logits.grad, p * (k - (p * k).sum(-1, keepdim=True)), atol=1e-12)


def test_corners_in_order() -> None:
    boxes = tensor([[0.1, 0.2, 0.3, 0.4], [0.3, 0.2, 0.1, 0.4], [0.1, 0.4, 0.3, 0.2], [0.3, 0.4, 0.1, 0.2]])
    assert_allclose(order_corners(boxes), [[0.1, 0.2, 0.3, 0.4]] * 4)
    assert order_corners(torch.zeros(0, 4)).shape == (0, 4)


@pytest.mark.parametrize(
    ("beta", "difference", "expected"),
    [
        (1.0, 0.2, 0.02),  # square: d^2 / 2
        (0.05, 0.02, 0.004),  # square: d^2 / (2 beta)
        (0.05, 0.2, 0.175),  # straight: d - beta / 2
        (0.05, -0.2, 0.175),  # either side
        (0.05, 0.05, 0.025),  # where they meet
        (1.0, 0.0, 0.0),  # perfect
    ],
)
def test_smoothl1_by_hand(beta, difference, expected) -> None:
    truth = tensor([[0.3, 0.3, 0.6, 0.6]])
    assert_allclose(smoothl1(truth + difference, truth, beta), [expected], atol=1e-7)
    one = truth + tensor([[difference, 0, 0, 0]])
    assert_allclose(smoothl1(one, truth, beta), [expected / 4], atol=1e-7)  # a mean over the four coordinates


def plain_ciou(box, truth, alpha: float | None = None) -> float:
    """Zheng et al. 2020, equations 7 and 10 to 12, without a vector in sight."""
    x1, y1, x2, y2 = box
    a1, b1, a2, b2 = truth
    w, h, w_truth, h_truth = x2 - x1, y2 - y1, a2 - a1, b2 - b1
    inter = max(0.0, min(x2, a2) - max(x1, a1)) * max(0.0, min(y2, b2) - max(y1, b1))
    iou = inter / (w * h + w_truth * h_truth - inter)
    rho2 = ((x1 + x2) / 2 - (a1 + a2) / 2) ** 2 + ((y1 + y2) / 2 - (b1 + b2) / 2) ** 2
    c2 = (max(x2, a2) - min(x1, a1)) ** 2 + (max(y2, b2) - min(y1, b1)) ** 2
    v = 4 / math.pi**2 * (math.atan(w_truth / h_truth) - math.atan(w / h)) ** 2
    if alpha is None:
        alpha = v / ((1 - iou) + v) if v else 0.0
    return iou - rho2 / c2 - alpha * v


def alpha_of(box, truth) -> float:
    """The weight of the aspect term: what is left of a plain CIoU without it, over v."""
    without = plain_ciou(box, truth, alpha=0.0)
    v = without - plain_ciou(box, truth, alpha=1.0)
    return (without - plain_ciou(box, truth)) / v if v else 0.0


SIDES = st.tuples(st.integers(0, 998), st.integers(1, 999)).filter(lambda s: s[0] < s[1])
BOXES = st.builds(lambda x, y: (x[0] / 999, y[0] / 999, x[1] / 999, y[1] / 999), SIDES, SIDES)


@settings(max_examples=200)
@given(box=BOXES, truth=BOXES)
def test_ciou_is_the_plain_formula(box, truth) -> None:
    value = float(ciou(tensor([box]), tensor([truth])))
    assert value == pytest.approx(plain_ciou(box, truth), abs=2e-5)
    assert value <= 1.0
    assert float(ciou(tensor([truth]), tensor([box]))) == pytest.approx(value, abs=1e-5)


@given(box=BOXES)
def test_ciou_of_a_box_with_itself_is_1_down_to_one_bin(box) -> None:
    assert float(ciou(tensor([box]), tensor([box]))) == pytest.approx(1, abs=1e-6)


def test_ciou_by_hand() -> None:
    truth = tensor([[0.2, 0.2, 0.4, 0.4]])
    # Same size, one side apart: IoU 0, centres .2 apart in a hull of .4 x .2, same aspect.
    assert_allclose(ciou(tensor([[0.4, 0.2, 0.6, 0.4]]), truth), [-0.04 / 0.2], atol=1e-6)
    # Twice as wide: IoU .5, centres .1 apart in a hull of .4 x .2; v = 4 / pi^2 * (atan 1 - atan 2)^2.
    v = 4 / math.pi**2 * (math.pi / 4 - math.atan(2)) ** 2
    assert_allclose(ciou(tensor([[0.2, 0.2, 0.6, 0.4]]), truth), [0.5 - 0.01 / 0.2 - v * v / (0.5 + v)], atol=1e-6)
    # Boxes that do not touch are told apart by distance: nearer is better.
    far, near = ciou(tensor([[0.8, 0.2, 1.0, 0.4], [0.5, 0.2, 0.7, 0.4]]), truth.expand(2, 4)).tolist()
    assert far < near < 0


def test_alpha_is_a_constant_for_the_gradient() -> None:
    # Shifted and of another aspect, so that every part has a gradient and alpha is far from 0.
    box, truth = [0.31, 0.22, 0.74, 0.43], [0.25, 0.2, 0.5, 0.6]
    x = torch.tensor([box], dtype=torch.float64, requires_grad=True)
    ciou(x, torch.tensor([truth], dtype=torch.float64)).sum().backward()
    steps = np.eye(4) * 1e-6

    def slope(alpha: float | None) -> list[float]:
        return [(plain_ciou(box + d, truth, alpha) - plain_ciou(box - d, truth, alpha)) / 2e-6 for d in steps]

    assert_allclose(x.grad[0], slope(alpha_of(box, truth)), rtol=1e-5)
    assert (
        np.abs(np.subtract(slope(alpha_of(box, truth)), slope(None))).max() > 0.01
    )  # free, it would be another gradient


@pytest.mark.parametrize(
    "box",
    [
        (0.5, 0.5, 0.5, 0.5),  # a point
        (0.0, 0.0, 0.0, 0.0),  # a point far away
        (0.5, 0.1, 0.5, 0.9),  # no width
        (0.1, 0.5, 0.9, 0.5),  # no height
        (0.5, 0.5, 0.5 + 1e-8, 0.5),  # hardly anything
        (0.4, 0.4, 0.6, 0.6),  # the truth
    ],
)
def test_degenerate_boxes_have_finite_and_bounded_gradients(box) -> None:
    x = tensor([box], requires_grad=True)
    value = ciou(x, tensor([[0.4, 0.4, 0.6, 0.6]]))
    value.sum().backward()
    assert torch.isfinite(value).all()
    assert -2 <= float(value.detach()) <= 1
    assert float(x.grad.abs().max()) < 1e3


def test_no_boxes() -> None:
    assert ciou(torch.zeros(0, 4), torch.zeros(0, 4)).shape == (0,)
    assert smoothl1(torch.zeros(0, 4), torch.zeros(0, 4), 1.0).shape == (0,)
    assert decode_expectation(torch.zeros(0, BINS)).shape == (0,)
    assert decode_straight_through(torch.zeros(0, BINS)).shape == (0,)
