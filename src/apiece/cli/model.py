"""`apiece model`: make checkpoints that can be trained."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from apiece.cli import app

model_app = typer.Typer(
    no_args_is_help=True,
    help="Make checkpoints: a tiny one, or a full-size one with coordinate tokens.",
    short_help="Make checkpoints that can be trained.",
)
app.add_typer(model_app, name="model")


@model_app.command()
def tiny(
    out: Annotated[Path, typer.Option("--out", "-o", help="New folder.")],
    seed: Annotated[int, typer.Option(help="Seed of the weights.")] = 0,
) -> None:
    """Write an untrained tiny Qwen3-VL (about 4 M parameters) with its tokenizer and image processor.

    Example: `apiece model tiny --out models/tiny0`
    """
    from apiece.files import require_new
    from apiece.model.tiny import build_tiny

    require_new(out)
    count = build_tiny(out, seed)
    typer.echo(f"wrote {out}: {count / 1e6:.2f} M parameters, untrained")


@model_app.command()
def extend(
    source: Annotated[str, typer.Option("--from", help="Checkpoint folder or downloaded Hugging Face id.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="New folder.")],
) -> None:
    """Add the 1000 coordinate tokens to a Qwen3-VL or Qwen2.5-VL checkpoint.

    Example: `apiece model extend --from Qwen/Qwen3-VL-2B-Instruct --out models/qwen3vl-2b`
    """
    from apiece.model.extend import extend_checkpoint

    done = extend_checkpoint(source, out)
    head = "tied head" if done.tied else "separate head"
    typer.echo(
        f"wrote {done.out}: coordinate tokens from id {done.first_id},"
        f" {done.rows_before} -> {done.rows_after} rows, {head}; verified"
    )


@model_app.command()
def export(
    source: Annotated[str, typer.Argument(metavar="CHECKPOINT", help="Checkpoint or run folder, or `tiny`.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="New folder.")],
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "bfloat16",
) -> None:
    """Write the weights of a checkpoint to a folder of their own, without optimizer state.

    Example: `apiece model export runs/stage1 --out models/mine --dtype bfloat16`
    """
    from apiece.model.extend import export_checkpoint

    size = export_checkpoint(source, out, dtype)
    typer.echo(f"wrote {out}: {size / 1e6:.2f} MB, {dtype}")


@model_app.command()
def merge(
    source: Annotated[
        str, typer.Argument(metavar="RUN_OR_ADAPTER", help="Run that trained adapters, or a folder of them.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="New folder.")],
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    base: Annotated[str | None, typer.Option(help="The adapter's base, if it was moved.")] = None,
) -> None:
    """Write adapters (LoRA, DoRA), merged into the model they were trained on, as an ordinary checkpoint.

    With the trained coordinate rows. Evaluation merges by itself, in memory; this is for further training and for use
    elsewhere.

    Example: `apiece model merge runs/stage1_lora --out models/stage1`
    """
    from apiece.model.extend import merge_checkpoint

    size = merge_checkpoint(source, out, dtype, base)
    typer.echo(f"wrote {out}: {size / 1e6:.2f} MB, {dtype}")
