"""The objective: which terms there are, their weights, and how sums become one number.

Every term is a sum over items; the denominator is the count of items over the whole optimizer step and all ranks, so
splitting a batch differently gives the same gradient. All in float32.

Shapes: R text rows, S slots, V vocabulary, K bins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from apiece.config.schema import CoordDecodeMode, ObjectiveSection
from apiece.data.collate import Batch
from apiece.losses import box, coord
from apiece.losses.token import token_ce
from apiece.types import LossTerm, Per, Role

Counts = Mapping[Per, Tensor]


@dataclass(frozen=True, slots=True)
class AnswerLogits:
    """The logits that the losses read, and nothing else.

    Attributes:
        text_RV: Rows that predict struct, desc and end tokens, full vocabulary.
        slot_SK: Rows that predict coordinate tokens, coordinate columns only.
        slot_log_mass_S: Log-probability of all coordinate tokens at slots; `None` where no gate asks for it.
    """

    text_RV: Tensor
    slot_SK: Tensor
    slot_log_mass_S: Tensor | None


@dataclass(frozen=True)
class Objective:
    """The weighted terms of a config.

    Attributes:
        config: The `objective` section.
        decode: How boxes are read off slots.
        first_id: Id of the coordinate token of bin 0.
        num_bins: Number of coordinate tokens.
    """

    config: ObjectiveSection
    decode: CoordDecodeMode
    first_id: int
    num_bins: int

    @property
    def needs_slot_mass(self) -> bool:
        """Whether slot rows are needed over the full vocabulary."""
        return self.config.coord_reg.weight * self.config.coord_reg.config.coord_gate_weight > 0

    def counts(self, batch: Batch) -> dict[Per, Tensor]:
        """Items of a batch by kind, float64 scalars; add them up over micro-batches and ranks."""
        text = batch.answer_mask & (batch.roles != Role.COORD)
        slots = torch.tensor(float(len(batch.slots)), dtype=torch.float64, device=text.device)
        return {Per.TOKENS: text.sum().double(), Per.OBJECTS: slots / 4, Per.SLOTS: slots}

    def terms(
        self, logits: AnswerLogits, text_target_R: Tensor, text_role_R: Tensor, target_bin_S: Tensor
    ) -> list[LossTerm]:
        """All terms of one forward pass, as sums."""
        token = self.config.token_ce
        terms = token_ce(
            logits.text_RV, text_target_R, text_role_R, weight=token.weight, desc_ce_weight=token.config.desc_ce_weight
        )
        slot_SK = logits.slot_SK.float()
        terms += self._bbox_geo(slot_SK, target_bin_S)
        terms += self._coord_reg(slot_SK, target_bin_S, logits.slot_log_mass_S)
        gate = self.config.coord_reg.weight * self.config.coord_reg.config.text_gate_weight
        if gate:
            mass_R = coord.log_text_mass(logits.text_RV.float(), self.first_id, self.num_bins)
            terms.append(LossTerm("coord_reg/text_gate", gate, -mass_R.sum(), Per.TOKENS))
        return terms

    def _bbox_geo(self, slot_SK: Tensor, target_bin_S: Tensor) -> list[LossTerm]:
        weight, c = self.config.bbox_geo.weight, self.config.bbox_geo.config
        decode = box.decode_expectation if self.decode is CoordDecodeMode.EXP else box.decode_straight_through
        boxes = box.order_corners(decode(slot_SK).view(-1, 4))
        truth = box.order_corners((target_bin_S.float() / (self.num_bins - 1)).view(-1, 4))
        distance = box.smoothl1(boxes, truth, c.smoothl1_beta).sum()
        overlap = (1 - box.ciou(boxes, truth)).sum()
        return [
            LossTerm("bbox_geo/smoothl1", weight * c.smoothl1_weight, distance, Per.OBJECTS),
            LossTerm("bbox_geo/ciou", weight * c.ciou_weight, overlap, Per.OBJECTS),
        ]

    def _coord_reg(self, slot_SK: Tensor, target_bin_S: Tensor, log_mass_S: Tensor | None) -> list[LossTerm]:
        weight, c = self.config.coord_reg.weight, self.config.coord_reg.config
        logits_SK = slot_SK / c.temperature
        targets = coord.soft_targets(self.num_bins, c.target_sigma, c.target_truncate, slot_SK.device)
        soft_S = coord.soft_ce(logits_SK, target_bin_S, targets)
        floor_S = targets.entropy_K[target_bin_S]
        parts = [
            ("coord_ce", c.coord_ce_weight, coord.coord_ce(logits_SK, target_bin_S)),
            ("soft_ce", c.soft_ce_weight, soft_S),
            # Logged only: zero means perfect.
            ("soft_ce_above_floor", 0.0, (soft_S - floor_S).detach()),
            ("w1", c.w1_weight, coord.w1(logits_SK, target_bin_S, targets)),
        ]
        if log_mass_S is not None:
            parts.append(("coord_gate", c.coord_gate_weight, -log_mass_S.float()))
        return [LossTerm(f"coord_reg/{name}", weight * w, per_item.sum(), Per.SLOTS) for name, w, per_item in parts]


def total_loss(terms: Sequence[LossTerm], counts: Counts) -> Tensor:
    """`sum_terms weight * sum / count`, a scalar; a kind without items adds nothing."""
    return torch.stack([term.weight * mean(term, counts) for term in terms]).sum()


def mean(term: LossTerm, counts: Counts) -> Tensor:
    """The term's mean, unweighted."""
    return term.total / counts[term.per].clamp_min(1).to(term.total.dtype)
