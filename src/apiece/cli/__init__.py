"""The command line. Each command lives in a module of its own and imports what it needs when it runs."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from apiece.errors import UserError

app = typer.Typer(
    name="apiece",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def root(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Train vision-language models to detect objects by writing coordinate tokens: **one box apiece**."""
    if debug:
        os.environ["APIECE_DEBUG"] = "1"


def main() -> None:
    """Entry point: run the command; a `UserError` becomes one message and an exit code."""
    from apiece.cli import commands  # noqa: F401  registers every command

    try:
        app()
    except UserError as error:
        if os.environ.get("APIECE_DEBUG"):
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
