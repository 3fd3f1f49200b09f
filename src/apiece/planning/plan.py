"""A plan as tables and sentences: for a terminal, or plain text elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from apiece.config.schema import Config, Parallel
from apiece.planning.estimate import (
    FORWARDS,
    LAUNCH,
    LINK_SHARE,
    MEMORY_SHARE,
    MOST,
    NETWORK,
    RESERVED_GIB,
    SINGLE_SHARE,
    TARGET_LENGTH,
    USABLE,
    Estimate,
    Kind,
    Machine,
    estimate,
    recipe_on,
)
from apiece.planning.fit import Change, changes_that_fit, with_settings
from apiece.planning.memory import Resident
from apiece.planning.recipe import Length, Lengths, Source

# A plan as one JSON document: lengths, parameters, memory and time by kind of step, other numbers of GPUs, changes.


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


GIB = 1 << 30
WIDTH = 118
MEMORY = ("weights", "optimizer", "gradients", "activations", "logits", "exchange", "total")


def print_plan(plan: Mapping[str, Any]) -> None:
    """Print a plan from `make_plan`."""
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else WIDTH, highlight=False, soft_wrap=True)
    gpu, batch = plan["gpu"], plan["batch"]
    console.print(Text(f"{plan['checkpoint']} on {gpu['count']} x {gpu['title']}, {plan['parallel']}", style="bold"))
    cut = f"{batch['samples']} samples a step: {batch['micro_steps']} x {batch['micro']} on each GPU"
    console.print(f"{cut}. Estimates from shapes; nothing was loaded or run.")
    for remark in plan["remarks"]:
        console.print(f"note: {remark}")
    console.print()
    for table in (
        _tokens(plan["samples"]),
        _parameters_line(plan["parameters"]),
        _memory(plan),
        _time(plan),
        _scaling_line(plan),
    ):
        console.print(table)
        console.print()
    console.print(_assumed(plan))
    console.print(_verdict(plan))
    if plan["changes"]:
        console.print()
        console.print(_changes(plan))


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for i, name in enumerate(columns):
        table.add_column(name, justify="right" if i else "left", no_wrap=True)
    return table


def _tokens(samples: Mapping[str, Any]) -> Table:
    left = f", {samples['over_max_objects']:,} of them over data.max_objects" if samples["over_max_objects"] else ""
    title = (
        f"Tokens of a sample ({samples['read']:,} read{left}): {samples['objects']:.1f} objects,"
        f" {samples['share_supervised']:.1%} supervised"
    )
    table = _table(title, "", "mean", "p95", "max")
    for name, row in samples["tokens"].items():
        table.add_row(name, f"{row['mean']:,.0f}", f"{row['p95']:,.0f}", f"{row['max']:,}")
    return table


def _parameters_line(parameters: Mapping[str, Any]) -> Table:
    table = _table("Parameters, millions", "part", "all", "trained", "adapters")
    for name, row in parameters["parts"].items():
        table.add_row(_part(name, parameters), *(_millions(row[key]) for key in ("all", "trained", "adapters")))
    table.add_row("  coordinate rows in it", _millions(parameters["coordinate_rows"]), "", "")
    table.add_row("all", _millions(parameters["all"]), _millions(parameters["trained"]), "")
    return table


def _part(name: str, parameters: Mapping[str, Any]) -> str:
    if name != "coord":
        return name
    return "embedding = head" if parameters["tied"] else "embedding and head"


def _millions(count: float) -> str:
    return f"{count / 1e6:,.2f}" if count else "-"


def _memory(plan: Mapping[str, Any]) -> Table:
    room = plan["room"] / GIB
    table = _table(f"Memory of a GPU at its highest point, GiB ({room:.1f} usable)", "step", *MEMORY, "highest in", "")
    for step in plan["steps"]:
        memory = step["memory"]
        cells = [f"{memory[name] / GIB:.2f}" for name in MEMORY]
        table.add_row(_step(step), *cells, memory["highest_in"], _fits(step["fits"]))
    return table


def _step(step: Mapping[str, Any]) -> str:
    return step["kind"] + (" *" if step["in_this_run"] else "")


def _fits(fits: bool) -> Text:
    return Text("fits", style="green") if fits else Text("too much", style="red")


def _time(plan: Mapping[str, Any]) -> Table:
    columns = ("TFLOP", "compute", "rollout", "update", "exchange", "s/step", "samples/s")
    table = _table("Arithmetic and estimated seconds of a step (* in this run)", "step", *columns)
    for step in plan["steps"]:
        seconds = step["seconds"]
        cells = [_seconds(seconds[name]) for name in ("compute", "rollout", "update", "exchange", "total")]
        table.add_row(_step(step), f"{step['flops'] / 1e12:,.1f}", *cells, f"{step['samples_per_s']:,.2f}")
    return table


def _seconds(value: float) -> str:
    return "-" if not value else f"{value:.1e}" if value < 5e-4 else f"{value:,.3f}" if value < 10 else f"{value:,.1f}"


def _scaling_line(plan: Mapping[str, Any]) -> Table:
    title = f"This run on other numbers of {plan['gpu']['title']} (+ where train.batch_size had to grow)"
    table = _table(title, "GPUs", "parallel", "samples/step", "always GiB", "highest GiB", "", "s/step", "samples/s")
    for row in plan["scaling"]:
        table.add_row(
            str(row["gpus"]),
            row["parallel"],
            f"{row['batch']:,}" + ("" if row["batch_as_asked"] else " +"),
            f"{row['always'] / GIB:.2f}",
            f"{row['needs'] / GIB:.2f}",
            _fits(row["fits"]),
            _seconds(row["seconds_per_step"]),
            f"{row['samples_per_s']:,.1f}",
        )
    return table


def _assumed(plan: Mapping[str, Any]) -> str:
    a = plan["assumed"]
    return (
        f"Assumed, not measured: {a['share_of_peak']:.0%} of the bf16 peak ({plan['gpu']['peak_bf16'] / 1e12:,.0f}"
        f" TFLOP/s; set it with --utilisation), {a['share_of_memory_traffic']:.0%} of memory traffic and"
        f" {a['share_of_links']:.0%} of links;\n{a['reserved_gib']} GiB for driver and libraries and"
        f" {1 - a['usable_share']:.0%} of the rest lost to holes; B: targets {a['b_target_length']} times as"
        f" long as the labels' answers, {a['forwards_per_object']} forward passes an object."
    )


def _verdict(plan: Mapping[str, Any]) -> Text:
    need, room = plan["needs"] / GIB, plan["room"] / GIB
    if plan["fits"]:
        told = f"fits: {need:.1f} of {room:.1f} GiB; all steps about {_duration(plan['seconds_in_all'])}"
        return Text(told, style="bold green")
    return Text(f"does not fit: {need:.1f} GiB needed, {room:.1f} usable", style="bold red")


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:,.0f} seconds"


def _changes(plan: Mapping[str, Any]) -> Table:
    table = _table("What makes it fit, the least change first", "change", "GiB", "usable", "s/step", "times as long")
    rows: Sequence[Mapping[str, Any]] = plan["changes"]
    for row in rows:
        table.add_row(
            row["change"],
            f"{row['needs'] / GIB:.1f}",
            f"{row['room'] / GIB:.1f}",
            _seconds(row["seconds_per_step"]),
            f"{row['times_as_long']:.2f}",
        )
    return table
