"""A diagnosis as tables and sentences: coloured on a terminal, plain text elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

_FIGURES = (
    ("a1/entropy", "entropy, nats"),
    ("a1/modes", "modes"),
    ("a1/own_mass", "mass on the own"),
    ("a1/cross_instance_mass", "mass on others"),
    ("a1/exp_argmax_gap", "gap, bins"),
    ("last/own_mass", "mass on the own, last"),
    ("last/exp_argmax_gap", "gap, bins, last"),
    ("drift", "drift, bins"),
    ("several_peaks", "several peaks"),
    ("flip", "flip"),
    ("chimera", "chimera"),
    ("follow/near_neighbour", "follow: the neighbour"),
    ("follow/near_own", "follow: the own"),
)
_SHARES = {"several_peaks", "flip", "chimera"}


def print_diagnosis(found: Mapping[str, Any], console: Console | None = None) -> None:
    """Print what fails, how often and where, what is believed, and which explanation the numbers support."""
    console = console or Console()

    def say(text: str = "") -> None:
        console.print(escape(text), highlight=False, soft_wrap=True)

    counts = found["metrics"]
    say(
        f"{found['images']:,} images, {counts['count/truths']:,} labels, {counts['count/predictions']:,} predictions: "
        f"F1 {counts['f1/f1']:.3f}, AP {max(counts['coco/AP'], 0):.3f}"
    )
    for title, rows, key in (("what fails", found["fails"], "outcome"), ("what is missed", found["misses"], "fate")):
        say()
        if rows:
            console.print(_failures(title, rows, key))
        else:
            say(f"{title}: nothing")
    say()
    if found["probed_labels"]:
        console.print(_probes("beliefs at labels", found["probes"]))
    else:
        say("no probes: the dump holds none, or there are no labels")
    say()
    rate = found["long_boxes"]
    if rate["value"] is not None:
        ends = "" if rate["lo"] is None else f" [{rate['lo']:.1%}, {rate['hi']:.1%}]"
        say(f"long boxes (group boxes and strips): {rate['value']:.1%} of the predictions{ends}")
    for name, explanation in found["explanations"].items():
        say(f"  {name}: {explanation['verdict']}. {explanation['because'][:1].upper()}{explanation['because'][1:]}.")
    console.print(f"[bold]explanation: {escape(' and '.join(found['verdict']))}[/bold]", highlight=False)


def _failures(title: str, rows: Sequence[Mapping[str, Any]], key: str) -> Table:
    axes = ("class", "crowding", "position") if key == "outcome" else ("class", "crowding")
    table = _table(title, "count", "rate", "95 % interval", "F1 if fixed", "most often at " + ", ".join(axes))
    for row in rows:
        rate, fixed, most = row["rate"], row["fixed"]["f1"], row["most_often"]
        table.add_row(
            row[key],
            f"{row['count']:,}",
            f"{rate['value']:.3f}",
            "-" if rate["lo"] is None else f"{rate['lo']:.3f} - {rate['hi']:.3f}",
            "-" if fixed is None else f"{fixed:.3f}",
            ", ".join(escape(most[axis]["name"]) if axis in most else "-" for axis in axes),
        )
    return table


def _probes(title: str, tables: Mapping[str, Any]) -> Table:
    """Figures down, coordinates and labels per image across: fits a narrow terminal. Classes are in the file."""
    columns = {
        "all": tables["all"],
        **tables["by_coordinate"],
        **tables["by_crowding"],
    }
    table = _table(title, *columns)
    for figure, name in _FIGURES:
        table.add_row(name, *(_shown(row.get(figure), figure) for row in columns.values()))
    return table


def _shown(figure: Mapping[str, Any] | None, name: str) -> str:
    if figure is None or figure["value"] is None:
        return "-"
    return f"{figure['value']:.0%}" if name in _SHARES else f"{figure['value']:.2f}"


def _table(head: str, *columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(head, no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=column[:4] != "most")
    return table
