"""Paths to sources: the folder of a run (its dump of a step), of one dump, or of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path

from apiece.compare.dumps import dump_source
from apiece.compare.evaluations import evaluation_source
from apiece.compare.source import Source
from apiece.errors import UserError
from apiece.evaluate.metrics import METRICS_FILE
from apiece.records.folder import DUMPS, PROTOCOL_FILE, RECORDS_FILE, dumped_steps, open_run, read_dump


class _Kind(StrEnum):
    RUN = "run"
    DUMP = "dump"
    EVALUATION = "evaluation"


def read_sources(paths: Sequence[Path], step: int | None = None) -> list[Source]:
    """Read what is to be compared.

    Args:
        paths: Folders of runs, of single dumps or of evaluations.
        step: Of the runs' dumps; the newest that all of them have if `None`.

    Raises:
        UserError: A folder is none of these, or the runs have no dump in common.
    """
    kinds = [_kind(path) for path in paths]
    runs = [path for path, kind in zip(paths, kinds, strict=True) if kind is _Kind.RUN]
    if step is not None and not runs:
        raise UserError("--step is for runs; found none among the folders", exit_code=2)
    chosen = _common_step(runs, step) if runs else None
    sources = []
    for path, kind in zip(paths, kinds, strict=True):
        if kind is _Kind.EVALUATION:
            sources.append(evaluation_source(path))
        elif kind is _Kind.DUMP:
            sources.append(dump_source(open_run(path.resolve().parents[1]), read_dump(path), path))
        else:
            run = open_run(path)
            sources.append(dump_source(run, run.dump(chosen), path))
    return sources


def _kind(path: Path) -> _Kind:
    if not path.is_dir():
        found = "a file" if path.is_file() else "none"
        raise UserError(
            f"expected a folder, found {found}",
            where=path,
            fix="name folders of `apiece train` (runs/NAME), of single dumps, or of `apiece evaluate`",
            exit_code=2,
        )
    if (path / PROTOCOL_FILE).is_file() and (path / RECORDS_FILE).is_file():
        return _Kind.DUMP
    if (path / METRICS_FILE).is_file():
        return _Kind.EVALUATION
    if (path / DUMPS).is_dir() or (path / "config.yaml").is_file():
        return _Kind.RUN
    raise UserError(
        "expected the folder of a run, of a dump or of an evaluation, found none of them",
        where=path,
        fix="name runs/NAME, runs/NAME/dumps/step_000300, or the --out of `apiece evaluate`",
        exit_code=2,
    )


def _common_step(runs: Sequence[Path], step: int | None) -> int:
    """The step asked for, or the newest that all runs have dumped."""
    steps = {run: dumped_steps(run) for run in runs}
    for run, found in steps.items():
        if not found:
            raise UserError(
                "expected dumps, found none",
                where=run,
                fix=f"evaluate it instead (apiece evaluate {run} --data X.jsonl --out DIR) and compare the folders; "
                "or set monitor.every_steps in the config of the next run",
                exit_code=2,
            )
    common = set.intersection(*(set(found) for found in steps.values()))
    told = "; ".join(f"{run}: {', '.join(map(str, found[-8:]))}" for run, found in steps.items())
    if not common:
        raise UserError(
            f"the runs have no dump of the same step ({told})",
            fix="name two dumps by their folders: runs/A/dumps/step_000300 runs/B/dumps/step_000400",
            exit_code=2,
        )
    if step is not None and step not in common:
        raise UserError(f"not all runs have a dump of step {step} ({told})", exit_code=2)
    return max(common) if step is None else step
