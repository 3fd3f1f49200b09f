"""Under bf16 the most likely bin is float32's: logits that tie after rounding would all go to the lower bin."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import toy
from apiece.channels.a_soft_context import self_context
from apiece.channels.answer import CoordRows, answer_terms, slot_logits
from apiece.config.schema import CoordDecodeMode, ObjectiveSection, Stage2Section
from apiece.data.collate import Batch
from apiece.losses.compose import Objective, teacher_forced_weights
from apiece.model.load import load_model, load_text_side
from apiece.model.prefix import first_pass
from apiece.types import Sample

MOST_SHIFT = 0.02  # bins, in the mean
NEAR_TIE = 1e-3  # nats between the two largest logits


def shelf(seed: int) -> Sample:
    """Thirteen narrow boxes in a row."""
    edges = torch.linspace(0, 120, 14) + 6 * torch.rand(14, generator=torch.Generator().manual_seed(seed))
    boxes = [("book", (float(a), 4.0, float(b), 90.0)) for a, b in itertools.pairwise(edges)]
    return toy.sample(f"shelf-{seed}", (128, 96), *boxes)


class Half(NamedTuple):
    """The model that ships, its hidden states in a bf16 step, and the logits that those have in float64."""

    model: Any
    batch: Batch
    hidden_BTD: Tensor
    rows: CoordRows
    objective: Objective
    exact_SK: Tensor


@pytest.fixture(scope="module")
def half() -> Half:
    model, side = load_model("tiny").eval(), load_text_side("tiny")
    batch = toy.batch(side, *(shelf(seed) for seed in range(16)))
    vocab = side.vocab
    objective = Objective(ObjectiveSection(), CoordDecodeMode.ST, vocab.first_id, vocab.num_bins)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        hidden_BTD = first_pass(model, batch).hidden_BTD
    rows = CoordRows.of(model, vocab.first_id, vocab.num_bins)
    slots_SD = hidden_BTD[batch.slots.sample, batch.slots.position].double()
    return Half(model, batch, hidden_BTD, rows, objective, (slots_SD @ rows.head_KD.double().T).detach())


def assert_same_bins(bins_S: Tensor, exact_SK: Tensor) -> None:
    """Bins are the most likely ones but for real near-ties, and not lower in the mean."""
    best_S2 = exact_SK.topk(2).values
    moved_S = bins_S != exact_SK.argmax(-1)
    assert len(bins_S) > 500
    assert not bool((moved_S & (best_S2[:, 0] - best_S2[:, 1] > NEAR_TIE)).any())
    assert abs(float((bins_S - exact_SK.argmax(-1)).double().mean())) < MOST_SHIFT


def test_rounding_would_move_them(half: Half) -> None:
    """The product in bf16 does move the bins: the others here would notice."""
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        slots = half.batch.slots
        rounded_SK = torch.nn.functional.linear(half.hidden_BTD[slots.sample, slots.position], half.rows.head_KD)
    with pytest.raises(AssertionError):
        assert_same_bins(rounded_SK.argmax(-1), half.exact_SK)


@pytest.mark.parametrize("mode", ["st", "hard"])
def test_contexts_and_probes(half: Half, mode: str) -> None:
    config = Stage2Section.model_validate_json(f'{{"coord_ctx_embed_mode": "{mode}"}}')
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        logits_SK = slot_logits(half.hidden_BTD, half.batch.slots, half.rows)
        context = self_context(logits_SK, half.batch.slots.target_bin, half.rows.table_KD, config)
    assert logits_SK.dtype == torch.float32
    assert_same_bins(context.bins_S, half.exact_SK)


@pytest.mark.parametrize("gate", [0.0, 1.0], ids=["no gate", "gate"])
def test_boxes_that_the_losses_read(half: Half, gate: float, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    section = ObjectiveSection.model_validate({"coord_reg": {"config": {"coord_gate_weight": gate}}})
    monkeypatch.setattr(Objective, "terms", lambda self, name, weights, logits, target: seen.append(logits.slot_SK))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        answer_terms(
            half.model, half.objective, "a1", teacher_forced_weights(section), half.hidden_BTD, half.batch, half.rows,
            half.batch.slots.target_bin,
        )  # fmt: skip
    assert_same_bins(seen[0].argmax(-1), half.exact_SK)
