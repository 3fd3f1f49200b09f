"""A comparison as it is kept and printed: rows with verdicts, images that changed, remarks (docs/comparing.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from apiece.compare.figures import GROUPS, Figure
from apiece.compare.interval import Difference, Verdict
from apiece.compare.source import Source

SCHEMA = 1
_SHOWN = 5
_WIDTH = 100
_STYLES = {
    Verdict.BETTER: "green",
    Verdict.WORSE: "red",
    Verdict.HIGHER: "bold",
    Verdict.LOWER: "bold",
    Verdict.SAME: "dim",
    Verdict.CANNOT_TELL: "dim",
}


@dataclass(frozen=True, slots=True)
class Row:
    """One figure.

    Attributes:
        key: As in `metrics.json` where it is there.
        figure: What it is.
        found: Its values, difference and verdict.
        n: Images (telemetry: blocks of steps) that it rests on.
        more_images: How many more images would tell, if the difference stays; `None` if it is told, or never would be.
    """

    key: str
    figure: Figure
    found: Difference
    n: int
    more_images: int | None

    def as_json(self) -> dict[str, Any]:
        """Its line in `comparison.json`."""
        return {
            "key": self.key,
            "label": self.figure.label,
            "group": self.figure.group,
            "a": self.found.a,
            "b": self.found.b,
            "difference": self.found.difference,
            "lo": self.found.lo,
            "hi": self.found.hi,
            "verdict": str(self.found.verdict),
            "more_images": self.more_images,
            "higher_is_better": self.figure.higher_is_better,
            "n": self.n,
        }


@dataclass(frozen=True, slots=True)
class Changed:
    """An image: its F1 in A and in B (means over the seeds)."""

    id: str
    a: float
    b: float
    difference: float


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """B held against A.

    Attributes:
        a: Name of the one arm.
        b: Name of the other.
        runs: Arm and run, of all.
        rows: Figures in order.
        changed: Images whose F1 changed most, from the best change to the worst.
        remarks: What the reader should know.
        protocol: Of the comparison and of what is compared.
    """

    a: str
    b: str
    runs: tuple[tuple[str, Source], ...]
    rows: tuple[Row, ...]
    changed: tuple[Changed, ...]
    remarks: tuple[str, ...]
    protocol: Mapping[str, Any]

    def as_json(self) -> dict[str, Any]:
        """One block of `comparison.json`."""
        return {
            "schema": SCHEMA,
            "a": self.a,
            "b": self.b,
            "runs": [
                {"name": run.name, "path": str(run.path), "step": run.step, "seed": run.seed, "arm": arm}
                for arm, run in self.runs
            ],
            "rows": [row.as_json() for row in self.rows],
            "changed": [{"id": c.id, "a": c.a, "b": c.b, "difference": c.difference} for c in self.changed],
            "remarks": list(self.remarks),
            "protocol": dict(self.protocol),
        }


def print_comparison(comparison: Comparison, console: Console | None = None) -> None:
    """Print a comparison: coloured on a terminal, plain text elsewhere; it takes 100 columns."""
    console = console or Console()
    if console.width < _WIDTH:
        console = Console(width=_WIDTH)
    protocol = comparison.protocol
    arms = {name: [run for arm, run in comparison.runs if arm == name] for name in (comparison.a, comparison.b)}
    for letter, (name, runs) in zip("AB", arms.items(), strict=True):
        steps = ", ".join(dict.fromkeys(f"step {run.step}" for run in runs if run.step is not None))
        seeds = f"{len(runs)} seeds, " if len(runs) > 1 else ""
        console.print(f"{letter}  [bold]{escape(name)}[/bold]  {seeds}{steps}", highlight=False)
    console.print(
        f"{protocol['images']:,} images, the same in both; B - A has a {protocol['level']:.0%} interval",
        highlight=False,
    )
    console.print()
    console.print(_table(comparison))
    hidden = sum(_nothing(row) for row in comparison.rows)
    if hidden:
        console.print(f"figures that are 0 in both, not shown: {hidden}", style="dim", highlight=False)
    _print_changed(comparison, console)
    verdicts = [row.found for row in comparison.rows if row.found.lo is not None and not _nothing(row)]
    told = sum(found.verdict not in (Verdict.CANNOT_TELL, Verdict.SAME) for found in verdicts)
    chance = (1 - protocol["level"]) * len(verdicts)
    console.print()
    console.print(
        f"{told} of {len(verdicts)} figures differ; by chance alone about {chance:.1f} would",
        highlight=False,
    )
    for remark in comparison.remarks:
        console.print(f"- {escape(remark)}", highlight=False)


def _table(comparison: Comparison) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1), header_style="bold")
    table.add_column("", no_wrap=True, max_width=29, overflow="ellipsis")
    for head in ("A", "B", "B - A", "95 % interval"):
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    table.add_column("more images", justify="right", no_wrap=True)
    for group in GROUPS:
        rows = [row for row in comparison.rows if row.figure.group == group and not _nothing(row)]
        if rows:
            table.add_row(f"[bold]{group}[/bold]")
        for row in rows:
            found = row.found
            verdict = f"[{_STYLES[found.verdict]}]{found.verdict}[/]"
            more = "" if row.more_images is None else _count(row.more_images)
            table.add_row(f"  {escape(row.figure.label)}", *_numbers(found), verdict, more)
    return table


def _print_changed(comparison: Comparison, console: Console) -> None:
    better = [c for c in comparison.changed if c.difference > 0][:_SHOWN]
    worse = [c for c in comparison.changed if c.difference < 0][-_SHOWN:][::-1]
    for head, rows in (("higher", better), ("lower", worse)):
        if not rows:
            continue
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column(f"F1 {head} most", no_wrap=True, max_width=40)
        for column in ("A", "B", "B - A"):
            table.add_column(column, justify="right", no_wrap=True)
        for row in rows:
            table.add_row(escape(row.id), f"{row.a:.3f}", f"{row.b:.3f}", f"{row.difference:+.3f}")
        console.print()
        console.print(table)


def _nothing(row: Row) -> bool:
    return row.found.a == 0 == row.found.b


def _numbers(found: Difference) -> tuple[str, str, str, str]:
    """A, B, B - A and the interval as text, all with the same decimals."""
    size = max((abs(value) for value in (found.a, found.b) if value is not None), default=0.0)
    form = ".1e" if 0 < size < 0.001 else ".4f" if size < 100 else ".1f"

    def text(value: float | None, sign: str = "") -> str:
        return "-" if value is None else f"{value:{sign}{form}}"

    interval = "-" if found.lo is None else f"{text(found.lo, '+')} {text(found.hi, '+')}"
    return text(found.a), text(found.b), text(found.difference, "+"), interval


def _count(number: int) -> str:
    return f"{number:,}" if number < 100_000 else f"{number / 1e6:.1f} M" if number < 1e9 else "> 1,000 M"
