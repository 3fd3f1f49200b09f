"""`apiece evaluate`: score a checkpoint on a split, or detections on their annotations."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from apiece.cli import app
from apiece.cli.options import (
    BatchSize,
    Concurrency,
    Device,
    Grammar,
    Labels,
    MaxObjects,
    Prompt,
    PromptText,
    Retries,
    ScorePolicyName,
    ServedModel,
    Server,
    Timeout,
    chosen_labels,
    chosen_prompt,
    chosen_server,
    typed,
)
from apiece.errors import UserError

_FORMS = "apiece evaluate CHECKPOINT --data X.jsonl  or  apiece evaluate --predictions DETS.json --annotations GT.json"
_OF_CHECKPOINTS = (
    *("batch_size", "max_objects", "grammar", "label", "prompt", "prompt_text", "score_policy", "device", "pictures"),
    *("server", "served_model", "concurrency", "timeout", "retries", "resume"),
)
INTERRUPTED = 130


@app.command()
def evaluate(
    context: typer.Context,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for `metrics.json`; made if missing.")],
    checkpoint: Annotated[
        str | None,
        typer.Argument(help="Checkpoint or run folder, Hugging Face id, or `tiny`; with `--data`.", show_default=False),
    ] = None,
    data: Annotated[Path | None, typer.Option(help="apiece JSONL to run the model on.", show_default=False)] = None,
    predictions: Annotated[
        Path | None, typer.Option(help="Detections: a COCO results file.", show_default=False)
    ] = None,
    annotations: Annotated[
        Path | None, typer.Option(help="Their labels: COCO annotations, or apiece JSONL.", show_default=False)
    ] = None,
    min_score: Annotated[float, typer.Option(help="Leave lower scores out of F1 (never out of AP).")] = 0.0,
    complete: Annotated[
        Path | None,
        typer.Option(
            help="Everything that is on the same images: COCO annotations, or apiece JSONL.", show_default=False
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the metrics in `--out`.")] = False,
    batch_size: BatchSize = 16,
    max_objects: MaxObjects = 100,
    grammar: Grammar = True,
    label: Labels = None,
    prompt: Prompt = None,
    prompt_text: PromptText = None,
    score_policy: ScorePolicyName = "coord_logprob",
    device: Device = "auto",
    pictures: Annotated[int, typer.Option(min=0, help="How many images to draw, labels beside predictions.")] = 16,
    server: Server = None,
    served_model: ServedModel = None,
    concurrency: Concurrency = 8,
    timeout: Timeout = 300.0,
    retries: Retries = 5,
    resume: Annotated[bool, typer.Option("--resume", help="Resume the interrupted evaluation in `--out`.")] = False,
) -> None:
    """Score a checkpoint on a split, or detections on their annotations.

    Gives the official COCO AP, F1 at IoU 0.5 (one prediction a label, of its class), the ceiling of the coordinate
    bins, what each prediction is (duplicate, group box over several objects, background, ...) and what fixing each kind
    would give, by class and by crowding; AP by score policy and by the order of equal scores, and the calibration of
    scores. All in `OUT/metrics.json` and as tables. docs/metrics.md explains each figure.

    With `--server` another process writes the answers (docs/serving.md). After an interruption, `--resume` answers only
    the missing images.

    For a checkpoint also `predictions.jsonl` (raw answers, boxes, scores), `coco.json` and `results.json` (the same as
    COCO labels and results), `pictures/` and `contact_sheet.png` (labels beside predictions, from few objects to many).

    Examples:

    `apiece evaluate tiny --data data/crowd/complete.jsonl --out out --score-policy product`

    `apiece evaluate runs/mine --data val.jsonl --out out --server http://localhost:8000/v1 --concurrency 32`

    `apiece evaluate --predictions dets.json --annotations instances_val2017.json --out out`
    """
    _check_usage(context, checkpoint, data, predictions, annotations)
    from apiece.evaluate.metrics import new_metrics_path

    path = new_metrics_path(out, overwrite=overwrite or resume)
    if checkpoint is not None and data is not None:
        _evaluate_model(context, checkpoint, data, path)
    elif predictions is not None and annotations is not None:
        _evaluate_files(predictions, annotations, path, min_score, complete)


def _evaluate_model(context: typer.Context, checkpoint: str, data: Path, path: Path) -> None:
    from apiece.model.find import resolve_checkpoint

    resolve_checkpoint(checkpoint)  # a mistake in its name is told at once, before torch is loaded
    from apiece.config.schema import GenerateSection
    from apiece.evaluate.answers import chosen_policy
    from apiece.evaluate.metrics import print_table
    from apiece.evaluate.predict import evaluate_checkpoint

    given, out = context.params, path.parent
    server = chosen_server(context)
    labels = chosen_labels(given["label"], given["grammar"])
    caps = {name: given[name] for name in ("batch_size", "max_objects", "grammar")}
    common: dict[str, Any] = {
        "settings": GenerateSection(labels=labels, **caps),
        "prompt": chosen_prompt(given["prompt"], given["prompt_text"]),
        "policy": chosen_policy(given["score_policy"]),
        "warn": lambda message: typer.echo(f"warning: {message}", err=True),
        **{name: given[name] for name in ("min_score", "pictures", "complete", "resume", "overwrite", "device")},
    }
    try:
        metrics = evaluate_checkpoint(checkpoint, data, out, server=server, **common)
    except KeyboardInterrupt:
        fix = "repeat the command with --resume"
        raise UserError("interrupted; finished answers are kept", where=out, fix=fix, exit_code=INTERRUPTED) from None
    print_table(metrics)
    typer.echo(f"\nwrote {path}" + (f"; look at {out / 'contact_sheet.png'}" if given["pictures"] else ""))


def _check_usage(
    context: typer.Context,
    checkpoint: str | None,
    data: Path | None,
    predictions: Path | None,
    annotations: Path | None,
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
    idle = typed(context, *_OF_CHECKPOINTS)
    if checkpoint is None and idle:
        raise UserError(f"only for a CHECKPOINT: {', '.join(idle)}", fix=_FORMS, exit_code=2)


def _evaluate_files(predictions: Path, annotations: Path, path: Path, min_score: float, complete: Path | None) -> None:
    from apiece.evaluate.detections import fit_complete, load_coco_results, load_ground_truth, with_classes_of
    from apiece.evaluate.metrics import AS_GIVEN, evaluate_detections, print_table, write_metrics

    truth, everything = load_ground_truth(annotations), None
    if complete:
        everything = load_ground_truth(complete)
        truth = with_classes_of(everything, truth)
        everything = fit_complete(everything, truth, complete)[1]
    detections = load_coco_results(predictions, truth)
    metrics = evaluate_detections(truth, detections, policy=AS_GIVEN, min_score=min_score, complete=everything)
    write_metrics(path, metrics)
    print_table(metrics)
    typer.echo(f"\nwrote {path}")
