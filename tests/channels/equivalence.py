"""Holds the channel against the plain reference: every atom and the gradient of every parameter."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import reference
import torch
from small import float64_throughout
from torch import Tensor

import toy
from apiece.channels.a_soft_context import SoftContext
from apiece.config.schema import ObjectiveSection, Stage2Section
from apiece.data.collate import Batch, EncodedSample, collate
from apiece.losses.compose import Objective, mean, total_loss
from apiece.train.distributed import World, whole
from apiece.train.step import train_step

# Different prefixes and answers; one without objects; four instances of one name, so that contexts can mix them.
CROWD = toy.sample(
    "crowd", (80, 64),
    ("book", (0, 0, 20, 60)), ("book", (20, 2, 38, 62)), ("book", (38, 1, 61, 63)), ("person", (5, 5, 70, 30)),
    ("book", (60, 30, 80, 64)),
)  # fmt: skip
RAGGED = (toy.NONE, CROWD, toy.ONE, toy.THREE)

BASELINE = ObjectiveSection()
EVERYTHING = ObjectiveSection.model_validate(
    {
        "token_ce": {"weight": 1.5, "config": {"desc_ce_weight": 0.7, "self_context_struct_ce_weight": 0.2}},
        "bbox_geo": {
            "weight": 0.9,
            "config": {
                "smoothl1_weight": 2.0,
                "smoothl1_beta": 0.1,
                "ciou_weight": 0.3,
                "a1_smoothl1_weight": 0.25,
                "a1_ciou_weight": 0.15,
            },
        },
        "coord_reg": {
            "weight": 1.1,
            "config": {
                "coord_ce_weight": 0.05,
                "soft_ce_weight": 0.2,
                "w1_weight": 0.6,
                "self_context_soft_ce_weight": 0.35,
                "a1_soft_ce_weight": 0.12,
                "a1_w1_weight": 0.4,
                "coord_gate_weight": 0.8,
                "text_gate_weight": 0.45,
                "target_sigma": 3.0,
                "target_truncate": 7,
                "temperature": 1.7,
            },
        },
    }
)


@dataclass(frozen=True)
class Result:
    """Atoms and gradients of one step without an update."""

    atoms: dict[str, float]
    gradients: dict[str, Tensor]

    @property
    def total(self) -> float:
        return sum(self.atoms.values())


def stage2(**knobs: Any) -> Stage2Section:
    return Stage2Section.model_validate_json(json.dumps(knobs))


def batch_of(side: Any, samples: Sequence[EncodedSample]) -> Batch:
    return collate(samples, side.tokenizer.pad_token_id, side.image_token_id)


def channel(model: Any, side: Any, objective: ObjectiveSection, knobs: Stage2Section) -> SoftContext:
    weighted = Objective(objective, knobs.coord_decode_mode, side.vocab.first_id, side.vocab.num_bins)
    return SoftContext(model, weighted, knobs)


def ours(
    model: Any, side: Any, samples: Sequence[EncodedSample], objective: ObjectiveSection, knobs: Stage2Section
) -> Result:
    """The step of the package on one padded batch."""
    step, batch = channel(model, side, objective, knobs), batch_of(side, samples)
    with float64_throughout():
        terms = step(batch)
        counts = step.objective.counts(batch)
        total = total_loss(terms, counts)
        gradients = _gradients(model, total)
    atoms = {t.name: float(t.weight * mean(t, counts).detach()) for t in terms if t.weight}
    assert abs(sum(atoms.values()) - float(total.detach())) <= 1e-12 * abs(float(total.detach()))
    return Result(atoms, gradients)


def plain(
    model: Any, side: Any, samples: Sequence[EncodedSample], objective: ObjectiveSection, knobs: Stage2Section
) -> Result:
    """The reference on the same samples, one by one."""
    with float64_throughout():
        atoms = reference.channel_a(model, side, samples, objective, knobs)
        gradients = _gradients(model, torch.stack(list(atoms.values())).sum())
    return Result({name: float(value.detach()) for name, value in atoms.items()}, gradients)


def _gradients(model: Any, total: Tensor) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    total.backward()
    found = {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    return found


def assert_same(found: Result, expected: Result, *, within: float = 1e-9) -> None:
    """Every atom, and every parameter's gradient relative to its largest entry.

    Raises:
        AssertionError: Naming what differs most.
    """
    assert found.gradients.keys() == expected.gradients.keys()
    wrong = {}
    for name in found.atoms.keys() | expected.atoms.keys():
        here, there = found.atoms.get(name, 0.0), expected.atoms.get(name, 0.0)
        if not abs(here - there) <= within * abs(there) + 1e-14:
            wrong[name] = abs(here - there) / (abs(there) + 1e-300)
    for name, gradient in expected.gradients.items():
        off, scale = float((found.gradients[name] - gradient).abs().max()), float(gradient.abs().max())
        if not off <= within * scale + 1e-14:
            wrong[name] = off / (scale + 1e-300)
    assert not wrong, "relative differences: " + ", ".join(
        f"{n} {w:.1e}" for n, w in sorted(wrong.items(), key=lambda item: -item[1])[:8]
    )


def hold(
    model: Any,
    side: Any,
    objective: ObjectiveSection,
    knobs: Stage2Section,
    samples: Sequence[EncodedSample] | None = None,
) -> Result:
    """Compare the two, on the ragged batch unless told otherwise; gives ours.

    Raises:
        AssertionError: They differ.
    """
    samples = toy.encode(side, *RAGGED) if samples is None else samples
    found = ours(model, side, samples, objective, knobs)
    assert_same(found, plain(model, side, samples, objective, knobs))
    return found


class Recorder(torch.optim.SGD):
    """An optimizer that keeps the gradients instead of using them."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__(model.parameters(), lr=0.0)
        self.names = {p: n for n, p in model.named_parameters()}
        self.seen: dict[str, Tensor] = {}

    def step(self, closure: object = None) -> None:  # type: ignore[override]
        self.seen = {n: whole(p.grad).clone() for p, n in self.names.items() if p.grad is not None}


def stepped(module: Any, step: SoftContext, batches: Sequence[Batch], world: World) -> Result:
    """Atoms and gradients of one real optimizer step over micro-batches; `module` is `step` or its wrapper."""
    recorder = Recorder(step.model)
    with float64_throughout():
        result = train_step(module, step.objective, [recorder], batches, world, clip_norm=1e9, dtype=None)
    return Result({name: float(value) for name, value in result.atoms.items()}, recorder.seen)
