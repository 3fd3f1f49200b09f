"""`apiece config`: what a config says in full, and where each value comes from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from apiece.cli import app
from apiece.errors import UserError


@app.command(short_help="Print a config in full, or every mistake in it.")
def config(
    file: Annotated[
        str | None, typer.Argument(metavar="FILE", help="YAML file; none: the defaults.", show_default=False)
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Settings on top of it.", show_default=False)
    ] = None,
    changed: Annotated[bool, typer.Option("--changed", help="Only what differs from the defaults.")] = False,
    against: Annotated[
        Path | None, typer.Option(metavar="OTHER", help="Only what differs from this config.", show_default=False)
    ] = None,
    schema: Annotated[bool, typer.Option("--schema", help="The JSON schema, for editors.")] = False,
    reference: Annotated[bool, typer.Option("--reference", help="All settings as Markdown.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="Write it here.", show_default=False)
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file if it is there.")] = False,
) -> None:
    """Print a config in full as YAML, with where each value comes from; or every mistake in it, all at once.

    Examples:

    - `apiece config configs/tiny/stage1.yaml` prints every setting

    - `apiece config configs/tiny/stage1.yaml optim.lr=3e-4 'optim.betas[0]=0.8' --changed` prints what is no default

    - `apiece config A.yaml --against B.yaml` prints what differs between the two

    - `apiece config --schema --out config.schema.json` writes the schema for an editor
    """
    arguments = [*([] if file is None else [file]), *(overrides or [])]
    modes = [name for name, on in {"--schema": schema, "--reference": reference}.items() if on]
    views = [name for name, on in {"--changed": changed, "--against": against is not None}.items() if on]
    if len(modes + views) > 1 or (modes and arguments):
        together = " and ".join([*modes, *views, *(["FILE or KEY=VALUE"] if modes and arguments else [])])
        raise UserError(f"these do not go together: {together}", fix="ask for one at a time", exit_code=2)
    from apiece.files import require_free

    if out is not None:
        require_free(out, overwrite=overwrite)
    from apiece.config.reference import config_schema
    from apiece.config.reference import reference as reference_text

    if schema:
        text = json.dumps(config_schema(), indent=2, ensure_ascii=False) + "\n"
    elif reference:
        text = reference_text()
    else:
        text = _settings(arguments, changed, against)
    if out is None:
        print(text, end="")
    else:
        from apiece.files import write_text

        write_text(out, text)


def _settings(arguments: list[str], changed: bool, against: Path | None) -> str:
    """The settings as YAML with comments."""
    from apiece.config.reference import default_values, render, values, yaml_text
    from apiece.config.resolve import load_config
    from apiece.config.yaml_source import dotted

    path, overrides = _split(arguments)
    loaded = load_config(path, overrides)
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


def _split(arguments: list[str]) -> tuple[Path | None, list[str]]:
    """The file, if the first argument is one, and the settings."""
    if arguments and ("=" not in arguments[0] or Path(arguments[0]).is_file()):
        return Path(arguments[0]), arguments[1:]
    return None, arguments
