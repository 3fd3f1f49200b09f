"""Checkpoints of a run: the model as an ordinary folder, the optimizer's state, and the step. Complete or absent.

Nothing is pickled: tensors are safetensors, the rest is JSON. Batches are a function of the step, so the step is all
that is needed of the sampler; the loop draws no other random numbers. Weights and state are whole in the files, so a
run may be resumed on another number of processes, replicated or sharded.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from apiece.errors import UserError
from apiece.files import write_json
from apiece.model.load import TextSide, save_pretrained
from apiece.train.distributed import World
from apiece.train.optim import load_optimizer_tensors, optimizer_tensors
from apiece.train.sharding import put_weights, weights_of, whole_state


def checkpoint_folder(run: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return run / "checkpoints" / f"step_{step:06d}"


def save_checkpoint(
    run: Path,
    step: int,
    model: Any,
    side: TextSide,
    optimizers: Sequence[torch.optim.Optimizer],
    card: dict[str, Any],
    keep_last: int,
    world: World,
) -> Path:
    """Write the checkpoint after `step` steps under a temporary name, rename it, then drop the oldest.

    All processes must call this, as they may hold parts; one of them writes.

    Returns:
        The checkpoint's folder.
    """
    folder = checkpoint_folder(run, step)
    weights = whole_state(weights_of(model), keep=world.is_main)
    state = whole_state(optimizer_tensors(model, optimizers), keep=world.is_main)
    if folder.exists() or not world.is_main:
        return folder
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        save_pretrained(
            model, side.tokenizer, side.images.processor, temporary / "model", card | {"step": step}, weights
        )
        save_file({k: v.contiguous() for k, v in state.items()}, temporary / "optimizer.safetensors")
        write_json(temporary / "state.json", {"step": step})
        for file in temporary.rglob("*"):
            if file.is_file():
                _sync(file)
        temporary.replace(folder)
    except OSError as error:
        raise UserError(
            f"the checkpoint could not be written: {error}", where=folder, fix="free some space, then --resume"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for old in complete_checkpoints(run)[:-keep_last]:
        shutil.rmtree(old)
    return folder


def _sync(file: Path) -> None:
    with open(file, "rb") as handle:
        os.fsync(handle.fileno())


def complete_checkpoints(run: Path) -> list[Path]:
    """Folders of the run's complete checkpoints, oldest first."""
    return sorted(p for p in (run / "checkpoints").glob("step_*") if (p / "state.json").is_file())


def load_checkpoint(folder: Path, model: Any, optimizers: Sequence[torch.optim.Optimizer]) -> int:
    """Put a checkpoint's weights and optimizer state back.

    Returns:
        The number of steps done.
    """
    try:
        weights: dict[str, Any] = {}
        for file in sorted((folder / "model").glob("*.safetensors")):
            weights |= load_file(file)
        state = load_file(folder / "optimizer.safetensors")
        step = int(json.loads((folder / "state.json").read_text(encoding="utf-8"))["step"])
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise UserError(
            f"the checkpoint cannot be read: {error}", where=folder, fix="delete it to resume from the one before"
        ) from error
    if missing := put_weights(model, weights):
        raise UserError(f"the checkpoint lacks {sorted(missing)[0]} and {len(missing) - 1} more", where=folder)
    load_optimizer_tensors(model, optimizers, state)
    return step
