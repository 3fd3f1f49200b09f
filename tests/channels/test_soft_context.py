"""Channel-A against N whole forwards: the same loss and the same gradient of every parameter, in every mode."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import two_ranks
from equivalence import (
    BASELINE,
    EVERYTHING,
    RAGGED,
    Result,
    assert_same,
    batch_of,
    channel,
    hold,
    ours,
    plain,
    stage2,
    stepped,
)
from small import small_model

import toy
from apiece.config.schema import ObjectiveSection
from apiece.data.collate import EncodedSample
from apiece.train.distributed import World
from apiece.types import Encoded, LossTerm, Role, Slots

ALONE = World(0, 1, torch.device("cpu"))
KNOBS = {
    "softctx_grad_mode": ("unroll", "em_detach"),
    "coord_ctx_embed_mode": ("st", "soft", "hard"),
    "coord_decode_mode": ("exp", "st"),
    "softctx_replace": ("all", "near_gt"),
    "softctx_target": ("identity", "retarget"),
}


def grid() -> Iterator[dict[str, Any]]:
    """All settings that differ in what they compute."""
    for decode in KNOBS["coord_decode_mode"]:
        yield {"n_softctx_iter": 1, "coord_decode_mode": decode}
    for passes in (2, 3):
        for values in itertools.product(*KNOBS.values()):
            # Beliefs of random weights are far off: a large radius keeps some slots and replaces others.
            yield {"n_softctx_iter": passes, "softctx_radius": 250} | dict(zip(KNOBS, values, strict=True))


def pairs(knobs: dict[str, Any]) -> set[tuple[tuple[str, Any], tuple[str, Any]]]:
    return set(itertools.combinations(sorted(knobs.items()), 2))


def covering() -> list[dict[str, Any]]:
    """Few settings in which every pair of values occurs together (greedy)."""
    left, rows = set().union(*(pairs(k) for k in grid())), []
    while left:
        rows.append(max(grid(), key=lambda k: len(pairs(k) & left)))
        left -= pairs(rows[-1])
    return rows


def label(knobs: dict[str, Any]) -> str:
    return "-".join(str(v) for k, v in knobs.items() if k != "softctx_radius")


@pytest.mark.parametrize("knobs", covering(), ids=label)
@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
def test_one_shared_prefix_equals_whole_forwards(small, recomputing, tiny_side, knobs, recompute) -> None:
    hold(recomputing if recompute else small, tiny_side, EVERYTHING, stage2(**knobs))


@pytest.mark.slow
@pytest.mark.parametrize(("passes", "count"), [(1, 2), (2, 48), (3, 48)])
def test_in_every_mode(small, recomputing, tiny_side, passes, count) -> None:
    settings = [k for k in grid() if k["n_softctx_iter"] == passes]
    assert len(settings) == count
    samples = toy.encode(tiny_side, *RAGGED)
    for knobs in settings:
        chosen = stage2(softctx_temperature=0.6, **knobs)
        expected = plain(small, tiny_side, samples, EVERYTHING, chosen)
        for model in (small, recomputing):
            try:
                assert_same(ours(model, tiny_side, samples, EVERYTHING, chosen), expected)
            except AssertionError as error:
                where = "recomputed" if model is recomputing else "kept"
                raise AssertionError(f"{label(knobs)}-{where}: {error}") from error


@pytest.mark.parametrize("passes", [1, 2, 4])
def test_the_baselines_weights(small, tiny_side, passes) -> None:
    result = hold(small, tiny_side, BASELINE, stage2(n_softctx_iter=passes))
    assert all(bool(g.any()) for g in result.gradients.values()), "a parameter without gradient shows nothing"


def test_a_head_of_its_own(tiny_side) -> None:
    hold(small_model(tiny_side, tied=False), tiny_side, EVERYTHING, stage2(n_softctx_iter=2))


def test_the_knobs_are_felt(small, tiny_side) -> None:
    """A knob that changed nothing here would be compared in vain."""
    base = {"n_softctx_iter": 3, "softctx_radius": 250}
    results: list[tuple[str, Result]] = []
    samples = toy.encode(tiny_side, *RAGGED)
    for knob, values in KNOBS.items():
        for value in values[1:]:
            results.append(
                (f"{knob}={value}", ours(small, tiny_side, samples, EVERYTHING, stage2(**base, **{knob: value})))
            )
    results.append(("default", ours(small, tiny_side, samples, EVERYTHING, stage2(**base))))
    results.append(("two passes", ours(small, tiny_side, samples, EVERYTHING, stage2(n_softctx_iter=2))))
    cold = stage2(**base, softctx_temperature=0.5)
    results.append(("temperature", ours(small, tiny_side, samples, EVERYTHING, cold)))
    for (a, one), (b, other) in itertools.combinations(results, 2):
        with pytest.raises(AssertionError, match="relative differences"):
            assert_same(one, other, within=1e-6)
            pytest.fail(f"{a} is {b}")


@pytest.mark.parametrize("micro", [1, 2, 3])
@pytest.mark.parametrize("passes", [1, 2])
def test_accumulation_gives_the_step_of_the_whole_batch(small, tiny_side, micro, passes) -> None:
    samples, step = toy.encode(tiny_side, *RAGGED), channel(small, tiny_side, EVERYTHING, stage2(n_softctx_iter=passes))
    whole = stepped(step, step, [batch_of(tiny_side, samples)], ALONE)
    parts = [samples[i : i + micro] for i in range(0, len(samples), micro)]
    assert_same(stepped(step, step, [batch_of(tiny_side, p) for p in parts], ALONE), whole)


@pytest.fixture(scope="module")
def of_two_ranks(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Result]:
    """The steps of `two_ranks.py`, taken by two gloo processes."""
    script, out = Path(__file__).with_name("two_ranks.py"), tmp_path_factory.mktemp("ranks") / "results.pt"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*torchrun, str(script), str(tiny_checkpoint), str(out)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, Path(__file__).parents[:2]))},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return {name: Result(*result) for name, result in torch.load(out).items()}


@pytest.mark.slow
@pytest.mark.parametrize("case", two_ranks.CASES)
def test_two_gloo_ranks_take_the_step_of_one(of_two_ranks, tiny_side, case) -> None:
    """Replicated and sharded, against whole forwards in one process."""
    _, knobs, _, tied = two_ranks.CASES[case]
    model, samples = small_model(tiny_side, tied=tied), toy.encode(tiny_side, *RAGGED)
    assert_same(of_two_ranks[case], plain(model, tiny_side, samples, EVERYTHING, stage2(**knobs)))


# ---------------------------------------------------------------- names and the table


def terms(model: Any, side: Any, objective: ObjectiveSection, **knobs: Any) -> list[LossTerm]:
    return channel(model, side, objective, stage2(**knobs))(batch_of(side, toy.encode(side, *RAGGED)))


COMMON = (
    *("token_ce/struct", "token_ce/desc", "token_ce/eos", "bbox_geo/smoothl1", "bbox_geo/ciou"),
    *("coord_reg/coord_ce", "coord_reg/soft_ce", "coord_reg/soft_ce_above_floor", "coord_reg/w1"),
)
GATES = ("coord_reg/coord_gate", "coord_reg/text_gate")


@pytest.mark.parametrize("passes", [2, 3])
def test_names_and_weights_of_several_passes(small, tiny_side, passes) -> None:
    found = terms(small, tiny_side, EVERYTHING, n_softctx_iter=passes)
    names = [t.name for t in found]
    assert names == [f"a1/{n}" for n in COMMON] + [f"a{passes}/{n}" for n in (*COMMON, *GATES)]
    weights = {t.name: t.weight for t in found if t.weight}
    assert weights == pytest.approx(
        {
            "a1/token_ce/struct": 1.5,
            "a1/token_ce/desc": 1.5 * 0.7,
            "a1/token_ce/eos": 1.5,
            "a1/bbox_geo/smoothl1": 0.9 * 0.25,
            "a1/bbox_geo/ciou": 0.9 * 0.15,
            "a1/coord_reg/soft_ce": 1.1 * 0.12,
            "a1/coord_reg/w1": 1.1 * 0.4,
            f"a{passes}/token_ce/struct": 1.5 * 0.2,
            f"a{passes}/token_ce/eos": 1.5 * 0.2,
            f"a{passes}/bbox_geo/smoothl1": 0.9 * 2.0,
            f"a{passes}/bbox_geo/ciou": 0.9 * 0.3,
            f"a{passes}/coord_reg/coord_ce": 1.1 * 0.05,
            f"a{passes}/coord_reg/soft_ce": 1.1 * 0.35,
            f"a{passes}/coord_reg/w1": 1.1 * 0.6,
            f"a{passes}/coord_reg/coord_gate": 1.1 * 0.8,
            f"a{passes}/coord_reg/text_gate": 1.1 * 0.45,
        }
    )


def test_one_pass_is_stage_1(small, tiny_side) -> None:
    """Names, values and gradients; the knobs of later passes have no say."""
    assert [t.name for t in terms(small, tiny_side, EVERYTHING)] == [f"a1/{n}" for n in (*COMMON, *GATES)]
    samples = toy.encode(tiny_side, *RAGGED)
    stage1 = ours(small, tiny_side, samples, EVERYTHING, stage2())
    other = stage2(
        n_softctx_iter=1, softctx_grad_mode="em_detach", softctx_target="retarget", softctx_replace="near_gt"
    )
    assert_same(ours(small, tiny_side, samples, EVERYTHING, other), stage1, within=0)


@pytest.mark.parametrize("grad_mode", ["unroll", "em_detach"])
@pytest.mark.parametrize("passes", [2, 3])
def test_a1_keeps_its_own_gradient(small, tiny_side, grad_mode, passes) -> None:
    """With losses on A1 alone, the gradient is that of one pass with these losses."""
    text = {"config": {"self_context_struct_ce_weight": 0.0}}
    nothing = {"weight": 0.0}
    alone = ObjectiveSection.model_validate({"token_ce": text, "bbox_geo": nothing, "coord_reg": nothing})
    samples = toy.encode(tiny_side, *RAGGED)
    several = ours(small, tiny_side, samples, alone, stage2(n_softctx_iter=passes, softctx_grad_mode=grad_mode))
    assert_same(several, ours(small, tiny_side, samples, alone, stage2(n_softctx_iter=1)))
    assert several.gradients["model.language_model.layers.0.self_attn.q_proj.weight"].abs().max() > 1e-6


# ---------------------------------------------------------------- degenerate batches


def written(side: Any, sample: EncodedSample, tokens: list[tuple[int, Role]]) -> EncodedSample:
    """The sample with another answer, token by token."""
    at = np.array([i for i, (_, role) in enumerate(tokens) if role is Role.COORD], dtype=np.int64)
    ids = np.array([i for i, _ in tokens], dtype=np.int64)
    slots = Slots(at, np.arange(len(at)) % 4, np.arange(len(at)) // 4, ids[at] - side.vocab.first_id)
    return replace(sample, answer=Encoded(ids, np.array([r for _, r in tokens], dtype=np.int8), slots))


def slots_at_the_ends(side: Any) -> list[EncodedSample]:
    """A slot is the first token of the answer, and one the last; nothing stands before or behind."""
    one, other = toy.encode(side, toy.ONE, toy.NONE)
    box = [(side.vocab.token_id(k), Role.COORD) for k in (5, 0, 999, 700)]
    text = [(11, Role.STRUCT), (12, Role.DESC), (13, Role.STRUCT)]
    return [written(side, one, [*box, *text, *box]), written(side, other, [*text, *box])]


def many(side: Any) -> list[EncodedSample]:
    boxes = [("book", (i, i % 7, i + 9, 40 + i % 5)) for i in range(60)]
    return toy.encode(side, toy.sample("many", (72, 48), *boxes), toy.ONE)


def equal_boxes(side: Any) -> list[EncodedSample]:
    boxes = [("book", (10, 10, 30, 40))] * 3 + [("person", (10, 10, 30, 40))]
    return toy.encode(side, toy.sample("equal", (48, 48), *boxes), toy.TWO)


def no_slots(side: Any) -> list[EncodedSample]:
    return toy.encode(side, toy.NONE, toy.sample("none2", (48, 24)))


def one_length(side: Any) -> list[EncodedSample]:
    """Prefixes of one length, so there is no padding on the left and no mask for it."""
    return toy.encode(side, toy.THREE, toy.sample("short", toy.THREE.size_wh, ("car", (1, 2, 30, 40))))


@pytest.mark.parametrize("make", [slots_at_the_ends, many, equal_boxes, no_slots, one_length])
@pytest.mark.parametrize("target", ["identity", "retarget"])
def test_degenerate_batches(small, recomputing, tiny_side, make, target) -> None:
    knobs = stage2(n_softctx_iter=2, softctx_target=target, coord_decode_mode="st")
    samples = make(tiny_side)
    whole = plain(small, tiny_side, samples, EVERYTHING, knobs)
    assert_same(ours(small, tiny_side, samples, EVERYTHING, knobs), whole)
    assert_same(ours(recomputing, tiny_side, samples, EVERYTHING, knobs), whole)


@pytest.mark.parametrize("make", [many, no_slots, slots_at_the_ends])
@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
def test_bf16_autocast_is_finite(tiny_side, make, recompute) -> None:
    model = small_model(tiny_side).float().train()
    if recompute:
        model.activation_checkpointing_enable({"use_reentrant": False})
    step, batch = channel(model, tiny_side, EVERYTHING, stage2(n_softctx_iter=3)), batch_of(tiny_side, make(tiny_side))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = step(batch)
    assert {t.total.dtype for t in found} == {torch.float32}
    sum(t.weight * t.total for t in found).backward()
    assert all(bool(torch.isfinite(t.total)) for t in found)
    assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters() if p.grad is not None)
