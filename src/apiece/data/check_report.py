"""Printing a check report: tables for people, in a terminal or a file; problems one a line, so that grep works."""

from __future__ import annotations

from collections import Counter

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from apiece.data.check import SIZES, CheckReport
from apiece.data.problems import Level, Problem, ProblemKind, counted

MAX_CLASSES = 20


def print_report(report: CheckReport, console: Console, *, show: int) -> None:
    """Print numbers, then notes and warnings (the first `show` of each kind), then every error.

    Args:
        report: What to print.
        console: Where to; a console on a file gets plain text.
        show: Warnings to list of each kind; -1 for all.
    """
    if report.images:
        _print_numbers(report, console)
    _print_some(report, Level.NOTE, console, show)
    _print_some(report, Level.WARNING, console, show)
    if total := report.counted(Level.ERROR).total():
        print_problems(report.errors, counted(total, "error"), console)
        _print_rest(console, total - len(report.errors))


def print_problems(problems: list[Problem], title: str, console: Console) -> None:
    """Print problems under a title, each on one line that is never wrapped."""
    plain_line(console, "")
    plain_line(console, f"{title}:")
    for problem in problems:
        plain_line(console, f"  {printable(str(problem))}")


def plain_line(console: Console, text: str) -> None:
    """Print a line as it is: no markup, no wrapping."""
    console.print(Text(text), soft_wrap=True, highlight=False)


def kinds(counts: Counter[ProblemKind]) -> str:
    """`3 box_zero_size, 1 missing_image`: problems counted by kind."""
    return ", ".join(f"{count:,} {kind}" for kind, count in counts.most_common())


def printable(text: str) -> str:
    """Text without what would move the cursor or colour a terminal: data may hold anything."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def _print_some(report: CheckReport, level: Level, console: Console, show: int) -> None:
    by_kind: dict[ProblemKind, list[Problem]] = {}
    for problem in report.of(level):
        by_kind.setdefault(problem.kind, []).append(problem)
    for kind, found in by_kind.items():
        shown, total = found if show < 0 else found[:show], report.counts[kind]
        print_problems(shown, f"{counted(total, str(level))} {kind}", console)
        if len(shown) < len(found):
            plain_line(console, f"  ... and {total - len(shown):,} more (--show -1 lists all)")
        else:
            _print_rest(console, total - len(shown))


def _print_rest(console: Console, count: int) -> None:
    if count:
        plain_line(console, f"  ... and {count:,} more, which are counted but not listed")


def _table(console: Console, title: str, *columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD if console.is_terminal else None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(title, overflow="fold")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _print_table(console: Console, table: Table) -> None:
    plain_line(console, "")
    console.print(table, highlight=False)


def _print_numbers(report: CheckReport, console: Console) -> None:
    crowd = f" ({report.crowd_regions:,} of them iscrowd)" if report.crowd_regions else ""
    classes = len(report.class_objects)
    plain_line(
        console,
        f"{counted(report.images, 'image')}, {counted(report.objects, 'object')}{crowd}, {counted(classes, 'class')}",
    )
    _print_classes(report, console)
    table = _table(console, "objects in an image", "images", "share")
    for name, count in report.crowding.items():
        table.add_row(name, f"{count:,}", _share(count, report.images))
    _print_table(console, table)
    if report.most_objects:
        most, line = report.most_objects
        plain_line(console, f"most: {most:,} ({report.path}:{line}); over max_objects: {report.over_max_objects:,}")
    if report.objects:
        table = _table(console, "object size (area, COCO)", "objects", "share")
        for name, low, high in SIZES:
            label = f"{name}, under {high**0.5:.0f}^2" if high else f"{name}, from {low**0.5:.0f}^2"
            table.add_row(label, f"{report.sizes[name]:,}", _share(report.sizes[name], report.objects))
        _print_table(console, table)
        quantiles = ", ".join(f"{name} {value:g}" for name, value in report.short_side.items())
        plain_line(console, f"shorter box side in pixels, quantiles: {quantiles}")
        plain_line(
            console,
            f"same-class pairs: {report.overlap_50:,} with IoU >= 0.5, {report.overlap_90:,} with IoU >= 0.9;"
            f" boxes that contain two or more of their class: {report.group_boxes:,}",
        )
    if not report.images_opened:
        plain_line(console, "image files were not opened (--no-images)")


def _print_classes(report: CheckReport, console: Console) -> None:
    if not report.class_objects:
        return
    table = _table(console, "class", "objects", "images")
    rows = report.class_objects.most_common()
    for name, count in rows[:MAX_CLASSES]:
        table.add_row(Text(printable(name)), f"{count:,}", f"{report.class_images[name]:,}")
    _print_table(console, table)
    if len(rows) > MAX_CLASSES:
        rest = sum(count for _, count in rows[MAX_CLASSES:])
        plain_line(console, f"and {len(rows) - MAX_CLASSES:,} more classes with {rest:,} objects (--json lists all)")


def _share(count: int, total: int) -> str:
    return f"{count / total:.1%}"
