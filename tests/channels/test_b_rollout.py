"""Channel-B on a small model in float64: which rows each term trains, and steps that must equal other steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from equivalence import EVERYTHING, Recorder, Result, assert_same, batch_of, ours, stage2
from small import float64_throughout
from torch import Tensor

import toy
from apiece.channels import b_rollout
from apiece.channels.a_soft_context import SoftContext
from apiece.channels.b_rollout import RolloutChannel, answering
from apiece.channels.schedule import TwoChannels
from apiece.codec.render import DescBins
from apiece.config.schema import ObjectiveSection
from apiece.data.collate import Batch, EncodedSample
from apiece.losses.compose import Objective, mean, total_loss
from apiece.rollout.generate import Engine
from apiece.rollout.targets import TargetBuilder
from apiece.train.distributed import World
from apiece.train.step import train_step
from apiece.types import FinishReason, Role, Rollout

CPU = World(0, 1, torch.device("cpu"))
CHARGE = 0.7
# What is said of toy.THREE (48 x 48): its first book, that book again, both books in one box, a dog, a box inside out
# before another dog; its second book and the traffic light are missed.
SAID: dict[str, list[DescBins]] = {
    "three": [
        ("book", (0, 0, 260, 990)),
        ("book", (0, 10, 240, 999)),
        ("book", (0, 0, 560, 999)),
        ("dog", (700, 700, 800, 900)),
        ("dog", (800, 700, 700, 900)),
        ("dog", (100, 700, 200, 900)),
    ],
    "one": [("cat", (3, 3, 400, 400)), ("person", (40, 85, 420, 830))],
    "two": [],
    "none": [("zebra", (3, 3, 400, 400))],
}
SAMPLES = (toy.THREE, toy.ONE, toy.TWO, toy.NONE)


class Told:
    """An engine that writes what it was told to."""

    def __init__(self, side: Any, said: dict[str, list[DescBins]]) -> None:
        self.side, self.said = side, said
        self.asked: list[EncodedSample] = []

    def generate(self, questions: Sequence[EncodedSample]) -> list[Rollout]:
        self.asked += questions
        return [self._write(question.sample_id) for question in questions]

    def _write(self, name: str) -> Rollout:
        renderer, records = self.side.renderer, self.said[name]
        ids = renderer.render([(desc, (0, 0, 1, 1)) for desc, _ in records]).ids
        coords = [i for i, token in enumerate(ids.tolist()) if renderer.vocab.bin_of(token) is not None]
        ids[coords] = [renderer.vocab.token_id(k) for _, box in records for k in box]
        return Rollout(name, ids, np.zeros(len(ids), dtype=np.float32), "", FinishReason.EOS)


def always(engine: Engine) -> Callable[[int], AbstractContextManager[Engine]]:
    @contextmanager
    def at(step: int) -> Iterator[Engine]:
        yield engine

    return at


def channel(
    model: Any,
    side: Any,
    *,
    weight: float = 0.0,
    said: dict[str, list[DescBins]] | None = None,
    config: ObjectiveSection = EVERYTHING,
) -> RolloutChannel:
    objective = Objective(config, stage2().coord_decode_mode, side.vocab.first_id, side.vocab.num_bins)
    engine = Told(side, SAID if said is None else said)
    builder = TargetBuilder(side.renderer, 60, 4096)
    return RolloutChannel(model, objective, builder, always(engine), side, weight)


def encoded(side: Any) -> list[EncodedSample]:
    return toy.encode(side, *SAMPLES)


def prepared(step: RolloutChannel, side: Any) -> Batch:
    return step.prepare(0, [encoded(side)]).batches[0]


def rows_with_gradient(
    step: RolloutChannel, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> tuple[dict[str, Tensor], Tensor]:
    """Which `[B, T]` rows of the hidden states each term trains, and the gradient `[B, T, D]` of the whole loss."""
    seen: list[Tensor] = []
    first_pass = b_rollout.first_pass

    def kept(model: Any, batch: Batch) -> Any:
        first = first_pass(model, batch)
        seen.append(first.hidden_BTD.detach().requires_grad_())
        return replace(first, hidden_BTD=seen[0])

    monkeypatch.setattr(b_rollout, "first_pass", kept)
    with float64_throughout():
        terms = step(batch)
    total = total_loss(terms, step.objective.counts(batch))
    (whole,) = torch.autograd.grad(total, seen[0], retain_graph=True)
    weighted = {t.name: t.total for t in terms if t.weight}
    grads = {n: torch.autograd.grad(v, seen[0], retain_graph=True)[0] for n, v in weighted.items()}
    return {n: (g != 0).any(-1) for n, g in grads.items()}, whole


@pytest.mark.parametrize("weight", [0.0, CHARGE])
def test_each_term_trains_the_rows_of_its_tokens_and_no_others(small, tiny_side, monkeypatch, weight) -> None:
    step = channel(small, tiny_side, weight=weight)
    batch = prepared(step, tiny_side)
    rows, whole = rows_with_gradient(step, batch, monkeypatch)
    slots = torch.zeros_like(batch.supervised)
    slots[batch.slots.sample, batch.slots.position] = True
    charged = torch.zeros_like(batch.supervised)
    assert batch.redundant is not None
    charged[batch.redundant.sample, batch.redundant.position] = True
    assert int(charged.sum()) == 2  # the duplicate and the group
    expected = {
        "token_ce/struct": batch.supervised & (batch.roles == Role.STRUCT),
        "token_ce/desc": batch.supervised & (batch.roles == Role.DESC),
        "token_ce/eos": batch.supervised & (batch.roles == Role.EOS),
        "coord_reg/text_gate": batch.supervised,
        **{f"bbox_geo/{part}": slots for part in ("smoothl1", "ciou")},
        **{f"coord_reg/{part}": slots for part in ("coord_ce", "soft_ce", "w1", "coord_gate")},
    } | ({"redundancy": charged} if weight else {})
    assert rows.keys() == {f"b/{name}" for name in expected}
    for name, there in expected.items():
        assert torch.equal(rows[f"b/{name}"], there), name
    # False positives, and all that is not a target, get a gradient of exactly zero; charged tokens alone do not.
    silent = ~(batch.supervised | slots)
    assert int(silent[0].sum()) > 50
    assert not whole[silent & ~charged if weight else silent].any()


def test_counts_are_of_what_has_a_loss(small, tiny_side) -> None:
    step = channel(small, tiny_side)
    batch = prepared(step, tiny_side)
    counts = {str(kind): float(count) for kind, count in step.objective.counts(batch).items()}
    # Two matches and four appended labels: book and light in one, none in the next, car and zebra in the third.
    assert counts["objects"] == 6
    assert counts["slots"] == 24
    assert counts["tokens"] == int(batch.supervised.sum()) < int(batch.answer_mask.sum()) - 24


def gradients(step: RolloutChannel, batches: Sequence[Batch]) -> Result:
    recorder = Recorder(step.model)
    with float64_throughout():
        result = train_step(step, step.objective, [recorder], batches, CPU, clip_norm=1e9, dtype=None)
    return Result({name: float(value) for name, value in result.atoms.items()}, recorder.seen)


def test_a_model_that_says_nothing_is_taught_as_in_stage_1(small, tiny_side) -> None:
    nothing: dict[str, list[DescBins]] = {sample.id: [] for sample in SAMPLES}
    step = channel(small, tiny_side, weight=CHARGE, said=nothing)
    found = gradients(step, step.prepare(0, [encoded(tiny_side)]).batches)
    plain = ours(small, tiny_side, encoded(tiny_side), EVERYTHING, stage2(n_softctx_iter=1))
    renamed = {name.replace("a1/", "b/"): value for name, value in plain.atoms.items()}
    assert found.atoms.pop("b/redundancy") == 0
    assert_same(found, Result(renamed, plain.gradients))


def test_micro_batches_give_the_gradient_of_the_whole(small, tiny_side) -> None:
    step = channel(small, tiny_side, weight=CHARGE)
    samples = encoded(tiny_side)
    whole = gradients(step, step.prepare(0, [samples]).batches)
    parts = gradients(step, step.prepare(0, [[s] for s in samples]).batches)
    assert_same(parts, whole)
    assert whole.atoms["b/redundancy"] > 0


def test_the_charge_is_per_labelled_object(small, tiny_side) -> None:
    step = channel(small, tiny_side, weight=CHARGE)
    batch = prepared(step, tiny_side)
    with float64_throughout(), torch.no_grad():
        term = {t.name: t for t in step(batch)}["b/redundancy"]
        hidden = b_rollout.first_pass(small, batch).hidden_BTD
    assert batch.redundant is not None
    at = batch.redundant.sample, batch.redundant.position
    with torch.no_grad():
        p = small.lm_head(hidden[at]).softmax(-1).gather(1, batch.answer_ids[at][:, None])
    assert float(mean(term, step.objective.counts(batch))) == pytest.approx(float(-(1 - p).log().sum()) / 6, rel=1e-9)


def test_answers_are_asked_without_their_labels_in_evaluation_mode(tiny_side, recomputing) -> None:
    samples = encoded(tiny_side)
    engine = Told(tiny_side, SAID)
    step = channel(recomputing, tiny_side)
    step.engine_at = always(engine)
    made = step.prepare(0, [samples[:3], samples[3:]])
    assert [q.sample_id for q in engine.asked] == [s.sample_id for s in samples]
    for question, sample in zip(engine.asked, samples, strict=True):
        assert question.answer is None
        assert np.array_equal(question.prefix_ids, sample.prefix_ids)
        assert np.array_equal(question.pixel_values, sample.pixel_values)
        assert question.grid_thw == sample.grid_thw
    assert [b.sample_ids for b in made.batches] == [("three", "one", "two"), ("none",)]
    assert (made.tally["answers"], made.tally["outcome/duplicate"], made.tally["outcome/group"]) == (4, 1, 1)
    assert recomputing.training
    with answering(recomputing):
        assert not recomputing.training
    assert recomputing.training


def test_a_step_belongs_to_one_channel(small, tiny_side) -> None:
    b = channel(small, tiny_side)
    both = TwoChannels(small, SoftContext(small, b.objective, stage2()), b, b_ratio=0.5)
    samples = [[s] for s in encoded(tiny_side)]
    for step, name in enumerate(("a1", "b", "a1", "b")):
        assert both.channel_of(step) == name[0]
        ready = both.prepare(step, samples if name == "b" else [batch_of(tiny_side, one) for one in samples])
        assert {batch.channel for batch in ready.batches} == {name[0]}
        assert bool(ready.tally) == (name == "b")
        with float64_throughout(), torch.no_grad():
            assert {t.name.split("/")[0] for batch in ready.batches for t in both(batch)} == {name}
    assert len(list(both.parameters())) == len(list(small.parameters()))
