"""`apiece evaluate`: score a checkpoint on a split, or detections on their annotations."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from apiece.cli import app
from apiece.errors import UserError

_FORMS = "apiece evaluate CHECKPOINT --data X.jsonl  or  apiece evaluate --predictions DETS.json --annotations GT.json"


@app.command()
def evaluate(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for `metrics.json`; made if missing.")],
    checkpoint: Annotated[
        Path | None, typer.Argument(help="Checkpoint folder of a run; with `--data`.", show_default=False)
    ] = None,
    data: Annotated[Path | None, typer.Option(help="apiece JSONL to run the model on.", show_default=False)] = None,
    predictions: Annotated[
        Path | None, typer.Option(help="Detections: a COCO results file.", show_default=False)
    ] = None,
    annotations: Annotated[
        Path | None, typer.Option(help="Their labels: COCO annotations, or apiece JSONL.", show_default=False)
    ] = None,
    min_score: Annotated[float, typer.Option(help="Leave lower scores out of F1 (never out of AP).")] = 0.0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the metrics in `--out`.")] = False,
) -> None:
    """Score a checkpoint on a split, or detections on their annotations.

    Gives the official COCO AP, F1 at IoU 0.5 (one prediction a label, of its class), the ceiling of the coordinate
    bins, and the same by class and by crowding, in `OUT/metrics.json` and as a table. docs/metrics.md explains each.
    """
    _check_usage(checkpoint, data, predictions, annotations)
    from apiece.evaluate.metrics import new_metrics_path

    path = new_metrics_path(out, overwrite=overwrite)
    if checkpoint is not None and data is not None:
        from apiece.evaluate.predict import evaluate_checkpoint

        evaluate_checkpoint(checkpoint, data, out, min_score=min_score)
    elif predictions is not None and annotations is not None:
        _evaluate_files(predictions, annotations, path, min_score)


def _check_usage(
    checkpoint: Path | None, data: Path | None, predictions: Path | None, annotations: Path | None
) -> None:
    """Raise a `UserError` unless exactly one of the two forms is given in full."""
    model = {"CHECKPOINT": checkpoint, "--data": data}
    files = {"--predictions": predictions, "--annotations": annotations}
    given = [name for name, value in (model | files).items() if value is not None]
    if any(name in given for name in model) and any(name in given for name in files):
        raise UserError(f"these do not go together: {', '.join(given)}", fix=_FORMS, exit_code=2)
    if not given:
        raise UserError("nothing to evaluate", fix=_FORMS, exit_code=2)
    for form in (model, files):
        missing = [name for name, value in form.items() if value is None]
        if len(missing) == 1:
            raise UserError(f"{given[0]} needs {missing[0]} as well", fix=_FORMS, exit_code=2)


def _evaluate_files(predictions: Path, annotations: Path, path: Path, min_score: float) -> None:
    from apiece.evaluate.detections import load_coco_results, load_ground_truth
    from apiece.evaluate.metrics import AS_GIVEN, evaluate_detections, print_table, write_metrics

    truth = load_ground_truth(annotations)
    detections = load_coco_results(predictions, truth)
    metrics = evaluate_detections(truth, detections, policy=AS_GIVEN, min_score=min_score)
    write_metrics(path, metrics)
    print_table(metrics)
    typer.echo(f"\nwrote {path}")
