"""`apiece report`, `view` and `export`: runs as a page, the page in a browser, and predictions for other tools."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from apiece.cli import app
from apiece.cli.options import Overwrite, warn
from apiece.errors import UserError, require_file
from apiece.files import read_json

_SHOWN = 5
_COMPARISON = "name what `apiece compare --out` wrote"


@app.command(short_help="Write a page to look at runs, image by image.")
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN [RUN ...]", help="Folders of runs.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="New or empty folder for the page.")],
    comparison: Annotated[
        Path | None, typer.Option(help="A `comparison.json` to show, instead of comparing the runs' dumps.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Write a page that shows the dumps of runs: every image through training, two runs side by side.

    The folder opens from disk (`OUT/index.html`), needs no network, and can be copied as it is. Each photo is stored
    once, without its metadata. Two runs or more are compared as `apiece compare` does.

    Example: `apiece report runs/baseline runs/anchor --out report`
    """
    from apiece.report.page import build_report

    found, note = (_read(comparison), "") if comparison else _compared(runs)
    built = build_report(runs, out, comparison=found, comparison_note=note, overwrite=overwrite)
    for gap in built.gaps[:_SHOWN]:
        warn(f"{gap}")
    if len(built.gaps) > _SHOWN:
        warn(f"and {len(built.gaps) - _SHOWN} more gaps; the page lists them")
    if note and len(runs) > 1:
        warn(f"not compared: {note}")
    typer.echo(f"{built.samples} images, {built.steps} dumps, {built.num_bytes / 1e6:.1f} MB")
    typer.echo(f"wrote {built.page}; open it, or: apiece view {out}")


def _read(path: Path) -> dict[str, Any]:
    value = read_json(require_file(path, "a comparison.json"), fix=_COMPARISON)
    if not isinstance(value, dict) or not ("rows" in value or "pairs" in value):
        raise UserError("expected a comparison, with `rows`", where=path, fix=_COMPARISON)
    return value


def _compared(runs: list[Path]) -> tuple[dict[str, Any] | None, str]:
    """The comparison of the runs' newest common dumps, or why there is none."""
    if len(runs) < 2:
        return None, ""
    from apiece.study.arms import group_seeds, read_sources
    from apiece.study.comparison import compare, comparison_json

    try:
        arms, remarks = group_seeds(read_sources(runs))
        return comparison_json(compare(arms, remarks=remarks)), ""
    except UserError as error:
        return None, error.message


@app.command(short_help="Show a report in the browser.")
def view(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder that `apiece report` wrote.")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 0,
    open_: Annotated[bool, typer.Option("--open", help="Also open the browser.")] = False,
) -> None:
    """Serve a report on this machine only (127.0.0.1), until Ctrl-C.

    The page opens from disk as well; serving is for a machine that you reach through a tunnel
    (`ssh -L 8000:127.0.0.1:PORT HOST`), or a browser that opens no files.

    Example: `apiece view report`
    """
    from apiece.report.serve import serve

    def ready(url: str) -> None:
        typer.echo(f"{url}  (Ctrl-C ends)")
        if open_:
            typer.launch(url)

    serve(folder, port, ready)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run with dumps.")],
    coco: Annotated[Path, typer.Option(metavar="FILE", help="COCO results file to write.")],
    annotations: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write a COCO annotation file of the same images.")
    ] = None,
    step: Annotated[int | None, typer.Option(help="Step of the dump; the newest if it is left out.")] = None,
) -> None:
    """Write the panel's predictions at one step for other tools.

    Ids of images and classes in the COCO results are those of `--annotations`.

    Examples:

    `apiece export runs/a_only --coco results.json --annotations labels.json`

    `apiece evaluate --annotations labels.json --predictions results.json --out scores` (the figures of that dump)
    """
    from apiece.dumps.folder import open_run
    from apiece.evaluate.export import export_coco

    dump = open_run(run).dump(step)
    for gap in dump.gaps:
        warn(f"{gap}")
    done = export_coco(dump, coco, annotations)
    typer.echo(f"step {dump.step}: {done.predictions} predictions on {done.images} images in {coco}")
    if done.unscored:
        warn(f"{done.unscored} predictions have no score and got 0")
    if annotations is not None:
        typer.echo(f"labels of the same images: {annotations}")
    else:
        typer.echo("note: ids of images and classes are those of --annotations, which was not asked for", err=True)
