"""The objective: its terms, their weights in each context, and how sums become one number.

Every term is a sum over items; the denominator is the count of items over the whole optimizer step and all ranks, so
splitting a batch differently gives the same gradient. All in float32.

Shapes: R text rows, S slots, V vocabulary, K bins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from apiece.config.schema import CoordDecodeMode, ObjectiveSection
from apiece.data.collate import Batch
from apiece.losses import box, coord
from apiece.types import LossTerm, Per, Role


def at_least_float32(logits: Tensor) -> Tensor:
    """Half-precision logits as float32, the precision of losses; float32 and float64 unchanged."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


TEXT_ROLES = (Role.STRUCT, Role.DESC, Role.EOS)


def token_ce(logits_RV: Tensor, target_R: Tensor, role_R: Tensor) -> dict[Role, Tensor]:
    """Summed cross-entropy in nats by role: syntax, names, end. Coordinate tokens are not among the targets."""
    ce_R = F.cross_entropy(at_least_float32(logits_RV), target_R, reduction="none")
    return {role: (ce_R * (role_R == role)).sum() for role in TEXT_ROLES}


def refusal(logits_RV: Tensor, ids_R: Tensor) -> Tensor:
    """`-log(1 - p)` of tokens that should not have been written, nats, `[R]`.

    From the logits of all others: finite and with a gradient even where p rounds to 1.
    """
    logits_RV = at_least_float32(logits_RV)
    others_RV = logits_RV.scatter(1, ids_R[:, None], -torch.inf)
    return logits_RV.logsumexp(-1) - others_RV.logsumexp(-1)


Counts = Mapping[Per, Tensor]


@dataclass(frozen=True, slots=True)
class Weights:
    """The weight of every term in one context: which pass feeds which loss (docs/study/concepts.md has the table)."""

    struct: float
    desc: float
    eos: float
    smoothl1: float
    ciou: float
    coord_ce: float
    soft_ce: float
    w1: float
    coord_gate: float
    text_gate: float


def teacher_forced_weights(config: ObjectiveSection) -> Weights:
    """One pass only: everything, on ground-truth input."""
    token, geo, reg = config.token_ce, config.bbox_geo, config.coord_reg
    return Weights(
        struct=token.weight,
        desc=token.weight * token.config.desc_ce_weight,
        eos=token.weight,
        smoothl1=geo.weight * geo.config.smoothl1_weight,
        ciou=geo.weight * geo.config.ciou_weight,
        coord_ce=reg.weight * reg.config.coord_ce_weight,
        soft_ce=reg.weight * reg.config.soft_ce_weight,
        w1=reg.weight * reg.config.w1_weight,
        coord_gate=reg.weight * reg.config.coord_gate_weight,
        text_gate=reg.weight * reg.config.text_gate_weight,
    )


def anchor_weights(config: ObjectiveSection) -> Weights:
    """A1 of several passes: all text, and the small anchors; never hard cross-entropy, never gates."""
    geo, reg = config.bbox_geo, config.coord_reg
    return replace(
        teacher_forced_weights(config),
        smoothl1=geo.weight * geo.config.a1_smoothl1_weight,
        ciou=geo.weight * geo.config.a1_ciou_weight,
        coord_ce=0.0,
        soft_ce=reg.weight * reg.config.a1_soft_ce_weight,
        w1=reg.weight * reg.config.a1_w1_weight,
        coord_gate=0.0,
        text_gate=0.0,
    )


def self_context_weights(config: ObjectiveSection) -> Weights:
    """The last of several passes: all of geometry and coordinates; little syntax, no names."""
    whole, token, reg = teacher_forced_weights(config), config.token_ce, config.coord_reg
    struct = token.weight * token.config.self_context_struct_ce_weight
    own = reg.config.self_context_soft_ce_weight
    soft = whole.soft_ce if own is None else reg.weight * own
    return replace(whole, struct=struct, desc=0.0, eos=struct, soft_ce=soft)


@dataclass(frozen=True, slots=True)
class AnswerLogits:
    """The logits that the losses of one pass read."""

    text_RV: Tensor  # rows that predict supervised text tokens, full vocabulary
    text_target_R: Tensor
    text_role_R: Tensor
    slot_SK: Tensor  # rows that predict coordinate tokens, coordinate columns only
    slot_log_mass_S: Tensor | None  # log-probability of all coordinate tokens; `None` where no gate needs it


@dataclass(frozen=True)
class Objective:
    """The weighted terms of a config."""

    config: ObjectiveSection
    decode: CoordDecodeMode
    first_id: int  # of the coordinate token of bin 0
    num_bins: int

    def counts(self, batch: Batch) -> dict[Per, Tensor]:
        """Items of a batch by kind, float64 scalars; add them up over micro-batches and ranks."""
        slots = torch.tensor(float(len(batch.slots)), dtype=torch.float64, device=batch.supervised.device)
        return {Per.TOKENS: batch.supervised.sum().double(), Per.OBJECTS: slots / 4, Per.SLOTS: slots}

    def terms(self, context: str, weights: Weights, logits: AnswerLogits, target_bin_S: Tensor) -> list[LossTerm]:
        """All terms of one pass, as sums; a term without weight is computed only for the log.

        `context` (`a1`, `a2`, ...) is the first part of the terms' names, `target_bin_S` what the pass should predict.
        """
        text = token_ce(logits.text_RV, logits.text_target_R, logits.text_role_R)
        slot_SK = at_least_float32(logits.slot_SK)
        geo = self._bbox_geo(slot_SK, target_bin_S)
        reg = self._coord_reg(slot_SK, target_bin_S)
        terms = [
            LossTerm("token_ce/struct", weights.struct, text[Role.STRUCT], Per.TOKENS),
            LossTerm("token_ce/desc", weights.desc, text[Role.DESC], Per.TOKENS),
            LossTerm("token_ce/eos", weights.eos, text[Role.EOS], Per.TOKENS),
            LossTerm("bbox_geo/smoothl1", weights.smoothl1, geo["smoothl1"], Per.OBJECTS),
            LossTerm("bbox_geo/ciou", weights.ciou, geo["ciou"], Per.OBJECTS),
            LossTerm("coord_reg/coord_ce", weights.coord_ce, reg["coord_ce"], Per.SLOTS),
            LossTerm("coord_reg/soft_ce", weights.soft_ce, reg["soft_ce"], Per.SLOTS),
            LossTerm("coord_reg/soft_ce_above_floor", 0.0, reg["soft_ce_above_floor"], Per.SLOTS),
            LossTerm("coord_reg/w1", weights.w1, reg["w1"], Per.SLOTS),
        ]
        if logits.slot_log_mass_S is not None:
            gate = -logits.slot_log_mass_S.sum()
            terms.append(LossTerm("coord_reg/coord_gate", weights.coord_gate, gate, Per.SLOTS))
        if weights.text_gate:
            mass_R = coord.log_text_mass(at_least_float32(logits.text_RV), self.first_id, self.num_bins)
            terms.append(LossTerm("coord_reg/text_gate", weights.text_gate, -mass_R.sum(), Per.TOKENS))
        # A term that is only logged must not hold the graph: its gradient is zero, and a backward pass would cost time.
        return [replace(t, name=f"{context}/{t.name}", total=t.total if t.weight else t.total.detach()) for t in terms]

    def _bbox_geo(self, slot_SK: Tensor, target_bin_S: Tensor) -> dict[str, Tensor]:
        c = self.config.bbox_geo.config
        decode = box.decode_expectation if self.decode is CoordDecodeMode.EXP else box.decode_straight_through
        boxes = box.order_corners(decode(slot_SK).view(-1, 4))
        truth = box.order_corners((target_bin_S.to(slot_SK.dtype) / (self.num_bins - 1)).view(-1, 4))
        return {
            "smoothl1": box.smoothl1(boxes, truth, c.smoothl1_beta).sum(),
            "ciou": (1 - box.ciou(boxes, truth)).sum(),
        }

    def _coord_reg(self, slot_SK: Tensor, target_bin_S: Tensor) -> dict[str, Tensor]:
        c = self.config.coord_reg.config
        logits_SK = slot_SK / c.temperature
        targets = coord.soft_targets(self.num_bins, c.target_sigma, c.target_truncate, slot_SK.device, slot_SK.dtype)
        soft = coord.soft_ce(logits_SK, target_bin_S, targets).sum()
        return {
            "coord_ce": coord.coord_ce(logits_SK, target_bin_S).sum(),
            "soft_ce": soft,
            # Zero means perfect.
            "soft_ce_above_floor": soft - targets.entropy_K[target_bin_S].sum(),
            "w1": coord.w1(logits_SK, target_bin_S, targets).sum(),
        }


def total_loss(terms: Sequence[LossTerm], counts: Counts) -> Tensor:
    """`sum_terms weight * sum / count`, a scalar; a kind without items adds nothing."""
    return torch.stack([term.weight * mean(term, counts) for term in terms]).sum()


def mean(term: LossTerm, counts: Counts) -> Tensor:
    """The term's mean, unweighted."""
    return term.total / counts[term.per].clamp_min(1).to(term.total.dtype)
