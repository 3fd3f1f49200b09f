"""Doing the jobs of a ladder: one after another, each in a process of its own; what is done is left alone.

Several of these may run side by side on one ladder: a job that another one works at is passed over.
"""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean

from apiece.errors import INTERRUPTED, UserError
from apiece.files import locked
from apiece.study.jobs import Job, State

_SHOWN = 8


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a call came.

    Attributes:
        done: Jobs done by this call.
        before: How many were done before it.
        elsewhere: How many another process works at.
        left: How many nobody has begun, or not finished.
        why: Why it stopped before the end; `None` if it did not.
        failed: Jobs that failed, each with its error; those after them were done nevertheless.
    """

    done: tuple[Job, ...]
    before: int
    elsewhere: int
    left: int
    why: str | None = None
    interrupted: bool = False
    failed: tuple[tuple[Job, UserError], ...] = ()


def work(
    jobs: Sequence[Job],
    *,
    redo: bool = False,
    budget_minutes: float | None = None,
    run: Callable[[Job], bool] | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> Progress:
    """Do all jobs that are not done.

    Args:
        jobs: In order.
        redo: Put aside what was made from something else, and begin it again.
        budget_minutes: No job is begun that would, by the mean of those before it, take longer in all.
        run: Does a job; false if it was interrupted. In a process of its own by default.
        tell: Receives a line for each thing that happens.

    Raises:
        UserError: Results of other settings, data or start are there, and `redo` is false.
    """
    refuse_changed(jobs, redo=redo)
    started = time.monotonic()
    seconds: list[float] = []
    done: list[Job] = []
    failed: list[tuple[Job, UserError]] = []
    before = elsewhere = 0
    for number, job in enumerate(jobs):
        with locked(job.run.with_name(f".{job.name}.lock"), wait=False) as ours:
            if not ours:
                elsewhere += 1
                continue
            state, _ = job.state()
            if state is State.DONE:
                before += 1
                continue
            passed = time.monotonic() - started
            expected = fmean(seconds) if seconds else 0.0
            if budget_minutes is not None and passed + expected > 60 * budget_minutes:
                return Progress(tuple(done), before, elsewhere, _left(jobs), f"{budget_minutes:g} minutes are spent")
            if state is State.CHANGED:
                tell(f"put aside what was there of {job.name}: {put_aside(job)}")
            verb = "resumes" if state is State.BEGUN and job.run.exists() else "begins"
            tell(f"[{number + 1}/{len(jobs)}] {job.name} {verb}: {job.config.train.steps} steps")
            at = time.monotonic()
            try:
                finished = (run or in_a_process)(job)
            except UserError as error:  # reported at the end: one arm that breaks must not cost a night
                failed.append((job, error))
                tell(f"[{number + 1}/{len(jobs)}] {error}")
                continue
            if not finished:
                return Progress(tuple(done), before, elsewhere, _left(jobs), f"interrupted in {job.name}", True)
            seconds.append(time.monotonic() - at)
            done.append(job)
            tell(f"[{number + 1}/{len(jobs)}] {job.name} done in {seconds[-1] / 60:.1f} min: {job.result}")
    return Progress(tuple(done), before, elsewhere, _left(jobs), failed=tuple(failed))


def _left(jobs: Sequence[Job]) -> int:
    return sum(job.state()[0] is not State.DONE for job in jobs)


def refuse_changed(jobs: Sequence[Job], *, redo: bool) -> None:
    """Raise a `UserError` that names what has changed, unless it is to be done again."""
    changed = [(job, what) for job in jobs for state, what in [job.state()] if state is State.CHANGED]
    if not changed or redo:
        return
    lines = []
    for job, what in changed[:_SHOWN]:
        more = f"; and {len(what) - _SHOWN} more" if len(what) > _SHOWN else ""
        lines.append(f"{job.name}: {'; '.join(what[:_SHOWN])}{more}")
    if len(changed) > _SHOWN:
        lines.append(f"and {len(changed) - _SHOWN} more")
    raise UserError(
        "\n  ".join([f"{len(changed)} of {len(jobs)} were made from something else", *lines]),
        fix="set it back, give the ladder another name, or do them again with --redo (what is there is put aside)",
    )


def put_aside(job: Job) -> Path:
    """Move a run that was made from something else out of the way; returns where it is."""
    parent = job.run.parent / "replaced"
    number = 1
    while (parent / f"{job.name}-{number}").exists():
        number += 1
    target = parent / f"{job.name}-{number}"
    target.mkdir(parents=True)
    for path, kind in ((job.run, "run"), (job.begun, "begun.json"), (job.result, "result.json")):
        if path.exists():
            shutil.move(path, target / kind)  # results may lie on another disk
    return target


def in_a_process(job: Job) -> bool:
    """Do a job in a process of its own, which gives its memory back; false if it was interrupted.

    A stop signal reaches the job, which saves and ends; this process waits for it.

    Raises:
        UserError: The job failed; what it printed says why.
    """
    child = get_context("spawn").Process(target=_child, args=(job,), name=job.name)
    asked = False

    def ask(number: int, _: object) -> None:
        nonlocal asked
        asked = True
        # From a terminal the signal has reached the child as well, and a second one would end it without saving.
        if number == signal.SIGTERM and child.is_alive():
            child.terminate()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        child.start()
        child.join()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if child.exitcode == 0:
        return True
    if child.exitcode == INTERRUPTED or asked:
        return False
    raise UserError(
        f"{job.name} failed (exit code {child.exitcode}); its output is above",
        where=job.run,
        fix="correct the cause and give the same command again: the run resumes from its newest checkpoint",
    )


def _child(job: Job) -> None:
    import sys

    from apiece.study.measure import do_job

    try:
        finished = do_job(job)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        finished = False
    if not finished:
        sys.exit(INTERRUPTED)
