"""Estimated time of a step: arithmetic at an assumed share of the peak, memory traffic, and what GPUs exchange.

These are estimates from counts and stated assumptions, not measurements; `gpus.py` has the assumptions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from apiece.config.lora import Part
from apiece.planning.flops import ForwardFlops
from apiece.planning.gpus import MEMORY_SHARE, SINGLE_SHARE, Machine
from apiece.planning.lengths import Length
from apiece.planning.memory import WEIGHT
from apiece.planning.shapes import ModelShape
from apiece.planning.work import Recipe

MOVES = 2 * 7
"""Times that the update moves each trained number: weight, gradient and moments, read and written, in two sweeps."""
FORWARDS = 5.5
"""Forward passes for an object while answers are held to the format (docs/performance.md); a token each without."""
LAUNCH = 0.8e-3
"""Assumed seconds that a layer takes at least while answers are written, whatever it computes: starting its kernels."""


@dataclass(frozen=True, slots=True)
class Seconds:
    """Estimated time of one optimizer step.

    Attributes:
        compute: Forward and backward passes.
        rollout: Writing answers, where the step is Channel-B's.
        update: The optimizer.
        exchange: Between GPUs, as far as computing does not hide it.
    """

    compute: float
    rollout: float
    update: float
    exchange: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.compute + self.rollout + self.update + self.exchange


def step_seconds(
    shape: ModelShape, recipe: Recipe, machine: Machine, flops: float, micro_steps: int, rollout: float = 0.0
) -> Seconds:
    """The time of a step.

    Args:
        shape: Of the model.
        recipe: What is done.
        machine: The GPUs.
        flops: Of all of a GPU's micro-batches.
        micro_steps: How many those are.
        rollout: Seconds of writing answers before.
    """
    gpu = machine.gpu
    speed = gpu.half * machine.reaches if recipe.half else gpu.single * SINGLE_SHARE
    compute, learnt = flops / speed, sum(recipe.learnt(shape).values())
    update = WEIGHT * MOVES * learnt / recipe.shards / (MEMORY_SHARE * gpu.moves)
    ring = (machine.count - 1) / machine.count / machine.bus
    if machine.count == 1:
        exchange = 0.0
    elif recipe.shared:
        # Each micro-batch gathers all layers twice and hands their gradients on; the rest is gathered once.
        moved = sum(recipe.held(shape).values()) * 2 * recipe.compute_bytes + WEIGHT * learnt
        exchange = max(0.0, micro_steps * moved * ring - compute)
    else:
        exchange = max(0.0, 2 * WEIGHT * learnt * micro_steps * ring - 2 / 3 * compute)
    if recipe.shared and rollout:
        exchange += WEIGHT * sum(recipe.held(shape).values()) * ring
    return Seconds(compute, rollout, update, exchange)


def rollout_seconds(
    shape: ModelShape, samples: Sequence[Length], machine: Machine, count: int, rows: int, *, grammar: bool
) -> float:
    """Seconds that a GPU takes to answer `count` images like these, in float32, `rows` at once.

    Answers are taken to be as long as the labels'; the places of those that end are given to the next images.
    """
    gpu, forward, number = machine.gpu, ForwardFlops(shape), len(samples)
    speed, traffic = gpu.single * SINGLE_SHARE, gpu.moves * MEMORY_SHARE
    reading = sum(forward.vision([one.grid]) + forward.language(one.prefix, 0) for one in samples) / number
    objects, tokens = (sum(getattr(one, name) for one in samples) / number for name in ("objects", "answer"))
    at_once = max(1, min(rows, count))
    # Rows go on until the last is done: the longest answer is a floor, however many there are.
    longest = max(one.objects for one in samples) * FORWARDS if grammar else max(one.answer for one in samples)
    passes = max(count * (max(objects, 1) * FORWARDS if grammar else tokens) / at_once, min(longest, tokens))
    prefix = sum(one.prefix for one in samples) / number
    weights = shape.matrices()
    moved = WEIGHT * (weights[Part.LANGUAGE] + weights[Part.COORD])
    moved += 2 * 4 * at_once * (prefix + tokens / 2) * shape.language.key_width * shape.language.layers
    fed = at_once * tokens / max(passes * at_once / count, 1)
    each = max(
        moved / traffic,
        (forward.layers(max(1, round(fed))) + forward.head(max(fed, 1.0))) / speed,
        LAUNCH * shape.language.layers,
    )
    return count * reading / speed + passes * each
