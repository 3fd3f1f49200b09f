"""`apiece predict`: boxes on photos."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
)
from apiece.errors import UserError

if TYPE_CHECKING:
    from apiece.evaluate.predict import PhotosDone

INTERRUPTED = 130


@app.command()
def predict(
    context: typer.Context,
    checkpoint: Annotated[
        str, typer.Argument(metavar="CHECKPOINT", help="Checkpoint or run folder, Hugging Face id, or `tiny`.")
    ],
    images: Annotated[
        list[Path],
        typer.Argument(metavar="IMAGE_OR_DIR...", help="Photos, and folders of photos (searched at any depth)."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="New or empty folder.")],
    batch_size: BatchSize = 16,
    max_objects: MaxObjects = 100,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy; above it, seeded sampling.")] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="Of sampling.")] = 0,
    grammar: Grammar = True,
    label: Labels = None,
    prompt: Prompt = None,
    prompt_text: PromptText = None,
    score_policy: ScorePolicyName = "coord_logprob",
    device: Device = "auto",
    server: Server = None,
    served_model: ServedModel = None,
    concurrency: Concurrency = 8,
    timeout: Timeout = 300.0,
    retries: Retries = 5,
    overlays: Annotated[bool, typer.Option(help="Draw the boxes on each photo.")] = True,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in `--out`: do what is missing.")
    ] = False,
) -> None:
    """Detect objects in photos.

    Writes `predictions.jsonl` (boxes in pixels of the original photo, scores, raw answers), `coco.json` and
    `results.json` (COCO images and categories, COCO results), `protocol.json` (checkpoint, prompt, settings) and
    `overlays/NAME.png` for each photo. Photos stream, so a folder may be of any size. One that cannot be read is named
    and skipped (exit code 1 at the end). Ctrl-C keeps what is done; `--resume` does the rest.

    Examples:

    `apiece predict tiny photos/ --out predictions`

    `apiece predict tiny photos/ --out predictions --label person --label "sports ball"`

    `apiece predict runs/mine photos/ --out predictions --server http://localhost:8000/v1 --concurrency 32`
    """
    from apiece.model.find import resolve_checkpoint

    resolve_checkpoint(checkpoint)  # a mistake in its name is told at once, before torch is loaded
    from apiece.config.schema import GenerateSection
    from apiece.data.photos import find_photos
    from apiece.evaluate.answers import check_out, chosen_policy
    from apiece.evaluate.predict import load_predictor, predict_photos

    # Everything that can be refused is refused before a large model is loaded.
    labels = chosen_labels(label, grammar)
    asked, policy, remote = chosen_prompt(prompt, prompt_text), chosen_policy(score_policy), chosen_server(context)
    check_out(out, resume=resume)
    photos = find_photos(images, leave_out=out)
    settings = GenerateSection(
        batch_size=batch_size, max_objects=max_objects, temperature=temperature, grammar=grammar, labels=labels
    )
    predictor = load_predictor(
        checkpoint, settings, server=remote, prompt=asked, device=device, seed=seed, policy=policy, warn=_warn
    )
    try:
        done = predict_photos(predictor, photos, out, overlays=overlays, resume=resume)
    except KeyboardInterrupt:
        raise UserError(
            "interrupted; finished answers are kept",
            where=out,
            fix="repeat the command with --resume",
            exit_code=INTERRUPTED,
        ) from None
    _report(done, out, policy)


def _report(done: PhotosDone, out: Path, policy: str) -> None:
    from apiece.evaluate.answers import no_scores

    for problem in done.skipped:
        typer.echo(f"skipped: {problem}", err=True)
    if not done.images:
        raise UserError(
            f"no photo could be read: {_count(len(done.skipped), 'file')} skipped, nothing written",
            where=out,
            fix="name photos, or folders of them",
        )
    if done.policy != policy:
        _warn(no_scores(policy, done.policy))
    earlier = f" ({done.resumed:,} of them earlier)" if done.resumed else ""
    counts = (
        f"{_count(done.images, 'photo')}{earlier}, {_count(done.objects, 'object')}, {_count(done.dropped, 'record')}"
    )
    typer.echo(f"{counts} dropped; wrote {out}")
    if done.skipped:
        typer.echo(f"{_count(len(done.skipped), 'photo')} skipped", err=True)
        raise typer.Exit(1)


def _warn(message: str) -> None:
    typer.echo(f"warning: {message}", err=True)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
