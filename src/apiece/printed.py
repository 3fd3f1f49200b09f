"""Tables on stdout, all of one look: a left column of names, right-aligned columns of numbers."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Table

WIDTH = 140  # where stdout is no terminal, so that no figure is cut


def stdout_console(width: int = WIDTH) -> Console:
    """A console on stdout, as wide as the terminal, or `width` where there is none."""
    return Console(file=sys.stdout, width=None if sys.stdout.isatty() else width, highlight=False, soft_wrap=True)


def table(head: str, *columns: str, title: str | None = None, head_width: int | None = None, words: int = 0) -> Table:
    """An empty table; `head` names the left column, which is cut to `head_width` characters if that is given.

    The first `words` of the other columns hold text: they are aligned left and may wrap.
    """
    made = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    made.add_column(head, no_wrap=True, max_width=head_width, overflow="ellipsis" if head_width else "fold")
    for number, column in enumerate(columns):
        made.add_column(column, justify="left" if number < words else "right", no_wrap=number >= words)
    return made
