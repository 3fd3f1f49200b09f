"""`apiece evaluate`: score a checkpoint on a split, or detections on their annotations."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from apiece.cli import app
from apiece.cli.options import (
    AnswerOverrides,
    Device,
    Overwrite,
    ScorePolicyName,
    ServedModel,
    Server,
    answer_settings,
    chosen_prompt,
    interrupted,
    is_setting,
    warn,
)
from apiece.errors import UserError
from apiece.files import write_json

if TYPE_CHECKING:
    from apiece.evaluate.metrics import Metrics

_FORMS = "apiece evaluate CHECKPOINT --data X.jsonl  or  apiece evaluate --predictions DETS.json --annotations GT.json"
_POLICY, _PICTURES = "coord_logprob", 16


Checkpoint = typer.Argument(help="Checkpoint or run folder, Hugging Face id, or `tiny`; with `--data`.")
Complete = typer.Option(
    help="Complete annotations of the same images (COCO or JSONL), including objects that the labels leave out."
)
Pictures = typer.Option(min=0, help="How many images to draw, labels left, predictions right.")


@app.command()
def evaluate(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for `metrics.json`; made if missing.")],
    checkpoint: Annotated[str | None, Checkpoint] = None,
    overrides: AnswerOverrides = None,
    data: Annotated[Path | None, typer.Option(help="apiece JSONL to run the model on.")] = None,
    predictions: Annotated[Path | None, typer.Option(help="Detections: a COCO results file.")] = None,
    annotations: Annotated[Path | None, typer.Option(help="Their labels: COCO annotations, or apiece JSONL.")] = None,
    min_score: Annotated[float, typer.Option(help="Leave lower scores out of F1 (never out of AP).")] = 0.0,
    complete: Annotated[Path | None, Complete] = None,
    overwrite: Overwrite = False,
    score_policy: ScorePolicyName = _POLICY,
    device: Device = "auto",
    pictures: Annotated[int, Pictures] = _PICTURES,
    server: Server = None,
    served_model: ServedModel = None,
    resume: Annotated[bool, typer.Option("--resume", help="Resume the interrupted evaluation in `--out`.")] = False,
) -> None:
    """Score a checkpoint on a split, or detections on their annotations.

    Gives the official COCO AP, F1 at IoU 0.5 (one prediction per label, of its class), the ceiling of the coordinate
    bins, what each prediction is (duplicate, group box over several objects, background, ...) and what fixing each kind
    would give, by class and by crowding; AP by score policy, and the calibration of scores. All in `OUT/metrics.json`
    and as tables.

    How answers are generated is set as in `apiece train`: `generate.max_objects=60`, `generate.grammar=false`,
    `prompt.name=coco_80`. With `--server` another process generates them. After an interruption, `--resume` answers
    the images that are missing.

    For a checkpoint also `predictions.jsonl` (raw answers, boxes, scores), `coco.json` and `results.json` (the same as
    COCO labels and results), `pictures/` and `contact_sheet.png` (labels left, predictions right).

    Examples:

    `apiece evaluate tiny --data data/crowd/complete.jsonl --out out generate.batch_size=32 --score-policy product`

    `apiece evaluate runs/mine --data val.jsonl --out out --server http://localhost:8000/v1 server.concurrency=32`

    `apiece evaluate --predictions dets.json --annotations instances_val2017.json --out out`
    """
    settings = list(overrides or [])
    if checkpoint is not None and is_setting(checkpoint):
        settings, checkpoint = [checkpoint, *settings], None
    _check_forms(
        {"CHECKPOINT": checkpoint, "--data": data}, {"--predictions": predictions, "--annotations": annotations}
    )
    idle = {"--score-policy": score_policy != _POLICY, "--device": device != "auto"}
    idle |= {"--pictures": pictures != _PICTURES, "--server": server is not None}
    idle |= {"--model": served_model is not None, "--resume": resume}
    if checkpoint is None and (given := [*settings, *(name for name, value in idle.items() if value)]):
        raise UserError(f"only for a CHECKPOINT: {', '.join(given)}", fix=_FORMS, exit_code=2)
    from apiece.evaluate.metrics import new_metrics_path, print_table

    path = new_metrics_path(out, overwrite=overwrite or resume)
    if checkpoint is None:
        assert predictions is not None and annotations is not None, "checked above"
        metrics = _evaluate_files(predictions, annotations, path, min_score, complete)
    else:
        from apiece.model.find import resolve_checkpoint

        resolve_checkpoint(checkpoint)  # reports a mistake in its name at once, before torch is loaded
        from apiece.evaluate.answers import chosen_policy
        from apiece.evaluate.predict import evaluate_checkpoint

        assert data is not None, "checked above"
        asked, remote = answer_settings(settings, server, served_model, device)
        how: dict[str, Any] = {"settings": asked.generate, "prompt": chosen_prompt(asked), "seed": asked.seed}
        how |= {"server": remote, "device": device, "policy": chosen_policy(score_policy), "min_score": min_score}
        how |= {"complete": complete, "pictures": pictures, "resume": resume, "overwrite": overwrite}
        try:
            metrics = evaluate_checkpoint(checkpoint, data, out, warn=warn, **how)
        except KeyboardInterrupt:
            raise interrupted(out) from None
    print_table(metrics)
    drawn = f"; look at {out / 'contact_sheet.png'}" if checkpoint is not None and pictures else ""
    typer.echo(f"\nwrote {path}{drawn}")


def _check_forms(model: dict[str, object], files: dict[str, object]) -> None:
    """Raise a `UserError` unless exactly one form of the command is given in full."""
    given = [name for name, value in (model | files).items() if value is not None]
    if any(name in given for name in model) and any(name in given for name in files):
        raise UserError(f"these do not go together: {', '.join(given)}", fix=_FORMS, exit_code=2)
    if not given:
        raise UserError("nothing to evaluate", fix=_FORMS, exit_code=2)
    for form in (model, files):
        missing = [name for name, value in form.items() if value is None]
        if len(missing) == 1:
            raise UserError(f"{given[0]} needs {missing[0]} as well", fix=_FORMS, exit_code=2)


def _evaluate_files(
    predictions: Path, annotations: Path, path: Path, min_score: float, complete: Path | None
) -> Metrics:
    from apiece.evaluate.detections import fit_complete, load_coco_results, load_ground_truth, with_classes_of
    from apiece.evaluate.metrics import AS_GIVEN, evaluate_detections

    truth, everything = load_ground_truth(annotations), None
    if complete:
        everything = load_ground_truth(complete)
        truth = with_classes_of(everything, truth)
        everything = fit_complete(everything, truth, complete)[1]
    detections = load_coco_results(predictions, truth)
    metrics = evaluate_detections(truth, detections, policy=AS_GIVEN, min_score=min_score, complete=everything)
    write_json(path, metrics)
    return metrics
