"""The command line. Each command lives in a module of its own and imports what it needs when it runs."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from apiece.cli.options import refuse_former_options
from apiece.errors import INTERRUPTED, UserError

ORDER = (
    "demo,scenes,data,model,config,plan,train,evaluate,diagnose,compare,ladder,report,view,export,predict,env".split(
        ","
    )
)


class _InOrder(TyperGroup):
    """Lists commands in the order in which they are used, not in which they were registered."""

    def list_commands(self, ctx: object) -> list[str]:
        return sorted(self.commands, key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name))

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            error.message = _in_words(error)
            raise


_EXPECTED = {
    "greater_than_equal": "{ge} or more",
    "greater_than": "more than {gt}",
    "less_than_equal": "{le} or less",
    "less_than": "less than {lt}",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_parsing": "a number",
}


def _in_words(error: typer.BadParameter) -> str:
    """What an option expected and what it found; the library's own message for kinds of errors not listed above."""
    from pydantic import ValidationError

    if not isinstance(error.__cause__, ValidationError):
        return error.message
    found = error.__cause__.errors()[0]
    if found["type"] not in _EXPECTED:
        return error.message.replace("Value error, ", "")
    return f"expected {_EXPECTED[found['type']].format(**found.get('ctx', {}))}, found {found['input']}"


app = typer.Typer(
    name="apiece",
    cls=_InOrder,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(asked: bool) -> None:
    if asked:
        from apiece import __version__

        print(f"apiece {__version__}")
        raise typer.Exit


@app.callback()
def root(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Train vision-language models to detect objects by writing coordinate tokens: **one box apiece**.

    The usual order:

    ```text
    apiece scenes OUT                draw crowd scenes, or take your own photos:
    apiece data import coco ...      from COCO, YOLO or Pascal VOC labels
    apiece data check X.jsonl        find what is wrong with the labels
    apiece model extend ...          make a Qwen3-VL ready (`tiny` is ready)
    apiece plan CONFIG --gpu h100:8  what it will need: memory, time, what fits
    apiece train CONFIG              train; all of a run is in runs/NAME
    apiece evaluate runs/NAME ...    official COCO AP, F1; by class, by crowding
    apiece diagnose runs/NAME        what fails, where, and what explains it
    apiece report runs/A runs/B ...  a page to look at them, image by image
    apiece compare runs/A runs/B     what differs, and how sure that is
    apiece ladder LADDER             configs x seeds, trained and compared
    apiece predict runs/NAME PHOTOS  boxes on your photos
    ```

    `apiece COMMAND --help` lists a command's options, with an example. Settings of the model, of training and of
    generation are written KEY=VALUE, such as `generate.max_objects=60`; `apiece config` prints them all.
    `apiece demo` shows all of it in a few minutes.
    """
    if debug:
        os.environ["APIECE_DEBUG"] = "1"


def main() -> None:
    """Entry point."""
    try:
        _run()
    except SystemExit as end:
        # A rank of a distributed training has left the group by now, but needs its own way to end.
        if distributed := sys.modules.get("apiece.train.distributed"):
            distributed.end_process(int(end.code or 0))
        raise


def _run() -> None:
    """Run the command; a `UserError`, or an `OSError` that names its file, becomes one message and an exit code.

    All other exceptions are bugs and keep their traceback.
    """
    try:
        from apiece.cli import commands  # noqa: F401  registers every command

        refuse_former_options(sys.argv[1:])
        app()
    except UserError as error:
        if os.environ.get("APIECE_DEBUG"):
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        if os.environ.get("APIECE_DEBUG") or error.filename is None:
            raise
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
