"""Writing and reading checkpoints of a run: the model as an ordinary folder, the optimizer's state, and what else a run
must remember. Complete or absent.

Nothing is pickled: tensors are safetensors, the rest is JSON. Batches and random numbers are functions of the step, so
their state need not be saved. A run may resume on another number of processes, replicated or sharded.

    step_000300/
      model/         weights (whole, or a file for each process), config, tokenizer, image processor
      optimizer/     a file for each process (format 2 and before: optimizer.safetensors)
      state.json     step, figures since the last line of metrics, telemetry, skipped steps
      manifest.json  size and SHA-256 of all of these; written last
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from apiece.errors import UserError
from apiece.files import file_hash, sync_path, sync_tree, write_json
from apiece.model.load import save_pretrained
from apiece.model.lora import is_adapted, to_peft_name
from apiece.train.distributed import World, weights_of, whole_state
from apiece.train.meter import Meter
from apiece.train.run import MetricsFile
from apiece.train.setup import Training
from apiece.train.stop import NonFiniteError, UpdateBrokenError, explained

MANIFEST, NONFINITE = "manifest.json", "nonfinite"
FORMAT = 3
"""Raised when older readers would misread newer checkpoints: 1 had no manifest, 2 one file of the optimizer's state."""
READABLE = (2, FORMAT)

_STEP = re.compile(r"step_(\d{6,})")
log = logging.getLogger("apiece")


# Tensors in safetensors, by torch.distributed.checkpoint: each process writes the parts that it holds to a file of its
# own. A header says where in the whole tensor its parts are, so any number of processes can read what any other number
# wrote; a file without such a header holds whole tensors, and is read in the same way.


def write_tensors(folder: Path, tensors: Mapping[str, Tensor], world: World) -> list[Path]:
    """Write this process's parts of named tensors and return its files; all processes must call this. Raises `OSError`
    if any fails."""
    folder.mkdir(parents=True, exist_ok=True)
    if tensors:  # none before the first update
        with _one_process_is_meant():
            writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
            save(dict(tensors), storage_writer=writer, no_dist=world.size == 1)
    return sorted(folder.glob(f"shard-{world.rank + 1:05d}-*.safetensors"))


def read_tensors(folder: Path, tensors: Mapping[str, Tensor], world: World) -> None:
    """Fill this process's parts of named tensors; all processes must call this. Raises `OSError` if any fails."""
    if tensors:
        with _one_process_is_meant():
            load(dict(tensors), storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=world.size == 1)


def stored(folder: Path) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Shape and dtype of every whole tensor."""
    found: Any = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    return {name: (about.size, about.properties.dtype) for name, about in found.items()}


@contextmanager
def _one_process_is_meant() -> Iterator[None]:
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
            yield
    except CheckpointException as error:
        rank, (cause, _) = next(iter(error.failures.items()))
        raise OSError(f"process {rank}: {cause}") from error


def optimizer_tensors(model: Any, optimizers: Iterable[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """All optimizer state as named tensors: `<parameter>/<state>`."""
    names: dict[Tensor, str] = {p: name for name, p in model.named_parameters()}
    return {
        f"{names[p]}/{key}": torch.as_tensor(value)
        for optimizer in optimizers
        for p, state in optimizer.state.items()
        for key, value in state.items()
    }


class NotSavedError(UserError):
    """A checkpoint could not be written; retrying would not help."""


def save_checkpoint(run: Path, step: int, training: Training, state: Mapping[str, Any]) -> Path:
    """Write the checkpoint after `step` steps under a temporary name, then rename it; returns its folder.

    All processes must call this, as they may hold parts. With `train.sharded_checkpoints` each writes the weights that
    it holds; otherwise one process gathers and writes them all, as an ordinary folder. Adapters are small, and always
    gathered. `state` is what else the run must remember, as JSON.

    Raises:
        NotSavedError: On every process, if one of them could not write.
    """
    model, side, world = training.model, training.data.side, training.world
    folder = run / "checkpoints" / f"step_{step:06d}"
    if world.any(world.is_main and folder.exists()):
        return folder
    temporary = folder.with_name(f".{folder.name}.tmp")
    if world.is_main:
        shutil.rmtree(temporary, ignore_errors=True)
    parts, whole = {"optimizer": optimizer_tensors(model, training.optimizers)}, None
    if training.config.train.sharded_checkpoints and not is_adapted(model):
        parts["model"] = weights_of(model)
    else:
        whole = whole_state(weights_of(model), keep=world.is_main)
    world.barrier()
    hashed: dict[str, Any] = {}

    def write_parts() -> None:
        for name, tensors in parts.items():
            hashed.update(entries(temporary, write_tensors(temporary / name, tensors, world)))

    def write_rest() -> None:
        processor = side.images.processor
        save_pretrained(model, side.tokenizer, processor, temporary / "model", {**training.card, "step": step}, whole)
        write_json(temporary / "state.json", {"format": FORMAT, "step": step, **state})
        files = (path for path in sorted(temporary.rglob("*")) if path.is_file())
        rest = entries(temporary, (path for path in files if path.relative_to(temporary).as_posix() not in known))
        manifest: dict[str, Any] = {"format": FORMAT, "step": step, "files": {**known, **rest}}
        write_json(temporary / MANIFEST, manifest | {"sha256": _own_hash(manifest)})
        sync_tree(temporary)
        temporary.replace(folder)
        sync_path(folder.parent)

    try:
        _together(write_parts, run, folder, world)
        known = {name: entry for files in world.share(hashed) for name, entry in files.items()}
        _together(write_rest if world.is_main else None, run, folder, world)
    finally:
        if world.is_main:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _together(write: Callable[[], None] | None, run: Path, folder: Path, world: World) -> None:
    """Run what may fail on any process; if it does, it fails on all."""
    problem = None
    try:
        if write is not None:
            write()
    except (OSError, SafetensorError, UserError) as error:
        problem = error.message if isinstance(error, UserError) else str(error)
    if problems := [found for found in world.share(problem) if found]:
        raise NotSavedError(
            f"the checkpoint could not be written: {problems[0]}",
            where=folder,
            fix=f"free some space, or mend the folder; then: apiece train --resume {run}",
        )


def load_checkpoint(folder: Path, training: Training) -> dict[str, Any]:
    """Restore a checkpoint's weights and optimizer state, each process its own parts; all processes must call this.

    Returns what else the run remembers; `step` is the number of steps done.
    """
    try:
        model, world = training.model, training.world
        weights = {to_peft_name(n) if is_adapted(model) else n: tensor for n, tensor in weights_of(model).items()}
        missing = weights.keys() - stored(folder / "model").keys()
        if not missing:
            read_tensors(folder / "model", weights, world)  # the tensors are the model's own
            _load_optimizers(folder, training)
        state: dict[str, Any] = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        state["step"] = int(state["step"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise UserError(
            f"the checkpoint cannot be read: {error}",
            where=folder,
            fix="resume from an earlier one: --resume RUN --step N",
        ) from error
    if missing:
        raise UserError(f"the checkpoint lacks {sorted(missing)[0]} and {len(missing) - 1} more", where=folder)
    return state


def _load_optimizers(folder: Path, training: Training) -> None:
    place = folder / "optimizer" if (folder / "optimizer").is_dir() else folder
    parameters = dict(training.model.named_parameters())
    owner = {
        p: optimizer for optimizer in training.optimizers for group in optimizer.param_groups for p in group["params"]
    }
    moments = {}
    for name, (size, dtype) in stored(place).items():
        parameter = parameters[name.rpartition("/")[0]].detach()
        # Moments are laid out as their parameter is; `step` is a number on the CPU, where AdamW keeps it.
        alike = parameter.shape == size
        moments[name] = torch.empty_like(parameter, dtype=dtype) if alike else torch.empty(size, dtype=dtype)
    read_tensors(place, moments, training.world)
    for name, tensor in moments.items():
        of, _, key = name.rpartition("/")
        owner[parameters[of]].state[parameters[of]][key] = tensor


# The checkpoints of a run: which are complete, whether one is as it was written, and which are kept.
#
# A checkpoint is a folder whose `manifest.json`, written last, names every other file with its size and SHA-256. The
# manifest carries a hash of itself, so that no byte of a checkpoint can change unseen.


def step_of(folder: Path) -> int:
    """The step that a checkpoint's folder is named after."""
    return int(folder.name.removeprefix("step_"))


def complete_checkpoints(run: Path) -> list[Path]:
    """Folders of the run's complete checkpoints, oldest first."""
    # A folder gets its name once all of its files are there; those of format 1 are recognized by their state.
    found = (p for p in (run / "checkpoints").glob("step_*") if _STEP.fullmatch(p.name))
    return sorted((p for p in found if (p / MANIFEST).is_file() or (p / "state.json").is_file()), key=step_of)


def entries(folder: Path, files: Iterable[Path]) -> dict[str, Any]:
    """Manifest entries of some files of a folder."""
    return {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": file_hash(path)} for path in files
    }


def _own_hash(manifest: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def problem_of(folder: Path, world: World) -> str | None:
    """What is wrong with a checkpoint, naming the file; `None` if nothing. All processes must call this: each reads its
    share of the files, and all get the same answer."""
    problem = None
    try:
        files = _read_manifest(folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        text = f"{error.strerror if isinstance(error, OSError) else error}".partition("\n")[0]
        files, problem = {}, f"{MANIFEST} is damaged or missing ({text})"
    for name in [] if problem else sorted(files)[world.rank :: world.size]:
        problem = problem or _file_problem(folder / name, name, files[name])
    return next((found for found in world.share(problem) if found), None)


def _read_manifest(folder: Path) -> dict[str, Any]:
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    if manifest["sha256"] != _own_hash(manifest):
        raise ValueError("its own checksum differs")
    if manifest["format"] not in READABLE:
        raise ValueError(f"expected format {FORMAT} or older, found {manifest['format']}")
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


def choose_checkpoint(run: Path, step: int | None, world: World) -> Path | None:
    """The checkpoint to resume from: of the step named, else the newest; `None` where there is none yet. All processes
    must call this.

    Raises:
        UserError: There is none of that step, or it is damaged; the message offers an earlier one.
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
            fix = f"resume from the one before: apiece train --resume {run} --step {step_of(earlier)}"
            break
    else:
        fix = "restore it from a copy, or start a new run: there is no whole one before it"
    raise UserError(f"this checkpoint is not used: {problem}", where=chosen, fix=fix)


def _of_format_1(folder: Path) -> bool:
    try:
        return set(json.loads((folder / "state.json").read_text(encoding="utf-8"))) == {"step"}
    except (OSError, ValueError):
        return False


def forget_after(run: Path, step: int) -> None:
    """Remove checkpoints of later steps, which will be repeated, and what an interrupted process left unfinished."""
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


# When a run saves, and what else it remembers.


@dataclass
class Saver:
    """Saves a run."""

    run: Path
    training: Training
    meter: Meter  # figures not written yet
    metrics: MetricsFile  # figures written
    skipped: list[int] = field(default_factory=list)  # steps in which something was not finite
    _step_s: float = 0.0
    _warned: bool = False

    def save(self, step: int) -> None:
        """Write the checkpoint after `step` steps, then remove old ones; all processes must call this."""
        self.metrics.sync()
        state = {"skipped": self.skipped, "meter": self.meter.state()}
        grace, since = self.training.config.train.grace_s, time.monotonic()
        save_checkpoint(self.run, step, self.training, state)
        took = time.monotonic() - since
        if took + self._step_s > grace and not self._warned:
            self._warned = True
            log.warning(
                "a step (%.0f s) and a save (%.0f s) take longer than train.grace_s (%g): on a machine that is taken "
                "away, the steps since the last checkpoint may be lost",
                *(self._step_s, took, grace),
            )
        self.prune()

    def restore(self, state: dict[str, Any]) -> None:
        self.skipped[:] = state.get("skipped", [])
        if "meter" in state:
            self.meter.restore(state["meter"])

    def prune(self) -> None:
        """Remove all checkpoints but the newest, and the best where `train.keep_best` asks for it."""
        train = self.training.config.train
        if not self.training.world.is_main:
            return
        steps = {step_of(folder) for folder in complete_checkpoints(self.run)}
        best = None if train.keep_best is None else self.metrics.best(f"eval/{train.keep_best}", steps)
        prune(self.run, train.keep_last, best)

    @contextmanager
    def step(self, step: int) -> Iterator[None]:
        """The block takes step number `step`, up to the end of its update.

        A step that is not finite is skipped while `train.skip_nonfinite` allows it: the block then ends without an
        error. After any other failure before the update, the step before is saved, so that nothing is lost.
        """
        world, since = self.training.world, time.monotonic()
        try:
            with explained(self.training.config):
                yield
            self._step_s = time.monotonic() - since
        except NonFiniteError as error:
            if world.is_main:
                write_json(self._report_file(step), self._report(step, error))
            allowed = self.training.config.train.skip_nonfinite
            if len(self.skipped) < allowed:
                self.skipped.append(step)
                log.warning("step %d is skipped (%d of %d): %s", step, len(self.skipped), allowed, error.message)
                return
            self._save_before(step, error)
        except (UpdateBrokenError, NotSavedError):
            raise
        except UserError as error:
            if world.size > 1:  # the others do not know
                raise
            self._save_before(step, error)

    def _save_before(self, step: int, error: UserError) -> None:
        """Save the step before and raise the error, with how to resume."""
        kept = f"nothing is lost: resume with apiece train --resume {self.run}"
        if step > 1:
            try:
                self.save(step - 1)
            except NotSavedError as second:
                log.warning("%s", second)
                kept = f"resume with apiece train --resume {self.run}"
        fix = f"{error.fix}; {kept}" if error.fix else kept
        if isinstance(error, NonFiniteError):
            fix = f"which samples and terms: {self._report_file(step)}; {fix}"
        raise UserError(
            f"step {step}: {error.message}", where=error.where, fix=fix, exit_code=error.exit_code
        ) from error

    def _report_file(self, step: int) -> Path:
        return self.run / NONFINITE / f"step_{step:06d}.json"

    def _report(self, step: int, error: NonFiniteError) -> dict[str, Any]:
        t = self.training
        return {
            "step": step,
            "seed": t.config.seed,
            "channel": t.channels.channel_of(step - 1),
            "world_size": t.world.size,
            "micro_batch_size": t.config.train.micro_batch_size,
            **error.found,
        }
