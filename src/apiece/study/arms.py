"""What is compared: runs (a dump of each) and evaluations as labels and predictions, grouped into arms and aligned.

Outcomes are computed again from the boxes by the code of `apiece evaluate`, so that dumps and evaluations have one
meaning. Shapes: I images.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import compress, takewhile
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from apiece.dumps.beliefs import probe_ratios
from apiece.dumps.folder import DUMPS, PROTOCOL_FILE, RECORDS_FILE, Dump, RunFolder, dumped_steps, open_run, read_dump
from apiece.dumps.form import Entry
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
from apiece.files import file_hash, read_json_object
from apiece.stats.ratio import Ratio
from apiece.types import BoxXYXY, Detection, Instance, IntArray, Sample


@dataclass(frozen=True, slots=True, eq=False)
class RunBoxes:
    """One run at one step, or one evaluation, with its labels and predictions."""

    name: str
    path: Path
    kind: str  # `panel` (a run's dump) or `evaluation` (what `apiece evaluate` wrote)
    truth: GroundTruth  # labels; the images' names are the sample ids
    detections: Detections
    protocol: Mapping[str, Any]  # what the figures depend on: must be equal in all that is compared
    complete: GroundTruth | None = None
    min_score: float = 0.0  # detections below it are left out of all but AP
    dropped: Ratio | None = None  # dropped objects / objects seen, where it is known
    probes: Mapping[str, Ratio] = field(default_factory=dict)  # probe figures by key, such as `probes/a1/entropy`
    # what the figures of the `last` pass depend on; `None` where no probes were run
    probe_protocol: Mapping[str, Any] | None = None
    step: int | None = None
    seed: int | None = None
    # the run's settings by dotted path, without seed, name and folder; `None` where they are not known
    config: Mapping[str, Any] | None = None
    # variances by key (`window_var/...`): value by step
    telemetry: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    telemetry_window: int | None = None  # steps that each of them is taken over
    remarks: tuple[str, ...] = ()

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(image.name for image in self.truth.images)


@dataclass(frozen=True, slots=True, eq=False)
class Arm:
    """What is compared: one run, or several that differ in their seed alone."""

    name: str
    sources: tuple[RunBoxes, ...]


_TELEMETRY = "window_var/"
_OWN_SETTINGS = ("seed", "run.name", "run.dir")  # in which runs of one arm may differ


def dump_source(run: RunFolder, dump: Dump, path: Path) -> RunBoxes:
    """A dump, ready to be compared; a `UserError` if no sample can be read or a prediction has no score."""
    panel = run.panel
    place = {name: i for i, name in enumerate(panel["ids"])} if panel else {}
    entries = sorted(dump.entries, key=lambda entry: place.get(entry["id"], len(place)))
    if not entries:
        raise UserError("expected records, found none that can be read", where=dump.folder, fix="; ".join(dump.gaps))
    protocol = dump.protocol
    predictions = {entry["id"]: _detections(entry, dump.folder) for entry in entries}
    truth, detections = predictions_to_detections(samples_to_ground_truth(list(map(_sample, entries))), predictions)
    complete = None
    if all(entry["hidden"] is not None for entry in entries):
        everything = [_sample(entry, everything=True) for entry in entries]
        truth, complete = align_complete(samples_to_ground_truth(everything), truth)
    by_id = {entry["id"]: entry for entry in entries}
    ordered = [by_id[image.name] for image in truth.images]
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
            "panel": tuple(panel["ids"]) if panel else tuple(entry["id"] for entry in entries),
            "prompt_hash": protocol["prompt_hash"],
            "max_pixels": protocol["max_pixels"],
            "num_bins": protocol["num_bins"],
            "score_policy": protocol["score_policy"],
            **generation(protocol["generate"]),
        },
        complete=complete,
        dropped=dropped_ratio([(len(r["predictions"]), r["answer"]["dropped"].values()) for r in ordered]),
        probes=probe_ratios([(entry["objects"], entry["probes"]) for entry in ordered]),
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
    """Settings of generation that answers depend on: all but how many images are answered at once."""
    return {f"generate.{key}": value for key, value in settings.items() if key != "batch_size"}


def dropped_ratio(answers: Sequence[tuple[int, Iterable[int]]]) -> Ratio:
    """Dropped objects / objects seen, from how many objects of each image were kept and dropped (by reason)."""
    dropped = np.array([sum(reasons) for _, reasons in answers], dtype=np.float64)
    kept = np.array([count for count, _ in answers], dtype=np.float64)
    return Ratio(dropped, dropped + kept)


def _sample(entry: Entry, *, everything: bool = False) -> Sample:
    """The labels of an image; or everything: the labels that are not crowd regions, and the objects without a label."""
    labels = [
        Instance(row["desc"], _box(row["bbox"]), row["iscrowd"], row["area"], row["id"]) for row in entry["objects"]
    ]
    if everything:
        hidden = [Instance(row["desc"], _box(row["bbox"])) for row in entry["hidden"] or ()]
        labels = [*(label for label in labels if not label.iscrowd), *hidden]
    return Sample(entry["id"], Path(entry["image"]), (entry["width"], entry["height"]), tuple(labels))


def _detections(entry: Entry, folder: Path) -> list[Detection]:
    found = []
    for number, row in enumerate(entry["predictions"]):
        score = row["score"]
        if score is None:
            raise UserError(
                f"sample {entry['id']}, prediction {number}: expected a score, found none (or NaN)",
                where=folder,
                fix="AP ranks by score: choose a score policy that can be computed, such as `constant`",
            )
        found.append(Detection(row["desc"], _box(row["bbox"]), score))
    return found


def _box(values: Sequence[float]) -> BoxXYXY:
    x1, y1, x2, y2 = (float(value) for value in values)
    return x1, y1, x2, y2


COCO_FILE, RESULTS_FILE = "coco.json", "results.json"
FILES = (METRICS_FILE, COCO_FILE, RESULTS_FILE, PREDICTIONS_FILE)
_KEYS = {"image", "width", "height", "objects", "dropped"}
_FIX = "make one with: apiece evaluate CHECKPOINT --data X.jsonl --out DIR"


def evaluation_source(folder: Path) -> RunBoxes:
    """What `apiece evaluate` wrote, ready to be compared; a `UserError` if a file is missing or cannot be scored."""
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"expected the folder of an evaluation ({', '.join(FILES)}), found no {', no '.join(missing)}",
            where=folder,
            fix=_FIX,
            exit_code=2,
        )
    metrics = read_json_object(folder / METRICS_FILE, "metrics")
    protocol = metrics.get("protocol")
    if not isinstance(protocol, dict):
        raise UserError(
            "expected `protocol`, found none: the data and settings behind these figures are not known",
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
    """Lines of `predictions.jsonl` by sample id."""
    answers = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError as error:
                raise UserError(f"broken JSON: {error}", where=f"{path}:{number}") from error
            if not isinstance(row, dict) or not isinstance(row.get("id"), str) or not row.keys() >= _KEYS:
                raise UserError(f"expected an answer with id, {', '.join(sorted(_KEYS))}", where=f"{path}:{number}")
            answers[row["id"]] = row
    return answers


def _named(truth: GroundTruth, answers: Mapping[str, Mapping[str, Any]], folder: Path) -> GroundTruth:
    """The labels with sample ids in place of file names."""
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
    """Labels, complete truth if the file that the evaluation names is still there and unchanged; a remark if not."""
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
    """Settings of the run whose checkpoint was evaluated, if it still exists: they identify the seeds of one arm."""
    path = protocol.get("checkpoint_path")
    folders = Path(path).parents[:2] if isinstance(path, str) else ()
    run = next((folder for folder in folders if (folder / "config.yaml").is_file()), None)
    return {} if run is None else open_run(run).config


def read_sources(paths: Sequence[Path], step: int | None = None) -> list[RunBoxes]:
    """Read folders of runs, of single dumps or of evaluations; a `UserError` if one is none of these.

    Runs are read at their dump of `step`; if that is `None`, at the newest that all of them have.
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


def group_seeds(sources: Sequence[RunBoxes]) -> tuple[tuple[Arm, ...], tuple[str, ...]]:
    """Runs that differ in `seed` alone as one arm, in the order of the first of each; and remarks for the reader.

    If all would be one arm, each stays an arm of its own: the user then asks how much seeds differ.
    """
    arms: list[list[RunBoxes]] = []
    for source in sources:
        home = next((arm for arm in arms if _belongs(source, arm)), None)
        if home is None:
            arms.append([source])
        else:
            home.append(source)
    if len(arms) > 1:
        return _named_arms(arms), tuple(
            f"{', '.join(source.name for source in arm)}: seeds of one arm, as only their seed differs"
            for arm in arms
            if len(arm) > 1
        )
    remark = "these runs differ in their seed alone: their differences are what a seed does"
    return _named_arms([[source] for source in sources]), (remark,) if len(sources) > 1 else ()


def _belongs(source: RunBoxes, arm: list[RunBoxes]) -> bool:
    known = source.config is not None and source.seed is not None
    return known and all(
        other.config == source.config
        and other.seed != source.seed
        and other.step == source.step
        and other.protocol.get("score_policy") == source.protocol.get("score_policy")
        for other in arm
    )


def _named_arms(arms: list[list[RunBoxes]]) -> tuple[Arm, ...]:
    """Arms with names of their own: of the run, or what the names of its runs begin with."""
    names = [_common([source.name for source in arm]) for arm in arms]
    steps = {source.step for arm in arms for source in arm}
    named: list[Arm] = []
    for i, (name, arm) in enumerate(zip(names, arms, strict=True)):
        if names.count(name) > 1:
            parent = arm[0].path.resolve().parent.name
            name = f"{name}@{arm[0].step}" if len(steps) == len(arms) else f"{parent}/{name}"
        if name in (other.name for other in named):
            name = f"{name} ({i + 1})"
        named.append(Arm(name, tuple(arm)))
    return tuple(named)


def _common(names: list[str]) -> str:
    """What all names begin with, without a cut-off `_s` or `seed` at its end; the first name if nothing is left."""
    if len(names) == 1:
        return names[0]
    alike = "".join(column[0] for column in takewhile(lambda column: len(set(column)) == 1, zip(*names, strict=False)))
    return re.sub(r"(?i)([-_. ]+s|[-_. ]*seed)?[-_. ]*\d*$", "", alike, count=1) or names[0]


def require_two(arms: Sequence[Arm]) -> None:
    """Raise a `UserError` unless there are two arms or more, each with a name of its own."""
    if len(arms) < 2:
        raise UserError(
            f"expected two arms or more, found {len(arms)}",
            fix="apiece compare RUN_A RUN_B  or  apiece compare --arm A=RUN,RUN --arm B=RUN,RUN",
            exit_code=2,
        )
    names = [arm.name for arm in arms]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"two arms have the same name: {', '.join(repeated)}", exit_code=2)


_WORDS = {
    "data": "data (SHA-256)",
    "complete": "complete truth (SHA-256)",
    "panel": "panel",
    "prompt_hash": "prompt (hash)",
    "max_pixels": "max_pixels",
    "num_bins": "num_bins",
    "score_policy": "score policy",
    "min_score": "--min-score",
}
_KINDS = {"panel": "a run with dumps", "evaluation": "an evaluation"}
_LAST_PASS, _SIGMA = ("passes", "embed_mode", "temperature"), "sigma"
_NEAR = ("own_mass", "cross_instance_mass", "chimera", "near_neighbour", "near_own", "elsewhere")
"""Probe figures that depend on how near is near."""


def require_comparable(sources: Sequence[RunBoxes], may_differ: Collection[str] = ()) -> None:
    """Raise a `UserError` with every setting that differs, but for the keys in `may_differ`, and its two values."""
    first = sources[0]
    for other in sources[1:]:
        if other.kind != first.kind:
            raise UserError(
                f"cannot be compared: {first.name} is {_KINDS[first.kind]}, {other.name} is {_KINDS[other.kind]}",
                fix="compare runs with runs, or evaluations with evaluations",
                exit_code=2,
            )
        keys = [*first.protocol, *(key for key in other.protocol if key not in first.protocol)]
        lines = {
            key: f"{_WORDS.get(key, key)}: {_both(key, first.protocol.get(key), other.protocol.get(key))}"
            for key in keys
            if key not in may_differ
            and first.protocol.get(key) != other.protocol.get(key)
            and not (key == "complete" and None in (first.protocol.get(key), other.protocol.get(key)))
        }
        if lines:
            asked = (
                "; or, to ask which scores rank better, add --score-policies" if [*lines] == ["score_policy"] else ""
            )
            raise UserError(
                f"cannot be compared, these differ: {'; '.join(lines.values())}",
                where=f"{first.name} and {other.name}",
                fix="evaluate both on the same data, under the same settings (apiece evaluate RUN --data X.jsonl ...)"
                + asked,
                exit_code=2,
            )


def align(sources: Sequence[RunBoxes]) -> tuple[list[RunBoxes], tuple[str, ...]]:
    """The sources with the same images in the same order and the same classes; and remarks for the reader.

    Samples that one of them lacks (a line of its dump was broken) are left out of all; a `UserError` if none is left,
    or the labels of one differ.
    """
    shared = set(sources[0].ids).intersection(*(source.ids for source in sources[1:]))
    lost = sorted(set().union(*(source.ids for source in sources)) - shared)
    if not shared:
        raise UserError("no sample is in all of them", where=_names(sources), exit_code=2)
    chosen = [_only(source, shared) if len(source.ids) > len(shared) else source for source in sources]
    classes = sorted(set().union(*(source.truth.names for source in chosen)))
    with_complete = all(source.complete is not None for source in chosen)
    truth = chosen[0].truth.with_classes(classes)
    complete = chosen[0].complete if with_complete else None
    if complete is not None:
        truth, complete = align_complete(complete, truth)
    number = {name: i for i, name in enumerate(truth.names)}
    aligned = []
    for source in chosen:
        of_class = np.array([number[name] for name in source.truth.names], dtype=np.int64)
        _require_same_labels(chosen[0], source, truth, of_class)
        detections = replace(source.detections, category=of_class[source.detections.category])
        aligned.append(replace(source, truth=truth, complete=complete, detections=detections))
    remarks = []
    if lost:
        some = ", ".join(lost[:5]) + (", ..." if len(lost) > 5 else "")
        remarks.append(f"{len(lost)} samples that are not in all of them are left out: {some}")
    if not with_complete and any(source.complete is not None for source in chosen):
        without = _names([source for source in chosen if source.complete is None])
        remarks.append(f"F1 on complete truth and `unlabelled` are left out: {without} was judged without it")
    return aligned, tuple(remarks)


def _require_same_labels(first: RunBoxes, source: RunBoxes, truth: GroundTruth, of_class: IntArray) -> None:
    own = source.truth
    pairs = (
        (own.image, truth.image),
        (of_class[own.category], truth.category),
        (own.bbox_xywh, truth.bbox_xywh),
        (own.iscrowd, truth.iscrowd),
    )
    if source.ids != first.ids or not all(np.array_equal(a, b) for a, b in pairs):
        raise UserError(
            "cannot be compared: the labels differ",
            where=_names([first, source]),
            fix="evaluate both on the same data",
            exit_code=2,
        )


def _only(source: RunBoxes, names: set[str]) -> RunBoxes:
    kept = np.array([name in names for name in source.ids])
    rows = source.detections.image
    detections = Detections(
        image=_renumbered(rows, kept),
        **{key: getattr(source.detections, key)[kept[rows]] for key in ("category", "bbox_xywh", "score")},
    )
    return replace(
        source,
        truth=_truth_of(source.truth, kept),
        complete=None if source.complete is None else _truth_of(source.complete, kept),
        detections=detections,
        dropped=None if source.dropped is None else source.dropped.of(kept),
        probes={key: ratio.of(kept) for key, ratio in source.probes.items()},
    )


def _truth_of(truth: GroundTruth, kept: NDArray[np.bool_]) -> GroundTruth:
    images = tuple(compress(truth.images, kept))
    return replace(truth.rows(kept[truth.image]), images=images, image=_renumbered(truth.image, kept))


def _renumbered(image: IntArray, kept: NDArray[np.bool_]) -> IntArray:
    number = np.cumsum(kept) - 1
    return number[image[kept[image]]]


def _both(key: str, a: Any, b: Any) -> str:
    if key == "panel":
        only_a, only_b = sorted(set(a) - set(b)), sorted(set(b) - set(a))
        if not only_a and not only_b:
            return "the same samples in another order"
        return f"{_some(only_a)} only in the first, {_some(only_b)} only in the second"
    return f"{_short(a)} and {_short(b)}"


def _some(ids: Sequence[str]) -> str:
    return f"{len(ids)} samples" + (f" ({', '.join(ids[:3])}{', ...' if len(ids) > 3 else ''})" if ids else "")


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 16 else f"{text[:12]}..."


def _names(sources: Sequence[RunBoxes]) -> str:
    return ", ".join(source.name for source in sources)


def probes_in_common(sources: Sequence[RunBoxes]) -> tuple[set[str], tuple[str, ...]]:
    """Keys of the probe figures that mean the same in all sources, and why the others are left out."""
    have = [source.probes.keys() for source in sources]
    if not any(have):
        return set(), ()
    shared = set(have[0]).intersection(*have[1:])
    if not all(have):
        missing = ", ".join(source.name for source, keys in zip(sources, have, strict=True) if not keys)
        return set(), (f"probes are left out: none in {missing}",)
    remarks = []
    if len({_sigma(source) for source in sources}) > 1:
        shared = {key for key in shared if key.rpartition("/")[2] not in _NEAR}
        remarks.append("masses and chimeras are left out: the runs' target_sigma differ, and with it what is near")
    if differ := _differing(sources, _LAST_PASS):
        shared = {key for key in shared if key.startswith("probes/a1/") or key == "probes/flip"}
        remarks.append(f"probes of the last pass are left out, as these differ: {differ}")
    others = {key for source in sources for key in source.probe_protocol or {}} - {*_LAST_PASS, _SIGMA}
    if differ := _differing(sources, sorted(others)):
        remarks.append(f"probes were made under different settings: {differ}")
    return shared, tuple(remarks)


def _sigma(source: RunBoxes) -> Any:
    """Width of the training target, which decides what counts as near."""
    of_config = (source.config or {}).get("objective.coord_reg.config.target_sigma")
    return (source.probe_protocol or {}).get(_SIGMA, of_config)


def _differing(sources: Sequence[RunBoxes], keys: Sequence[str]) -> str:
    """Settings of the probes that differ, with their values, as text."""
    values = {
        key: list(dict.fromkeys(str((source.probe_protocol or {}).get(key)) for source in sources)) for key in keys
    }
    return "; ".join(f"{key} {' and '.join(found)}" for key, found in values.items() if len(found) > 1)
