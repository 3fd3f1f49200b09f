"""`apiece demo`: the main job from COCO boxes to pictures, as the commands that a user would type."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from apiece.cli import app
from apiece.errors import UserError
from apiece.files import write_text

CONFIG = """\
# A short fine-tuning of the embedded checkpoint; written by `apiece demo`.
model:
  checkpoint: tiny
data:
  train: {out}/train.jsonl
  eval: {out}/eval.jsonl
  object_order: reading
  flip: true
objective:
  bbox_geo:
    config: {{smoothl1_beta: 0.05, ciou_weight: 0.5}}
  coord_reg:
    config:
      {{coord_ce_weight: 0.25, soft_ce_weight: 0.75, w1_weight: 1.0, coord_gate_weight: 0.2,
       target_sigma: 4.0, target_truncate: 16}}
optim: {{lr: 3.0e-4, warmup_steps: 10}}
train: {{steps: {steps}, batch_size: 16, log_every: 10}}
generate: {{batch_size: 32, max_objects: 60}}
eval: {{samples: 16}}
run: {{name: run, dir: {out}}}
"""


@app.command(short_help="Do the main job on drawn scenes, in a few minutes.")
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="New folder for everything that is made.")] = Path("demo"),
    steps: Annotated[int, typer.Option(min=12, help="Training steps.")] = 80,
    scenes: Annotated[int, typer.Option(min=16, help="Training scenes.")] = 480,
) -> None:
    """Go through the main job in a few minutes: draw scenes, import, check, train, evaluate, look.

    Every command is printed before it runs, so that each can be repeated by hand.

    Example: `apiece demo --out demo`
    """
    if out.exists():
        raise UserError(
            "the folder exists already and is not overwritten", where=out, fix="remove it or choose another --out"
        )
    train, test = out / "scenes_train", out / "scenes_eval"
    _run("scenes", train, "--n", scenes, "--seed", 11)
    _run("scenes", test, "--n", 64, "--seed", 12)
    for folder, name in ((train, "train"), (test, "eval")):
        annotations, images = folder / "complete.json", folder
        _run("data", "import", "coco", "--annotations", annotations, "--images", images, "--out", out / f"{name}.jsonl")
    _run("data", "check", out / "train.jsonl")
    _run("evaluate", "tiny", "--data", out / "eval.jsonl", "--out", out / "before", "--pictures", 4)
    write_text(out / "demo.yaml", CONFIG.format(out=out, steps=steps))
    _run("train", out / "demo.yaml")
    _run("evaluate", out / "run", "--data", out / "eval.jsonl", "--out", out / "after")
    typer.echo(
        f"\nLook at:\n  {train / 'contact_sheet.png'}  the scenes with their boxes\n"
        f"  {out / 'after' / 'contact_sheet.png'}  truth left, predictions right"
    )


def _run(*words: object) -> None:
    """Print a command and run it in a process of its own; its error ends the demo."""
    arguments = [str(word) for word in words]
    typer.echo(f"\n$ apiece {shlex.join(arguments)}")
    done = subprocess.run([sys.executable, "-m", "apiece", *arguments], check=False)
    if done.returncode:
        raise typer.Exit(done.returncode)
