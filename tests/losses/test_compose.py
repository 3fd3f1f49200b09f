"""The whole objective: names, weights, denominators; parts add up; splitting a batch changes nothing."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from numpy.testing import assert_allclose

import toy
from apiece.channels.a_soft_context import SoftContext
from apiece.config.schema import CoordDecodeMode, ObjectiveSection
from apiece.losses import box, coord
from apiece.losses.compose import AnswerLogits, Objective, mean, teacher_forced_weights, token_ce, total_loss
from apiece.types import LossTerm, Per, Role

V, FIRST, K = 1100, 50, 1000
CPU = torch.device("cpu")
EVERYTHING = {
    "token_ce": {"weight": 3.0, "config": {"desc_ce_weight": 0.5}},
    "bbox_geo": {"weight": 2.0, "config": {"smoothl1_weight": 5.0, "smoothl1_beta": 0.1, "ciou_weight": 0.25}},
    "coord_reg": {
        "weight": 0.5,
        "config": {
            "coord_ce_weight": 0.3,
            "soft_ce_weight": 0.7,
            "w1_weight": 11.0,
            "coord_gate_weight": 0.2,
            "text_gate_weight": 0.9,
            "target_sigma": 3.0,
            "target_truncate": 6,
            "temperature": 2.0,
        },
    },
}
NOTHING = {
    "token_ce": {"weight": 0.0},
    "bbox_geo": {"weight": 0.0},
    "coord_reg": {"weight": 0.0},
}


def objective(section=None, decode=CoordDecodeMode.EXP, first=FIRST) -> Objective:
    return Objective(ObjectiveSection.model_validate(section or {}), decode, first, K)


def drawn(rows: int = 7, objects: int = 2, seed: int = 0) -> tuple[AnswerLogits, torch.Tensor]:
    """Random logits and targets, and the bins at the slots."""
    g = torch.Generator().manual_seed(seed)
    text = torch.randn(rows, V, generator=g) * 2
    slot = torch.randn(4 * objects, V, generator=g) * 2
    roles = torch.tensor([Role.STRUCT, Role.DESC, Role.DESC, Role.STRUCT, Role.STRUCT, Role.STRUCT, Role.EOS])[:rows]
    bins = torch.randint(0, K, (objects, 2, 2), generator=g).sort(1).values.reshape(-1)
    target = torch.randint(0, FIRST, (rows,), generator=g)
    mass = coord.log_coord_mass(slot, FIRST, K)
    return AnswerLogits(text, target, roles, slot[:, FIRST : FIRST + K], mass), bins


def terms_of(the: Objective, logits: AnswerLogits, bins: torch.Tensor) -> list[LossTerm]:
    """The terms of one teacher-forced pass."""
    return the.terms("a1", teacher_forced_weights(the.config), logits, bins)


def named(terms: list[LossTerm]) -> dict[str, LossTerm]:
    assert all(t.name.startswith("a1/") for t in terms)
    return {t.name.removeprefix("a1/"): t for t in terms}


def counts_of(rows: int, objects: int) -> dict[Per, torch.Tensor]:
    numbers = {Per.TOKENS: rows, Per.OBJECTS: objects, Per.SLOTS: 4 * objects}
    return {per: torch.tensor(float(n), dtype=torch.float64) for per, n in numbers.items()}


def test_every_term_with_its_weight_and_count() -> None:
    logits, bins = drawn()
    terms = named(terms_of(objective(EVERYTHING), logits, bins))
    soft = coord.soft_targets(K, 3.0, 6, CPU)
    cooled = logits.slot_SK / 2.0
    boxes = box.order_corners(box.decode_expectation(logits.slot_SK).view(-1, 4))
    truth = bins.view(-1, 4) / 999
    ce = -logits.text_RV.log_softmax(-1).gather(1, logits.text_target_R[:, None])[:, 0]
    expected = {
        "token_ce/struct": (3.0, Per.TOKENS, ce[[0, 3, 4, 5]].sum()),
        "token_ce/desc": (1.5, Per.TOKENS, ce[[1, 2]].sum()),
        "token_ce/eos": (3.0, Per.TOKENS, ce[6]),
        "bbox_geo/smoothl1": (10.0, Per.OBJECTS, box.smoothl1(boxes, truth, 0.1).sum()),
        "bbox_geo/ciou": (0.5, Per.OBJECTS, (1 - box.ciou(boxes, truth)).sum()),
        "coord_reg/coord_ce": (0.15, Per.SLOTS, coord.coord_ce(cooled, bins).sum()),
        "coord_reg/soft_ce": (0.35, Per.SLOTS, coord.soft_ce(cooled, bins, soft).sum()),
        "coord_reg/soft_ce_above_floor": (
            0.0,
            Per.SLOTS,
            (coord.soft_ce(cooled, bins, soft) - soft.entropy_K[bins]).sum(),
        ),
        "coord_reg/w1": (5.5, Per.SLOTS, coord.w1(cooled, bins, soft).sum()),
        "coord_reg/coord_gate": (0.1, Per.SLOTS, -logits.slot_log_mass_S.sum()),
        "coord_reg/text_gate": (0.45, Per.TOKENS, -coord.log_text_mass(logits.text_RV, FIRST, K).sum()),
    }
    assert list(terms) == list(expected)
    for name, (weight, per, total) in expected.items():
        assert terms[name].weight == pytest.approx(weight), name
        assert terms[name].per is per, name
        assert_allclose(terms[name].total, total, rtol=1e-5, err_msg=name)


def test_weighted_parts_add_up_to_the_total() -> None:
    terms = terms_of(objective(EVERYTHING), *drawn())
    divisor = {Per.TOKENS: 7, Per.OBJECTS: 2, Per.SLOTS: 8}
    by_hand = sum(t.weight * float(t.total) / divisor[t.per] for t in terms)
    total = total_loss(terms, counts_of(7, 2))
    assert float(total) == pytest.approx(by_hand, rel=1e-6)
    assert total.dtype == torch.float32
    assert float(total) == pytest.approx(sum(t.weight * float(mean(t, counts_of(7, 2))) for t in terms), rel=1e-6)


def test_terms_without_weight_are_not_asked_for() -> None:
    names = list(named(terms_of(objective(), *drawn())))
    assert "coord_reg/text_gate" not in names  # off in the baseline
    assert "coord_reg/coord_gate" in names
    logits, bins = drawn()
    names = list(named(terms_of(objective(), replace(logits, slot_log_mass_S=None), bins)))
    assert "coord_reg/coord_gate" not in names


def test_without_weights_nothing_is_learnt_and_everything_is_still_told() -> None:
    logits, bins = drawn()
    slot, text = logits.slot_SK.clone().requires_grad_(), logits.text_RV.clone().requires_grad_()
    terms = terms_of(objective(NOTHING), replace(logits, text_RV=text, slot_SK=slot), bins)
    total = total_loss(terms, counts_of(7, 2))
    assert float(total) == 0
    assert not total.requires_grad
    assert all(float(t.total) > 0 for t in terms)


def test_no_objects() -> None:
    logits, bins = drawn(objects=0)
    assert bins.shape == (0,)
    text = logits.text_RV.clone().requires_grad_()
    terms = terms_of(objective(EVERYTHING), replace(logits, text_RV=text), bins)
    assert all(float(t.total.detach()) == 0 for t in terms if t.per is not Per.TOKENS)
    total = total_loss(terms, counts_of(7, 0))
    total.backward()
    assert torch.isfinite(total)
    assert torch.isfinite(text.grad).all()
    assert float(text.grad.abs().max()) > 0


def test_nothing_at_all_is_0_and_not_nan() -> None:
    terms = [LossTerm("a", 1.0, torch.tensor(0.0), Per.OBJECTS)]
    assert float(total_loss(terms, counts_of(0, 0))) == 0


def test_the_decode_mode_is_used() -> None:
    """Two modes on x1: the expectation lies between them, the straight-through value on one of them."""
    peaks = torch.full((4, K), -100.0)
    for slot, bins in enumerate([(100, 300), (100, 100), (400, 400), (400, 400)]):
        peaks[slot, list(bins)] = 0.0
    answer = replace(drawn(objects=1)[0], slot_SK=peaks)
    values = {}
    for decode in CoordDecodeMode:
        terms = named(terms_of(objective({}, decode), answer, torch.tensor([100, 100, 400, 400])))
        values[decode] = float(terms["bbox_geo/smoothl1"].total)
    assert values[CoordDecodeMode.ST] == pytest.approx(0, abs=1e-7)
    assert values[CoordDecodeMode.EXP] == pytest.approx((100 / 999) ** 2 / 2 / 4, rel=1e-4)


def test_decoded_corners_are_put_in_order() -> None:
    inverted = torch.nn.functional.one_hot(torch.tensor([400, 400, 100, 100]), K) * 1e4
    answer = replace(drawn(objects=1)[0], slot_SK=inverted)
    terms = named(terms_of(objective(), answer, torch.tensor([100, 100, 400, 400])))
    assert float(terms["bbox_geo/ciou"].total) == pytest.approx(0, abs=1e-5)


def test_token_ce_by_role() -> None:
    roles = torch.tensor([Role.STRUCT, Role.STRUCT, Role.EOS])
    sums = token_ce(torch.zeros(3, 8), torch.tensor([0, 1, 2]), roles)
    assert {role: float(total) for role, total in sums.items()} == {
        Role.STRUCT: pytest.approx(2 * math.log(8)),
        Role.DESC: 0,
        Role.EOS: pytest.approx(math.log(8)),
    }


# On the tiny model.


def channel_of(model, side, section=None, decode=CoordDecodeMode.EXP) -> SoftContext:
    return toy.teacher_forced(model, objective(section, decode, side.vocab.first_id))


def test_counts(tiny_side) -> None:
    batch = toy.batch(tiny_side, *toy.ALL)
    encoded = toy.encode(tiny_side, *toy.ALL)
    text = sum(len(e.answer.ids) - len(e.answer.slots) for e in encoded)
    counts = objective(first=tiny_side.vocab.first_id).counts(batch)
    assert {per: float(n) for per, n in counts.items()} == {Per.TOKENS: text, Per.OBJECTS: 6, Per.SLOTS: 24}


def gradients(channel, batches) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of one step over some micro-batches, as the training step makes them."""
    channel.zero_grad()
    each = [channel.objective.counts(b) for b in batches]
    counts = {per: sum(c[per] for c in each) for per in Per}
    total = 0.0
    for batch in batches:
        loss = total_loss(channel(batch), counts)
        loss.backward()
        total += float(loss.detach())
    return total, {name: p.grad.clone() for name, p in channel.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    "parts",
    [
        [toy.ALL[:2], toy.ALL[2:]],  # in halves
        [(s,) for s in toy.ALL],  # one by one: one part has no objects
        [toy.ALL[3:], (toy.ALL[2], toy.ALL[0]), toy.ALL[1:2]],  # shuffled and uneven
    ],
    ids=["halves", "singles", "uneven"],
)
def test_splitting_a_batch_gives_the_same_loss_and_gradient(tiny_model, tiny_side, parts) -> None:
    channel = channel_of(tiny_model, tiny_side, EVERYTHING)
    loss, whole = gradients(channel, [toy.batch(tiny_side, *toy.ALL)])
    split_loss, split = gradients(channel, [toy.batch(tiny_side, *part) for part in parts])
    assert split_loss == pytest.approx(loss, rel=1e-5)
    assert whole.keys() == split.keys()
    scale = max(float(g.abs().max()) for g in whole.values())
    for name, gradient in whole.items():
        assert_allclose(split[name], gradient, atol=1e-5 * scale, err_msg=name)
    channel.zero_grad()


def test_losses_are_float32_under_bf16_autocast(tiny_model, tiny_side) -> None:
    seen = []

    class Spy(Objective):
        def terms(self, *args):
            seen.append((args, torch.is_autocast_enabled("cpu")))
            return super().terms(*args)

    spy = Spy(ObjectiveSection.model_validate(EVERYTHING), CoordDecodeMode.EXP, tiny_side.vocab.first_id, K)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        terms = toy.teacher_forced(tiny_model, spy)(toy.batch(tiny_side, toy.ONE, toy.TWO))
        assert (
            tiny_model.lm_head(torch.zeros(1, tiny_model.lm_head.in_features)).dtype == torch.bfloat16
        )  # the model itself does run in bf16
    ((args, enabled),) = seen
    assert not enabled
    assert all(t.total.dtype == torch.float32 for t in terms)
    assert args[2].slot_log_mass_S.dtype == torch.float32
    for term, other in zip(terms, Objective.terms(spy, *args), strict=True):
        assert_allclose(term.total, other.total, rtol=1e-6, err_msg=term.name)


def test_the_gate_alone_changes_nothing_about_the_slots(tiny_model, tiny_side) -> None:
    """Slot logits from the full head (with the gate) are those from the coordinate rows alone (without)."""
    batch = toy.batch(tiny_side, toy.ONE, toy.TWO)
    no_gate = {"coord_reg": {"config": {"coord_gate_weight": 0.0}}}
    with torch.no_grad():
        full = {t.name: float(t.total) for t in channel_of(tiny_model, tiny_side)(batch)}
        narrow = {t.name: float(t.total) for t in channel_of(tiny_model, tiny_side, no_gate)(batch)}
    assert full.pop("a1/coord_reg/coord_gate") > 0
    assert narrow == pytest.approx(full, rel=1e-5)
