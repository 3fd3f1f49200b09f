"""Writing and reading checkpoints of a run: the model as an ordinary folder, the optimizer's state, and what else a run
must remember. Complete or absent.

Nothing is pickled: tensors are safetensors, the rest is JSON. Batches and random numbers are functions of the step, so
the step is all that is needed of them. A run may be resumed on another number of processes, replicated or sharded.

    step_000300/
      model/                   weights (whole, or a file for each process), config, tokenizer, image processor
      optimizer.safetensors    or optimizer/ with a file for each process
      state.json               step, figures since the last line of metrics, telemetry, skipped steps
      manifest.json            size and SHA-256 of all of these; written last
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from apiece.errors import UserError
from apiece.files import sync_path, sync_tree, write_json
from apiece.model.load import TextSide, save_pretrained
from apiece.model.lora import is_adapted
from apiece.train.distributed import World
from apiece.train.kept import FORMAT, checkpoint_folder, entries, write_manifest
from apiece.train.optim import load_optimizer_tensors, optimizer_tensors
from apiece.train.sharding import put_weights, weights_of, whole_state
from apiece.train.shards import has_shards, own_files, read_shards_into, stored, write_shards


class NotSavedError(UserError):
    """A checkpoint could not be written; trying once more would not help."""


def save_checkpoint(
    run: Path,
    step: int,
    model: Any,
    side: TextSide,
    optimizers: Sequence[torch.optim.Optimizer],
    card: Mapping[str, Any],
    state: Mapping[str, Any],
    world: World,
    *,
    sharded: bool = False,
) -> Path:
    """Write the checkpoint after `step` steps under a temporary name, then rename it.

    All processes must call this, as they may hold parts.

    Args:
        run: Folder of the run.
        step: Optimizer steps done.
        model: Not wrapped.
        side: Its tokenizer and images.
        optimizers: With their state.
        card: What is kept beside the weights.
        state: What else the run must remember, as JSON.
        world: The processes.
        sharded: Each process writes the parts that it holds; else one gathers and writes all.

    Returns:
        The checkpoint's folder.

    Raises:
        NotSavedError: On every process, where one of them could not write.
    """
    folder = checkpoint_folder(run, step)
    if world.any(world.is_main and folder.exists()):
        return folder
    sharded = sharded and not is_adapted(model)  # adapters are small
    temporary = folder.with_name(f".{folder.name}.tmp")
    weights, moments = weights_of(model), optimizer_tensors(model, optimizers)
    if not sharded:
        weights, moments = whole_state(weights, keep=world.is_main), whole_state(moments, keep=world.is_main)
    elif world.is_main:
        shutil.rmtree(temporary, ignore_errors=True)
    world.barrier()

    hashed: dict[str, Any] = {}

    def write_own() -> None:
        for name, tensors in (("model", weights), ("optimizer", moments)):
            write_shards(temporary / name, tensors, world)
            hashed.update(entries(temporary, own_files(temporary / name, world)))

    def write_rest() -> None:
        about = {**card, "step": step}
        processor = side.images.processor
        save_pretrained(model, side.tokenizer, processor, temporary / "model", about, None if sharded else weights)
        if not sharded:
            save_file({k: v.contiguous() for k, v in moments.items()}, temporary / "optimizer.safetensors")
        write_json(temporary / "state.json", {"format": FORMAT, "step": step, **state})
        write_manifest(temporary, step, known)
        sync_tree(temporary)
        temporary.replace(folder)
        sync_path(folder.parent)

    try:
        _together(write_own if sharded else None, run, folder, world)
        known = {name: entry for files in world.share(hashed) for name, entry in files.items()}
        _together(write_rest if world.is_main else None, run, folder, world)
    finally:
        if world.is_main:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _together(write: Callable[[], None] | None, run: Path, folder: Path, world: World) -> None:
    """Do what may fail on any process; then it has failed on all."""
    problem = None
    try:
        if write is not None:
            write()
    except (OSError, SafetensorError, UserError) as error:
        problem = error.message if isinstance(error, UserError) else str(error)
    if told := [found for found in world.share(problem) if found]:
        raise NotSavedError(
            f"the checkpoint could not be written: {told[0]}",
            where=folder,
            fix=f"free some space, or mend the folder; then: apiece train --resume {run}",
        )


def load_checkpoint(
    folder: Path, model: Any, optimizers: Sequence[torch.optim.Optimizer], world: World
) -> dict[str, Any]:
    """Put a checkpoint's weights and optimizer state back; all processes must call this.

    Returns:
        What else the run remembers; `step` is the number of steps done.
    """
    try:
        if has_shards(folder / "model"):
            missing = _load_shards(folder, model, optimizers, world)
        else:
            weights: dict[str, Any] = {}
            for file in sorted((folder / "model").glob("*.safetensors")):
                weights |= load_file(file)
            missing = put_weights(model, weights)
            if not missing:
                load_optimizer_tensors(model, optimizers, load_file(folder / "optimizer.safetensors"))
        state: dict[str, Any] = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        state["step"] = int(state["step"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise UserError(
            f"the checkpoint cannot be read: {error}", where=folder, fix="go on from one before: --resume RUN --step N"
        ) from error
    if missing:
        raise UserError(f"the checkpoint lacks {sorted(missing)[0]} and {len(missing) - 1} more", where=folder)
    return state


def _load_shards(folder: Path, model: Any, optimizers: Sequence[torch.optim.Optimizer], world: World) -> set[str]:
    """Each process reads the parts that it is to hold, whoever wrote them; gives the names that were missing."""
    weights, there = weights_of(model), stored(folder / "model")
    if missing := weights.keys() - there.keys():
        return set(missing)
    read_shards_into(folder / "model", weights, world)  # the tensors are the model's own
    parameters = dict(model.named_parameters())
    moments = {}
    for name, (size, dtype) in stored(folder / "optimizer").items():
        parameter = parameters[name.rpartition("/")[0]].detach()
        same = parameter.shape == size
        moments[name] = torch.empty_like(parameter, dtype=dtype) if same else torch.empty(size, dtype=dtype)
    read_shards_into(folder / "optimizer", moments, world)
    load_optimizer_tensors(model, optimizers, moments)
    return set()
