"""A run's folder: config, manifest, metrics, log, checkpoints, evaluations. A name is never overwritten."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any, Self

from apiece.errors import UserError
from apiece.files import sync_path, sync_tree, write_json, write_text
from apiece.train.trackers import Tracker

PACKAGES = ("apiece", "torch", "transformers", "tokenizers", "peft", "hotcoco", "numpy", "scipy", "pillow", "pydantic")
log = logging.getLogger("apiece")


def create_run(parent: Path, name: str, config_yaml: str, manifest: dict[str, Any]) -> Path:
    """Make the folder of a new run with its config and manifest: complete or absent.

    Raises:
        UserError: The name is taken, or nothing can be written there.
    """
    run = parent / name
    if run.exists():
        raise UserError(
            "this run exists already, and runs are never overwritten",
            where=run,
            fix=f"go on with it (apiece train --resume {run}) or name another (run.name=...)",
        )
    temporary = run.with_name(f".{run.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # of a process that was ended while it did this
    try:
        (temporary / "checkpoints").mkdir(parents=True)
        write_text(temporary / "config.yaml", config_yaml)
        write_json(temporary / "manifest.json", manifest)
        sync_tree(temporary)
        temporary.replace(run)
        sync_path(parent)
    except OSError as error:
        raise UserError(
            f"the run's folder cannot be made: {error.strerror}", where=run, fix="choose another folder: run.dir=DIR"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return run


@contextmanager
def held(run: Path | None) -> Iterator[None]:
    """Keep other processes from going on with a run while the block trains it; `None` holds nothing.

    The hold is the operating system's and ends with the process, however that ends. Where the file system has no such
    holds, there is none.

    Raises:
        UserError: Another process holds it.
    """
    if run is None:
        yield
        return
    with open(run / ".held", "w", encoding="utf-8") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise UserError(
                    "another process is training this run", where=run, fix="wait until it has ended, or end it"
                ) from error
        yield


def make_manifest(seed: int, extra: dict[str, Any]) -> dict[str, Any]:
    """Versions, git state, seed and command of a run, and what is handed in: the hashes of its data first of all."""
    return {
        "command": sys.argv,
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "git": git_state(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "seed": seed,
        "versions": {name: package_version(name) for name in PACKAGES},
        **extra,
    }


def package_version(name: str) -> str | None:
    """Installed version of a package, `None` if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def git_state() -> dict[str, Any] | None:
    """Commit of the current folder and whether it has changes; `None` outside git."""
    try:
        commit, status = (
            subprocess.run(["git", *what], capture_output=True, text=True, timeout=10, check=True).stdout.strip()
            for what in (("rev-parse", "HEAD"), ("status", "--porcelain"))
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "dirty": bool(status)}


class Metrics:
    """`metrics.jsonl`: one line a logged step. It is the truth of a run.

    Lines after the step that a run resumes from are dropped, so no step stands there twice.

    Args:
        run: The run's folder; `None` on a process that writes no files.
        resumed_at: The step that the run goes on from.
        trackers: Told the same.
    """

    def __init__(self, run: Path | None, resumed_at: int = 0, trackers: Sequence[Tracker] = ()) -> None:
        self._trackers = trackers
        self._file: IO[str] | None = None
        self._evaluations: dict[int, dict[str, float]] = {}
        if run is None:
            return
        path = run / "metrics.jsonl"
        if path.exists():
            kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= resumed_at]
            write_text(path, "".join(line + "\n" for line in kept))
            for line in kept:
                row = json.loads(line)
                self._note(row.pop("step"), row)
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115  closed by __exit__

    def log(self, step: int, figures: dict[str, float]) -> None:
        """Append one line, and tell the trackers."""
        assert self._file is not None, "one process logs"
        self._note(step, figures)
        try:
            self._file.write(json.dumps({"step": step, **figures}) + "\n")
            self._file.flush()
        except OSError as error:
            raise UserError(
                f"no line can be written: {error.strerror}",
                where=self._file.name,
                fix="free some space, then go on with --resume",
            ) from error
        for tracker in self._trackers:
            tracker.log(step, figures)

    def sync(self) -> None:
        """Flush to disk: a checkpoint is not to survive a power failure that its figures do not."""
        if self._file is not None:
            sync_path(Path(self._file.name))

    def _note(self, step: int, figures: dict[str, float]) -> None:
        if found := {key: value for key, value in figures.items() if key.startswith("eval/")}:
            self._evaluations.setdefault(step, {}).update(found)

    def has_evaluation(self, step: int) -> bool:
        """Whether the figures of the evaluation at a step are there."""
        return step in self._evaluations

    def best(self, key: str, steps: Collection[int]) -> int | None:
        """Of some steps the one with the greatest figure, the first of equal ones; `None` if none has it."""
        values = {step: row[key] for step, row in self._evaluations.items() if step in steps and key in row}
        return min(values, key=lambda step: (-values[step], step)) if values else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
        for tracker in self._trackers:
            tracker.close()


def _step_of(line: str) -> float:
    """Step of a metrics line; a half-written last line counts as beyond every step, so it is dropped."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


def log_to(run: Path) -> logging.Handler:
    """Also write the log to the run's `train.log`; returns the handler to remove at the end."""
    handler = logging.FileHandler(run / "train.log", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    return handler
