"""`apiece train`: train as a config says, or go on with an interrupted run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from apiece.cli import app
from apiece.errors import UserError


@app.command()
def train(
    config: Annotated[Path | None, typer.Argument(metavar="CONFIG", help="YAML file.", show_default=False)] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Settings on top of the file.", show_default=False),
    ] = None,
    resume: Annotated[Path | None, typer.Option(help="Folder of an interrupted run.", show_default=False)] = None,
) -> None:
    """Train a model, and evaluate it on the way.

    Everything of a run is in its folder (`runs/NAME`): config, manifest, metrics, log, checkpoints, evaluations. Ctrl-C
    saves and ends; `--resume` goes on to the same weights as without the interruption.

    Examples:

    `apiece train configs/tiny/stage1.yaml data.train=data/crowd/complete.jsonl`

    `apiece train --resume runs/stage1`

    `torchrun --nproc-per-node 2 -m apiece train CONFIG` (several processes)

    `torchrun --nproc-per-node 8 -m apiece train CONFIG train.parallel=fsdp` (that share the model among them)
    """
    if (config is None) == (resume is None):
        raise UserError("name a CONFIG, or a run to --resume: one of the two", exit_code=2)
    if resume is not None:
        if overrides:
            raise UserError("a resumed run keeps its own config; found settings on top", exit_code=2)
        if not (resume / "config.yaml").is_file():
            raise UserError("expected a run's folder with config.yaml", where=resume, exit_code=2)
    from apiece.config.load import load_config

    if resume is not None:
        loaded, name = load_config(resume / "config.yaml"), resume.name
    else:
        assert config is not None, "checked above"
        loaded = load_config(config, overrides or [])
        name = loaded.config.run.name or config.stem
    from apiece.train.loop import train as run_training  # loads torch: only once the config is known to be right

    outcome = run_training(loaded.config, name, resume=resume)
    if outcome.finished:
        typer.echo(f"done: {outcome.step} steps in {outcome.run}")
    else:
        typer.echo(f"stopped after step {outcome.step}; go on with: apiece train --resume {outcome.run}")
