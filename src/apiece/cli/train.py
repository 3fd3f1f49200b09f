"""`apiece train`: train as a config says, or go on with an interrupted run."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from apiece.cli import app
from apiece.errors import UserError, nearest

MAX_LISTED = 10


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
    _check_usage(config, overrides or [], resume)
    from apiece.config.load import load_config, require_data

    if resume is not None:
        loaded, name = load_config(resume / "config.yaml"), resume.name
    else:
        assert config is not None, "checked above"
        loaded = load_config(config, overrides or [])
        name = loaded.config.run.name or config.stem
    require_data(loaded)
    from apiece.train.loop import train as run_training  # loads torch: only once the config is known to be right

    outcome = run_training(loaded.config, name, resume=resume)
    if outcome.finished:
        typer.echo(f"done: {outcome.step} steps in {outcome.run}")
        if os.environ.get("RANK", "0") == "0":  # of several processes one speaks
            for line in _closing(outcome.run, loaded.config.data.eval):
                typer.echo(line)
    else:
        typer.echo(f"stopped after step {outcome.step}; go on with: apiece train --resume {outcome.run}")


def _closing(run: Path, data: str | None) -> list[str]:
    """What a finished run gave, where its log is, and the command that comes next."""
    lines = [f"log: {run / 'train.log'}"]
    evaluated = sorted((run / "eval").glob("step_*/metrics.json"))
    if evaluated:
        figures = json.loads(evaluated[-1].read_text(encoding="utf-8"))
        step = int(evaluated[-1].parent.name.removeprefix("step_"))
        named = (("F1", "f1/f1"), ("AP", "coco/AP"))
        told = ", ".join(f"{name} {figures[key]:.3f}" for name, key in named if figures.get(key) is not None)
        lines.insert(0, f"last evaluation (step {step}): {told}")
    return [*lines, f"next: apiece evaluate {run} --data {data or 'X.jsonl'} --out {run / 'evaluation'}"]


def _check_usage(config: Path | None, overrides: list[str], resume: Path | None) -> None:
    """Raise a `UserError` unless there is a CONFIG with settings on top, or a run to go on with."""
    if resume is None:
        if config is None:
            raise UserError("name a CONFIG, or a run to --resume", exit_code=2)
        if "=" in str(config) and not config.exists():
            fix = f"apiece train CONFIG.yaml {' '.join([str(config), *overrides])}"
            raise UserError(f"CONFIG comes first, then settings; found the setting {config}", fix=fix, exit_code=2)
        return
    if config is not None:
        given = [str(config), *overrides]
        settings = [one for one in given if "=" in one]
        if len(settings) < len(given):
            raise UserError(f"name a CONFIG ({config}), or a run to --resume: one of the two", exit_code=2)
        raise UserError(
            f"settings cannot change when a run goes on; found {' '.join(settings)}",
            fix=f"leave them out, or start a new run: apiece train {resume}/config.yaml model.checkpoint={resume} "
            f"run.name=NEW {' '.join(settings)}",
            exit_code=2,
        )
    if not (resume / "config.yaml").is_file():
        beside = resume.parent if resume.parent.is_dir() else Path()
        runs = sorted(path.parent.name for path in beside.glob("*/config.yaml"))
        found = "a folder without one" if resume.is_dir() else "a file" if resume.exists() else "nothing"
        there = f"runs in {beside}: {', '.join(runs[-MAX_LISTED:])}" if runs else f"there are no runs in {beside}"
        raise UserError(
            f"expected the folder of a run, with its config.yaml; found {found}{nearest(resume.name, runs)}",
            where=resume,
            fix=there,
            exit_code=2,
        )
