"""The equivalence test has teeth: each of these mistakes, made on purpose, makes it fail."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from equivalence import CROWD, EVERYTHING, hold, stage2

import toy
from apiece.channels import a_soft_context, answer
from apiece.channels.a_soft_context import Context
from apiece.model.prefix import KeepPrefix

UNROLL: dict[str, Any] = {"n_softctx_iter": 2}
DETACHED: dict[str, Any] = {"n_softctx_iter": 2, "softctx_grad_mode": "em_detach"}
Patch = pytest.MonkeyPatch


def shift_of_all_rows_swapped(patch: Patch) -> None:
    """Row t is taken for the one that predicts token t - 1."""
    first_pass = a_soft_context.first_pass

    def shifted(model: Any, batch: Any) -> Any:
        first = first_pass(model, batch)
        return replace(first, hidden_BTD=first.hidden_BTD.roll(-1, dims=1))

    patch.setattr(a_soft_context, "first_pass", shifted)


def shift_of_slots_swapped(patch: Patch) -> None:
    """Slots alone are read one row late."""
    slot_logits = answer.slot_logits
    for module in (a_soft_context, answer):
        patch.setattr(module, "slot_logits", lambda hidden, *rest: slot_logits(hidden.roll(-1, dims=1), *rest))


def straight_through_path_detached(patch: Patch) -> None:
    """The context no longer passes gradients on to the pass before."""
    context = a_soft_context.self_context
    patch.setattr(a_soft_context, "self_context", lambda logits, *rest: context(logits.detach(), *rest))


def gradient_of_a1_losses_dropped(patch: Patch) -> None:
    """The losses of A1 are logged and do not train."""
    terms = a_soft_context.answer_terms

    def without(model: Any, objective: Any, name: str, *arguments: Any) -> Any:
        found = terms(model, objective, name, *arguments)
        return [replace(t, total=t.total.detach()) for t in found] if name == "a1" else found

    patch.setattr(a_soft_context, "answer_terms", without)


def a1_hidden_states_detached(patch: Patch) -> None:
    """What `em_detach` must not mean."""
    first_pass = a_soft_context.first_pass

    def detached(model: Any, batch: Any) -> Any:
        first = first_pass(model, batch)
        return replace(first, hidden_BTD=first.hidden_BTD.detach())

    patch.setattr(a_soft_context, "first_pass", detached)


def truth_given_to_a2(patch: Patch) -> None:
    """Later passes read the ground truth, as A1 does."""

    def truth(logits: Any, bins: Any, table_KD: Any, *_: Any) -> Context:
        return Context(table_KD[bins], bins)

    patch.setattr(a_soft_context, "self_context", truth)


def shared_prefix_out_of_the_graph(patch: Patch) -> None:
    """Keys and values are shared, but later passes do not train what made them."""
    update = KeepPrefix.update

    def detached(self: KeepPrefix, keys: Any, values: Any, layer: int, *rest: Any) -> Any:
        out = update(self, keys, values, layer, *rest)
        self.layers[layer] = tuple(kept.detach() for kept in self.layers[layer])
        return out

    patch.setattr(KeepPrefix, "update", detached)


def later_pass_sees_the_future(patch: Patch) -> None:
    """The mask of later passes is not causal."""
    from apiece.model import prefix

    mask = prefix.attention_mask

    def all_seen(*arguments: Any, **named: Any) -> Any:
        out = mask(*arguments, **named)
        return None if out is None else torch.ones_like(out)

    patch.setattr(prefix, "attention_mask", all_seen)


MUTATIONS: list[tuple[Callable[[Patch], None], dict[str, Any]]] = [
    (shift_of_all_rows_swapped, UNROLL),
    (shift_of_slots_swapped, UNROLL),
    (straight_through_path_detached, UNROLL),
    (gradient_of_a1_losses_dropped, UNROLL),
    (gradient_of_a1_losses_dropped, DETACHED),
    (a1_hidden_states_detached, DETACHED),
    (truth_given_to_a2, UNROLL),
    (truth_given_to_a2, DETACHED),
    (shared_prefix_out_of_the_graph, UNROLL),
    (later_pass_sees_the_future, UNROLL),
]


@pytest.mark.parametrize(("mutate", "knobs"), MUTATIONS, ids=lambda x: getattr(x, "__name__", None))
def test_the_comparison_notices(small, tiny_side, monkeypatch: Patch, mutate, knobs) -> None:
    samples = toy.encode(tiny_side, CROWD, toy.ONE)
    hold(small, tiny_side, EVERYTHING, stage2(**knobs), samples)
    mutate(monkeypatch)
    with pytest.raises(AssertionError, match="relative differences"):
        hold(small, tiny_side, EVERYTHING, stage2(**knobs), samples)
