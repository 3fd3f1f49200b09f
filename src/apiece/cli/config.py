"""`apiece config`: a config in full, and where each value comes from; and the configs that come with the package."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated

import typer

from apiece.cli import app
from apiece.cli.options import Overwrite, Settings
from apiece.errors import UserError


@app.command(short_help="Print a config in full, or every mistake in it.")
def config(
    file: Annotated[
        str | None,
        typer.Argument(metavar="FILE", help="YAML file, or the name of a packaged config; none: the defaults."),
    ] = None,
    overrides: Settings = None,
    changed: Annotated[bool, typer.Option("--changed", help="Only what differs from the defaults.")] = False,
    against: Annotated[Path | None, typer.Option(metavar="OTHER", help="Only what differs from this config.")] = None,
    list_: Annotated[bool, typer.Option("--list", help="The packaged configs, by name.")] = False,
    copy: Annotated[str | None, typer.Option(metavar="NAME", help="Copy this packaged config to FILE.")] = None,
    schema: Annotated[bool, typer.Option("--schema", help="The JSON schema, for editors.")] = False,
    reference: Annotated[bool, typer.Option("--reference", help="All settings as Markdown.")] = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="FILE", help="Write it here.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Print a config in full as YAML, with where each value comes from; or every mistake in it, all at once.

    Examples:

    - `apiece config --list` lists the configs that come with the package

    - `apiece config --copy tiny/bccd mine.yaml` copies one, to be edited

    - `apiece config tiny/stage1` prints every setting

    - `apiece config mine.yaml optim.lr=3e-4 'optim.betas[0]=0.8' --changed` prints what differs from the defaults

    - `apiece config A.yaml --against B.yaml` prints what differs between the two

    - `apiece config --schema --out config.schema.json` writes the schema for an editor
    """
    arguments = [*([] if file is None else [file]), *(overrides or [])]
    modes = [name for name, on in {"--list": list_, "--schema": schema, "--reference": reference}.items() if on]
    views = {"--copy": copy is not None, "--changed": changed, "--against": against is not None}
    together = [*modes, *(name for name, on in views.items() if on)]
    if len(together) > 1 or (modes and arguments):
        named = " and ".join([*together, *(["FILE or KEY=VALUE"] if modes and arguments else [])])
        raise UserError(f"these do not go together: {named}", fix="ask for one at a time", exit_code=2)
    from apiece.config.reference import config_schema
    from apiece.config.reference import reference as reference_text
    from apiece.files import require_free, write_text

    if copy is not None:
        if file is None or overrides or out is not None:
            message = "--copy takes one FILE, and no settings"
            raise UserError(message, fix=f"apiece config --copy {copy} mine.yaml", exit_code=2)
        out = Path(file)
    if out is not None:
        require_free(out, overwrite=overwrite)
    if list_:
        _list()
        return
    if copy is not None:
        from apiece.config.resolve import copy_of

        text = copy_of(copy)
    elif schema:
        text = json.dumps(config_schema(), indent=2, ensure_ascii=False) + "\n"
    elif reference:
        text = reference_text()
    else:
        text = _settings(arguments, changed, against)
    if out is None:
        print(text, end="")
    else:
        write_text(out, text)


def _list() -> None:
    """Print name and first sentence of every packaged config."""
    from apiece.config.resolve import packaged_configs
    from apiece.printed import stdout_console, table

    listed = table("config", "what it is", words=1)
    for name, file in packaged_configs().items():
        with file.open(encoding="utf-8") as lines:
            listed.add_row(name, re.split(r"(?<=\.) ", next(lines).strip("# \n"))[0])
    stdout_console().print(listed)


def _settings(arguments: list[str], changed: bool, against: Path | None) -> str:
    from apiece.config.reference import default_values, render, values, yaml_text
    from apiece.config.resolve import load_config
    from apiece.config.yaml_source import dotted

    named = bool(arguments) and ("=" not in arguments[0] or Path(arguments[0]).is_file())
    loaded = load_config(Path(arguments[0]) if named else None, arguments[1:] if named else arguments)
    mine = values(loaded.config)
    comments = {keys: str(loaded.sources[dotted(keys)]) for keys in mine}
    missing: list[str] = []
    if against is not None:
        other = load_config(against)
        theirs = values(other.config)
        missing = [
            f"# {dotted(keys)} is only in {against}: {yaml_text(theirs[keys])}\n" for keys in theirs if keys not in mine
        ]
        mine = {keys: value for keys, value in mine.items() if keys not in theirs or theirs[keys] != value}
        for keys in mine:
            there = f"{yaml_text(theirs[keys])} ({other.sources[dotted(keys)]})" if keys in theirs else "not there"
            comments[keys] += f"; {against}: {there}"
    elif changed:
        defaults = default_values()
        mine = {keys: value for keys, value in mine.items() if keys not in defaults or defaults[keys] != value}
    return "".join([render(mine, comments), *missing])
