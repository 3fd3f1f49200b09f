"""Channel-A of the second family against the plain reference: loss and every gradient."""

from __future__ import annotations

import pytest
import torch
from equivalence import EVERYTHING, RAGGED, assert_same, ours, plain, stage2
from small import small_model

import toy


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("passes", [1, 3])
def test_qwen2_5_vl_equals_whole_forwards(tiny_side, tied, passes) -> None:
    model = small_model(tiny_side, tied=tied, family="qwen2_5_vl")
    knobs, samples = stage2(n_softctx_iter=passes, softctx_target="retarget"), toy.encode(tiny_side, *RAGGED)
    expected = plain(model, tiny_side, samples, EVERYTHING, knobs)
    assert_same(ours(model, tiny_side, samples, EVERYTHING, knobs), expected)
    model.train().activation_checkpointing_enable({"use_reentrant": False})
    assert_same(ours(model, tiny_side, samples, EVERYTHING, knobs), expected)
    tower = [g for n, g in expected.gradients.items() if "visual.blocks" in n]
    assert all(bool(torch.isfinite(g).all()) for g in tower) and max(float(g.abs().max()) for g in tower) > 1e-6
