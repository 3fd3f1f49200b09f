"""What a step costs: by the counts of the package, for each kind of step."""

from __future__ import annotations

from pathlib import Path

import pytest

from apiece.config.resolve import load_config
from apiece.config.schema import Config
from apiece.planning.flops import ForwardFlops, Work
from apiece.planning.shapes import ModelShape
from apiece.study.compute import StepCost, step_cost, training_work
from apiece_scenes.scene import SceneSettings
from apiece_scenes.write import write_scenes

ONE = Work(grids=((1, 16, 16),), prefix=80, answer=60, text_rows=44, name_rows=6, slots=16, first_slot=12, padded=False)
NONE = Work(grids=((1, 16, 16),), prefix=80, answer=5, text_rows=5, name_rows=0, slots=0, first_slot=4, padded=False)


def config(**settings: object) -> Config:
    return load_config(None, [f"{key.replace('__', '.')}={value}" for key, value in settings.items()]).config


@pytest.fixture(scope="module")
def shape(tiny_checkpoint: Path) -> ModelShape:
    return ModelShape.read(tiny_checkpoint)


def cost(shape: ModelShape, one: Work = ONE, **settings: object) -> StepCost:
    return step_cost(config(**settings), [one], shape)


@pytest.mark.parametrize("one", [NONE, ONE])
def test_one_pass_is_three_forward_passes(shape: ModelShape, one: Work) -> None:
    """But for the gradient of the pixels, which nobody needs."""
    counts = ForwardFlops(shape)
    forward = counts.vision(one.grids) + counts.language(one.length, 0) + counts.head(one.answer)
    assert cost(shape, one).b == 0
    assert cost(shape, one).a == pytest.approx(3 * forward - counts.patches(one.grids), rel=1e-9)


def test_later_passes_cost_what_they_run_from_the_first_slot_on(shape: ModelShape) -> None:
    one, two, three = (cost(shape, stage2_ab__n_softctx_iter=n).a for n in (1, 2, 3))
    counts = ForwardFlops(shape)
    again = 3 * counts.language(ONE.again, ONE.length - ONE.again)
    assert again < three - two < 1.2 * again  # and the beliefs at the slots
    assert two < 2 * one
    cut = cost(shape, stage2_ab__n_softctx_iter=3, stage2_ab__softctx_grad_mode="em_detach").a
    assert three - cut > 0.6 * again  # the pass between has no backward


def test_a_rollout_step_is_one_forward_pass_more(shape: ModelShape) -> None:
    counts = ForwardFlops(shape)
    forward = counts.vision(ONE.grids) + counts.language(ONE.length, 0) + counts.head(60)
    found = cost(shape, stage2_ab__b_ratio=0.5)
    assert found.b - found.a == pytest.approx(forward)
    assert cost(shape, stage2_ab__b_ratio=1).a == 0


def test_the_average_is_over_samples(shape: ModelShape) -> None:
    both = step_cost(config(), [ONE, NONE], shape).a
    assert both == pytest.approx((cost(shape, ONE).a + cost(shape, NONE).a) / 2)


def test_samples_of_a_file(tiny_checkpoint: Path, tmp_path: Path) -> None:
    write_scenes(tmp_path / "s", 6, SceneSettings(size=96), seed=3)
    data = tmp_path / "s" / "complete.jsonl"
    settings = {"model__checkpoint": tiny_checkpoint, "data__train": data}
    works = training_work(config(**settings), count=3)
    assert len(works) == 3
    assert all(w.text_rows + w.slots == w.answer and w.slots % 4 == 0 and w.prefix > 4 for w in works)
    assert len(training_work(config(**settings))) == 6


def test_steps_that_cost_as_much() -> None:
    settings = config(stage2_ab__b_ratio=0.5, train__steps=10, train__batch_size=4, optim__warmup_steps=0)
    mixed = StepCost(a=2.0, b=4.0)
    assert mixed.run(settings, 10) == 4 * (5 * 2 + 5 * 4)
    assert mixed.steps_for(settings, mixed.run(settings, 10)) == 10
    assert mixed.steps_for(settings, 1.0) == 1
