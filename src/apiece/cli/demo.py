"""`apiece demo`: from COCO boxes to a page that compares two runs, as the commands that a user would type."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from apiece.cli import app
from apiece.errors import UserError

CONFIGS = {"baseline": "tiny/a_only", "recommended": "tiny/recommended"}
DUMPS = 4


@app.command(short_help="Do the main job on drawn scenes, in a few minutes.")
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="New folder for everything that is made.")] = Path("demo"),
    steps: Annotated[int, typer.Option(min=12, help="Training steps of each run.")] = 60,
    scenes: Annotated[int, typer.Option(min=16, help="Training scenes.")] = 480,
    tests: Annotated[int, typer.Option(min=16, help="Scenes that the runs are compared on.")] = 96,
) -> None:
    """Run the main job in a few minutes: draw crowds, import, check, train two ways, evaluate, compare, look.

    The scenes are crowds of which 40 % have no label, as in COCO; the complete truth is known, and used for evaluation.
    Every command is printed before it runs, so that each can be repeated by hand.

    Example: `apiece demo --out demo`
    """
    if out.exists():
        message = "the folder exists already and is not overwritten"
        raise UserError(message, where=out, fix="remove it, or choose another --out")
    train, test = out / "scenes_train", out / "scenes_eval"
    _run("scenes", train, "--n", scenes, "--seed", 11, "--unlabelled", 0.4)
    _run("scenes", test, "--n", tests, "--seed", 12, "--unlabelled", 0.4)
    for folder, name in ((train, "train"), (test, "eval")):
        labels = folder / "observed.json"
        _run("data", "import", "coco", "--annotations", labels, "--images", folder, "--out", out / f"{name}.jsonl")
    _run("data", "check", out / "train.jsonl")
    from apiece.config.reference import yaml_text

    data = {"train": out / "train.jsonl", "eval": out / "eval.jsonl", "complete": test / "complete.json"}
    shared = [f"data.{key}={yaml_text(str(path))}" for key, path in data.items()]
    shared += [f"run.dir={yaml_text(str(out / 'runs'))}", f"train.steps={steps}", "optim.warmup_steps=10"]
    shared += ["train.save_every=null", "eval.every_steps=null", "eval.samples=16", "generate.batch_size=32"]
    shared += [f"monitor.every_steps={-(-steps // DUMPS)}", "monitor.panel.size=12"]
    for name, config in CONFIGS.items():
        _run("train", config, *shared, f"run.name={name}")
    for name in CONFIGS:
        truth = ("--data", out / "eval.jsonl", "--complete", test / "complete.json")
        _run("evaluate", out / "runs" / name, *truth, "--out", out / f"eval_{name}", "--pictures", 8)
    _run("report", *(out / "runs" / name for name in CONFIGS), "--out", out / "report")
    _run("compare", *(out / f"eval_{name}" for name in CONFIGS), "--out", out / "comparison")
    typer.echo(
        f"\nLook at:\n  {out / 'report' / 'index.html'}  the same crowds through training, two runs side by side\n"
        f"  {out / 'eval_recommended' / 'contact_sheet.png'}  labels left, predictions right\n"
        f"  {train / 'contact_sheet.png'}  the scenes with their boxes\n"
        f"{steps} steps show how it works; to compare recipes, train each with several seeds: apiece ladder."
    )


def _run(*words: object) -> None:
    """Print a command and run it in a process of its own; its error ends the demo."""
    arguments = [str(word) for word in words]
    typer.echo(f"\n$ apiece {shlex.join(arguments)}")
    done = subprocess.run([sys.executable, "-m", "apiece", *arguments], check=False)
    if done.returncode:
        raise typer.Exit(done.returncode)
