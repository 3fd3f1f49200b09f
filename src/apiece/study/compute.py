"""FLOPs of an arm's training by count, and how many steps of one arm cost as much as those of another.

A step is counted by `apiece.planning` on samples of the training file, each by itself, so padding is left out; so are
losses and the optimizer. A step of Channel-B is a rollout, forward alone, and one teacher-forced pass; both are taken
to be as long as the labels' own answer, as the model's answers are not known before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np

from apiece.config.schema import Config
from apiece.data.index import open_data
from apiece.model.encode import Augmentation, PromptTokens, SampleEncoder
from apiece.model.load import load_text_side
from apiece.model.prompt import prompt_text
from apiece.planning.flops import Recipe, Work, step_flops
from apiece.planning.shapes import ModelShape
from apiece.types import Role

SAMPLES = 64  # how many training samples a step is counted on, spread over the file


@dataclass(frozen=True, slots=True)
class StepCost:
    """FLOPs of one sample in a step of each channel; 0 where a run has no such steps."""

    a: float
    b: float

    def run(self, config: Config, steps: int) -> float:
        of_b = int(steps * Fraction(repr(config.stage2_ab.b_ratio)))
        return config.train.batch_size * (of_b * self.b + (steps - of_b) * self.a)

    def steps_for(self, config: Config, flops: float) -> int:
        """How many steps come closest to `flops`, at least 1."""
        share = config.stage2_ab.b_ratio
        each = config.train.batch_size * (share * self.b + (1 - share) * self.a)
        return max(1, round(flops / each))


def training_work(config: Config, count: int = SAMPLES) -> list[Work]:
    """Some samples of the training file, one by one, the same ones at every call."""
    assert config.data.train is not None, "a ladder names a training file"
    side = load_text_side(config.model.checkpoint, config.data.max_pixels)
    prompt = PromptTokens.of(side, prompt_text(config.prompt.name, config.prompt.text))
    encoder = SampleEncoder(side, prompt, 1 << 30)
    records = open_data(Path(config.data.train))
    samples = records.select(np.flatnonzero(records.num_objects <= config.data.max_objects))
    found = []
    for index in np.unique(np.linspace(0, len(samples) - 1, min(count, len(samples))).round().astype(int)):
        encoded = encoder.training(samples[int(index)], Augmentation(order=config.data.object_order), 0)
        answer = encoded.answer
        assert answer is not None, "training samples have answers"
        places = answer.slots.position
        found.append(
            Work(
                grids=(encoded.grid_thw,),
                prefix=len(encoded.prefix_ids),
                answer=len(answer.ids),
                text_rows=len(answer.ids) - len(places),
                name_rows=int((answer.roles == Role.DESC).sum()),
                slots=len(places),
                first_slot=int(places.min()) if len(places) else len(answer.ids) - 1,
                padded=False,
            )
        )
    return found


def step_cost(config: Config, works: Sequence[Work], shape: ModelShape) -> StepCost:
    """FLOPs of a sample in a step of each channel, on average over some samples."""
    share = config.stage2_ab.b_ratio
    recipe = Recipe.of(config, half=False)
    a = float(np.mean([step_flops(shape, work, recipe).total for work in works])) if share < 1 else 0.0
    b = float(np.mean([_rollout_step(work, recipe, shape) for work in works])) if share > 0 else 0.0
    return StepCost(a, b)


def _rollout_step(work: Work, recipe: Recipe, shape: ModelShape) -> float:
    """Written once, forward, with all logits of the answer; then taught in one pass."""
    taught = step_flops(shape, work, replace(recipe, passes=1)).total
    read = replace(work, text_rows=work.answer, slots=0)
    return taught + sum(step_flops(shape, read, replace(recipe, passes=1)).forward.values())
