"""`apiece replay`: a step of a run gone over again, to see where it is not finite."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from apiece.cli import app
from apiece.errors import UserError

MOST_NAMES = 4


@app.command(short_help="Go over one training step again, to see what is not finite.")
def replay(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")],
    step: Annotated[
        int | None,
        typer.Option(help="Number of the step, from 1.", show_default="the last that was not finite"),
    ] = None,
) -> None:
    """Go over one training step again, sample by sample: which terms and gradients are not finite, and where.

    The steps since the last checkpoint before it are taken again, with the same samples, answers and random numbers.
    Nothing of the run is changed.

    Example: `apiece replay runs/stage1 --step 1200`
    """
    if not (run / "config.yaml").is_file():
        raise UserError("expected the folder of a run, with its config.yaml", where=run, exit_code=2)
    from apiece.train.replay import Replayed
    from apiece.train.replay import replay as go_over

    done: Replayed = go_over(run, step, say=typer.echo)
    typer.echo(f"step {done.step} (channel {done.channel.upper()}), {len(done.samples)} samples")
    for bad in done.bad:
        for name, value in bad.terms.items():
            which, _, term = name.partition("/")
            typer.echo(f"  sample {bad.sample}  pass {which}  term {term}  {value}")
        if bad.gradients:
            more = f" and {len(bad.gradients) - MOST_NAMES} more" if len(bad.gradients) > MOST_NAMES else ""
            typer.echo(f"  sample {bad.sample}  gradient of {', '.join(bad.gradients[:MOST_NAMES])}{more}")
    if not done.bad:
        typer.echo("  everything is finite here: on this device, and each sample by itself")
