"""`apiece predict`: boxes on photos."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from apiece.cli import app


@app.command()
def predict(
    checkpoint: Annotated[str, typer.Argument(metavar="CHECKPOINT", help="Checkpoint or run folder, or `tiny`.")],
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE_OR_DIR...", help="Photos, or folders of photos.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="New or empty folder.")],
    batch_size: Annotated[int, typer.Option(min=1, help="Images at once.")] = 16,
    max_objects: Annotated[int, typer.Option(min=1, help="End an answer after this many objects.")] = 100,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy; above it, seeded sampling.")] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="Of sampling.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    overlays: Annotated[bool, typer.Option(help="Draw the boxes on each photo.")] = True,
) -> None:
    """Detect objects in photos.

    Writes `predictions.jsonl` (boxes in pixels of the original photo, scores, raw answers), `coco.json` (annotation-free
    COCO images and categories), `results.json` (COCO results) and an overlay PNG per photo. Folders stream.

    Example: `apiece predict tiny photos/ --out predictions`
    """
    from apiece.config.schema import GenerateSection
    from apiece.evaluate.photos import predict_photos

    settings = GenerateSection(batch_size=batch_size, max_objects=max_objects, temperature=temperature)
    done = predict_photos(checkpoint, images, out, settings, device=device, seed=seed, overlays=overlays)
    if done.warning:
        typer.echo(f"warning: {done.warning}", err=True)
    for problem in done.skipped:
        typer.echo(f"skipped: {problem}", err=True)
    typer.echo(f"{done.images} photos, {done.objects} objects, {done.dropped} records dropped; wrote {out}")
    if done.skipped:
        raise typer.Exit(1)
