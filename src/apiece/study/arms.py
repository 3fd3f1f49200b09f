"""Paths to sources: the folder of a run (its dump of a step), of one dump, or of an evaluation."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from apiece.dumps.beliefs import probe_ratios
from apiece.dumps.folder import DUMPS, PROTOCOL_FILE, RECORDS_FILE, Dump, RunFolder, dumped_steps, open_run, read_dump
from apiece.dumps.form import Entry, HiddenRow, ObjectRow
from apiece.errors import UserError
from apiece.evaluate.answers import PREDICTIONS_FILE
from apiece.evaluate.detections import (
    align_complete,
    load_coco_ground_truth,
    load_coco_results,
    load_complete,
    predictions_to_detections,
    samples_to_ground_truth,
)
from apiece.evaluate.forms import Detections, GroundTruth
from apiece.evaluate.metrics import METRICS_FILE
from apiece.files import file_hash
from apiece.stats.ratio import Ratio
from apiece.types import BoxXYXY, Detection, Instance, Sample

# What is compared: one run at one step, or one evaluation, in the form that every figure is computed from.
#
# Shapes: I images.


@dataclass(frozen=True, slots=True, eq=False)
class RunBoxes:
    """One run at one step, or one evaluation, with its labels and predictions.

    Attributes:
        path: As it was named.
        kind: `panel` (a run's dump) or `evaluation` (what `apiece evaluate` wrote).
        truth: Labels; the images' names are the sample ids.
        protocol: What the figures depend on: must be equal in all that is compared.
        min_score: Detections below it are left out of all but AP.
        dropped: Dropped objects / objects seen, where it is known.
        probes: Probe figures by key, such as `probes/a1/entropy`.
        probe_protocol: What the figures of the `last` pass depend on; `None` where no probes were run.
        config: The run's settings by dotted path, without seed, name and folder; `None` where they are not known.
        telemetry: Variances of the run's telemetry by key (`window_var/...`): value by step.
        telemetry_window: Steps that each of them is taken over.
    """

    name: str
    path: Path
    kind: str
    truth: GroundTruth
    detections: Detections
    protocol: Mapping[str, Any]
    complete: GroundTruth | None = None
    min_score: float = 0.0
    dropped: Ratio | None = None
    probes: Mapping[str, Ratio] = field(default_factory=dict)
    probe_protocol: Mapping[str, Any] | None = None
    step: int | None = None
    seed: int | None = None
    config: Mapping[str, Any] | None = None
    telemetry: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    telemetry_window: int | None = None
    remarks: tuple[str, ...] = ()

    @property
    def ids(self) -> tuple[str, ...]:
        """Sample ids in order."""
        return tuple(image.name for image in self.truth.images)


@dataclass(frozen=True, slots=True, eq=False)
class Arm:
    """What is compared: one run, or several that differ in their seed alone."""

    name: str
    sources: tuple[RunBoxes, ...]


# A dump of a run as something that can be compared: its records as labels, predictions and probe figures.
#
# Outcomes are computed again from the boxes by the code of `apiece evaluate`, so that dumps and evaluations have one
# meaning.
#
# Shapes: I images.


_TELEMETRY = "window_var/"
_OWN_SETTINGS = ("seed", "run.name", "run.dir")
"""In which runs of one arm may differ."""


def dump_source(run: RunFolder, dump: Dump, path: Path) -> RunBoxes:
    """The records of a dump, ready to be compared.

    Args:
        run: The run it belongs to.
        dump: One of its dumps.
        path: As it was named.

    Raises:
        UserError: There is no record in it, or a prediction has no score.
    """
    panel = run.panel
    place = {name: i for i, name in enumerate(panel["ids"])} if panel else {}
    records = sorted(dump.entries, key=lambda record: place.get(record["id"], len(place)))
    if not records:
        raise UserError("expected records, found none that can be read", where=dump.folder, fix="; ".join(dump.gaps))
    protocol = dump.protocol
    samples = [_sample(record, record["objects"]) for record in records]
    truth, detections = predictions_to_detections(
        samples_to_ground_truth(samples),
        {record["id"]: _detections(record, dump.folder) for record in records},
    )
    complete = None
    if all(record["hidden"] is not None for record in records):
        everything = [_sample(record, _everything(record)) for record in records]
        truth, complete = align_complete(samples_to_ground_truth(everything), truth)
    order = {record["id"]: record for record in records}
    ordered = [order[image.name] for image in truth.images]
    settings = arm_settings(run.config)
    return RunBoxes(
        name=run.name,
        path=path,
        kind="panel",
        truth=truth,
        detections=detections,
        protocol={
            "data": protocol["data_sha256"] or protocol["data"],
            "complete": protocol["complete_sha256"],
            "panel": tuple(panel["ids"]) if panel else tuple(record["id"] for record in records),
            "prompt_hash": protocol["prompt_hash"],
            "max_pixels": protocol["max_pixels"],
            "num_bins": protocol["num_bins"],
            "score_policy": protocol["score_policy"],
            **generation(protocol["generate"]),
        },
        complete=complete,
        dropped=dropped_ratio([(len(r["predictions"]), r["answer"]["dropped"].values()) for r in ordered]),
        probes=probe_ratios([(record["objects"], record["probes"]) for record in ordered]),
        probe_protocol=protocol["probes"],
        step=dump.step,
        seed=run.config.get("seed", protocol["seed"]),
        config=settings,
        telemetry={
            key: dict(run.series(key))
            for key in sorted({key for row in run.metrics for key in row if key.startswith(_TELEMETRY)})
            if "/bbox_geo/" in key
        },
        telemetry_window=None if settings is None else settings.get("train.telemetry_window"),
        remarks=tuple(f"{run.name}: {gap}" for gap in dump.gaps),
    )


def arm_settings(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Settings that runs of one arm have in common, by dotted path; `None` where none are known."""

    def walk(value: Any, path: str) -> Iterable[tuple[str, Any]]:
        if isinstance(value, Mapping):
            for key, child in value.items():
                yield from walk(child, f"{path}.{key}" if path else str(key))
        else:
            yield path, value

    settings = dict(walk(config, ""))
    return {k: v for k, v in settings.items() if k not in _OWN_SETTINGS} if settings else None


def generation(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of generation that answers depend on; how many images are asked about at once is none of them."""
    return {f"generate.{key}": value for key, value in settings.items() if key != "batch_size"}


def dropped_ratio(answers: Sequence[tuple[int, Iterable[int]]]) -> Ratio:
    """Dropped objects / objects seen, from how many each image kept, and dropped for each reason."""
    dropped = np.array([sum(reasons) for _, reasons in answers], dtype=np.float64)
    kept = np.array([count for count, _ in answers], dtype=np.float64)
    return Ratio(dropped, dropped + kept)


def _sample(record: Entry, objects: Iterable[ObjectRow]) -> Sample:
    instances = tuple(
        Instance(row["desc"], _box(row["bbox"]), row["iscrowd"], row["area"], row["id"]) for row in objects
    )
    return Sample(record["id"], Path(record["image"]), (record["width"], record["height"]), instances)


def _everything(record: Entry) -> list[ObjectRow]:
    """The labels that are not crowd regions, and what is there but not labelled."""
    hidden: list[HiddenRow] = record["hidden"] or []
    return [row for row in record["objects"] if not row["iscrowd"]] + [
        ObjectRow(desc=row["desc"], bbox=row["bbox"], iscrowd=False, area=None, id=None, fate=None, slots=None)
        for row in hidden
    ]


def _detections(record: Entry, folder: Path) -> list[Detection]:
    found = []
    for number, row in enumerate(record["predictions"]):
        score = row["score"]
        if score is None:
            raise UserError(
                f"sample {record['id']}, prediction {number}: expected a score, found none (or NaN)",
                where=folder,
                fix="AP ranks by score: choose a score policy that can be computed, such as `constant`",
            )
        found.append(Detection(row["desc"], _box(row["bbox"]), score))
    return found


def _box(values: Sequence[float]) -> BoxXYXY:
    x1, y1, x2, y2 = (float(value) for value in values)
    return x1, y1, x2, y2


# A folder that `apiece evaluate` wrote as something that can be compared.


COCO_FILE, RESULTS_FILE = "coco.json", "results.json"
FILES = (METRICS_FILE, COCO_FILE, RESULTS_FILE, PREDICTIONS_FILE)
_KEYS = {"image", "width", "height", "objects", "dropped"}
_FIX = "make one with: apiece evaluate CHECKPOINT --data X.jsonl --out DIR"


def evaluation_source(folder: Path) -> RunBoxes:
    """The labels, predictions and settings of an evaluation.

    Raises:
        UserError: A file of it is missing, or something in it cannot be scored.
    """
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"expected the folder of an evaluation ({', '.join(FILES)}), found no {', no '.join(missing)}",
            where=folder,
            fix=_FIX,
            exit_code=2,
        )
    metrics = _json((folder / METRICS_FILE).read_text(encoding="utf-8"), folder / METRICS_FILE)
    protocol = metrics.get("protocol")
    if not isinstance(protocol, dict):
        raise UserError(
            "expected `protocol`, found none: what the figures depend on is not known",
            where=folder / METRICS_FILE,
            fix=_FIX,
            exit_code=2,
        )
    answers = _answers(folder / PREDICTIONS_FILE)
    truth = _named(load_coco_ground_truth(folder / COCO_FILE), answers, folder)
    detections = load_coco_results(folder / RESULTS_FILE, truth)
    truth, complete, remarks = _complete(protocol, truth, folder.name)
    config = _config(protocol)
    rows = [answers[image.name] for image in truth.images]
    return RunBoxes(
        name=folder.resolve().name,
        path=folder,
        kind="evaluation",
        truth=truth,
        detections=detections,
        protocol=evaluation_protocol(metrics),
        complete=complete,
        min_score=float(metrics.get("f1/min_score", 0.0)),
        dropped=dropped_ratio([(len(row["objects"]), row["dropped"].values()) for row in rows]),
        step=protocol.get("step"),
        seed=config.get("seed"),
        config=arm_settings(config),
        remarks=remarks,
    )


def evaluation_protocol(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """What the figures of an evaluation depend on, from what `metrics.json` holds."""
    protocol = metrics["protocol"]
    return {
        "data": protocol.get("data_sha256") or protocol.get("data"),
        "complete": protocol.get("complete_sha256"),
        "prompt_hash": protocol.get("prompt_hash"),
        "max_pixels": protocol.get("max_pixels"),
        "score_policy": metrics.get("score_policy"),
        "min_score": metrics.get("f1/min_score", 0.0),
        **generation(protocol.get("generate") or {}),
    }


def _answers(path: Path) -> dict[str, dict[str, Any]]:
    """Lines of `predictions.jsonl` by sample id.

    Raises:
        UserError: A line is not an answer.
    """
    answers = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if not line.strip():
            continue
        row = _json(line, f"{path}:{number}")
        if not isinstance(row.get("id"), str) or not row.keys() >= _KEYS:
            raise UserError(f"expected an answer with id, {', '.join(sorted(_KEYS))}", where=f"{path}:{number}")
        answers[row["id"]] = row
    return answers


def _named(truth: GroundTruth, answers: Mapping[str, Mapping[str, Any]], folder: Path) -> GroundTruth:
    """The labels with sample ids in place of file names.

    Raises:
        UserError: The two files are not of one evaluation.
    """
    samples = [Sample(name, Path(row["image"]), (row["width"], row["height"])) for name, row in answers.items()]
    images = samples_to_ground_truth(samples).images
    if [image.id for image in images] != [image.id for image in truth.images]:
        raise UserError(
            f"{COCO_FILE} has {len(truth.images)} images, {PREDICTIONS_FILE} {len(images)}, and they are not the same",
            where=folder,
            fix=_FIX,
        )
    return replace(truth, images=images)


def _complete(
    protocol: Mapping[str, Any], truth: GroundTruth, name: str
) -> tuple[GroundTruth, GroundTruth | None, tuple[str, ...]]:
    """Labels, complete truth if the file that the evaluation names is still there and the same, and a remark if not."""
    named = protocol.get("complete")
    if not isinstance(named, str):
        return truth, None, ()
    path = Path(named)
    if not path.is_file():
        return truth, None, (f"{name}: F1 on complete truth is left out: {path} is not there",)
    if file_hash(path) != protocol.get("complete_sha256"):
        return truth, None, (f"{name}: F1 on complete truth is left out: {path} has changed since",)
    return (*load_complete(path, truth), ())


def _config(protocol: Mapping[str, Any]) -> Mapping[str, Any]:
    """Settings of the run whose checkpoint was evaluated, if it is still there: by them seeds of one arm are known."""
    path = protocol.get("checkpoint_path")
    folders = Path(path).parents[:2] if isinstance(path, str) else ()
    run = next((folder for folder in folders if (folder / "config.yaml").is_file()), None)
    return {} if run is None else open_run(run).config


def _json(text: str, where: str | Path) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise UserError(f"expected JSON, found text that is not: {error}", where=where) from error
    if not isinstance(value, dict):
        raise UserError("expected a JSON object", where=where)
    return value


def read_sources(paths: Sequence[Path], step: int | None = None) -> list[RunBoxes]:
    """Read what is to be compared.

    Args:
        paths: Folders of runs, of single dumps or of evaluations.
        step: Of the runs' dumps; the newest that all of them have if `None`.

    Raises:
        UserError: A folder is none of these, or the runs have no dump in common.
    """
    kinds = {path: _kind(path) for path in paths}
    runs = [path for path in paths if kinds[path] == "run"]
    if step is not None and not runs:
        raise UserError("--step is for runs; found none among the folders", exit_code=2)
    chosen = _common_step(runs, step) if runs else None

    def read(path: Path) -> RunBoxes:
        if kinds[path] == "evaluation":
            return evaluation_source(path)
        if kinds[path] == "dump":
            return dump_source(open_run(path.resolve().parents[1]), read_dump(path), path)
        run = open_run(path)
        return dump_source(run, run.dump(chosen), path)

    return [read(path) for path in paths]


def _kind(path: Path) -> Literal["run", "dump", "evaluation"]:
    if not path.is_dir():
        found = "a file" if path.is_file() else "none"
        raise UserError(
            f"expected a folder, found {found}",
            where=path,
            fix="name folders of `apiece train` (runs/NAME), of single dumps, or of `apiece evaluate`",
            exit_code=2,
        )
    if (path / PROTOCOL_FILE).is_file() and (path / RECORDS_FILE).is_file():
        return "dump"
    if (path / METRICS_FILE).is_file():
        return "evaluation"
    if (path / DUMPS).is_dir() or (path / "config.yaml").is_file():
        return "run"
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
    known = "; ".join(f"{run}: {', '.join(map(str, found[-8:]))}" for run, found in steps.items())
    if not common:
        raise UserError(
            f"the runs have no dump of the same step ({known})",
            fix="name two dumps by their folders: runs/A/dumps/step_000300 runs/B/dumps/step_000400",
            exit_code=2,
        )
    if step is not None and step not in common:
        raise UserError(f"not all runs have a dump of step {step} ({known})", exit_code=2)
    return max(common) if step is None else step
