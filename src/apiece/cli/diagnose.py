"""`apiece diagnose`: what fails, how often, where, and which explanation the probes support."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from apiece.cli import app
from apiece.cli.options import Device, Overwrite, warn


@app.command(short_help="What fails, where, and which explanation the probes support.")
def diagnose(
    target: Annotated[
        str, typer.Argument(metavar="RUN_OR_CHECKPOINT", help="Run or checkpoint folder, Hugging Face id, or `tiny`.")
    ],
    data: Annotated[
        Path | None, typer.Option(help="apiece JSONL to run the model on; the run's own by default.")
    ] = None,
    complete: Annotated[
        Path | None,
        typer.Option(help="Everything that is on the same images: COCO or JSONL; the run's own by default."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Folder for `diagnosis.json`; by default RUN/diagnosis, or `diagnosis` here for a checkpoint.",
        ),
    ] = None,
    samples: Annotated[
        int | None, typer.Option(min=1, help="At most this many images, a fixed choice; all by default.")
    ] = None,
    object_order: Annotated[
        str | None,
        typer.Option(
            metavar="ORDER",
            help="Order of the labels: `sorted`, `left_to_right`, `reading` or `random`; by default as trained.",
        ),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Images at once; the run's by default, 16 without one.")
    ] = None,
    max_objects: Annotated[
        int | None,
        typer.Option(min=1, help="End an answer after this many objects; the run's by default, 100 without one."),
    ] = None,
    device: Device = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Say what fails, how often and where, and which explanation of long boxes the model's beliefs support.

    For a run that has dumps, and without options that need the model, the newest dump is read: no model is loaded.
    Otherwise the model answers the split (`--data`, else the run's `data.eval`) and its beliefs are probed at the
    labels. Averaging, chimera contexts and group boxes in the labels are tested as explanations, each figure with its
    interval; where the figures decide nothing, it says so.

    Examples:

    `apiece diagnose runs/a_only`

    `apiece diagnose tiny --data data/crowd/observed.jsonl --complete data/crowd/complete.jsonl --samples 100`
    """
    from apiece.files import require_free, write_json
    from apiece.model.find import resolve_checkpoint
    from apiece.study.diagnosis import DIAGNOSIS_FILE, print_diagnosis
    from apiece.study.diagnosis import diagnose as diagnose_split
    from apiece.study.evidence import Request, from_dump, from_model, reads_dump

    home = Path(target) if (Path(target) / "config.yaml").is_file() else Path()
    path = (out or home / "diagnosis") / DIAGNOSIS_FILE
    require_free(path, overwrite=overwrite)
    request = Request(target, data, complete, samples, object_order, batch_size, max_objects, device)
    if reads_dump(request):
        source = from_dump(Path(target))
    else:
        if data is not None:
            resolve_checkpoint(target)  # reports a mistake in its name at once, before torch is loaded
        source = from_model(request, path.parent, warn, lambda message: typer.echo(message, err=True))
    for remark in source.remarks:
        warn(remark)
    found = diagnose_split(
        *(source.truth, source.detections, source.probes),
        policy=source.policy,
        complete=source.complete,
        sigma=source.sigma,
        training=source.training,
    )
    write_json(path, {**found, "source": {**source.about, "remarks": list(source.remarks)}})
    print_diagnosis(found)
    typer.echo(f"\nwrote {path}")
