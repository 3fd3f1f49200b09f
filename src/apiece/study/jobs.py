"""A ladder's file as jobs: one arm and seed each, with its whole config, what it is made from, and what it costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from apiece.config.ladder import LadderFile, Match
from apiece.config.reference import default_values, values, yaml_text
from apiece.config.resolve import load_config, load_file
from apiece.config.schema import Config
from apiece.errors import UserError, require_file
from apiece.files import file_hash
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
        parts = {name: getattr(self, name) for name in ("train", "panel", "panel_complete", "test", "test_complete")}
        return {name: path for name, path in parts.items() if path is not None}


@dataclass(frozen=True, slots=True)
class Cost:
    """FLOPs of training: of a step (the run's average), of the run, and of the run over the reference's."""

    step: float
    run: float
    of_reference: float


@dataclass(frozen=True, slots=True)
class Job:
    """One arm and seed.

    Attributes:
        ladder: Name of the ladder.
        arms: All arms of the ladder, in order.
        references: Arms that the others are compared with.
        reference: Config of the reference: every model is probed under its settings.
        made_from: All that decides the result: settings, hashes of data and start, and the probes' settings.
        match: What it has in common with the reference.
        results: Folder of the result files.
    """

    ladder: str
    arms: tuple[str, ...]
    references: tuple[str, ...]
    arm: str
    seed: int
    config: Config
    reference: Config
    files: LadderFiles
    made_from: Mapping[str, Any]
    match: Match
    cost: Cost
    results: Path

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
    """The data of a ladder; generated scenes are drawn if they are not there.

    Raises:
        UserError: A file is missing.
    """
    data = ladder.data
    if data.scenes is not None:
        way = (data.scenes.unlabelled, data.scenes.group_boxes)
        prepare = load_plugin(LADDER_DATA, "scenes")
        splits = prepare(Path(data.scenes.benchmark), Path(data.scenes.dir), way, workers, tell)
        train, panel, test = (splits[name] for name in ("train", "panel", "test"))
        return LadderFiles(train.observed, panel.observed, panel.complete, test.observed, test.complete)
    assert data.train is not None and data.test is not None, "checked when the file was read"
    files = LadderFiles(
        train=Path(data.train),
        panel=Path(data.panel or data.test),
        panel_complete=_path(data.panel_complete or (None if data.panel else data.test_complete)),
        test=Path(data.test),
        test_complete=_path(data.test_complete),
    )
    for name, path in files.named().items():
        require_file(path, f"the ladder's data.{name}")
    return files


def _path(name: str | None) -> Path | None:
    return Path(name) if name else None


def plan_jobs(ladder: LadderFile, files: LadderFiles) -> list[Job]:
    """Every arm and seed, seed by seed, so that a ladder that is cut off has compared all arms.

    Raises:
        UserError: A config has mistakes, or the start is no checkpoint.
    """
    from apiece.study.compute import shape_of, step_cost, training_work

    folder = resolve_checkpoint(ladder.start)
    shared = {
        "schema": SCHEMA,
        "start": {path.name: file_hash(path) for path in sorted(folder.glob("*.safetensors"))},
        "data": {name: file_hash(path) for name, path in files.named().items()},
    }
    configs = {arm: _config(ladder, files, arm) for arm in ladder.chosen}
    reference = configs[ladder.reference]
    shape, works = shape_of(ladder.start), training_work(reference)
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
    """The config of an arm with what the ladder decides on top."""
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
    """What a result (its own file or in a packed one) or the note of a run that was begun says; `None` without one."""
    stored = stored_result(path)
    try:
        return None if stored is None else filled(stored["made_from"])
    except (KeyError, TypeError) as error:
        raise UserError(f"cannot be read: {error!r}", where=path, fix="remove it to begin its run again") from error


def filled(made_from: Mapping[str, Any]) -> dict[str, Any]:
    """The same with settings that the package did not have then, at their defaults: those change nothing."""
    return {**made_from, "settings": {**_flat(default_values()), **made_from["settings"]}}


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any], prefix: str = "") -> list[str]:
    """What differs between two such descriptions, `key: found here, wanted` each."""
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
    """The jobs of some arms and seeds; all where none are named.

    Raises:
        UserError: An arm or a seed is not one of the ladder's.
    """
    for name, asked, known in (("arm", arms, {j.arm: 0 for j in jobs}), ("seed", seeds, {j.seed: 0 for j in jobs})):
        if unknown := [str(one) for one in asked if one not in known]:
            raise UserError(
                f"there is no {name} {', '.join(unknown)} in this ladder",
                fix=f"{name}s: {', '.join(map(str, known))}",
                exit_code=2,
            )
    return [job for job in jobs if (not arms or job.arm in arms) and (not seeds or job.seed in seeds)]
