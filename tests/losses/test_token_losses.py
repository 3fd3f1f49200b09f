"""The charge on a token that should not have been written."""

from __future__ import annotations

import math

import pytest
import torch

from apiece.losses.compose import refusal


@pytest.mark.parametrize("p", [1e-6, 0.1, 0.5, 0.9, 1 - 1e-9])
def test_it_is_minus_the_log_of_what_is_left(p: float) -> None:
    logits = torch.tensor(
        [[math.log(p), math.log1p(-p) - math.log(2), math.log1p(-p) - math.log(2)]], dtype=torch.float64
    )
    assert float(refusal(logits, torch.tensor([0]))[0]) == pytest.approx(-math.log1p(-p), rel=1e-6)


def test_its_gradient_is_that_of_the_formula() -> None:
    logits = torch.randn(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    ids = torch.tensor([0, 6, 3, 3, 1])
    (ours,) = torch.autograd.grad(refusal(logits, ids).sum(), logits)
    p = logits.softmax(-1).gather(1, ids[:, None])
    (plain,) = torch.autograd.grad(-(1 - p).log().sum(), logits)
    torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-12)


def test_certainty_has_a_finite_cost_and_a_gradient() -> None:
    logits = torch.tensor([[200.0, 0.0, 0.0]], requires_grad=True)
    cost = refusal(logits, torch.tensor([0])).sum()
    cost.backward()
    assert float(cost.detach()) == pytest.approx(200 - math.log(2), rel=1e-6)
    assert logits.grad is not None
    assert logits.grad[0].tolist() == pytest.approx([1, -0.5, -0.5])


def test_no_tokens() -> None:
    assert refusal(torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64)).shape == (0,)
