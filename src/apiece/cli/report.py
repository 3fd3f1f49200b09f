"""`apiece report`: runs as a page to look at."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from apiece.cli import app
from apiece.errors import UserError, require_file

_SHOWN = 5


@app.command(short_help="Write a page to look at runs, image by image.")
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN [RUN ...]", help="Folders of runs.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="New or empty folder for the page.")],
    comparison: Annotated[
        Path | None,
        typer.Option(help="A `comparison.json` to show, instead of comparing the runs' dumps.", show_default=False),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the report in `--out`.")] = False,
) -> None:
    """Write a page that shows the dumps of runs: every image through training, two runs side by side.

    The folder opens from disk (`OUT/index.html`), needs no network, and can be copied as it is. Each photo is stored
    once, without its metadata. Two runs or more are compared as `apiece compare` does. docs/report.md explains the
    page.

    Example: `apiece report runs/baseline runs/anchor --out report`
    """
    from apiece.report.page.build import build_report

    found, note = (_read(comparison), "") if comparison else _compared(runs)
    built = build_report(runs, out, comparison=found, comparison_note=note, overwrite=overwrite)
    for gap in built.gaps[:_SHOWN]:
        typer.echo(f"warning: {gap}", err=True)
    if len(built.gaps) > _SHOWN:
        typer.echo(f"warning: and {len(built.gaps) - _SHOWN} more gaps; the page lists them", err=True)
    if note and len(runs) > 1:
        typer.echo(f"warning: not compared: {note}", err=True)
    typer.echo(f"{built.samples} images, {built.steps} dumps, {built.num_bytes / 1e6:.1f} MB")
    typer.echo(f"wrote {built.page}; open it, or: apiece view {out}")


def _read(path: Path) -> dict[str, Any]:
    require_file(path, "a comparison.json")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"not valid JSON: {error}", where=path, fix="name what `apiece compare --out` wrote") from error
    if not isinstance(value, dict) or not ("rows" in value or "pairs" in value):
        raise UserError("expected a comparison, with `rows`", where=path, fix="name what `apiece compare --out` wrote")
    return value


def _compared(runs: list[Path]) -> tuple[dict[str, Any] | None, str]:
    """The comparison of the runs' newest common dumps, or why there is none."""
    if len(runs) < 2:
        return None, ""
    from apiece.compare.arms import group_seeds
    from apiece.compare.read import read_sources
    from apiece.compare.run import compare, comparison_json

    try:
        arms, told = group_seeds(read_sources(runs))
        return comparison_json(compare(arms, remarks=told)), ""
    except UserError as error:
        return None, error.message
