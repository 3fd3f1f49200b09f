"""Memory of each GPU and time of a step that a config needs on given GPUs, for every kind of step."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from apiece.config.schema import Config, Parallel, Part, Precision
from apiece.errors import UserError, nearest
from apiece.planning.flops import ForwardFlops, Recipe, step_flops
from apiece.planning.lengths import Lengths, PlanInput
from apiece.planning.memory import WEIGHT, Footprint, rollout_footprint, training_footprint
from apiece.planning.shapes import ModelShape

GIB = 1 << 30
MOST = 512  # GPUs that a plan is made for at most
RESERVED_GIB = 1.5  # assumed to be taken by driver, libraries and communication buffers
USABLE = 0.94  # share of the rest that can be filled: the allocator leaves holes


@dataclass(frozen=True, slots=True)
class Gpu:
    """One kind of GPU."""

    name: str  # as the user writes it
    title: str
    memory_gib: float  # that programs see
    peak_bf16: float  # peak of dense bf16 products with float32 sums, FLOP/s
    peak_float32: float  # peak of float32 products outside the tensor cores, FLOP/s: PyTorch's default for float32
    bytes_per_s: float  # peak of memory traffic
    link_bytes_per_s: float  # to the other GPUs of a node, in one direction
    reaches: float  # assumed share of `peak_bf16` in training

    @property
    def room(self) -> float:
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
NODE = 8  # GPUs of a node, joined by `link_bytes_per_s`
NETWORK = 50e9  # assumed between nodes for each GPU, bytes/s in one direction: one 400 Gbit/s adapter
LINK_SHARE, MEMORY_SHARE, SINGLE_SHARE = 0.7, 0.7, 0.5
"""Assumed shares of the links', the memory's and the float32 peak that are reached."""


@dataclass(frozen=True, slots=True)
class Machine:
    """GPUs of one kind, one process each, that reach an assumed share of their peak."""

    gpu: Gpu
    count: int
    reaches: float

    @property
    def bus(self) -> float:
        """Bytes/s that a GPU exchanges with the others in one direction: as fast as the slowest link in the ring."""
        return LINK_SHARE * (
            self.gpu.link_bytes_per_s if self.count <= NODE else min(NETWORK, self.gpu.link_bytes_per_s)
        )


def machine_of(text: str, reaches: float | None = None) -> Machine:
    """`h100:8`, or `h100` for one; a `UserError` for an unknown GPU or number."""
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


MOVES = 2 * 7
"""Times that the update moves each trained number: weight, gradient and moments, read and written, in two sweeps."""
FORWARDS = 5.5
"""Forward passes for an object while answers are held to the format (docs/dev/performance.md); a token each without."""
LAUNCH = 0.8e-3  # assumed seconds that a layer takes at least while answers are written: starting its kernels
PASSES = (1, 2, 4)  # passes of Channel-A that every plan shows
TARGET_LENGTH = 1.5
"""Assumed length of Channel-B's targets in lengths of the labels' answers: they begin with what the model wrote."""


ASSUMED = {
    "share_of_float32_peak": SINGLE_SHARE,
    "share_of_memory_traffic": MEMORY_SHARE,
    "share_of_links": LINK_SHARE,
    "network_bytes_per_s": NETWORK,
    "reserved_gib": RESERVED_GIB,
    "usable_share": USABLE,
    "b_target_length": TARGET_LENGTH,
    "forwards_per_object": FORWARDS,
    "seconds_per_layer_while_writing": LAUNCH,
}


@dataclass(frozen=True, slots=True)
class Seconds:
    """Estimated time of one optimizer step: passes, writing answers, the optimizer, what GPUs wait for each other."""

    compute: float
    rollout: float
    update: float
    exchange: float

    @property
    def total(self) -> float:
        return self.compute + self.rollout + self.update + self.exchange


def step_seconds(
    shape: ModelShape, recipe: Recipe, machine: Machine, flops: float, micro_steps: int, rollout: float = 0.0
) -> Seconds:
    """The time of a step: counts at assumed shares of peaks, not a measurement.

    `flops`: of all `micro_steps` micro-batches of a GPU; `rollout`: seconds of writing answers before.
    """
    gpu = machine.gpu
    speed = gpu.peak_bf16 * machine.reaches if recipe.half else gpu.peak_float32 * SINGLE_SHARE
    held, learnt = sum(recipe.held(shape).values()), sum(recipe.learnt(shape).values())
    compute = flops / speed
    update = WEIGHT * MOVES * learnt / recipe.shards / (MEMORY_SHARE * gpu.bytes_per_s)
    ring = (machine.count - 1) / machine.count / machine.bus
    if recipe.shards > 1:
        # Each micro-batch gathers all layers twice and hands their gradients on; the rest is gathered once.
        moved = held * 2 * recipe.compute_bytes + WEIGHT * learnt
        exchange = max(0.0, micro_steps * moved * ring - compute)
        exchange += WEIGHT * held * ring * (rollout > 0)
    else:
        exchange = max(0.0, 2 * WEIGHT * learnt * micro_steps * ring - 2 / 3 * compute)
    return Seconds(compute, rollout, update, exchange)


def rollout_seconds(
    shape: ModelShape, lengths: Lengths, machine: Machine, count: int, rows: int, *, grammar: bool
) -> float:
    """Seconds that a GPU takes to answer `count` images like these, in float32, `rows` at once.

    Answers are taken to be as long as the labels'; the places of those that end are given to the next images.
    """
    gpu, forward = machine.gpu, ForwardFlops(shape)
    speed, traffic = gpu.peak_float32 * SINGLE_SHARE, gpu.bytes_per_s * MEMORY_SHARE
    reading = sum(
        times * (forward.vision([grid]) + forward.language(prefix, 0))
        for (grid, prefix), times in lengths.prefixes.items()
    ) / len(lengths.image)
    objects, tokens = float(lengths.objects.mean()), float(lengths.answer.mean())
    at_once = max(1, min(rows, count))
    # Rows go on until the last is done: the longest answer is a floor, however many there are.
    longest = lengths.objects.max() * FORWARDS if grammar else lengths.answer.max()
    passes = max(count * (max(objects, 1) * FORWARDS if grammar else tokens) / at_once, min(longest, tokens))
    moved = float(WEIGHT * (shape.matrices[Part.LANGUAGE] + shape.table))
    depth = shape.text.num_hidden_layers
    moved += 2 * 4 * at_once * (float(lengths.image.mean()) + lengths.prompt + tokens / 2) * shape.key_width * depth
    fed = at_once * tokens / max(passes * at_once / count, 1)
    computed = forward.layers(max(1, round(fed))) + forward.head(max(fed, 1.0))
    return count * reading / speed + passes * max(moved / traffic, computed / speed, LAUNCH * depth)


@dataclass(frozen=True, slots=True)
class Batching:
    """How a step's batch is cut: `micro_steps` forward passes of `micro` samples on each GPU.

    If `train.batch_size` cannot be split evenly, `samples` is the next larger that can.
    """

    samples: int
    micro: int
    micro_steps: int
    splits_evenly: bool

    @classmethod
    def of(cls, config: Config, processes: int) -> Batching:
        batch = config.train.batch_size
        micro = config.train.micro_batch_size or max(batch // processes, 1)
        each = -(-batch // (processes * micro))
        return cls(each * processes * micro, micro, each, each * processes * micro == batch)


@dataclass(frozen=True, slots=True)
class StepKind:
    """One kind of step: `A, N = 2` or `B`; FLOPs are of all GPUs, those of writing answers left out."""

    name: str
    asked: bool
    flops: float
    footprint: Footprint
    seconds: Seconds


@dataclass(frozen=True, slots=True)
class Estimate:
    """A config on a machine: its kinds of steps, the most bytes that one of this run needs, and seconds of a step."""

    machine: Machine
    parallel: Parallel
    batching: Batching
    kinds: tuple[StepKind, ...]
    need: float
    seconds: float

    @property
    def fits(self) -> bool:
        return self.need <= self.machine.gpu.room


def recipe_on(config: Config, processes: int) -> Recipe:
    """What a step does on GPUs, all of which compute in bf16."""
    shards = processes if config.train.parallel is Parallel.FSDP else 1
    return Recipe.of(config, half=config.model.precision is not Precision.FP32, shards=shards)


def estimate(config: Config, source: PlanInput, machine: Machine, passes: Sequence[int] = PASSES) -> Estimate:
    """Memory and time of a config on a machine, and those of the same with other numbers of passes."""
    shape, lengths, count = source.shape, source.lengths(config.data.max_pixels), machine.count
    cut, train, data = Batching.of(config, count), config.train, config.data
    order = (train.length_window, config.seed, data.shuffle, data.buffer_size)
    sampled, heaviest = lengths.sampled(cut.samples, cut.micro, count, *order), lengths.heaviest(cut.micro)
    here, ratio, generate = cut.micro * cut.micro_steps, config.stage2_ab.b_ratio, config.generate

    def kind(name: str, asked: bool, recipe: Recipe, factor: float, rollout: float = 0.0) -> StepKind:
        each = [step_flops(shape, work.longer(factor), recipe).total for work in sampled]
        flops = cut.micro_steps * sum(each) / len(each)
        seconds = step_seconds(shape, recipe, machine, flops, cut.micro_steps, rollout)
        work = heaviest.longer(factor)
        footprint = training_footprint(shape, work, recipe, count, accumulates=cut.micro_steps > 1)
        if rollout:
            new = min(generate.max_new_tokens, round(factor * int(lengths.answer.max())))
            writing = rollout_footprint(shape, work, recipe, count, rows, new)
            footprint = max(footprint, writing, key=lambda one: one.total)
        return StepKind(name, asked, flops * count, footprint, seconds)

    recipe, rows = recipe_on(config, count), min(generate.batch_size, here)
    writing = rollout_seconds(shape, lengths, machine, here, rows, grammar=generate.grammar)
    kinds = [
        kind(f"A, N = {number}", number == recipe.passes and ratio < 1, replace(recipe, passes=number), 1.0)
        for number in sorted({*passes, recipe.passes})
    ]
    kinds.append(kind("B", ratio > 0, replace(recipe, passes=1), TARGET_LENGTH, writing))
    asked = [one for one in kinds if one.asked]
    need = max(one.footprint.total for one in asked)
    seconds = sum(one.seconds.total * (ratio if one.name == "B" else 1 - ratio) for one in asked)
    return Estimate(machine, train.parallel, cut, tuple(kinds), need, seconds)
