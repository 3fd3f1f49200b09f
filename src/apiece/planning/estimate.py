"""What a config needs on given GPUs: memory of each and time of a step, for every kind of step."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from apiece.config.schema import Config, Parallel, Part, Precision
from apiece.errors import UserError, nearest
from apiece.planning.flops import ForwardFlops, Recipe, step_flops
from apiece.planning.memory import WEIGHT, Footprint, rollout_footprint, training_footprint
from apiece.planning.recipe import Length, Source, heaviest, micro_batches, work_of
from apiece.planning.shapes import ModelShape

# GPUs by name: what their makers state, and how much of it a run is assumed to reach.


GIB, TERA = 1 << 30, 1e12
MOST = 512
"""GPUs that a plan is made for at most."""
RESERVED_GIB = 1.5
"""Assumed to be taken by driver, libraries and communication buffers."""
USABLE = 0.94
"""Share of the rest that can be filled: the allocator leaves holes."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One kind of GPU.

    Attributes:
        name: As it is asked for.
        title: In words.
        memory_gib: That programs see, GiB.
        half: Peak of dense bf16 products with float32 sums, FLOP/s.
        single: Peak of float32 products outside the tensor cores, FLOP/s: what PyTorch uses for float32 by default.
        moves: Peak of memory traffic, bytes/s.
        link: To the other GPUs of a node, bytes/s in one direction.
        reaches: Assumed share of `half` in training.
    """

    name: str
    title: str
    memory_gib: float
    half: float
    single: float
    moves: float
    link: float
    reaches: float

    @property
    def room(self) -> float:
        """Bytes that a run may use."""
        return (self.memory_gib - RESERVED_GIB) * GIB * USABLE


# Peaks and bandwidths are the makers' data sheets (NVIDIA: B200/HGX, H200, H100 SXM and PCIe, A100 SXM, L40S, L4, A10,
# and the GeForce whitepapers of Ada and Ampere for bf16 with float32 sums; AMD: Instinct MI300X), dense, not with
# sparsity. Memory is the GiB that the driver gives to programs. Links are NVLink or Infinity Fabric of one GPU in one
# direction, else PCIe x16 (4.0: 25 GB/s, 5.0: 50 GB/s in practice).
# `reaches` is an assumption, not a measurement: large language models in tuned code report .35 to .5 of the peak
# (model FLOPs; PaLM, Chowdhery et al. 2022; torchtitan, Liang et al. 2024); eager Hugging Face code at the widths of 2B
# to 8B models stays well below, and the faster the GPU is beside its memory the more so.
GPUS = {
    g.name: g
    for g in (
        Gpu("b200", "NVIDIA B200", 178.0, 2250e12, 75e12, 8.0e12, 900e9, 0.20),
        Gpu("h200", "NVIDIA H200 SXM", 139.8, 989e12, 67e12, 4.8e12, 450e9, 0.27),
        Gpu("h100", "NVIDIA H100 SXM", 79.1, 989e12, 67e12, 3.35e12, 450e9, 0.25),
        Gpu("h100-pcie", "NVIDIA H100 PCIe", 79.1, 756e12, 51e12, 2.0e12, 50e9, 0.25),
        Gpu("a100-80", "NVIDIA A100 SXM 80 GB", 79.1, 312e12, 19.5e12, 2.04e12, 300e9, 0.35),
        Gpu("a100-40", "NVIDIA A100 SXM 40 GB", 39.4, 312e12, 19.5e12, 1.555e12, 300e9, 0.35),
        Gpu("mi300x", "AMD Instinct MI300X", 191.7, 1307e12, 163e12, 5.3e12, 448e9, 0.20),
        Gpu("l40s", "NVIDIA L40S", 44.4, 362e12, 91.6e12, 0.864e12, 25e9, 0.25),
        Gpu("rtx4090", "NVIDIA GeForce RTX 4090", 23.5, 165e12, 82.6e12, 1.008e12, 25e9, 0.35),
        Gpu("rtx3090", "NVIDIA GeForce RTX 3090", 23.5, 71e12, 35.6e12, 0.936e12, 25e9, 0.40),
        Gpu("a10", "NVIDIA A10", 22.0, 125e12, 31.2e12, 0.6e12, 25e9, 0.25),
        Gpu("l4", "NVIDIA L4", 22.0, 121e12, 30.3e12, 0.3e12, 25e9, 0.20),
    )
}
_ALIASES = {"a100": "a100-80", "h100-sxm": "h100", "h200-sxm": "h200", "4090": "rtx4090", "3090": "rtx3090"}
NODE = 8
"""GPUs of a node, joined by `link`."""
NETWORK = 50e9
"""Assumed between nodes for each GPU, bytes/s in one direction: one 400 Gbit/s adapter."""
LINK_SHARE, MEMORY_SHARE, SINGLE_SHARE = 0.7, 0.7, 0.5
"""Assumed shares of the links', the memory's and the float32 peak that are reached."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What is planned for.

    Attributes:
        gpu: The kind.
        count: How many, one process each.
        reaches: Share of its peak that is assumed.
    """

    gpu: Gpu
    count: int
    reaches: float

    @property
    def bus(self) -> float:
        """Bytes/s that a GPU exchanges with the others in one direction: as fast as the slowest link in the ring."""
        return LINK_SHARE * (self.gpu.link if self.count <= NODE else min(NETWORK, self.gpu.link))


def machine_of(text: str, reaches: float | None = None) -> Machine:
    """`h100:8`, or `h100` for one.

    Raises:
        UserError: No such GPU, or no such number of them.
    """
    name, colon, number = text.strip().lower().partition(":")
    name = _ALIASES.get(name, name)
    if name not in GPUS:
        raise UserError(
            f"unknown GPU '{text.partition(':')[0]}'{nearest(name, [*GPUS, *_ALIASES])}",
            where="--gpu",
            fix=f"one of: {', '.join(GPUS)}; with a number: {name if name in GPUS else 'h100'}:8",
            exit_code=2,
        )
    if (colon and not re.fullmatch(r"\d{1,9}", number)) or (colon and not 1 <= int(number) <= MOST):
        raise UserError(
            f"expected a number of GPUs from 1 to {MOST}, found '{number}'",
            where="--gpu",
            fix=f"{name}:8, for example",
            exit_code=2,
        )
    gpu = GPUS[name]
    return Machine(gpu, int(number) if colon else 1, gpu.reaches if reaches is None else reaches)


# Estimated time of a step: arithmetic at an assumed share of the peak, memory traffic, and what GPUs exchange.
#
# These are estimates from counts and stated assumptions, not measurements; `gpus.py` has the assumptions.


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
