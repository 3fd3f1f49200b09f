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

import hashlib
import json
import logging
import re
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from apiece.errors import UserError
from apiece.files import file_hash, sync_path, sync_tree, write_json
from apiece.model.load import TextSide, save_pretrained
from apiece.model.lora import is_adapted
from apiece.train.distributed import World
from apiece.train.optim import load_optimizer_tensors, optimizer_tensors
from apiece.train.sharding import put_weights, weights_of, whole_state

# Tensors in a file for each process, by torch.distributed.checkpoint: as safetensors, so that nothing is pickled.
#
# Each file's header says where in the whole tensor its parts lie, so any number of processes can read what any other
# number has written, each its own parts; `apiece.model.shards` reads all of them without processes.


PREFIX = "shard-"


def has_shards(folder: Path) -> bool:
    """Whether a folder holds such files."""
    return any(folder.glob(f"{PREFIX}*.safetensors"))


def own_files(folder: Path, world: World) -> list[Path]:
    """Those that this process has written."""
    return sorted(folder.glob(f"{PREFIX}{world.rank + 1:05d}-*.safetensors"))


def write_shards(folder: Path, tensors: Mapping[str, Tensor], world: World) -> None:
    """Write this process's parts of named tensors; all processes must call this.

    Raises:
        OSError: One of the processes could not.
    """
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    try:
        with _alone_is_meant():
            save(dict(tensors), storage_writer=writer, no_dist=world.size == 1)
    except CheckpointException as error:
        raise OSError(_why(error)) from error


def read_shards_into(folder: Path, tensors: Mapping[str, Tensor], world: World) -> None:
    """Fill this process's parts of named tensors; all processes must call this.

    Raises:
        OSError: One of the processes could not.
    """
    try:
        reader = HuggingFaceStorageReader(str(folder))
        with _alone_is_meant():
            load(dict(tensors), storage_reader=reader, no_dist=world.size == 1)
    except CheckpointException as error:
        raise OSError(_why(error)) from error


def stored(folder: Path) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Shape and dtype of every whole tensor."""
    found: Any = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    return {name: (about.size, about.properties.dtype) for name, about in found.items()}


@contextmanager
def _alone_is_meant() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
        yield


def _why(error: CheckpointException) -> str:
    rank, (cause, _) = next(iter(error.failures.items()))
    return f"process {rank}: {cause}"


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


# The checkpoints of a run that are there: which are complete, whether one is as it was written, and which are kept.
#
# A checkpoint is a folder whose `manifest.json`, written last, names every other file with its size and SHA-256. The
# manifest carries a hash of itself, so that no byte of a checkpoint can change unseen.


MANIFEST = "manifest.json"
FORMAT = 2
"""Raised when older readers would misread newer checkpoints. 1 had no manifest."""

_STEP = re.compile(r"step_(\d{6,})")
log = logging.getLogger("apiece")


def checkpoint_folder(run: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return run / "checkpoints" / f"step_{step:06d}"


def step_of(folder: Path) -> int:
    """The step that a checkpoint's folder is named after."""
    return int(folder.name.removeprefix("step_"))


def complete_checkpoints(run: Path) -> list[Path]:
    """Folders of the run's complete checkpoints, oldest first."""
    # A folder gets its name once all of its files are there; those of format 1 are told by their state.
    found = (p for p in (run / "checkpoints").glob("step_*") if _STEP.fullmatch(p.name))
    return sorted((p for p in found if (p / MANIFEST).is_file() or (p / "state.json").is_file()), key=step_of)


def entries(folder: Path, files: Iterable[Path]) -> dict[str, Any]:
    """What a manifest says of some files of a folder."""
    return {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": file_hash(path)} for path in files
    }


def write_manifest(folder: Path, step: int, known: Mapping[str, Any]) -> None:
    """Write down what is in a folder, as the last of its files.

    Args:
        folder: Of a checkpoint.
        step: Optimizer steps done.
        known: Entries of files that other processes have read already.
    """
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    rest = entries(folder, (path for path in files if path.relative_to(folder).as_posix() not in known))
    manifest: dict[str, Any] = {"format": FORMAT, "step": step, "files": {**known, **rest}}
    write_json(folder / MANIFEST, manifest | {"sha256": _own_hash(manifest)})


def _own_hash(manifest: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def problem_of(folder: Path, world: World) -> str | None:
    """What is wrong with a checkpoint, in words that name the file; `None` if it is as it was written.

    All processes must call this and get the same answer: each reads its share of the files.
    """
    problem = None
    try:
        files = _read_manifest(folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        files, problem = {}, f"{MANIFEST} is damaged or missing ({_short(error)})"
    for name in [] if problem else sorted(files)[world.rank :: world.size]:
        problem = problem or _file_problem(folder / name, name, files[name])
    return next((found for found in world.share(problem) if found), None)


def _read_manifest(folder: Path) -> dict[str, Any]:
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    if manifest["sha256"] != _own_hash(manifest):
        raise ValueError("its own checksum differs")
    if manifest["format"] != FORMAT:
        raise ValueError(f"expected format {FORMAT}, found {manifest['format']}")
    files: dict[str, Any] = manifest["files"]
    return files


def _file_problem(path: Path, name: str, expected: Mapping[str, Any]) -> str | None:
    try:
        if (size := path.stat().st_size) != expected["bytes"]:
            return f"{name} has {size} bytes, expected {expected['bytes']}"
        if file_hash(path) != expected["sha256"]:
            return f"{name} is damaged: its checksum is not the one it was written with"
    except FileNotFoundError:
        return f"{name} is missing"
    except OSError as error:
        return f"{name} cannot be read ({error.strerror})"
    return None


def _short(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) else str(error)
    return f"{text}".partition("\n")[0]


def choose_checkpoint(run: Path, step: int | None, world: World) -> Path | None:
    """The checkpoint that a run goes on from: of the step named, else the newest; `None` where there is none yet.

    All processes must call this.

    Raises:
        UserError: There is none of that step, or it is not as it was written; the one before is offered.
    """
    found = complete_checkpoints(run)
    steps = [step_of(folder) for folder in found]
    if step is not None and step not in steps:
        there = f"there are {', '.join(map(str, steps))}" if steps else "there are none"
        raise UserError(f"no checkpoint of step {step}; {there}", where=run / "checkpoints", exit_code=2)
    if not found:
        return None
    place = -1 if step is None else steps.index(step)
    chosen, before = found[place], found[:place]
    if not (chosen / MANIFEST).is_file() and _of_format_1(chosen):
        log.warning("%s was written without checksums by an earlier version: not verified", chosen)
        return chosen
    problem = problem_of(chosen, world)
    if problem is None:
        return chosen
    for earlier in reversed(before):
        if problem_of(earlier, world) is None:
            fix = f"go on from the one before: apiece train --resume {run} --step {step_of(earlier)}"
            break
    else:
        fix = "restore it from a copy; there is no whole one before it: else start a new run"
    raise UserError(f"this checkpoint is not used: {problem}", where=chosen, fix=fix)


def _of_format_1(folder: Path) -> bool:
    try:
        return set(json.loads((folder / "state.json").read_text(encoding="utf-8"))) == {"step"}
    except (OSError, ValueError):
        return False


def forget_after(run: Path, step: int) -> None:
    """Remove checkpoints of later steps, which are done again, and what an earlier process left half done."""
    for folder in complete_checkpoints(run):
        if step_of(folder) > step:
            remove_checkpoint(folder)
    for left in (run / "checkpoints").glob(".step_*"):
        shutil.rmtree(left, ignore_errors=True)


def prune(run: Path, keep_last: int, best: int | None) -> None:
    """Remove all but the newest checkpoints and the one of step `best`."""
    for folder in complete_checkpoints(run)[:-keep_last]:
        if step_of(folder) != best:
            remove_checkpoint(folder)


def remove_checkpoint(folder: Path) -> None:
    """Remove a checkpoint; at no time is half of one there under its name."""
    gone = folder.with_name(f".{folder.name}.gone")
    shutil.rmtree(gone, ignore_errors=True)
    folder.replace(gone)
    sync_path(folder.parent)
    shutil.rmtree(gone, ignore_errors=True)
