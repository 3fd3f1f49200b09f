"""What to change where a run does not fit: settings that make it fit, the least change first, each with its figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from pydantic import BaseModel

from apiece.config.schema import Config, Parallel, Part
from apiece.planning.estimate import GPUS, MOST, Batching, Estimate, Machine, estimate
from apiece.planning.recipe import Source

LEAST_PIXELS = 65_536
"""Images are not shrunk further than to this: small objects would go first."""
LORA_RANK = 16
SHOWN = 6
Settings = Mapping[str, Any]
Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Change:
    """Something that makes a run fit.

    Attributes:
        settings: By dotted path; empty where other GPUs are proposed.
        gpu: As `--gpu` takes it.
        estimate: Of the run with it.
    """

    settings: Settings
    gpu: str
    estimate: Estimate

    def told(self, asked: str) -> str:
        """As it is typed, beside what was asked for."""
        typed = [f"{path}={_typed(value)}" for path, value in self.settings.items()]
        return " ".join(typed if self.gpu == asked else [*typed, f"--gpu {self.gpu}"])


def changes_that_fit(config: Config, source: Source, machine: Machine) -> list[Change]:
    """Changes that make a config fit, the least first; empty where none does.

    One setting by itself first, then several together, then other GPUs.
    """
    asked = f"{machine.gpu.name}:{machine.count}"
    found = [
        Change(settings, asked, done)
        for settings in _candidates(config, machine)
        if (done := _try(with_settings(config, settings), source, machine)).fits
    ]
    kept: list[Change] = []
    for change in found:  # what holds all of a smaller change has nothing to add
        if not any(_holds(change.settings, other.settings) for other in kept):
            kept.append(change)
    return (kept + _other_gpus(config, source, machine))[:SHOWN]


def _try(config: Config, source: Source, machine: Machine) -> Estimate:
    return estimate(config, source, machine, passes=())


def _holds(settings: Settings, other: Settings) -> bool:
    """Whether a change includes another, or goes further in each of its settings."""
    return other.keys() < settings.keys() or (other.keys() == settings.keys() and settings != other)


def _candidates(config: Config, machine: Machine) -> Iterator[Settings]:
    """Changes of settings, the least first: those that change nothing about the result before those that do."""
    smaller: list[dict[str, Any]] = [{"train.micro_batch_size": size} for size in _smaller_micro(config, machine)]
    recompute: list[dict[str, Any]] = [{"model.gradient_checkpointing": True}]
    if config.model.gradient_checkpointing:
        recompute = []
    shared = machine.count > 1 and config.train.parallel is Parallel.DDP
    share: list[dict[str, Any]] = [{"train.parallel": Parallel.FSDP}] if shared else []
    pixels: list[dict[str, Any]] = [{"data.max_pixels": size} for size in _fewer_pixels(config)]
    yield from (*smaller, *recompute, *share)
    yield from (one | two for one in recompute for two in smaller)
    yield from (one | two for one in share for two in (*recompute, *smaller))
    yield from (one | two | three for one in share for two in recompute for three in smaller)
    adapters = _adapters(config)
    yield from (*adapters, *pixels)
    last: dict[str, Any] = {}
    for part in (share, recompute, smaller[-1:]):
        last |= part[0] if part else {}
    yield from (last | one for one in (*adapters, *pixels, *(a | p for a in adapters for p in pixels)))


def _smaller_micro(config: Config, machine: Machine) -> list[int]:
    """Smaller micro-batches that divide what a GPU does in a step, the largest first."""
    now = Batching.of(config, machine.count)
    each = now.batch // machine.count
    return [size for size in range(now.micro - 1, 0, -1) if each % size == 0]


def _adapters(config: Config) -> list[dict[str, Any]]:
    """Adapters instead of all weights, where the other settings go with them."""
    optim, frozen = config.optim, config.model.freeze
    targets = [
        p for p in (Part.MERGER, Part.LANGUAGE) if p not in frozen and (p is Part.LANGUAGE or optim.lr_merger != 0)
    ]
    if config.model.lora.rank or optim.name != "adamw" or optim.lr_vision or not targets:
        return []
    settings: dict[str, Any] = {"model.lora.rank": LORA_RANK}
    if targets != list(config.model.lora.targets):
        settings["model.lora.targets"] = tuple(targets)
    return [settings]


def _fewer_pixels(config: Config) -> list[int]:
    """Half, a quarter and so on of the pixels."""
    sizes = (config.data.max_pixels >> k for k in range(1, 8))
    return [size for size in sizes if size >= LEAST_PIXELS]


def _other_gpus(config: Config, source: Source, machine: Machine) -> list[Change]:
    """More GPUs of the same kind that share the model, and the same number of the smallest kind with room."""
    out = []
    count = machine.count * 2
    while count <= MOST:
        settings: Settings = {} if config.train.parallel is Parallel.FSDP else {"train.parallel": Parallel.FSDP}
        more = replace(machine, count=count)
        changed = with_settings(config, settings)
        if Batching.of(changed, count).as_asked and (done := _try(changed, source, more)).fits:
            out.append(Change(settings, f"{machine.gpu.name}:{count}", done))
            break
        count *= 2
    for gpu in sorted(GPUS.values(), key=lambda one: one.memory_gib):
        if gpu.memory_gib > machine.gpu.memory_gib:
            larger = Machine(gpu, machine.count, gpu.reaches)
            if (done := _try(config, source, larger)).fits:
                out.append(Change({}, f"{gpu.name}:{machine.count}", done))
                break
    return out


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
