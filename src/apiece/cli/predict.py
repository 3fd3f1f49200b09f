"""`apiece predict`: boxes on photos."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from apiece.cli import app
from apiece.cli.options import (
    Device,
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

if TYPE_CHECKING:
    from apiece.evaluate.predict import PhotosDone


@app.command()
def predict(
    checkpoint: Annotated[
        str, typer.Argument(metavar="CHECKPOINT", help="Checkpoint or run folder, Hugging Face id, or `tiny`.")
    ],
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE_OR_DIR... [KEY=VALUE]...",
            help="Photos, and folders of photos (searched at any depth); then how answers are generated: "
            "`generate.*`, `prompt.*`, `seed` (`apiece config` prints them), `server.*`.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="New or empty folder.")],
    score_policy: ScorePolicyName = "coord_logprob",
    device: Device = "auto",
    server: Server = None,
    served_model: ServedModel = None,
    overlays: Annotated[bool, typer.Option(help="Draw the boxes on each photo.")] = True,
    resume: Annotated[bool, typer.Option("--resume", help="Resume the run in `--out`: do what is missing.")] = False,
) -> None:
    """Detect objects in photos.

    Writes `predictions.jsonl` (boxes in pixels of the original photo, scores, raw answers), `coco.json` and
    `results.json` (COCO images and categories, COCO results), `protocol.json` (checkpoint, prompt, settings) and
    `overlays/NAME.png` for each photo. Photos stream, so a folder may be of any size. One that cannot be read is named
    and skipped (exit code 1 at the end). Ctrl-C keeps what is done; `--resume` does the rest.

    Examples:

    `apiece predict tiny photos/ --out predictions`

    `apiece predict tiny photos/ --out predictions 'generate.labels=[person, sports ball]' generate.temperature=0.5`

    `apiece predict runs/mine photos/ --out predictions --server http://localhost:8000/v1 server.concurrency=32`
    """
    from apiece.model.find import resolve_checkpoint

    resolve_checkpoint(checkpoint)  # reports a mistake in its name at once, before torch is loaded
    from apiece.data.images import find_photos
    from apiece.evaluate.answers import check_out, chosen_policy
    from apiece.evaluate.predict import load_predictor, predict_photos

    # Everything that can be refused is refused before a large model is loaded.
    asked, remote = answer_settings([one for one in images if is_setting(one)], server, served_model, device)
    policy, prompt = chosen_policy(score_policy), chosen_prompt(asked)
    paths = [Path(one) for one in images if not is_setting(one)]
    if not paths:
        raise UserError("name photos, or folders of them, as well as settings", exit_code=2)
    check_out(out, resume=resume)
    photos = find_photos(paths, leave_out=out)
    predictor = load_predictor(
        checkpoint,
        asked.generate,
        server=remote,
        prompt=prompt,
        device=device,
        seed=asked.seed,
        policy=policy,
        warn=warn,
    )
    try:
        done = predict_photos(predictor, photos, out, overlays=overlays, resume=resume)
    except KeyboardInterrupt:
        raise interrupted(out) from None
    _report(done, out, policy)


def _report(done: PhotosDone, out: Path, policy: str) -> None:
    from apiece.data.lines import counted
    from apiece.evaluate.answers import no_scores

    for skipped in done.skipped:
        typer.echo(f"skipped: {skipped}", err=True)
    if not done.images:
        message = f"no photo could be read: {counted(len(done.skipped), 'file')} skipped, nothing written"
        raise UserError(message, where=out, fix="name photos, or folders of them")
    if done.policy != policy:
        warn(no_scores(policy, done.policy))
    earlier = f" ({done.resumed:,} of them earlier)" if done.resumed else ""
    objects = f"{counted(done.objects, 'object')}, {counted(done.dropped, 'malformed object')} dropped"
    typer.echo(f"{counted(done.images, 'photo')}{earlier}, {objects}; wrote {out}")
    if done.skipped:
        typer.echo(f"{counted(len(done.skipped), 'photo')} skipped", err=True)
        raise typer.Exit(1)
