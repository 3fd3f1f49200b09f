"""`apiece plan`: what a run will need on given GPUs, from shapes alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from apiece.cli import app
from apiece.cli.options import Settings, require_config_first
from apiece.errors import UserError


@app.command(short_help="What a run needs on given GPUs: tokens, memory, time.")
def plan(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file.")],
    overrides: Settings = None,
    gpu: Annotated[
        str, typer.Option(metavar="NAME[:COUNT]", help="GPUs, one process each; a wrong name lists all.")
    ] = "h100:1",
    utilisation: Annotated[
        float | None,
        typer.Option(
            min=0.01, max=1, help="Share of the bf16 peak that is reached; by default what is assumed of the GPU."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("--json", metavar="OUT", help="Also write the plan here.")] = None,
) -> None:
    """Work out what a run needs, before a GPU is rented or a weight downloaded.

    Tokens of a sample, parameters, memory of a GPU by kind of step, FLOPs and estimated time, on 1 to 512 GPUs.
    Reads the config, the data file, and of the checkpoint everything but the weights, which may be missing.
    Exits with 1 if the run does not fit, after listing what would make it fit.

    Examples:

    `apiece plan tiny/stage1 data.train=data/crowd/complete.jsonl --gpu l4`

    `apiece plan stage2_two_channel/prod/desc_first_a_only model.checkpoint=DIR data.train=X.jsonl
    train.parallel=fsdp --gpu h100:8 --json plan.json`
    """
    require_config_first("plan", config, overrides or [])
    from apiece.config.resolve import load_config, require_data

    loaded = load_config(config, overrides or [])
    require_data(loaded)
    from apiece.files import write_json
    from apiece.planning.estimate import GIB, machine_of
    from apiece.planning.lengths import PlanInput
    from apiece.planning.plan import make_plan, print_plan

    machine = machine_of(gpu, utilisation)
    made = make_plan(loaded.config, PlanInput.of(loaded.config), machine)
    if out is not None:
        write_json(out, made)
    print_plan(made)
    if not made["batch"]["splits_evenly"]:
        size, micro = loaded.config.train.batch_size, made["batch"]["micro"]
        message = f"train.batch_size ({size}) does not split evenly over {machine.count} processes in micro-batches"
        fix = f"train.batch_size={made['batch']['samples']}, which is what was planned"
        raise UserError(f"{message} of {micro}", where="config", fix=fix)
    if not made["fits"]:
        message = (
            f"the run does not fit on {gpu}: {made['needs'] / GIB:.1f} GiB needed, {made['room'] / GIB:.1f} usable"
        )
        fix = "no change of these settings makes it fit: take a smaller model, or larger GPUs"
        if made["changes"]:
            first = made["changes"][0]
            fix = f"{first['change']} ({first['needs'] / GIB:.1f} GiB, {first['times_as_long']:.2f} times as long)"
        raise UserError(message, where=config, fix=fix)
