"""`apiece export`: the predictions of a dump for other tools."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from apiece.cli import app
from apiece.errors import UserError

if TYPE_CHECKING:
    from apiece.evaluate.export import Exported


@app.command()
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run with dumps.", show_default=False)],
    coco: Annotated[
        Path | None, typer.Option(metavar="FILE", help="COCO results file to write.", show_default=False)
    ] = None,
    annotations: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="COCO annotation file of the same images to write beside it.", show_default=False
        ),
    ] = None,
    fiftyone: Annotated[
        Path | None, typer.Option(metavar="DIR", help="New folder that FiftyOne imports.", show_default=False)
    ] = None,
    step: Annotated[
        int | None, typer.Option(help="Step of the dump; the newest if it is left out.", show_default=False)
    ] = None,
) -> None:
    """Write the panel's predictions at one step for other tools.

    Ids of images and classes in the COCO results are those of `--annotations`. FiftyOne itself is not needed here.

    Examples:

    `apiece export runs/a_only --coco results.json --annotations labels.json`

    `apiece evaluate --annotations labels.json --predictions results.json --out scores` (the figures of that dump)

    `apiece export runs/a_only --step 100 --fiftyone panel` (docs/records.md says how to open it)
    """
    if coco is None and fiftyone is None:
        raise UserError("nothing to write: name --coco FILE or --fiftyone DIR", exit_code=2)
    if annotations is not None and coco is None:
        raise UserError("--annotations goes with --coco", exit_code=2)
    from apiece.evaluate.export import export_coco, export_fiftyone
    from apiece.records.folder import open_run

    dump = open_run(run).dump(step)
    for gap in dump.gaps:
        typer.echo(f"warning: {gap}", err=True)
    if coco is not None:
        _tell(export_coco(dump, coco, annotations), dump.step, coco)
        if annotations is not None:
            typer.echo(f"labels of the same images: {annotations}")
        else:
            typer.echo("note: ids of images and classes are those of --annotations, which was not asked for", err=True)
    if fiftyone is not None:
        _tell(export_fiftyone(dump, run, fiftyone), dump.step, fiftyone)


def _tell(done: Exported, step: int, out: Path) -> None:
    typer.echo(f"step {step}: {done.predictions} predictions on {done.images} images in {out}")
    if done.unscored:
        typer.echo(f"warning: {done.unscored} predictions have no score and got 0", err=True)
    if done.missing:
        typer.echo(f"warning: the images of {', '.join(done.missing)} are gone; left out", err=True)
