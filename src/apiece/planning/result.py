"""A plan as one JSON document: lengths, parameters, memory and time by kind of step, other numbers of GPUs, changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from apiece.config.schema import Config, Parallel
from apiece.planning.estimate import TARGET_LENGTH, Estimate, Kind, estimate, recipe_on
from apiece.planning.fit import Change, changes_that_fit, with_settings
from apiece.planning.footprint import Resident
from apiece.planning.gpus import (
    LINK_SHARE,
    MEMORY_SHARE,
    MOST,
    NETWORK,
    RESERVED_GIB,
    SINGLE_SHARE,
    USABLE,
    Machine,
)
from apiece.planning.lengths import Length, Lengths
from apiece.planning.source import Source
from apiece.planning.speed import FORWARDS, LAUNCH

VERSION = 1
COUNTS = tuple(1 << k for k in range(MOST.bit_length()))
"""Numbers of GPUs that a plan compares: 1, 2, 4, ... 512."""
LENGTHS = ("image", "prompt", "answer", "total")


def make_plan(config: Config, source: Source, machine: Machine) -> dict[str, Any]:
    """Everything that is planned for a config on a machine."""
    lengths, own = source.under(config.data.max_pixels), estimate(config, source, machine)
    changes = [] if own.fits else changes_that_fit(config, source, machine)
    asked = f"{machine.gpu.name}:{machine.count}"
    return {
        "version": VERSION,
        "checkpoint": source.checkpoint,
        "data": str(source.data),
        "remarks": list(source.remarks),
        "samples": _samples(lengths),
        "parameters": _parameters(config, source, machine),
        "gpu": _machine(machine),
        "batch": {
            "samples": own.batching.batch,
            "micro": own.batching.micro,
            "micro_steps": own.batching.micro_steps,
            "splits_evenly": own.batching.as_asked,
        },
        "parallel": str(own.parallel) if machine.count > 1 else "one process",
        "steps": [_kind(kind, own) for kind in own.kinds],
        "fits": own.fits,
        "needs": own.need,
        "room": machine.gpu.room,
        "seconds_per_step": own.seconds,
        "seconds_in_all": own.seconds * config.train.steps,
        "scaling": _scaling(config, source, machine),
        "changes": [_change(change, own, asked) for change in changes],
        "assumed": {
            "share_of_peak": machine.reaches,
            "share_of_float32_peak": SINGLE_SHARE,
            "share_of_memory_traffic": MEMORY_SHARE,
            "share_of_links": LINK_SHARE,
            "network_bytes_per_s": NETWORK,
            "reserved_gib": RESERVED_GIB,
            "usable_share": USABLE,
            "b_target_length": TARGET_LENGTH,
            "forwards_per_object": FORWARDS,
            "seconds_per_layer_while_writing": LAUNCH,
        },
    }


def _samples(lengths: Lengths) -> dict[str, Any]:
    """Tokens of samples."""
    tokens = {name: np.array([getattr(one, name) for one in lengths.each]) for name in LENGTHS}
    return {
        "read": lengths.lines,
        "whole_file": lengths.whole,
        "over_max_objects": lengths.over,
        "tokens": {
            name: {
                "mean": float(values.mean()),
                "p95": float(np.percentile(values, 95)),
                "max": int(values.max()),
            }
            for name, values in tokens.items()
        },
        "objects": _mean(lengths.each, "objects"),
        "share_supervised": float(tokens["answer"].sum() / tokens["total"].sum()),
    }


def _mean(each: Sequence[Length], name: str) -> float:
    return float(np.mean([getattr(one, name) for one in each]))


def _parameters(config: Config, source: Source, machine: Machine) -> dict[str, Any]:
    """Parameters by part, held and trained."""
    recipe = recipe_on(config, machine.count)
    held, learnt, added = recipe.held(source.shape), recipe.learnt(source.shape), recipe.added(source.shape)
    parts = {
        str(part): {"all": count, "trained": learnt[part], "adapters": added.get(part, 0)}
        for part, count in held.items()
    }
    return {
        "parts": parts,
        "coordinate_rows": source.shape.coordinate_rows(),
        "tied": source.shape.language.tied,
        "all": sum(held.values()),
        "trained": sum(learnt.values()),
    }


def _machine(machine: Machine) -> dict[str, Any]:
    gpu = machine.gpu
    return {
        "name": gpu.name,
        "title": gpu.title,
        "count": machine.count,
        "memory_gib": gpu.memory_gib,
        "room": gpu.room,
        "peak_bf16": gpu.half,
        "peak_float32": gpu.single,
        "bytes_per_s": gpu.moves,
        "link_bytes_per_s": gpu.link,
    }


def _kind(kind: Kind, own: Estimate) -> dict[str, Any]:
    """A kind of step."""
    seconds = kind.seconds
    return {
        "kind": kind.name,
        "in_this_run": kind.asked,
        "flops": kind.flops,
        "memory": {**kind.footprint.parts(), "total": kind.footprint.total, "highest_in": kind.footprint.where},
        "fits": kind.footprint.total <= own.machine.gpu.room,
        "seconds": {
            "compute": seconds.compute,
            "rollout": seconds.rollout,
            "update": seconds.update,
            "exchange": seconds.exchange,
            "total": seconds.total,
        },
        "samples_per_s": own.batching.batch / seconds.total,
    }


def _scaling(config: Config, source: Source, machine: Machine) -> list[dict[str, Any]]:
    """Memory and time of this run's steps on other numbers of GPUs, replicated and shared."""
    rows = []
    for count in COUNTS:
        for parallel in (Parallel.DDP, Parallel.FSDP) if count > 1 else (Parallel.DDP,):
            changed = with_settings(config, {"train.parallel": parallel})
            done = estimate(changed, source, replace(machine, count=count), passes=())
            resident = Resident.of(source.shape, recipe_on(changed, count), count)
            rows.append(
                {
                    "gpus": count,
                    "parallel": str(parallel) if count > 1 else "one process",
                    "batch": done.batching.batch,
                    "batch_as_asked": done.batching.as_asked,
                    "always": resident.weights + resident.optimizer + resident.exchange,
                    "needs": done.need,
                    "fits": done.fits,
                    "seconds_per_step": done.seconds,
                    "samples_per_s": done.batching.batch / done.seconds,
                }
            )
    return rows


def _change(change: Change, own: Estimate, asked: str) -> dict[str, Any]:
    return {
        "change": change.told(asked),
        "settings": {path: _plain(value) for path, value in change.settings.items()},
        "gpu": change.gpu,
        "needs": change.estimate.need,
        "room": change.estimate.machine.gpu.room,
        "seconds_per_step": change.estimate.seconds,
        "times_as_long": change.estimate.seconds / own.seconds,
    }


def _plain(value: Any) -> Any:
    """A setting as JSON has it."""
    return value if isinstance(value, int) else list(map(str, value)) if isinstance(value, tuple) else str(value)
