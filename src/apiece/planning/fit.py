"""What to change where a run does not fit: settings that make it fit, the least change first, each with its figures."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice, product
from typing import Any, TypeVar

from pydantic import BaseModel

from apiece.config.rules import trained_parts
from apiece.config.schema import Config, Parallel, Part
from apiece.planning.estimate import GPUS, MOST, Batching, Estimate, Machine, estimate
from apiece.planning.lengths import PlanInput

LEAST_PIXELS = 65_536
"""Images are not shrunk further than to this: small objects would go first."""
LORA_RANK = 16
SHOWN = 6
Settings = Mapping[str, Any]
Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Change:
    """Settings by dotted path (none where other GPUs are proposed) that make a run fit on a GPU as `--gpu` takes it."""

    settings: Settings
    gpu: str
    estimate: Estimate

    def typed(self, asked: str) -> str:
        """As it is typed by someone who gave `--gpu asked`."""
        settings = [f"{path}={_typed(value)}" for path, value in self.settings.items()]
        return " ".join(settings if self.gpu == asked else [*settings, f"--gpu {self.gpu}"])


def changes_that_fit(config: Config, source: PlanInput, machine: Machine) -> list[Change]:
    """Changes that make a config fit, the least first: one setting, then several, then other GPUs; maybe none."""

    def tried(settings: Settings, on: Machine = machine) -> Change:
        done = estimate(with_settings(config, settings), source, on, passes=())
        return Change(settings, f"{on.gpu.name}:{on.count}", done)

    kept: list[Change] = []
    for settings in _candidates(config, machine):
        # What holds all of a smaller change, or goes further in each of its settings, has nothing to add.
        if (
            not any(other.settings.keys() <= settings.keys() for other in kept)
            and (one := tried(settings)).estimate.fits
        ):
            kept.append(one)
    shared: Settings = {} if config.train.parallel is Parallel.FSDP else {"train.parallel": Parallel.FSDP}
    counts = (machine.count << k for k in range(1, MOST.bit_length()) if machine.count << k <= MOST)
    more = (tried(shared, replace(machine, count=n)) for n in counts if Batching.of(config, n).splits_evenly)
    larger = sorted((g for g in GPUS.values() if g.memory_gib > machine.gpu.memory_gib), key=lambda g: g.memory_gib)
    others = (tried({}, Machine(gpu, machine.count, gpu.reaches)) for gpu in larger)
    for group in (more, others):
        kept += islice((one for one in group if one.estimate.fits), 1)
    return kept[:SHOWN]


def _candidates(config: Config, machine: Machine) -> Iterator[Settings]:
    """Changes of settings, the least first: those that change nothing about the result before those that do."""
    now, model = Batching.of(config, machine.count), config.model
    each = now.samples // machine.count
    smaller = [{"train.micro_batch_size": size} for size in range(now.micro - 1, 0, -1) if each % size == 0]
    recompute = [] if model.gradient_checkpointing else [{"model.gradient_checkpointing": True}]
    shared = machine.count > 1 and config.train.parallel is Parallel.DDP
    axes: list[list[dict[str, Any]]] = [[{"train.parallel": Parallel.FSDP}] if shared else [], recompute, smaller]
    free = [dict(ChainMap(*several)) for several in product(*([{}, *axis] for axis in axes))]
    yield from sorted(filter(None, free), key=len)
    sizes = (config.data.max_pixels >> k for k in range(1, 8))
    pixels = [{"data.max_pixels": size} for size in sizes if size >= LEAST_PIXELS]
    adapters = _adapters(config)
    yield from (*adapters, *pixels)
    most = dict(ChainMap(*(axis[-1] for axis in axes if axis)))
    yield from (most | one for one in (*adapters, *pixels, *(a | p for a in adapters for p in pixels)))


def _adapters(config: Config) -> list[dict[str, Any]]:
    """Adapters instead of all weights, where the other settings go with them."""
    optim, model = config.optim, config.model
    targets = tuple(part for part in (Part.MERGER, Part.LANGUAGE) if part in trained_parts(config))
    if model.lora.rank or optim.name != "adamw" or optim.lr_vision or not targets:
        return []
    own = {} if targets == tuple(model.lora.targets) else {"model.lora.targets": targets}
    return [{"model.lora.rank": LORA_RANK, **own}]


def with_settings(config: Config, settings: Settings) -> Config:
    """A config with other values of some settings, by dotted path."""
    for path, value in settings.items():
        config = _with(config, path.split("."), value)
    return config


def _with(model: Model, path: list[str], value: Any) -> Model:
    name, *rest = path
    return model.model_copy(update={name: _with(getattr(model, name), rest, value) if rest else value})


def _typed(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{','.join(map(str, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)
