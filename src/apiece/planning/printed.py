"""A plan as tables and sentences: for a terminal, or plain text elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

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
        _parameters(plan["parameters"]),
        _memory(plan),
        _time(plan),
        _scaling(plan),
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


def _parameters(parameters: Mapping[str, Any]) -> Table:
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


def _scaling(plan: Mapping[str, Any]) -> Table:
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
