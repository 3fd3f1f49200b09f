"""What the training of an arm costs, in FLOPs by count, and how many steps of one cost what those of another do.

A step is counted on samples of the training file: forward, and twice that backward where there is a gradient. Padding,
losses and the optimizer are left out. A step of Channel-B is a rollout, forward alone, and one teacher-forced pass;
both are taken to be as long as the labels' own answer, as nobody knows what the model will write.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from apiece.config.schema import Config, SoftContextGrad
from apiece.data.jsonl import read_jsonl
from apiece.model.encode import Augmentation, PromptTokens, SampleEncoder
from apiece.model.find import resolve_checkpoint
from apiece.model.load import load_text_side
from apiece.model.prompts import prompt_text
from apiece.planning.flops import ForwardFlops
from apiece.planning.shapes import ModelShape
from apiece.types import Role

SAMPLES = 64
"""How many training samples a step is counted on, spread over the file."""
BACKWARD = 2
"""What a backward pass costs, in forward passes."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """Of one sample.

    Attributes:
        grid_thw: Patches.
        prefix: Tokens of image and prompt.
        answer: Tokens of the answer.
        first: Place of the first slot in it; the last token where there is none.
        names: Its tokens that belong to names.
        slots: Its coordinate tokens.
    """

    grid_thw: tuple[int, int, int]
    prefix: int
    answer: int
    first: int
    names: int
    slots: int


@dataclass(frozen=True, slots=True)
class StepCost:
    """FLOPs of one sample in a step of each channel; 0 where a run has no such steps."""

    a: float
    b: float

    def run(self, config: Config, steps: int) -> float:
        """FLOPs of `steps` steps of a run."""
        of_b = int(steps * Fraction(repr(config.stage2_ab.b_ratio)))
        return config.train.batch_size * (of_b * self.b + (steps - of_b) * self.a)

    def steps_for(self, config: Config, flops: float) -> int:
        """How many steps come closest to `flops`, at least 1."""
        share = config.stage2_ab.b_ratio
        each = config.train.batch_size * (share * self.b + (1 - share) * self.a)
        return max(1, round(flops / each))


def training_lengths(config: Config, count: int = SAMPLES) -> list[Lengths]:
    """Lengths of some samples of the training file, the same ones at every call."""
    assert config.data.train is not None, "a ladder names a training file"
    side = load_text_side(config.model.checkpoint, config.data.max_pixels)
    prompt = PromptTokens.of(side, prompt_text(config.prompt.name, config.prompt.text))
    encoder = SampleEncoder(side, prompt, 1 << 30)
    samples = [
        s
        for s in read_jsonl(Path(config.data.train))
        if sum(not o.iscrowd for o in s.objects) <= config.data.max_objects
    ]
    chosen = np.unique(np.linspace(0, len(samples) - 1, min(count, len(samples))).round().astype(int))
    found = []
    for index in chosen:
        encoded = encoder.training(samples[index], Augmentation(order=config.data.object_order), 0)
        answer = encoded.answer
        assert answer is not None, "training samples have answers"
        places = answer.slots.position
        found.append(
            Lengths(
                grid_thw=encoded.grid_thw,
                prefix=len(encoded.prefix_ids),
                answer=len(answer.ids),
                first=int(places.min()) if len(places) else len(answer.ids) - 1,
                names=int((answer.roles == Role.DESC).sum()),
                slots=len(places),
            )
        )
    return found


def step_cost(config: Config, lengths: Sequence[Lengths], counts: ForwardFlops) -> StepCost:
    """FLOPs of a sample in a step of each channel, on average over some samples."""
    share = config.stage2_ab.b_ratio
    a = float(np.mean([_channel_a(config, one, counts) for one in lengths])) if share < 1 else 0.0
    b = float(np.mean([_channel_b(config, one, counts) for one in lengths])) if share > 0 else 0.0
    return StepCost(a, b)


def counted(checkpoint: str) -> ForwardFlops:
    """What counts the parts of a checkpoint's model."""
    return ForwardFlops(ModelShape.read(resolve_checkpoint(checkpoint)))


def _channel_a(config: Config, one: Lengths, counts: ForwardFlops) -> float:
    passes, trained = config.stage2_ab.n_softctx_iter, 1 + _backward(config)
    text = one.answer - one.slots
    gated = config.objective.coord_reg.config.coord_gate_weight > 0 and config.objective.coord_reg.weight > 0
    beliefs = counts.coordinates(one.slots)
    slots = counts.head(one.slots) if gated else beliefs
    first = counts.language(one.prefix + one.answer - 1, 0)
    if passes == 1:
        return _vision(config, one, counts) + trained * (first + counts.head(text) + slots)
    later = counts.language(one.answer - 1 - one.first, one.prefix + one.first)
    # Passes between the first and the last have no gradient where the context is cut off from them.
    between = trained if config.stage2_ab.softctx_grad_mode is SoftContextGrad.UNROLL else 1
    ends = first + counts.head(text) + beliefs + later + counts.head(text - one.names) + slots
    return _vision(config, one, counts) + trained * ends + between * (passes - 2) * (later + beliefs)


def _channel_b(config: Config, one: Lengths, counts: ForwardFlops) -> float:
    written = counts.vision([one.grid_thw]) + counts.language(one.prefix + one.answer - 1, 0) + counts.head(one.answer)
    taught = counts.language(one.prefix + one.answer - 1, 0) + counts.head(one.answer)
    return written + _vision(config, one, counts) + (1 + _backward(config)) * taught


def _vision(config: Config, one: Lengths, counts: ForwardFlops) -> float:
    """The tower; without a backward pass where it is frozen."""
    return (1 if config.optim.lr_vision == 0 else 1 + BACKWARD) * counts.vision([one.grid_thw])


def _backward(config: Config) -> int:
    """What is added to a forward pass, in forward passes: with checkpointing it is run once more."""
    return BACKWARD + config.model.gradient_checkpointing
