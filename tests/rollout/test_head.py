"""The head in parts, and log-probabilities that are worked out later: the same figures as all logits at once."""

from __future__ import annotations

from math import isnan, nan
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn

from apiece.rollout import choose, plain
from apiece.rollout.choose import Ledger
from apiece.rollout.fast import FastModel
from apiece.rollout.plain import PlainModel, norm

WIDTH, VOCABULARY = 6, 200
HIDDEN = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 3
IDS = torch.tensor([0, 63, 64, 128, 199])


@pytest.fixture(params=["plain", "with a bias", "listened to", "another class"])
def layer(request):
    torch.manual_seed(0)
    linear = nn.Linear(WIDTH, VOCABULARY, bias=request.param == "with a bias", dtype=torch.float64)
    if request.param == "listened to":
        linear.register_forward_hook(lambda _, __, out: out + 1)
    return nn.Sequential(linear, nn.Tanh()) if request.param == "another class" else linear


def text_of(layer) -> PlainModel:
    """The model that has this head; the fast one only where nothing would be missed."""
    model = SimpleNamespace(lm_head=layer)
    fits = FastModel.fits(model)
    assert fits is (type(layer) is nn.Linear and layer.bias is None and not layer._forward_hooks)
    return FastModel(model) if fits else PlainModel(model)


@pytest.mark.parametrize("at_once", [1, 1000, 1 << 18])
@torch.no_grad()
def test_parts_are_those_of_the_whole(layer, at_once, monkeypatch) -> None:
    monkeypatch.setitem(plain.AT_ONCE, "cpu", at_once)
    text, logits = text_of(layer), layer(HIDDEN)
    assert_allclose(text.logits(HIDDEN), logits)
    assert_allclose(text.logits_between(HIDDEN, 60, 70), logits[:, 60:70])
    assert_allclose(text.logits_of(HIDDEN, IDS), logits[:, IDS])
    total, own = text.norm_and_own(HIDDEN, IDS)
    assert_allclose(total, logits.logsumexp(-1))
    assert_allclose(own, logits[torch.arange(5), IDS])
    assert_allclose(norm(logits), logits.logsumexp(-1))


@torch.no_grad()
def test_half_precision_is_summed_in_float32(layer) -> None:
    half = layer.to(torch.bfloat16)
    total, own = text_of(half).norm_and_own(HIDDEN.bfloat16(), IDS)
    logits = half(HIDDEN.bfloat16()).float()
    assert total.dtype == own.dtype == torch.float64
    assert_allclose(total, logits.logsumexp(-1), rtol=1e-5)
    assert_allclose(own, logits[torch.arange(5), IDS])


@pytest.mark.parametrize("together", [1, 3, 100])
@torch.no_grad()
def test_what_is_settled_later_is_the_same(layer, together, monkeypatch) -> None:
    monkeypatch.setattr(choose, "TOGETHER", together)
    ledger, expected = Ledger(text_of(layer)), layer(HIDDEN).log_softmax(-1)
    logprobs, masses = [nan] * 8, [nan] * 8
    near = float(layer(HIDDEN)[2, 10:15].logsumexp(-1))
    masses[3] = near
    # All of a pass; some of it; one state twice, for two answers; none.
    wanted = [[0, 1, 2, 3, 4], [2], [0, 0], []]
    tokens, count = [[5, 6, 7, 12, 9], [10], [11, 13], []], 0
    for at, ids in zip(wanted, tokens, strict=True):
        ledger.add(HIDDEN, at, ids, [(logprobs, masses, count + i) for i in range(len(at))])
        count += len(at)
    ledger.settle()
    assert not ledger.tokens
    rows, columns = np.concatenate(wanted).astype(int), np.concatenate(tokens).astype(int)
    assert_allclose(logprobs, expected[rows, columns])
    assert_allclose(masses[3], np.exp(near - float(layer(HIDDEN)[3].logsumexp(-1))))
    assert sum(map(isnan, masses)) == 7
    ledger.settle()  # nothing is open


@torch.no_grad()
def test_as_many_as_a_pass_has_but_not_in_its_order(layer) -> None:
    ledger, logprobs = Ledger(text_of(layer)), [nan] * 5
    ledger.add(HIDDEN, [0, 0, 1, 1, 2], [1, 2, 3, 4, 5], [(logprobs, [nan] * 5, i) for i in range(5)])
    ledger.settle()
    assert_allclose(logprobs, layer(HIDDEN).log_softmax(-1)[[0, 0, 1, 1, 2], [1, 2, 3, 4, 5]])
