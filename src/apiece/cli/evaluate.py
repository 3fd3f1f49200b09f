"""`apiece evaluate`: score a checkpoint on a split, or detections on their annotations."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from apiece.cli import app
from apiece.cli.options import (
    BatchSize,
    Device,
    Grammar,
    Labels,
    MaxObjects,
    Prompt,
    PromptText,
    ScorePolicyName,
    chosen_labels,
    chosen_prompt,
)
from apiece.errors import UserError

_FORMS = "apiece evaluate CHECKPOINT --data X.jsonl  or  apiece evaluate --predictions DETS.json --annotations GT.json"
_OF_CHECKPOINTS = (
    *("batch_size", "max_objects", "grammar", "label", "prompt", "prompt_text", "score_policy", "device", "pictures"),
)


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
) -> None:
    """Score a checkpoint on a split, or detections on their annotations.

    Gives the official COCO AP, F1 at IoU 0.5 (one prediction a label, of its class), the ceiling of the coordinate
    bins, what each prediction is (duplicate, group box over several objects, background, ...) and what fixing each kind
    would give, by class and by crowding; AP by score policy and by the order of equal scores, and the calibration of
    scores. All in `OUT/metrics.json` and as tables. docs/metrics.md explains each figure.

    For a checkpoint also `predictions.jsonl` (raw answers, boxes, scores), `coco.json` and `results.json` (the same as
    COCO labels and results), `pictures/` and `contact_sheet.png` (labels beside predictions, from few objects to many).

    Examples:

    `apiece evaluate tiny --data data/crowd/complete.jsonl --out out --score-policy product`

    `apiece evaluate --predictions dets.json --annotations instances_val2017.json --out out`
    """
    _check_usage(context, checkpoint, data, predictions, annotations)
    from apiece.evaluate.metrics import new_metrics_path

    path = new_metrics_path(out, overwrite=overwrite)
    if checkpoint is not None and data is not None:
        from apiece.config.schema import GenerateSection
        from apiece.evaluate.metrics import print_table
        from apiece.evaluate.predict import evaluate_checkpoint
        from apiece.evaluate.scores import chosen_policy

        metrics = evaluate_checkpoint(
            checkpoint,
            data,
            out,
            min_score=min_score,
            settings=GenerateSection(
                batch_size=batch_size,
                max_objects=max_objects,
                grammar=grammar,
                labels=chosen_labels(label, grammar),
            ),
            prompt=chosen_prompt(prompt, prompt_text),
            device=device,
            pictures=pictures,
            complete=complete,
            policy=chosen_policy(score_policy),
            warn=lambda message: typer.echo(f"warning: {message}", err=True),
        )
        print_table(metrics)
        typer.echo(f"\nwrote {path}" + (f"; look at {out / 'contact_sheet.png'}" if pictures else ""))
    elif predictions is not None and annotations is not None:
        _evaluate_files(predictions, annotations, path, min_score, complete)


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
    idle = [f"--{name.replace('_', '-')}" for name in _OF_CHECKPOINTS if _typed(context, name)]
    if checkpoint is None and idle:
        raise UserError(f"only for a CHECKPOINT: {', '.join(idle)}", fix=_FORMS, exit_code=2)


def _typed(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _evaluate_files(predictions: Path, annotations: Path, path: Path, min_score: float, complete: Path | None) -> None:
    from apiece.evaluate.complete import fit_complete, with_classes_of
    from apiece.evaluate.detections import load_coco_results, load_ground_truth
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
