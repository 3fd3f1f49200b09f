"""Channel-A: the teacher-forced pass A1, then passes A2..AN on the model's own coordinate beliefs.

No generation. The image, the prompt and everything before the first slot are computed once and shared, with gradients,
by all passes (`model/prefix.py`). With N = 1 this is Stage-1's step.

Shapes: B samples, T answer tokens, S slots, K bins, D width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from apiece.channels.answer import CoordRows, answer_terms, slot_logits
from apiece.config.schema import ContextEmbedMode, SoftContextGrad, SoftContextReplace, SoftContextTarget, Stage2Section
from apiece.data.collate import Batch, BatchSlots
from apiece.losses.compose import (
    Objective,
    anchor_weights,
    at_least_float32,
    self_context_weights,
    teacher_forced_weights,
)
from apiece.model.prefix import FirstPass, allow_shared_prefix, first_pass, later_pass
from apiece.types import LossTerm


@dataclass(frozen=True, slots=True)
class Context:
    """The slots of a pass's input, as embeddings and the bins that these stand for."""

    embeds_SD: Tensor
    bins_S: Tensor  # the most likely one, or the truth where it was kept


def self_context(logits_SK: Tensor, truth_S: Tensor, table_KD: Tensor, config: Stage2Section) -> Context:
    """The slots of the next pass's input, from the beliefs of the pass before.

    Rows are looked up by `embedding`, not by index: many slots have the same bin, and the threads of a CPU add up the
    gradients of an index in any order, so that no two runs would have the same bits.
    """
    logits_SK = at_least_float32(logits_SK)
    mode, best_S = config.coord_ctx_embed_mode, logits_SK.argmax(-1)
    if mode is ContextEmbedMode.HARD:
        embeds_SD = embedding(best_S, table_KD)
    else:
        belief_SK = (logits_SK / config.softctx_temperature).softmax(-1)
        with torch.autocast(belief_SK.device.type, enabled=False):  # a sum of 1000 embeddings needs float32
            embeds_SD = belief_SK.to(table_KD.dtype) @ table_KD
        if mode is ContextEmbedMode.ST:
            embeds_SD = embedding(best_S, table_KD) + (embeds_SD - embeds_SD.detach())
    if config.softctx_grad_mode is SoftContextGrad.EM_DETACH:
        embeds_SD = embeds_SD.detach()
    if config.softctx_replace is SoftContextReplace.NEAR_GT:
        near_S = (best_S - truth_S).abs() <= config.softctx_radius
        embeds_SD = torch.where(near_S[:, None], embeds_SD, embedding(truth_S, table_KD))
        best_S = torch.where(near_S, best_S, truth_S)
    return Context(embeds_SD, best_S)


def context_inputs(first: FirstPass, slots: BatchSlots, context: Context) -> Tensor:
    """Input embeddings `[B, T, D]` of the answers with a context at their slots."""
    return first.embeds_BTD.index_put((slots.sample, slots.position), context.embeds_SD.to(first.embeds_BTD.dtype))


class SoftContext(nn.Module):
    """The whole step as one module's `forward`, so that distributed wrappers see all of it."""

    def __init__(self, model: Any, objective: Objective, config: Stage2Section) -> None:
        super().__init__()
        self.model = model
        self.objective = objective
        self.config = config
        allow_shared_prefix(model)

    def forward(self, batch: Batch) -> list[LossTerm]:
        """Loss terms of one batch, as sums; named `a1/...` and, with several passes, `aN/...`."""
        passes, terms_of = self.config.n_softctx_iter, self.objective.config
        first = first_pass(self.model, batch)
        rows = CoordRows.of(self.model, self.objective.first_id, self.objective.num_bins)
        weights = teacher_forced_weights(terms_of) if passes == 1 else anchor_weights(terms_of)
        terms = answer_terms(
            self.model, self.objective, "a1", weights, first.hidden_BTD, batch, rows, batch.slots.target_bin
        )
        if passes == 1:
            return terms
        hidden_BTD, context = first.hidden_BTD, None
        unroll = self.config.softctx_grad_mode is SoftContextGrad.UNROLL
        for number in range(2, passes + 1):
            logits_SK = slot_logits(hidden_BTD, batch.slots, rows)
            context = self_context(logits_SK, batch.slots.target_bin, rows.table_KD, self.config)
            embeds = context_inputs(first, batch.slots, context)
            # A detached pass in the middle feeds nothing but the next detached context.
            with torch.set_grad_enabled(torch.is_grad_enabled() and (unroll or number == passes)):
                hidden_BTD = later_pass(self.model, first, embeds)
        assert context is not None, "n_softctx_iter is at least 2 here"
        target_S, weights = self._targets(context, batch), self_context_weights(terms_of)
        return terms + answer_terms(
            self.model, self.objective, f"a{passes}", weights, hidden_BTD, batch, rows, target_S
        )

    def _targets(self, context: Context, batch: Batch) -> Tensor:
        """The bins that the last pass should predict."""
        slots = batch.slots
        if self.config.softctx_target is SoftContextTarget.IDENTITY:
            return slots.target_bin
        return retarget(context.bins_S.view(-1, 4), slots.target_bin.view(-1, 4), batch.object_group).view(-1)


def retarget(context_N4: Tensor, truth_N4: Tensor, group_N: Tensor) -> Tensor:
    """Target bins `[N, 4]` that follow the context.

    Teacher forcing asks for the labelled box of object i at slot i. If the context has begun another instance's box,
    that teaches the model to finish one instance's box after starting another's. Retargeting follows the context, and
    keeps account of which instances were emitted, so that none is taught twice.

    Objects are walked in the order written. The target of a slot is the instance, of the same group and not yet
    emitted, that is nearest (L1, bins) in the coordinates the context has written so far in this object; ties go to the
    object's own instance, then to the earliest. Before anything is written it is the object's own instance, or, if that
    one was emitted already, the earliest of its group that was not. After its fourth coordinate an object has emitted
    the instance nearest to all four.

    Args:
        context_N4: Bins x1, y1, x2, y2 in the input of the pass, N objects of any number of samples.
        truth_N4: Labelled bins of the same objects.
        group_N: Objects compete for instances within one group: same sample, same name.
    """
    targets = truth_N4.clone()
    context, truth = context_N4.tolist(), truth_N4.tolist()
    remaining: dict[int, list[int]] = {}
    for index, group in enumerate(group_N.tolist()):
        remaining.setdefault(group, []).append(index)
    for index, group in enumerate(group_N.tolist()):
        left = remaining[group]
        chosen = index if index in left else left[0]
        row = []
        for slot in range(4):
            row.append(truth[chosen][slot])
            chosen = _nearest(left, index, truth, context[index], slot + 1)
        left.remove(chosen)
        targets[index] = torch.tensor(row, dtype=targets.dtype)
    return targets


def _nearest(left: list[int], own: int, truth: list[list[int]], context: list[int], written: int) -> int:
    """The instance of `left` nearest to the first `written` coordinates of the context."""

    def distance(instance: int) -> tuple[int, bool, int]:
        l1 = sum(abs(truth[instance][c] - context[c]) for c in range(written))
        return l1, instance != own, instance

    return min(left, key=distance)
