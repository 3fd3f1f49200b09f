"""Every attention implementation is causal here, and all give the losses and gradients of one another."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from equivalence import CROWD, EVERYTHING, RAGGED, assert_same, batch_of, ours, stage2
from small import float64_throughout, small_model
from torch import Tensor
from transformers import AttentionInterface

import toy
from apiece.data.collate import Batch
from apiece.model.prefix import allow_shared_prefix, first_pass, later_pass, window_pass

STAND_IN = "flash_stand_in"
CLOSE = {STAND_IN: 1e-9, "eager": 1e-4}
"""The library's eager attention takes its softmax in float32."""


def flash_stand_in(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **named: Any
) -> tuple[Tensor, None]:
    """FlashAttention's reading of a mask: padding `[B, K]` alone, causal from the last query back."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    queries, keys = query.shape[2], key.shape[2]
    allowed = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)[None, None]
    if attention_mask is not None:
        assert attention_mask.shape == (query.shape[0], keys), "FlashAttention takes the padding of all keys"
        allowed = allowed & attention_mask[:, None, None].bool()
    scores = (query @ key.transpose(2, 3) * named["scaling"]).masked_fill(~allowed, -torch.inf)
    return (scores.softmax(-1).nan_to_num() @ value).transpose(1, 2).contiguous(), None


AttentionInterface.register(STAND_IN, flash_stand_in)


@pytest.fixture(params=["qwen3_vl", "qwen2_5_vl"])
def family(request: Any) -> str:
    return str(request.param)


def model_with(side: Any, attention: str, family: str, recompute: bool = False) -> Any:
    model = small_model(side, family=family)
    model.set_attn_implementation({"text_config": attention})
    allow_shared_prefix(model)
    if recompute:
        model.train()
        model.activation_checkpointing_enable({"use_reentrant": False})
    return model


def changed(batch: Batch, new: int) -> Iterator[tuple[int, Tensor]]:
    """For every sample: the index of its last answer token but one, and the answers with that token replaced."""
    for sample, length in enumerate(batch.answer_mask.sum(1).tolist()):
        ids = batch.answer_ids.clone()
        ids[sample, length - 2] = new
        yield sample, ids


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("attention", ["sdpa", "eager", STAND_IN])
def test_no_row_sees_what_stands_behind_it(tiny_side, family, attention, padded, recompute) -> None:
    model = model_with(tiny_side, attention, family, recompute)
    batch = batch_of(tiny_side, toy.encode(tiny_side, *(RAGGED if padded else (CROWD, CROWD))))
    assert bool(batch.prefix.mask.all()) is not padded
    with float64_throughout(), torch.no_grad():
        before = first_pass(model, batch)
        again = later_pass(model, before, before.embeds_BTD)
        assert torch.allclose(again, before.hidden_BTD, atol=1e-12), "the same input gives the same rows"
        for sample, ids in changed(batch, new=int(batch.answer_ids[0, 0])):
            at = int(batch.answer_mask[sample].sum()) - 2
            after = first_pass(model, replace(batch, answer_ids=ids))
            moved = (after.hidden_BTD[sample] - before.hidden_BTD[sample]).abs().amax(-1)
            assert float(moved[: at + 1].max()) < 1e-12, "rows up to the one that predicts the token stay"
            assert float(moved[at + 1]) > 1e-6, "the row behind it moves"
            later = later_pass(model, before, after.embeds_BTD)
            moved = (later[sample] - before.hidden_BTD[sample]).abs().amax(-1)
            assert float(moved[: at + 1].max()) < 1e-12
            assert float(moved[at + 1]) > 1e-6 or at < before.first_slot, "later passes begin at the first slot"


@pytest.mark.parametrize("passes", [1, 3])
@pytest.mark.parametrize("attention", ["eager", STAND_IN])
def test_losses_and_gradients_are_sdpas(tiny_side, family, attention, passes) -> None:
    knobs, samples = stage2(n_softctx_iter=passes), toy.encode(tiny_side, *RAGGED)
    expected = ours(model_with(tiny_side, "sdpa", family), tiny_side, samples, EVERYTHING, knobs)
    for recompute in (False, True):
        model = model_with(tiny_side, attention, family, recompute)
        assert_same(ours(model, tiny_side, samples, EVERYTHING, knobs), expected, within=CLOSE[attention])


@pytest.mark.parametrize("attention", ["eager", STAND_IN])
def test_windows_are_read_as_under_sdpa(tiny_side, family, attention) -> None:
    batch = batch_of(tiny_side, toy.encode(tiny_side, *RAGGED))
    sample, start = torch.tensor([1, 1, 3]), torch.tensor([3, 9, 5])
    rows = []
    for implementation in ("sdpa", attention):
        model = model_with(tiny_side, implementation, family).eval()
        with float64_throughout(), torch.no_grad():
            first = first_pass(model, batch)
            embeds = torch.stack([first.embeds_BTD[b, t : t + 4] for b, t in zip(sample, start, strict=True)])
            rows.append(window_pass(model, first, embeds, sample, start))
    assert torch.allclose(*rows, rtol=CLOSE[attention], atol=CLOSE[attention] / 10)


def test_an_implementation_of_unknown_reading_is_refused(tiny_side) -> None:
    model = small_model(tiny_side)
    AttentionInterface.register("stranger", flash_stand_in)
    model.set_attn_implementation({"text_config": "stranger"})
    with pytest.raises(ValueError, match="stranger: expected sdpa, eager or flash_attention_2"):
        first_pass(model, batch_of(tiny_side, toy.encode(tiny_side, *RAGGED)))
