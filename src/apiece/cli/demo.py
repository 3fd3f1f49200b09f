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
from apiece.files import write_text

BASELINE = """\
# Two passes of self-context from the embedded checkpoint, on scenes where 40 % of the crowd is not labelled.
model: {{checkpoint: tiny}}
data:
  train: {out}/train.jsonl
  eval: {out}/eval.jsonl
  complete: {out}/scenes_eval/complete.json
  object_order: reading
  flip: true
objective:
  bbox_geo:
    config: {{smoothl1_weight: 2.0, ciou_weight: 0.2}}
  coord_reg:
    config: {{coord_ce_weight: 0.0, soft_ce_weight: 0.1, w1_weight: 0.1, coord_gate_weight: 1.0}}
stage2_ab: {{n_softctx_iter: 2}}
optim: {{lr: 3.0e-4, warmup_steps: 10}}
train: {{steps: {steps}, batch_size: 16, log_every: 5}}
generate: {{batch_size: 32, max_objects: 60}}
eval: {{samples: 16}}
monitor: {{every_steps: {every}, panel: {{size: 12}}}}
run: {{name: baseline, dir: {out}/runs}}
"""
RECOMMENDED = """\
# What the study recommends: one pass, and coordinate losses that weigh more.
extends: baseline.yaml
objective:
  bbox_geo:
    config: {{smoothl1_beta: 0.05, ciou_weight: 0.5}}
  coord_reg:
    config: {{coord_ce_weight: 0.25, soft_ce_weight: 0.75, w1_weight: 1.0, coord_gate_weight: 0.2,
             target_sigma: 4.0, target_truncate: 16}}
stage2_ab: {{n_softctx_iter: 1}}
run: {{name: recommended, dir: {out}/runs}}
"""
CONFIGS = {"baseline": BASELINE, "recommended": RECOMMENDED}
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
        raise UserError(
            "the folder exists already and is not overwritten",
            where=out,
            fix="remove it (`make clean` does) or choose another --out",
        )
    train, test = out / "scenes_train", out / "scenes_eval"
    _run("scenes", train, "--n", scenes, "--seed", 11, "--unlabelled", 0.4)
    _run("scenes", test, "--n", tests, "--seed", 12, "--unlabelled", 0.4)
    for folder, name in ((train, "train"), (test, "eval")):
        labels = folder / "observed.json"
        _run("data", "import", "coco", "--annotations", labels, "--images", folder, "--out", out / f"{name}.jsonl")
    _run("data", "check", out / "train.jsonl")
    for name, text in CONFIGS.items():
        write_text(out / f"{name}.yaml", text.format(out=out, steps=steps, every=-(-steps // DUMPS)))
        _run("train", out / f"{name}.yaml")
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
