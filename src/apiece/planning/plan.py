"""A plan as JSON and tables: lengths, parameters, memory and time by kind of step, and changes that make a run fit."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import islice, product
from typing import Any, TypeVar

import numpy as np
from pydantic import BaseModel
from rich.table import Table
from rich.text import Text

from apiece.config.rules import trained_parts
from apiece.config.schema import Config, Parallel, Part
from apiece.planning.estimate import (
    ASSUMED,
    GIB,
    GPUS,
    MOST,
    Batching,
    Estimate,
    Machine,
    StepKind,
    estimate,
    recipe_on,
)
from apiece.planning.lengths import Lengths, PlanInput
from apiece.planning.memory import Resident
from apiece.printed import stdout_console, table

VERSION = 2
COUNTS = tuple(1 << k for k in range(MOST.bit_length()))  # numbers of GPUs that a plan compares: 1, 2, 4, ... 512


def make_plan(config: Config, source: PlanInput, machine: Machine) -> dict[str, Any]:
    """The plan of a config on a machine, as JSON."""
    own, gpu = estimate(config, source, machine), machine.gpu
    changes = [] if own.fits else changes_that_fit(config, source, machine)
    return {
        "version": VERSION,
        "checkpoint": config.model.checkpoint,
        "data": str(source.records.path),
        "remarks": list(source.remarks),
        "samples": _samples(source.lengths(config.data.max_pixels), source.dropped),
        "parameters": _parameters(config, source, machine),
        "gpu": {**asdict(gpu), "count": machine.count, "room": gpu.room},
        "batch": asdict(own.batching),
        "parallel": str(own.parallel) if machine.count > 1 else "one process",
        "steps": [_step(kind, own) for kind in own.kinds],
        "fits": own.fits,
        "needs": own.need,
        "room": gpu.room,
        "seconds_per_step": own.seconds,
        "seconds_in_all": own.seconds * config.train.steps,
        "scaling": list(_scaling(config, source, machine)),
        "changes": [_change(change, own) for change in changes],
        "assumed": {"share_of_peak": machine.reaches, **ASSUMED},
    }


def _samples(lengths: Lengths, dropped: int) -> dict[str, Any]:
    prompt = np.full_like(lengths.image, lengths.prompt)
    tokens = {"image": lengths.image, "prompt": prompt, "answer": lengths.answer, "total": lengths.total}
    return {
        "read": len(lengths.image) + dropped,
        "over_max_objects": dropped,
        "tokens": {
            name: {"mean": float(values.mean()), "p95": float(np.percentile(values, 95)), "max": int(values.max())}
            for name, values in tokens.items()
        },
        "objects": float(lengths.objects.mean()),
        "share_supervised": float(lengths.answer.sum() / lengths.total.sum()),
    }


def _parameters(config: Config, source: PlanInput, machine: Machine) -> dict[str, Any]:
    recipe, shape = recipe_on(config, machine.count), source.shape
    held, learnt, added = recipe.held(shape), recipe.learnt(shape), recipe.added(shape)
    return {
        "parts": {
            str(part): {"all": count, "trained": learnt[part], "adapters": added.get(part, 0)}
            for part, count in held.items()
        },
        "coordinate_rows": shape.coordinate_rows,
        "tied": shape.tied,
        "all": sum(held.values()),
        "trained": sum(learnt.values()),
    }


def _step(kind: StepKind, own: Estimate) -> dict[str, Any]:
    memory, seconds = kind.footprint, kind.seconds
    return {
        "kind": kind.name,
        "in_this_run": kind.asked,
        "flops": kind.flops,
        "memory": {**asdict(memory), "total": memory.total},
        "fits": memory.total <= own.machine.gpu.room,
        "seconds": {**asdict(seconds), "total": seconds.total},
        "samples_per_s": own.batching.samples / seconds.total,
    }


def _scaling(config: Config, source: PlanInput, machine: Machine) -> Iterator[dict[str, Any]]:
    """Memory and time of this run's steps on other numbers of GPUs, replicated and shared."""
    for count in COUNTS:
        for parallel in (Parallel.DDP, Parallel.FSDP) if count > 1 else (Parallel.DDP,):
            changed = with_settings(config, {"train.parallel": parallel})
            done = estimate(changed, source, replace(machine, count=count), passes=())
            yield {
                "gpus": count,
                "parallel": str(parallel) if count > 1 else "one process",
                "batch": done.batching.samples,
                "batch_as_asked": done.batching.splits_evenly,
                "always": Resident.of(source.shape, recipe_on(changed, count), count).total,
                "needs": done.need,
                "fits": done.fits,
                "seconds_per_step": done.seconds,
                "samples_per_s": done.batching.samples / done.seconds,
            }


def _change(change: Change, own: Estimate) -> dict[str, Any]:
    settings = {path: list(map(str, v)) if isinstance(v, tuple) else v for path, v in change.settings.items()}
    return {
        "change": change.typed(f"{own.machine.gpu.name}:{own.machine.count}"),
        "settings": settings,
        "gpu": change.gpu,
        "needs": change.estimate.need,
        "room": change.estimate.machine.gpu.room,
        "seconds_per_step": change.estimate.seconds,
        "times_as_long": change.estimate.seconds / own.seconds,
    }


def print_plan(plan: Mapping[str, Any]) -> None:
    """Print a plan from `make_plan`."""
    console, gpu, batch = stdout_console(), plan["gpu"], plan["batch"]
    console.print(Text(f"{plan['checkpoint']} on {gpu['count']} x {gpu['title']}, {plan['parallel']}", style="bold"))
    cut = f"{batch['samples']} samples a step: {batch['micro_steps']} x {batch['micro']} on each GPU"
    console.print(f"{cut}. Estimates from shapes; nothing was loaded or run.")
    for remark in plan["remarks"]:
        console.print(f"note: {remark}")
    for printed in (_token_table(plan["samples"]), _parameter_table(plan["parameters"]), *_step_tables(plan)):
        console.print()
        console.print(printed)
    a, need, room = plan["assumed"], _gib(plan["needs"]), _gib(plan["room"])
    console.print(
        f"\nAssumed, not measured: {a['share_of_peak']:.0%} of the bf16 peak ({gpu['peak_bf16'] / 1e12:,.0f}"
        f" TFLOP/s; set it with --utilisation), {a['share_of_memory_traffic']:.0%} of memory traffic and"
        f" {a['share_of_links']:.0%} of links;\n{a['reserved_gib']} GiB for driver and libraries and"
        f" {1 - a['usable_share']:.0%} of the rest lost to holes; B: targets {a['b_target_length']} times as"
        f" long as the labels' answers, {a['forwards_per_object']} forward passes an object."
    )
    if plan["fits"]:
        text = f"fits: {need} of {room} GiB; all steps about {_duration(plan['seconds_in_all'])}"
        console.print(Text(text, style="bold green"))
    else:
        console.print(Text(f"does not fit: {need} GiB needed, {room} usable", style="bold red"))
    if plan["changes"]:
        made = table(
            "change", "GiB", "usable", "s/step", "times as long", title="What makes it fit, the least change first"
        )
        for row in plan["changes"]:
            figures = (_seconds(row["seconds_per_step"]), f"{row['times_as_long']:.2f}")
            made.add_row(row["change"], _gib(row["needs"]), _gib(row["room"]), *figures)
        console.print()
        console.print(made)


def _token_table(samples: Mapping[str, Any]) -> Table:
    left = f", {samples['over_max_objects']:,} of them over data.max_objects" if samples["over_max_objects"] else ""
    taught = f"{samples['objects']:.1f} objects, {samples['share_supervised']:.1%} supervised"
    made = table("", "mean", "p95", "max", title=f"Tokens of a sample ({samples['read']:,} read{left}): {taught}")
    for name, row in samples["tokens"].items():
        made.add_row(name, f"{row['mean']:,.0f}", f"{row['p95']:,.0f}", f"{row['max']:,}")
    return made


def _parameter_table(parameters: Mapping[str, Any]) -> Table:
    made = table("part", "all", "trained", "adapters", title="Parameters, millions")
    tables = "embedding = head" if parameters["tied"] else "embedding and head"
    rows = {tables if name == "coord" else name: row for name, row in parameters["parts"].items()}
    rows |= {"  coordinate rows in it": {"all": parameters["coordinate_rows"]}, "all": parameters}
    for name, row in rows.items():
        counts = (row.get(key) for key in ("all", "trained", "adapters"))
        made.add_row(name, *("" if n is None else f"{n / 1e6:,.2f}" if n else "-" for n in counts))
    return made


def _step_tables(plan: Mapping[str, Any]) -> tuple[Table, Table, Table]:
    """Memory and time of each kind of step, and both on other numbers of GPUs."""
    parts = ("weights", "optimizer", "gradients", "activations", "logits", "exchange", "total")
    title = f"Memory of a GPU at its highest point, GiB ({_gib(plan['room'])} usable)"
    memory = table("step", *parts, "highest in", "", title=title)
    spans = ("compute", "rollout", "update", "exchange", "total")
    title = "Arithmetic and estimated seconds of a step (* in this run)"
    time = table("step", "TFLOP", *spans[:-1], "s/step", "samples/s", title=title)
    for step in plan["steps"]:
        name, used, seconds = step["kind"] + " *" * step["in_this_run"], step["memory"], step["seconds"]
        cells = [f"{used[part] / GIB:.2f}" for part in parts]
        memory.add_row(name, *cells, used["highest_in"], _fits(step["fits"]))
        cells = [f"{step['flops'] / 1e12:,.1f}", *(_seconds(seconds[span]) for span in spans)]
        time.add_row(name, *cells, f"{step['samples_per_s']:,.2f}")
    title = f"This run on other numbers of {plan['gpu']['title']} (+ where train.batch_size had to grow)"
    columns = ("parallel", "samples/step", "always GiB", "highest GiB", "", "s/step", "samples/s")
    scaling = table("GPUs", *columns, title=title)
    for row in plan["scaling"]:
        scaling.add_row(
            str(row["gpus"]),
            row["parallel"],
            f"{row['batch']:,}" + " +" * (not row["batch_as_asked"]),
            f"{row['always'] / GIB:.2f}",
            f"{row['needs'] / GIB:.2f}",
            _fits(row["fits"]),
            _seconds(row["seconds_per_step"]),
            f"{row['samples_per_s']:,.1f}",
        )
    return memory, time, scaling


def _gib(count: float) -> str:
    return f"{count / GIB:.1f}"


def _fits(fits: bool) -> Text:
    return Text("fits", style="green") if fits else Text("too much", style="red")


def _seconds(value: float) -> str:
    return "-" if not value else f"{value:.1e}" if value < 5e-4 else f"{value:,.3f}" if value < 10 else f"{value:,.1f}"


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:,.0f} seconds"


LEAST_PIXELS = 65_536  # images are not shrunk further than to this: small objects would go first
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
        """The change as command-line arguments, for a user who gave `--gpu asked`."""
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
