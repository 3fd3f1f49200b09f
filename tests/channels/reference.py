"""Channel-A written a second time, straight from docs and plainly: N whole forwards of the library's model.

Sample by sample, so nothing is padded; the image is encoded again in every pass; logits of all positions over the whole
vocabulary; losses in loops. Nothing is taken from `apiece.losses`, `apiece.channels` or `apiece.model`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from apiece.config.schema import ObjectiveSection, Stage2Section
from apiece.data.collate import EncodedSample
from apiece.types import Role

BINS = 1000
LEAST_SIDE = 1e-4
"""Sides shorter than a tenth of a bin count as this in the aspect ratio: a convention of the package, not of CIoU."""


class OneSample:
    """The tensors of one sample, and whole forwards over it."""

    def __init__(self, model: Any, side: Any, sample: EncodedSample) -> None:
        assert sample.answer is not None
        self.model, self.answer = model, sample.answer
        self.prompt_length = len(sample.prefix_ids)
        self.ids = torch.tensor([*sample.prefix_ids.tolist(), *sample.answer.ids.tolist()])[None]
        self.pixels = torch.from_numpy(sample.pixel_values).double()
        self.grid = torch.tensor([sample.grid_thw])
        self.first_id = side.vocab.first_id
        kinds = (self.ids == side.image_token_id).int()
        self.positions, _ = model.model.get_rope_index(
            self.ids, kinds, image_grid_thw=self.grid, attention_mask=torch.ones_like(self.ids)
        )
        self.roles = [Role(role) for role in sample.answer.roles.tolist()]
        # Where each coordinate token stands in the whole sequence, and its bin; four an object.
        self.slots = [self.prompt_length + p for p in sample.answer.slots.position.tolist()]
        self.truth = [int(self.ids[0, p]) - self.first_id for p in self.slots]
        assert self.truth == sample.answer.slots.target_bin.tolist()
        said = [side.tokenizer.decode(token) for token in sample.answer.ids.tolist()]
        ends = [p + 1 for p in sample.answer.slots.position.tolist()[3::4]]
        self.names = [
            "".join(said[t] for t in range(start, end) if self.roles[t] is Role.DESC)
            for start, end in zip([0, *ends], ends, strict=False)
        ]

    def embeddings(self) -> Tensor:
        """Of the true tokens, `[L, D]`."""
        return self.model.get_input_embeddings()(self.ids)[0]

    def forward(self, embeddings: Tensor) -> Tensor:
        """Logits `[L, V]`; row i is about token i + 1."""
        hidden = self.model.model(
            inputs_embeds=embeddings[None],
            pixel_values=self.pixels,
            image_grid_thw=self.grid,
            position_ids=self.positions,
            use_cache=False,
        ).last_hidden_state
        return self.model.lm_head(hidden)[0]

    def bin_logits(self, logits: Tensor, slot: int) -> Tensor:
        """Of the 1000 coordinate tokens, from the row before the slot."""
        return logits[slot - 1, self.first_id : self.first_id + BINS]


def channel_a(
    model: Any, side: Any, samples: Sequence[EncodedSample], objective: ObjectiveSection, stage2: Stage2Section
) -> dict[str, Tensor]:
    """Atoms: weight x mean of every term with a weight, by name. Their sum is the loss."""
    items = [OneSample(model, side, s) for s in samples]
    counts = {
        "tokens": sum(role is not Role.COORD for item in items for role in item.roles),
        "slots": sum(len(item.slots) for item in items),
        "objects": sum(len(item.names) for item in items),
    }
    atoms: dict[str, Tensor] = {}

    def add(name: str, weight: float, value: Tensor, per: str) -> None:
        if weight and counts[per]:
            atoms[name] = atoms.get(name, torch.zeros((), dtype=torch.float64)) + weight * value / counts[per]

    passes = stage2.n_softctx_iter
    for item in items:
        embeddings = item.embeddings()
        logits = item.forward(embeddings)
        if passes == 1:
            _add_all(add, "a1", item, logits, item.truth, objective, stage2, last=False)
            continue
        _add_anchor(add, item, logits, objective, stage2)
        context = list(item.truth)
        for number in range(2, passes + 1):
            context, replaced = _replaced(item, embeddings, logits, stage2)
            logits = item.forward(replaced)
            assert number <= passes
        target = item.truth
        if stage2.softctx_target.value == "retarget":
            target = retargeted(item.names, context, item.truth)
        _add_all(add, f"a{passes}", item, logits, target, objective, stage2, last=True)
    return atoms


def _replaced(item: OneSample, truth: Tensor, logits: Tensor, stage2: Stage2Section) -> tuple[list[int], Tensor]:
    """Step 2 of the channel: what the next pass reads, and the bins that stand in it."""
    table = item.model.get_input_embeddings().weight
    rows = list(truth)
    context = []
    for slot, true_bin in zip(item.slots, item.truth, strict=True):
        scores = item.bin_logits(logits, slot)
        best = int(scores.argmax())
        if stage2.softctx_replace.value == "near_gt" and abs(best - true_bin) > stage2.softctx_radius:
            context.append(true_bin)
            continue
        context.append(best)
        p = torch.softmax(scores / stage2.softctx_temperature, 0)
        soft = (p[:, None] * table[item.first_id : item.first_id + BINS]).sum(0)
        hard = table[item.first_id + best]
        new = {"soft": soft, "hard": hard, "st": hard + (soft - soft.detach())}[stage2.coord_ctx_embed_mode.value]
        rows[slot] = new.detach() if stage2.softctx_grad_mode.value == "em_detach" else new
    return context, torch.stack(rows)


def retargeted(names: Sequence[str], context: Sequence[int], truth: Sequence[int]) -> list[int]:
    """Walk the objects; follow the instance that each has committed to; every instance is emitted once."""
    boxes = [tuple(truth[4 * i : 4 * i + 4]) for i in range(len(names))]
    emitted: set[int] = set()
    out: list[int] = []
    for i, name in enumerate(names):
        said = context[4 * i : 4 * i + 4]
        free = [j for j, other in enumerate(names) if other == name and j not in emitted]
        current = i if i in free else free[0]
        for c in range(4):
            out.append(boxes[current][c])
            apart = {j: sum(abs(boxes[j][k] - said[k]) for k in range(c + 1)) for j in free}
            least = [j for j in free if apart[j] == min(apart.values())]
            current = i if i in least else least[0]
        emitted.add(current)
    return out


# ---------------------------------------------------------------- which pass feeds which loss


def _add_anchor(add: Any, item: OneSample, logits: Tensor, objective: ObjectiveSection, stage2: Stage2Section) -> None:
    """The first row of the table: A1 of several passes."""
    token, geo, reg = objective.token_ce, objective.bbox_geo, objective.coord_reg
    ce = _token_ce(item, logits)
    add("a1/token_ce/struct", token.weight, ce[Role.STRUCT], "tokens")
    add("a1/token_ce/desc", token.weight * token.config.desc_ce_weight, ce[Role.DESC], "tokens")
    add("a1/token_ce/eos", token.weight, ce[Role.EOS], "tokens")
    smooth, one_minus_ciou = _geometry(item, logits, item.truth, objective, stage2)
    add("a1/bbox_geo/smoothl1", geo.weight * geo.config.a1_smoothl1_weight, smooth, "objects")
    add("a1/bbox_geo/ciou", geo.weight * geo.config.a1_ciou_weight, one_minus_ciou, "objects")
    distribution = _distribution(item, logits, item.truth, objective)
    add("a1/coord_reg/soft_ce", reg.weight * reg.config.a1_soft_ce_weight, distribution["soft_ce"], "slots")
    add("a1/coord_reg/w1", reg.weight * reg.config.a1_w1_weight, distribution["w1"], "slots")


def _add_all(
    add: Any, context: str, item: OneSample, logits: Tensor, target: Sequence[int],
    objective: ObjectiveSection, stage2: Stage2Section, *, last: bool,
) -> None:  # fmt: skip
    """The second row (`last`) and the third (one pass)."""
    token, geo, reg = objective.token_ce, objective.bbox_geo, objective.coord_reg
    ce = _token_ce(item, logits)
    syntax = token.weight * (token.config.self_context_struct_ce_weight if last else 1.0)
    add(f"{context}/token_ce/struct", syntax, ce[Role.STRUCT], "tokens")
    add(f"{context}/token_ce/eos", syntax, ce[Role.EOS], "tokens")
    if not last:
        add(f"{context}/token_ce/desc", token.weight * token.config.desc_ce_weight, ce[Role.DESC], "tokens")
    smooth, one_minus_ciou = _geometry(item, logits, target, objective, stage2)
    add(f"{context}/bbox_geo/smoothl1", geo.weight * geo.config.smoothl1_weight, smooth, "objects")
    add(f"{context}/bbox_geo/ciou", geo.weight * geo.config.ciou_weight, one_minus_ciou, "objects")
    distribution = _distribution(item, logits, target, objective)
    soft = reg.config.soft_ce_weight
    if last and reg.config.self_context_soft_ce_weight is not None:
        soft = reg.config.self_context_soft_ce_weight
    add(f"{context}/coord_reg/coord_ce", reg.weight * reg.config.coord_ce_weight, distribution["coord_ce"], "slots")
    add(f"{context}/coord_reg/soft_ce", reg.weight * soft, distribution["soft_ce"], "slots")
    add(f"{context}/coord_reg/w1", reg.weight * reg.config.w1_weight, distribution["w1"], "slots")
    # Names are not supervised in the last pass, so the text gate does not read them there.
    supervised = (Role.STRUCT, Role.EOS) if last else (Role.STRUCT, Role.DESC, Role.EOS)
    coord_gate, text_gate = _gates(item, logits, supervised)
    add(f"{context}/coord_reg/coord_gate", reg.weight * reg.config.coord_gate_weight, coord_gate, "slots")
    add(f"{context}/coord_reg/text_gate", reg.weight * reg.config.text_gate_weight, text_gate, "tokens")


# ---------------------------------------------------------------- the formulas, summed over one sample


def _zero() -> Tensor:
    return torch.zeros((), dtype=torch.float64)


def _token_ce(item: OneSample, logits: Tensor) -> dict[Role, Tensor]:
    sums = {role: _zero() for role in Role}
    for t, role in enumerate(item.roles):
        at = item.prompt_length + t
        p = torch.softmax(logits[at - 1], 0)
        sums[role] = sums[role] - torch.log(p[int(item.ids[0, at])])
    return sums


def _distribution(
    item: OneSample, logits: Tensor, target: Sequence[int], objective: ObjectiveSection
) -> dict[str, Tensor]:
    config = objective.coord_reg.config
    sums = Counter({"coord_ce": _zero(), "soft_ce": _zero(), "w1": _zero()})
    for slot, t in zip(item.slots, target, strict=True):
        log_p = torch.log_softmax(item.bin_logits(logits, slot) / config.temperature, 0)
        near = range(max(0, t - config.target_truncate), min(BINS - 1, t + config.target_truncate) + 1)
        height = {i: math.exp(-((i - t) ** 2) / (2 * config.target_sigma**2)) for i in near}
        q = torch.tensor([height.get(i, 0.0) / sum(height.values()) for i in range(BINS)], dtype=torch.float64)
        sums["coord_ce"] = sums["coord_ce"] - log_p[t]
        sums["soft_ce"] = sums["soft_ce"] - (q * log_p).sum()
        sums["w1"] = sums["w1"] + torch.abs(torch.cumsum(log_p.exp() - q, 0)).sum() / 999
    return dict(sums)


def _gates(item: OneSample, logits: Tensor, supervised: Sequence[Role]) -> tuple[Tensor, Tensor]:
    at_slots, at_text = _zero(), _zero()
    for t, role in enumerate(item.roles):
        p = torch.softmax(logits[item.prompt_length + t - 1], 0)
        mass = p[item.first_id : item.first_id + BINS].sum()
        if role is Role.COORD:
            at_slots = at_slots - torch.log(mass)
        elif role in supervised:
            at_text = at_text - torch.log(1 - mass)
    return at_slots, at_text


def _geometry(
    item: OneSample, logits: Tensor, target: Sequence[int], objective: ObjectiveSection, stage2: Stage2Section
) -> tuple[Tensor, Tensor]:
    values = []
    for slot in item.slots:
        scores = item.bin_logits(logits, slot)
        value = (torch.softmax(scores, 0) * torch.arange(BINS)).sum() / 999
        if stage2.coord_decode_mode.value == "st":
            value = int(scores.argmax()) / 999 + (value - value.detach())
        values.append(value)
    smooth, one_minus_ciou = _zero(), _zero()
    for i in range(len(item.names)):
        box = _in_order(values[4 * i : 4 * i + 4])
        truth = _in_order([torch.tensor(t / 999, dtype=torch.float64) for t in target[4 * i : 4 * i + 4]])
        smooth = smooth + _smooth_l1(box, truth, objective.bbox_geo.config.smoothl1_beta)
        one_minus_ciou = one_minus_ciou + 1 - _ciou(box, truth)
    return smooth, one_minus_ciou


def _in_order(box: Sequence[Tensor]) -> list[Tensor]:
    x1, y1, x2, y2 = box
    return [torch.minimum(x1, x2), torch.minimum(y1, y2), torch.maximum(x1, x2), torch.maximum(y1, y2)]


def _smooth_l1(box: Sequence[Tensor], truth: Sequence[Tensor], beta: float) -> Tensor:
    parts = []
    for a, b in zip(box, truth, strict=True):
        d = torch.abs(a - b)
        parts.append(d * d / (2 * beta) if d < beta else d - beta / 2)
    return torch.stack(parts).mean()


def _ciou(box: Sequence[Tensor], truth: Sequence[Tensor]) -> Tensor:
    """IoU - d^2 / c^2 - alpha v, alpha = v / (1 - IoU + v) held constant (Zheng et al. 2020, eqs. 7-11)."""
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = box, truth
    wide = torch.clamp(torch.minimum(ax2, bx2) - torch.maximum(ax1, bx1), min=0)
    high = torch.clamp(torch.minimum(ay2, by2) - torch.maximum(ay1, by1), min=0)
    inter = wide * high
    iou = inter / ((ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - inter)
    d2 = ((ax1 + ax2 - bx1 - bx2) / 2) ** 2 + ((ay1 + ay2 - by1 - by2) / 2) ** 2
    c2 = (torch.maximum(ax2, bx2) - torch.minimum(ax1, bx1)) ** 2
    c2 = c2 + (torch.maximum(ay2, by2) - torch.minimum(ay1, by1)) ** 2

    def angle(x1: Tensor, y1: Tensor, x2: Tensor, y2: Tensor) -> Tensor:
        return torch.atan(torch.clamp(x2 - x1, min=LEAST_SIDE) / torch.clamp(y2 - y1, min=LEAST_SIDE))

    v = 4 / math.pi**2 * (angle(*truth) - angle(*box)) ** 2
    held, at = float(v.detach()), float(iou.detach())
    alpha = held / (1 - at + held) if held else 0.0
    return iou - d2 / c2 - alpha * v
