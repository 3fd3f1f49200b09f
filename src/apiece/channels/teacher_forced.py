"""Stage-1: one teacher-forced pass with ground-truth tokens in the input."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from apiece.data.collate import Batch
from apiece.losses.compose import AnswerLogits, Objective
from apiece.losses.coord import log_coord_mass
from apiece.model.forward import answer_hidden, coord_logits
from apiece.types import LossTerm, Role


class TeacherForced(nn.Module):
    """The whole step as one module's `forward`, so that distributed wrappers see all of it."""

    def __init__(self, model: Any, objective: Objective) -> None:
        super().__init__()
        self.model = model
        self.objective = objective

    def forward(self, batch: Batch) -> list[LossTerm]:
        """Loss terms of one batch, as sums."""
        hidden_BTD = answer_hidden(self.model, batch)
        text = batch.answer_mask & (batch.roles != Role.COORD)
        text_RV = self.model.lm_head(hidden_BTD[text]).float()
        hidden_SD = hidden_BTD[batch.slots.sample, batch.slots.position]
        first, bins = self.objective.first_id, self.objective.num_bins
        if self.objective.needs_slot_mass:
            slot_SV = self.model.lm_head(hidden_SD).float()
            logits = AnswerLogits(text_RV, slot_SV[:, first : first + bins], log_coord_mass(slot_SV, first, bins))
        else:
            logits = AnswerLogits(text_RV, coord_logits(self.model, hidden_SD, first, bins), None)
        with torch.autocast(text_RV.device.type, enabled=False):  # losses are float32 in every precision
            return self.objective.terms(logits, batch.answer_ids[text], batch.roles[text], batch.slots.target_bin)
