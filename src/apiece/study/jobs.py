"""A ladder's file as jobs, one for each arm and seed, and doing them one after another, each in its own process.

Several processes may work on one ladder: each skips a job that another one is doing.
"""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean
from typing import Any

from apiece.config.ladder import LadderFile, Match
from apiece.config.reference import default_values, values, yaml_text
from apiece.config.resolve import load_config, load_file
from apiece.config.schema import Config
from apiece.errors import INTERRUPTED, UserError, require_file
from apiece.files import file_hash, locked
from apiece.model.find import resolve_checkpoint
from apiece.plugins import LADDER_DATA, load_plugin
from apiece.study.results import stored_result

SCHEMA = 1
_NOT_COMPARED = (
    *("seed", "run.name", "run.dir", "model.checkpoint", "data.train", "data.eval", "data.complete"),
    *("data.workers", "train.trackers", "train.save_every", "train.keep_last"),
)
"""Settings that a result holds under another name (as a hash), or that change no figure."""


class State(StrEnum):
    """How far a job is."""

    DONE = "done"
    BEGUN = "begun"
    TO_DO = "to do"
    CHANGED = "changed"


@dataclass(frozen=True, slots=True)
class LadderFiles:
    """The data of a ladder."""

    train: Path
    panel: Path
    panel_complete: Path | None
    test: Path
    test_complete: Path | None

    def named(self) -> dict[str, Path]:
        return {name: path for name, path in asdict(self).items() if path is not None}


@dataclass(frozen=True, slots=True)
class Cost:
    """FLOPs of training: of a step (the run's average), of the run, and of the run over the reference's."""

    step: float
    run: float
    of_reference: float


@dataclass(frozen=True, slots=True)
class Job:
    """One arm and seed."""

    ladder: str
    arms: tuple[str, ...]  # all arms of the ladder, in order
    references: tuple[str, ...]  # arms that the others are compared with
    arm: str
    seed: int
    config: Config
    reference: Config  # config of the reference: every model is probed under its settings
    files: LadderFiles
    # all that decides the result: settings, hashes of data and start, and the probes' settings
    made_from: Mapping[str, Any]
    match: Match  # whether its steps or its compute equal the reference's
    cost: Cost
    results: Path  # folder of the result files

    @property
    def name(self) -> str:
        return f"{self.arm}_seed{self.seed}"

    @property
    def run(self) -> Path:
        return Path(self.config.run.dir) / self.name

    @property
    def result(self) -> Path:
        return self.results / f"{self.name}.json"

    @property
    def begun(self) -> Path:
        """The note of what the run was begun from, next to its folder."""
        return self.run.with_name(f"{self.name}.json")

    @property
    def step(self) -> int:
        """The newest checkpoint of its run; 0 without one."""
        found = sorted((self.run / "checkpoints").glob("step_*/state.json"))
        return int(found[-1].parent.name.removeprefix("step_")) if found else 0

    def state(self) -> tuple[State, tuple[str, ...]]:
        """How far it is, and what has changed since."""
        result = _made_from(self.result)
        begun = _made_from(self.begun)
        if result == self.made_from:
            return State.DONE, ()
        if begun == self.made_from:
            return State.BEGUN, ()
        found = begun if result is None else result
        if found is None:
            return State.TO_DO, ()
        return State.CHANGED, tuple(differences(found, self.made_from))


def load_ladder(path: Path, overrides: Sequence[str] = ()) -> LadderFile:
    """Read and check a ladder's file, with `key=value` settings on top."""
    return load_file(path, LadderFile, overrides)


def ladder_files(ladder: LadderFile, workers: int = 1, tell: Any = lambda _: None) -> LadderFiles:
    """The data of a ladder, which must exist; generated scenes are drawn if they are missing."""
    data = ladder.data
    if data.scenes is not None:
        way = (data.scenes.unlabelled, data.scenes.group_boxes)
        prepare = load_plugin(LADDER_DATA, "scenes")
        splits = prepare(Path(data.scenes.benchmark), Path(data.scenes.dir), way, workers, tell)
        train, panel, test = (splits[name] for name in ("train", "panel", "test"))
        return LadderFiles(train.observed, panel.observed, panel.complete, test.observed, test.complete)
    assert data.train is not None and data.test is not None, "checked when the file was read"
    panel_complete = data.panel_complete or (None if data.panel else data.test_complete)
    panel_whole, test_whole = (Path(name) if name else None for name in (panel_complete, data.test_complete))
    files = LadderFiles(Path(data.train), Path(data.panel or data.test), panel_whole, Path(data.test), test_whole)
    for name, path in files.named().items():
        require_file(path, f"the ladder's data.{name}")
    return files


def plan_jobs(ladder: LadderFile, files: LadderFiles) -> list[Job]:
    """Every arm and seed, seed by seed, so that a ladder that is cut off has compared all arms."""
    from apiece.planning.shapes import ModelShape
    from apiece.study.compute import step_cost, training_work

    folder = resolve_checkpoint(ladder.start)
    shared = {
        "schema": SCHEMA,
        "start": {path.name: file_hash(path) for path in sorted(folder.glob("*.safetensors"))},
        "data": {name: file_hash(path) for name, path in files.named().items()},
    }
    configs = {arm: _config(ladder, files, arm) for arm in ladder.chosen}
    reference = configs[ladder.reference]
    shape, works = ModelShape.read(folder), training_work(reference)
    costs = {arm: step_cost(config, works, shape) for arm, config in configs.items()}
    whole = costs[ladder.reference].run(reference, reference.train.steps)
    jobs = []
    for arm, config in configs.items():
        match = ladder.arms[arm].match or ladder.match
        steps = config.train.steps
        if match is Match.COMPUTE:
            steps = costs[arm].steps_for(config, whole)
            config = _config(ladder, files, arm, f"train.steps={steps}")
        run = costs[arm].run(config, steps)
        cost = Cost(run / steps, run, run / whole)
        for seed in ladder.arms[arm].seeds or ladder.seeds:
            own = _config(ladder, files, arm, f"train.steps={steps}", f"seed={seed}", f"run.name={arm}_seed{seed}")
            jobs.append(
                Job(
                    ladder=ladder.name,
                    arms=tuple(ladder.chosen),
                    references=(ladder.reference, *ladder.against),
                    arm=arm,
                    seed=seed,
                    config=own,
                    reference=reference,
                    files=files,
                    made_from={**shared, "probes": _probes(reference), "seed": seed, "settings": _flat(values(own))},
                    match=match,
                    cost=cost,
                    results=Path(ladder.results) / ladder.name,
                )
            )
    return sorted(jobs, key=lambda job: ladder.seeds.index(job.seed))


def _config(ladder: LadderFile, files: LadderFiles, arm: str, *more: str) -> Config:
    """The config of an arm with the ladder's own settings on top."""
    decided = {
        "model.checkpoint": ladder.start,
        "data.train": str(files.train),
        "data.eval": str(files.panel),
        "data.complete": None if files.panel_complete is None else str(files.panel_complete),
        "run.dir": str(Path(ladder.dir) / ladder.name),
    }
    overrides = [f"{key}={yaml_text(value)}" for key, value in decided.items()]
    of_arm = ladder.arms[arm]
    try:
        return load_config(Path(of_arm.config), [*ladder.shared, *of_arm.set, *overrides, *more]).config
    except UserError as error:
        raise UserError(f"arm {arm}: {error.message}", where=error.where, fix=error.fix) from error


def _flat(settings: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
    """By dotted path, without those that no figure depends on."""
    return {key: value for path, value in settings.items() if (key := ".".join(path)) not in _NOT_COMPARED}


def _probes(reference: Config) -> dict[str, Any]:
    """The settings that every model is probed under."""
    stage2 = reference.stage2_ab
    return {
        "passes": max(2, stage2.n_softctx_iter),
        "embed_mode": str(stage2.coord_ctx_embed_mode),
        "temperature": stage2.softctx_temperature,
        "sigma": reference.objective.coord_reg.config.target_sigma,
        "object_order": str(reference.data.object_order),
    }


def _made_from(path: Path) -> Any:
    """The `made_from` of a result, or of a run's note; `None` without one."""
    stored = stored_result(path)
    try:
        return None if stored is None else filled(stored["made_from"])
    except (KeyError, TypeError) as error:
        raise UserError(f"cannot be read: {error!r}", where=path, fix="remove it to begin its run again") from error


def filled(made_from: Mapping[str, Any]) -> dict[str, Any]:
    """The same, with the defaults (which change nothing) of settings that the package did not have then."""
    return {**made_from, "settings": {**_flat(default_values()), **made_from["settings"]}}


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any], prefix: str = "") -> list[str]:
    """What differs between two such descriptions, as `key: old then, new now`."""
    lines = []
    for key in dict.fromkeys([*wanted, *found]):
        a, b = found.get(key), wanted.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            lines += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            lines.append(f"{prefix}{key}: {_short(a)} then, {_short(b)} now")
    return lines


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 24 else f"{text[:12]}..."


def chosen_jobs(jobs: Sequence[Job], arms: Sequence[str], seeds: Sequence[int]) -> list[Job]:
    """The jobs of some arms and seeds, all where none are named; a `UserError` if the ladder lacks one of them."""
    for name, asked, known in (("arm", arms, {j.arm: 0 for j in jobs}), ("seed", seeds, {j.seed: 0 for j in jobs})):
        if unknown := [str(one) for one in asked if one not in known]:
            raise UserError(
                f"there is no {name} {', '.join(unknown)} in this ladder",
                fix=f"{name}s: {', '.join(map(str, known))}",
                exit_code=2,
            )
    return [job for job in jobs if (not arms or job.arm in arms) and (not seeds or job.seed in seeds)]


_SHOWN = 8


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a call came."""

    done: tuple[Job, ...]  # jobs done by this call
    before: int  # how many were done before it
    elsewhere: int  # how many another process is doing
    left: int  # how many are not done
    why: str | None = None  # why it stopped before the end; `None` if it did not
    interrupted: bool = False
    # jobs that failed, each with its error; the jobs after them were done nevertheless
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
        redo: Put aside what was made from something else, and begin it again; without it that is a `UserError`.
        budget_minutes: No job is begun that would, by the mean of those before it, take longer in all.
        run: Does a job; false if it was interrupted. In a process of its own by default.
        tell: Receives a line about each job that begins, ends or fails.
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
                tell(f"put aside the earlier {job.name}: {put_aside(job)}")
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
    """Raise a `UserError` that names what has changed, unless `redo`."""
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
        fix="undo the change, give the ladder another name, or do them again with --redo (the old ones are put aside)",
    )


def put_aside(job: Job) -> Path:
    """Move a run that was made from something else out of the way; returns the folder that it is in now."""
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
    """Do a job in a process of its own, which frees its memory; false if it was interrupted.

    A stop signal reaches the job, which saves and ends; this process waits for it.
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
