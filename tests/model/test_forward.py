"""The teacher-forced pass: the same as plain Hugging Face, alone or in a ragged batch, and shifted by exactly one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

import toy
from apiece.config.schema import CoordDecodeMode, ObjectiveSection
from apiece.losses.compose import Objective
from apiece.model.families import rope_positions
from apiece.types import Per, Role


def plain_logits(model, batch) -> torch.Tensor:
    """All logits of one unpadded sample by an ordinary call, which finds its positions by itself."""
    prefix = batch.prefix
    assert bool(prefix.mask.all()) and bool(batch.answer_mask.all())
    ids = torch.cat([prefix.ids, batch.answer_ids], dim=1)
    kinds = torch.zeros_like(ids)
    kinds[:, : prefix.ids.shape[1]] = prefix.image_mask
    with torch.no_grad():
        return model(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=prefix.pixel_values,
            image_grid_thw=prefix.grid_thw,
            mm_token_type_ids=kinds.int(),
            use_cache=False,
        ).logits


@pytest.mark.parametrize("sample", toy.ALL, ids=lambda s: s.id)
def test_row_t_predicts_answer_token_t_as_in_a_plain_forward(model_and_side, sample) -> None:
    model, side = model_and_side
    batch = toy.batch(side, sample)
    with torch.no_grad():
        hidden = toy.answer_hidden(model, batch)
    start, length = batch.prefix.ids.shape[1], batch.answer_ids.shape[1]
    logits = plain_logits(model, batch)
    assert hidden.shape[:2] == (1, length)
    assert_close(model.lm_head(hidden), logits[:, start - 1 : start + length - 1], atol=1e-5, rtol=1e-5)
    # The token itself has no say in the row that predicts it; the one before it has.
    other, at = batch.answer_ids.clone(), min(2, length - 2)
    other[0, at] = side.vocab.token_id(500)
    changed = replace(batch, answer_ids=other)
    with torch.no_grad():
        moved = (toy.answer_hidden(model, changed) - hidden).abs().amax(-1)[0]
    assert float(moved[: at + 1].max()) < 1e-6
    assert float(moved[at + 1 :].min()) > 1e-5


def test_a_ragged_batch_is_each_sample_alone(model_and_side) -> None:
    model, side = model_and_side
    batch = toy.batch(side, *toy.ALL)
    assert not bool(batch.prefix.mask.all()) and not bool(batch.answer_mask.all())
    with torch.no_grad():
        together = toy.answer_hidden(model, batch)
        for row, sample in enumerate(toy.ALL):
            alone = toy.answer_hidden(model, toy.batch(side, sample))[0]
            assert_close(together[row, : len(alone)], alone, atol=1e-5, rtol=1e-5)


def test_prefixes_of_one_length_need_no_mask_and_get_the_same(model_and_side) -> None:
    """The shortcut without an attention mask: answers differ in length, prefixes do not."""
    model, side = model_and_side
    short = toy.sample("short", toy.THREE.size_wh)
    batch = toy.batch(side, toy.THREE, short)
    assert bool(batch.prefix.mask.all()) and not bool(batch.answer_mask.all())
    with torch.no_grad():
        together = toy.answer_hidden(model, batch)
        for row, sample in enumerate((toy.THREE, short)):
            alone = toy.answer_hidden(model, toy.batch(side, sample))[0]
            assert_close(together[row, : len(alone)], alone, atol=1e-5, rtol=1e-5)


def test_positions_are_the_models_own(model_and_side) -> None:
    model, side = model_and_side
    batch = toy.batch(side, *toy.ALL)
    prefix = batch.prefix
    ids = torch.cat([prefix.ids, batch.answer_ids], dim=1)
    mask = torch.cat([prefix.mask, batch.answer_mask], dim=1)
    kinds = torch.zeros_like(ids)
    kinds[:, : prefix.ids.shape[1]] = prefix.image_mask
    own, _ = model.model.get_rope_index(ids, kinds.int(), image_grid_thw=prefix.grid_thw, attention_mask=mask.int())
    positions = rope_positions(model, prefix, batch.answer_ids.shape[1])
    assert positions.shape == (3, *ids.shape)
    assert torch.equal(positions[:, mask], own[:, mask])
    # Axes do differ on images: these are no plain positions.
    assert not torch.equal(positions[1], positions[2])


@pytest.mark.parametrize("sample", toy.ALL[1:], ids=lambda s: s.id)
def test_losses_read_the_right_rows(model_and_side, sample) -> None:
    """Cross-entropies of the channel against labels on a plain forward, as any fine-tuning script would have them."""
    model, side = model_and_side
    config = ObjectiveSection.model_validate({"coord_reg": {"config": {"coord_ce_weight": 1.0}}})
    objective = Objective(config, CoordDecodeMode.EXP, side.vocab.first_id, 1000)
    batch = toy.batch(side, sample)
    with torch.no_grad():
        terms = {t.name: float(t.total) for t in toy.teacher_forced(model, objective)(batch)}
    logits = plain_logits(model, batch)[0, :-1]
    labels = torch.cat([batch.prefix.ids, batch.answer_ids], dim=1)[0, 1:]
    roles = torch.cat([torch.full_like(batch.prefix.ids, -1), batch.roles], dim=1)[0, 1:]

    def summed(role: Role, columns: slice = slice(None), first: int = 0) -> float:
        rows = roles == role
        return float(cross_entropy(logits[rows][:, columns], labels[rows] - first, reduction="sum"))

    for name, role in (("struct", Role.STRUCT), ("desc", Role.DESC), ("eos", Role.EOS)):
        assert terms[f"a1/token_ce/{name}"] == pytest.approx(summed(role), rel=1e-4), name
    vocab = side.vocab
    bins = slice(vocab.first_id, vocab.end_id)
    assert terms["a1/coord_reg/coord_ce"] == pytest.approx(summed(Role.COORD, bins, vocab.first_id), rel=1e-4)
    # All of the softmax at a slot is the mass on coordinates times the share within them.
    assert terms["a1/coord_reg/coord_gate"] == pytest.approx(
        summed(Role.COORD) - summed(Role.COORD, bins, vocab.first_id), rel=1e-4
    )
    assert objective.counts(batch)[Per.OBJECTS] == len(sample.objects)
