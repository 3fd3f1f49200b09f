"""`apiece train`: train as a config says, or resume an interrupted run."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Annotated

import typer

from apiece.cli import app
from apiece.cli.options import Settings, require_config_first
from apiece.errors import UserError, nearest

MAX_LISTED = 10
TERMINATED = 128 + signal.SIGTERM
"""Exit code after SIGTERM, as shells count it: by it a scheduler knows to start the run again."""
FREE = (
    *("train.micro_batch_size", "train.parallel", "train.device", "train.save_every", "train.sharded_checkpoints"),
    *("train.keep_last", "train.keep_best", "train.skip_nonfinite", "model.gradient_checkpointing", "data.workers"),
    *("train.grace_s", "generate.batch_size"),
)
"""Settings that may change on resume: they affect speed and what is kept, not training."""


@app.command()
def train(
    config: Annotated[
        Path | None, typer.Argument(metavar="CONFIG", help="YAML file, or the name of a packaged config.")
    ] = None,
    overrides: Settings = None,
    resume: Annotated[Path | None, typer.Option(help="Folder of an interrupted run.")] = None,
    step: Annotated[
        int | None, typer.Option(help="With --resume: from this step's checkpoint.", show_default="the newest")
    ] = None,
) -> None:
    """Train a model, and evaluate it on the way.

    A run is written to its folder (`runs/NAME`): config, manifest, metrics, log, checkpoints, evaluations. Ctrl-C and
    SIGTERM save and exit (a second one exits at once). `--resume` ends with the same weights as without the
    interruption, and takes settings that affect speed, not training.

    Examples:

    `apiece train tiny/stage1 data.train=data/crowd/complete.jsonl` (`apiece config --list`: all packaged configs)

    `apiece train --resume runs/stage1`

    `apiece train --resume runs/stage1 train.micro_batch_size=2` (it ran out of memory)

    `torchrun --nproc-per-node 2 -m apiece train CONFIG` (several processes)

    `torchrun --nproc-per-node 8 -m apiece train CONFIG train.parallel=fsdp` (with the model sharded among them)
    """
    settings = _check_usage(config, overrides or [], resume, step)
    from apiece.config.resolve import load_config, require_data

    if resume is not None:
        loaded, name = load_config(resume / "config.yaml", settings), resume.name
    else:
        assert config is not None, "checked above"
        loaded = load_config(config, settings)
        name = loaded.config.run.name or config.stem
        _require_name(name)
    require_data(loaded)
    from apiece.train.loop import train as run_training  # loads torch: only once the config is checked

    speaks = os.environ.get("RANK", "0") == "0"  # of several processes one
    outcome = run_training(
        loaded.config, name, resume=resume, step=step, say=lambda text: typer.echo(text) if speaks else None
    )
    if speaks:
        end = f"stopped after step {outcome.step}, which is saved; resume with: apiece train --resume {outcome.run}"
        if outcome.finished:
            end = "\n".join(
                [f"done: {outcome.step} steps in {outcome.run}", *_closing(outcome.run, loaded.config.data.eval)]
            )
        typer.echo(end)
    if not outcome.finished and outcome.signal == signal.SIGTERM:
        raise typer.Exit(TERMINATED)


def _require_name(name: str) -> None:
    """Raise a `UserError` unless a run's folder would lie in `run.dir`."""
    if name in (".", "..") or set(name) & set("/\\\0") or not name.strip():
        message = f"run.name: expected the name of a folder in run.dir, found {name!r}"
        raise UserError(message, fix="give it a name without `/`; run.dir sets another place", exit_code=2)


def _closing(run: Path, data: str | None) -> list[str]:
    lines = [f"log: {run / 'train.log'}"]
    evaluated = sorted((run / "eval").glob("step_*/metrics.json"))
    if evaluated:
        figures = json.loads(evaluated[-1].read_text(encoding="utf-8"))
        step = int(evaluated[-1].parent.name.removeprefix("step_"))
        named = (("F1", "f1/f1"), ("AP", "coco/AP"))
        shown = ", ".join(f"{name} {figures[key]:.3f}" for name, key in named if figures.get(key) is not None)
        lines.insert(0, f"last evaluation (step {step}): {shown}")
    return [*lines, f"next: apiece evaluate {run} --data {data or 'X.jsonl'} --out {run / 'evaluation'}"]


def _check_usage(config: Path | None, overrides: list[str], resume: Path | None, step: int | None) -> list[str]:
    """The settings on top of the CONFIG or of the run to resume; a `UserError` if the arguments do not fit together."""
    if resume is None:
        if step is not None:
            raise UserError("--step goes with --resume", exit_code=2)
        if config is None:
            raise UserError("name a CONFIG, or a run to --resume", exit_code=2)
        require_config_first("train", config, overrides)
        return overrides
    given = [] if config is None else [str(config), *overrides]
    settings = [one for one in given if "=" in one]
    if len(settings) < len(given):
        raise UserError(f"name a CONFIG ({config}), or a run to --resume: one of the two", exit_code=2)
    if fixed := [one for one in settings if one.partition("=")[0] not in FREE]:
        new = f"apiece train {resume}/config.yaml model.checkpoint={resume} run.name=NEW {' '.join(settings)}"
        fix = f"leave them out, or start a new run: {new}; these can: {', '.join(FREE)}"
        message = f"these settings affect training and cannot be changed when resuming: {' '.join(fixed)}"
        raise UserError(message, fix=fix, exit_code=2)
    if not (resume / "config.yaml").is_file():
        folder = resume.parent if resume.parent.is_dir() else Path()
        runs = sorted(path.parent.name for path in folder.glob("*/config.yaml"))
        found = "a folder without one" if resume.is_dir() else "a file" if resume.exists() else "nothing"
        there = f"runs in {folder}: {', '.join(runs[-MAX_LISTED:])}" if runs else f"there are no runs in {folder}"
        message = f"expected the folder of a run, with its config.yaml; found {found}{nearest(resume.name, runs)}"
        raise UserError(message, where=resume, fix=there, exit_code=2)
    return settings
