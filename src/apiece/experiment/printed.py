"""A summary on the terminal: one row an arm, its headline figures, and how it differs from the reference."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from apiece.compare.interval import Verdict
from apiece.experiment.markdown import headline_columns, label, number
from apiece.experiment.summary import ALL, Summary

_MARKS = {
    Verdict.BETTER: "[green]+[/]",
    Verdict.WORSE: "[red]-[/]",
    Verdict.HIGHER: "^",
    Verdict.LOWER: "v",
    Verdict.SAME: "=",
    Verdict.CANNOT_TELL: "?",
}
_WIDTH = 160


def print_summary(summary: Summary, console: Console | None = None) -> None:
    """Print a summary: coloured on a terminal, plain text elsewhere; it takes 160 columns."""
    console = console or Console()
    if console.width < _WIDTH:
        console = Console(width=_WIDTH)
    columns = headline_columns(summary)
    for reference in summary.references:
        table = Table(box=None, pad_edge=False, header_style="bold", title_justify="left")
        table.add_column(f"against {reference}", no_wrap=True)
        table.add_column("seeds", justify="right")
        for scope, key in columns:
            head = label(key).replace(", complete truth", ", true").replace("the neighbour's box", "neighbour")
            table.add_column(escape(head + ("" if scope == ALL else f", {scope}")), justify="right", no_wrap=True)
        for arm, rows in summary.results.items():
            cells = []
            for scope, key in columns:
                mean = summary.means.get((arm, scope, key))
                found = summary.differences.get((reference, arm, scope, key))
                value = "-" if mean is None or mean.value is None else number(mean.value, key)
                told = found is not None and found.lo is not None
                cells.append(f"{value} {_MARKS[found.verdict] if found is not None and told else ' '}")
            table.add_row(escape(arm), str(len(rows)), *cells)
        console.print(table)
    console.print(
        "+ better, - worse, ^ higher, v lower than the reference; ? can't tell; `true` is judged on complete truth",
        style="dim",
    )
    for remark in summary.remarks:
        console.print(f"- {escape(remark)}", highlight=False)
