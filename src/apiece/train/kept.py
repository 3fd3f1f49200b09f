"""The checkpoints of a run that are there: which are complete, whether one is as it was written, and which are kept.

A checkpoint is a folder whose `manifest.json`, written last, names every other file with its size and SHA-256. The
manifest carries a hash of itself, so that no byte of a checkpoint can change unseen.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from apiece.errors import UserError
from apiece.files import file_hash, sync_path, write_json
from apiece.train.distributed import World

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
