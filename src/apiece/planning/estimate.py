"""What a config needs on given GPUs: memory of each and time of a step, for every kind of step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from apiece.config.schema import Config, Parallel, Precision
from apiece.planning.footprint import Footprint, rollout_footprint, training_footprint
from apiece.planning.gpus import Machine
from apiece.planning.lengths import Length, heaviest, micro_batches, work_of
from apiece.planning.source import Source
from apiece.planning.speed import Seconds, rollout_seconds, step_seconds
from apiece.planning.step import step_flops
from apiece.planning.work import Recipe

PASSES = (1, 2, 4)
"""Passes of Channel-A that every plan shows."""
TARGET_LENGTH = 1.5
"""Assumed length of Channel-B's targets beside the labels' answers: they begin with what the model wrote."""
_COUNTED = 64
"""Micro-batches whose FLOPs are averaged."""


@dataclass(frozen=True, slots=True)
class Batching:
    """How a step's batch is cut.

    Attributes:
        batch: Samples of a step.
        micro: Of one forward pass on one GPU.
        micro_steps: Forward passes of a step on a GPU.
        as_asked: Whether `train.batch_size` is as the config says: not, where it does not split evenly.
    """

    batch: int
    micro: int
    micro_steps: int
    as_asked: bool

    @classmethod
    def of(cls, config: Config, processes: int) -> Batching:
        """The config's own, or with the smallest batch above that splits evenly."""
        batch = config.train.batch_size
        micro = config.train.micro_batch_size or max(batch // processes, 1)
        each = -(-batch // (processes * micro))
        return cls(each * processes * micro, micro, each, each * processes * micro == batch)


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of step.

    Attributes:
        name: `A, N = 2`, or `B`.
        asked: Whether the config has such steps.
        flops: Of one step on all GPUs; writing answers left out.
        footprint: Of the GPU with the heaviest micro-batch.
        seconds: Estimated.
    """

    name: str
    asked: bool
    flops: float
    footprint: Footprint
    seconds: Seconds


@dataclass(frozen=True, slots=True)
class Estimate:
    """A config on a machine.

    Attributes:
        machine: GPUs.
        parallel: What they do with the model.
        batching: Of a step.
        kinds: Kinds of steps.
        seconds: Of a step of this run, over its kinds.
    """

    machine: Machine
    parallel: Parallel
    batching: Batching
    kinds: tuple[Kind, ...]
    seconds: float

    @property
    def heaviest(self) -> Kind:
        """The kind of step of this run that needs the most memory."""
        return max((kind for kind in self.kinds if kind.asked), key=lambda kind: kind.footprint.total)

    @property
    def need(self) -> float:
        """Bytes that it needs."""
        return self.heaviest.footprint.total

    @property
    def fits(self) -> bool:
        """Whether every kind of step of this run fits."""
        return self.need <= self.machine.gpu.room


def recipe_on(config: Config, processes: int) -> Recipe:
    """What a step does on GPUs, all of which compute in bf16."""
    recipe = Recipe.of(config, half=config.model.precision is not Precision.FP32)
    shards = processes if config.train.parallel is Parallel.FSDP else 1
    return replace(recipe, shards=shards)


def estimate(config: Config, source: Source, machine: Machine, passes: Sequence[int] = PASSES) -> Estimate:
    """Memory and time of a config on a machine, and those of the same with other numbers of passes."""
    batching, lengths = Batching.of(config, machine.count), source.under(config.data.max_pixels).each
    own, ratio = config.stage2_ab.n_softctx_iter, config.stage2_ab.b_ratio
    recipe = recipe_on(config, machine.count)
    window, ranks = config.train.length_window, machine.count
    cut = micro_batches(lengths, batching.batch, batching.micro, window, config.seed, ranks)
    sampled = cut[:: max(len(cut) // _COUNTED, 1)]
    job = _Job(config, source, machine, batching, sampled, heaviest(lengths, batching.micro))
    kinds = [
        job.channel_a(replace(recipe, passes=number), asked=number == own and ratio < 1)
        for number in sorted({*passes, own})
    ]
    kinds.append(job.channel_b(replace(recipe, passes=1), lengths, asked=ratio > 0))
    seconds = sum(kind.seconds.total * (ratio if kind.name == "B" else 1 - ratio) for kind in kinds if kind.asked)
    return Estimate(machine, config.train.parallel, batching, tuple(kinds), seconds)


@dataclass(frozen=True, slots=True)
class _Job:
    """What all kinds of steps of an estimate share."""

    config: Config
    source: Source
    machine: Machine
    batching: Batching
    sampled: list[list[Length]]
    longest: list[Length]

    def channel_a(self, recipe: Recipe, *, asked: bool) -> Kind:
        flops = self._flops(recipe, 1.0)
        seconds = step_seconds(self.source.shape, recipe, self.machine, flops, self.batching.micro_steps)
        name = f"A, N = {recipe.passes}"
        return Kind(name, asked, flops * self.machine.count, self._training(recipe, 1.0), seconds)

    def channel_b(self, recipe: Recipe, lengths: Sequence[Length], *, asked: bool) -> Kind:
        generate, shape, here = self.config.generate, self.source.shape, self.batching.micro * self.batching.micro_steps
        flops, rows = self._flops(recipe, TARGET_LENGTH), min(generate.batch_size, here)
        new = min(generate.max_new_tokens, round(TARGET_LENGTH * max(one.answer for one in lengths)))
        work = work_of(self.longest, TARGET_LENGTH)
        writing = rollout_footprint(shape, work, recipe, self.machine.count, rows, new)
        wait = rollout_seconds(shape, lengths, self.machine, here, rows, grammar=generate.grammar)
        seconds = step_seconds(shape, recipe, self.machine, flops, self.batching.micro_steps, wait)
        footprint = max(writing, self._training(recipe, TARGET_LENGTH), key=lambda one: one.total)
        return Kind("B", asked, flops * self.machine.count, footprint, seconds)

    def _flops(self, recipe: Recipe, factor: float) -> float:
        """Of all micro-batches of a step on one GPU."""
        each = [step_flops(self.source.shape, work_of(rows, factor), recipe).total for rows in self.sampled]
        return self.batching.micro_steps * sum(each) / len(each)

    def _training(self, recipe: Recipe, factor: float) -> Footprint:
        return training_footprint(
            self.source.shape,
            work_of(self.longest, factor),
            recipe,
            self.machine.count,
            accumulates=self.batching.micro_steps > 1,
        )
