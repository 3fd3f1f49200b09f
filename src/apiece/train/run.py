"""A run's folder: config, manifest, metrics, log, checkpoints, evaluations. A name is never overwritten."""

from __future__ import annotations

import json
import logging
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol, Self

from apiece.errors import UserError
from apiece.files import locked, read_json_object, sync_path, sync_tree, write_json, write_text

if TYPE_CHECKING:
    from apiece.config.schema import Config

PACKAGES = ("apiece", "torch", "transformers", "tokenizers", "peft", "hotcoco", "numpy", "scipy", "pillow", "pydantic")
log = logging.getLogger("apiece")


def create_run(parent: Path, name: str, config_yaml: str, manifest: dict[str, Any]) -> Path:
    """Make the folder of a new run with its config and manifest: complete or absent. Refuses a name that is taken."""
    run = parent / name
    if run.exists():
        raise UserError(
            "this run exists already, and runs are never overwritten",
            where=run,
            fix=f"resume it (apiece train --resume {run}) or choose another name (run.name=...)",
        )
    temporary = run.with_name(f".{run.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed while it did this
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


def read_manifest(run: Path) -> dict[str, Any]:
    """A run's `manifest.json`."""
    return read_json_object(run / "manifest.json", "the run's manifest", fix="restore it from a copy")


@contextmanager
def hold(run: Path | None) -> Iterator[None]:
    """Keep other processes from training a run during the block; refused if one is. `None` holds nothing."""
    if run is None:
        yield
        return
    with locked(run / ".held", wait=False) as ours:
        if not ours:
            raise UserError("another process is training this run", where=run, fix="wait until it has ended, or end it")
        yield


def make_manifest(seed: int, extra: dict[str, Any]) -> dict[str, Any]:
    """Command, versions, git state and seed of a run, and `extra`."""
    return {
        "command": sys.argv,
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "git": git_state(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "seed": seed,
        "versions": {name: _version(name) for name in PACKAGES},
        **extra,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
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


# The figures of a run: `metrics.jsonl`, and where else they are shown.


class Tracker(Protocol):
    """Takes the figures of a run. `metrics.jsonl` is the truth; a tracker shows it elsewhere."""

    def start(self, run: Path, config: Mapping[str, Any]) -> None:
        """Called once, before the first step."""

    def log(self, step: int, figures: Mapping[str, float]) -> None: ...

    def close(self) -> None:
        """Called at the end, also after an error."""


class TensorBoard:
    """Scalars for TensorBoard, in `RUN/tensorboard`."""

    def start(self, run: Path, config: Mapping[str, Any]) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UserError(
                "train.trackers names tensorboard, which is not installed",
                where="config",
                fix="pip install 'apiece[tensorboard]', or take it out of train.trackers",
            ) from error
        self._writer = SummaryWriter(str(run / "tensorboard"))

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


TRACKERS: dict[str, type[Tracker]] = {"tensorboard": TensorBoard}


class MetricsFile:
    """`metrics.jsonl`: one line for each logged step. It is the truth of a run.

    Lines after the step that a run resumes from are dropped, so no step is in it twice. `run` is `None` on a process
    that writes no files; the trackers get the config and the same figures.
    """

    def __init__(
        self, run: Path | None, resumed_at: int = 0, trackers: Sequence[Tracker] = (), config: Config | None = None
    ) -> None:
        self._trackers = trackers if run is not None else ()
        self._file: IO[str] | None = None
        self._evaluations: dict[int, dict[str, float]] = {}
        if run is None:
            return
        for tracker in trackers:
            tracker.start(run, {} if config is None else config.model_dump(mode="json"))
        path = run / "metrics.jsonl"
        if path.exists():
            kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= resumed_at]
            write_text(path, "".join(line + "\n" for line in kept))
            for line in kept:
                figures = json.loads(line)
                self._note(figures.pop("step"), figures)
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115  closed by __exit__

    def log(self, step: int, figures: dict[str, float]) -> None:
        """Append one line, and pass it to the trackers."""
        assert self._file is not None, "one process logs"
        self._note(step, figures)
        try:
            self._file.write(json.dumps({"step": step, **figures}) + "\n")
            self._file.flush()
        except OSError as error:
            raise UserError(
                f"no line can be written: {error.strerror}",
                where=self._file.name,
                fix="free some space, then continue with --resume",
            ) from error
        for tracker in self._trackers:
            tracker.log(step, figures)

    def sync(self) -> None:
        """Flush to disk: a checkpoint must not survive a power failure that its figures do not."""
        if self._file is not None:
            sync_path(Path(self._file.name))

    def _note(self, step: int, figures: dict[str, float]) -> None:
        if found := {key: value for key, value in figures.items() if key.startswith("eval/")}:
            self._evaluations.setdefault(step, {}).update(found)

    def has_evaluation(self, step: int) -> bool:
        return step in self._evaluations

    def best(self, key: str, steps: Collection[int]) -> int | None:
        """The step of the greatest figure, the first of equal ones; `None` if none of `steps` has it."""
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


@contextmanager
def log_to(run: Path | None) -> Iterator[None]:
    """Also write the log to the run's `train.log` during the block; `None` writes nothing."""
    if run is None:
        yield
        return
    handler = logging.FileHandler(run / "train.log", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        handler.close()
