"""The losses of one pass over a batch's answers, with logits only where a loss reads them.

Shapes: B samples, T answer tokens, S slots, R text rows, K bins, D width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from apiece.data.collate import Batch, BatchSlots
from apiece.losses.compose import AnswerLogits, Objective, Weights, at_least_float32
from apiece.losses.coord import log_coord_mass
from apiece.model.lora import coord_rows
from apiece.types import LossTerm, Role


@dataclass(frozen=True, slots=True)
class CoordRows:
    """The coordinate tokens' rows, cut out once a step: the gradient of every cut is as large as the whole table."""

    head_KD: Tensor
    table_KD: Tensor  # of the input embedding; the same tensor where the two are tied

    @classmethod
    def of(cls, model: Any, first: int, bins: int) -> CoordRows:
        return cls(*coord_rows(model, first, bins))


def slot_logits(hidden_BTD: Tensor, slots: BatchSlots, rows: CoordRows) -> Tensor:
    """Logits `[S, K]` of the coordinate tokens at every slot."""
    return torch.nn.functional.linear(hidden_BTD[slots.sample, slots.position], rows.head_KD)


def answer_terms(
    model: Any,
    objective: Objective,
    name: str,
    weights: Weights,
    hidden_BTD: Tensor,
    batch: Batch,
    rows: CoordRows,
    target_S: Tensor,
) -> list[LossTerm]:
    """The losses of one pass, as sums, with names that begin with `name/`.

    Row t of `hidden_BTD` predicts answer token t; `target_S` are the bins that the pass should predict.
    """
    text = batch.supervised if weights.desc else batch.supervised & (batch.roles != Role.DESC)
    text_RV = at_least_float32(model.lm_head(hidden_BTD[text]))
    first, bins = objective.first_id, objective.num_bins
    mass_S = None
    if weights.coord_gate:
        slot_SV = at_least_float32(model.lm_head(hidden_BTD[batch.slots.sample, batch.slots.position]))
        slot_SK, mass_S = slot_SV[:, first : first + bins], log_coord_mass(slot_SV, first, bins)
    else:
        slot_SK = slot_logits(hidden_BTD, batch.slots, rows)
    logits = AnswerLogits(text_RV, batch.answer_ids[text], batch.roles[text], slot_SK, mass_S)
    with torch.autocast(text_RV.device.type, enabled=False):  # losses are float32 in every precision
        return objective.terms(name, weights, logits, target_S)
