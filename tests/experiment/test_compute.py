"""What a step costs: by the counts of the package, for each kind of step."""

from __future__ import annotations

from pathlib import Path

import pytest

from apiece.config.load import load_config
from apiece.config.schema import Config
from apiece.experiment.compute import Lengths, StepCost, counted, step_cost
from apiece.planning.flops import ForwardFlops

ONE = Lengths(grid_thw=(1, 16, 16), prefix=80, answer=60, first=12, names=6, slots=16)
NONE = Lengths(grid_thw=(1, 16, 16), prefix=80, answer=5, first=4, names=0, slots=0)


def config(**settings: object) -> Config:
    return load_config(None, [f"{key.replace('__', '.')}={value}" for key, value in settings.items()]).config


@pytest.fixture(scope="module")
def counts(tiny_checkpoint: Path) -> ForwardFlops:
    return counted(str(tiny_checkpoint))


def cost(counts: ForwardFlops, one: Lengths = ONE, **settings: object) -> StepCost:
    return step_cost(config(**settings), [one], counts)


def test_one_pass_is_three_forward_passes(counts: ForwardFlops) -> None:
    forward = counts.vision([ONE.grid_thw]) + counts.language(80 + 60 - 1, 0) + counts.head(60)
    assert cost(counts) == StepCost(3 * forward, 0.0)


def test_an_answer_without_objects_costs_no_slots(counts: ForwardFlops) -> None:
    forward = counts.vision([NONE.grid_thw]) + counts.language(80 + 5 - 1, 0) + counts.head(5)
    assert cost(counts, NONE).a == pytest.approx(3 * forward)


def test_a_second_pass_runs_from_the_first_slot_on(counts: ForwardFlops) -> None:
    """The text of names has no loss there, and the beliefs of the first pass are read at the slots."""
    more = counts.language(60 - 1 - 12, 80 + 12) + counts.head(60 - 16 - 6) + counts.coordinates(16)
    two, one = cost(counts, stage2_ab__n_softctx_iter=2).a, cost(counts).a
    assert two - one == pytest.approx(3 * more, rel=1e-9)


def test_passes_between_have_no_backward_where_the_context_is_cut_off(counts: ForwardFlops) -> None:
    between = counts.language(60 - 1 - 12, 80 + 12) + counts.coordinates(16)
    whole = cost(counts, stage2_ab__n_softctx_iter=4).a
    cut = cost(counts, stage2_ab__n_softctx_iter=4, stage2_ab__softctx_grad_mode="em_detach").a
    assert whole - cut == pytest.approx(2 * 2 * between, rel=1e-9)


def test_without_a_gate_slots_are_read_over_the_bins_alone(counts: ForwardFlops) -> None:
    saved = cost(counts).a - cost(counts, objective__coord_reg__config__coord_gate_weight=0).a
    assert saved == pytest.approx(3 * (counts.head(16) - counts.coordinates(16)))


def test_a_frozen_tower_has_no_backward(counts: ForwardFlops) -> None:
    assert cost(counts).a - cost(counts, optim__lr_vision=0).a == pytest.approx(2 * counts.vision([ONE.grid_thw]))


def test_checkpointing_adds_a_forward_pass(counts: ForwardFlops) -> None:
    layers = counts.language(80 + 60 - 1, 0) + counts.head(60)
    assert cost(counts, model__gradient_checkpointing="true").a - cost(counts).a == pytest.approx(layers)


def test_a_rollout_step_is_one_forward_pass_more(counts: ForwardFlops) -> None:
    forward = counts.vision([ONE.grid_thw]) + counts.language(80 + 60 - 1, 0) + counts.head(60)
    found = cost(counts, stage2_ab__b_ratio=0.5)
    assert found.a == pytest.approx(3 * forward)
    assert found.b == pytest.approx(4 * forward)
    assert cost(counts, stage2_ab__b_ratio=1).a == 0


def test_steps_that_cost_as_much(counts: ForwardFlops) -> None:
    settings = config(stage2_ab__b_ratio=0.5, train__steps=10, train__batch_size=4, optim__warmup_steps=0)
    mixed = StepCost(a=2.0, b=4.0)
    assert mixed.run(settings, 10) == 4 * (5 * 2 + 5 * 4)
    assert mixed.steps_for(settings, mixed.run(settings, 10)) == 10
    assert mixed.steps_for(settings, 1.0) == 1
