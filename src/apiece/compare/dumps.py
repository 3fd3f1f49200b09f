"""A dump of a run as something that can be compared: its records as labels, predictions and probe figures.

Outcomes are named anew from the boxes by the code of `apiece evaluate`, so that dumps and evaluations have one meaning.

Shapes: I images.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from apiece.boxes import FloatArray
from apiece.compare.source import Ratio, Source
from apiece.errors import UserError
from apiece.evaluate.complete import align_complete
from apiece.evaluate.detections import predictions_to_detections, samples_to_ground_truth
from apiece.records.folder import Dump, RunFolder
from apiece.records.record import HiddenRow, ObjectRow, Probes, Record
from apiece.types import BoxXYXY, Detection, Instance, Sample

SLOT_FIGURES = ("entropy", "modes", "own_mass", "cross_instance_mass", "exp_argmax_gap")
PASSES = ("a1", "last")
_FOLLOW = ("near_neighbour", "near_own", "elsewhere")
_TELEMETRY = "window_var/"
_OWN_SETTINGS = ("seed", "run.name", "run.dir")
"""In which runs of one arm may differ."""


def dump_source(run: RunFolder, dump: Dump, path: Path) -> Source:
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
    records = sorted(dump.records, key=lambda record: place.get(record["id"], len(place)))
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
    settings = settings_of(run.config)
    return Source(
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
        dropped=dropped_ratio([(len(r["predictions"]), r["answer"]["dropped"]) for r in ordered]),
        probes=probe_ratios([(record["objects"], record["probes"]) for record in ordered]),
        probe_protocol=protocol["probes"],
        step=dump.step,
        seed=run.config.get("seed", protocol["seed"]),
        config=arm_settings(run.config),
        telemetry={
            key: dict(run.series(key))
            for key in sorted({key for row in run.metrics for key in row if key.startswith(_TELEMETRY)})
            if "/bbox_geo/" in key
        },
        telemetry_window=None if settings is None else settings.get("train.telemetry_window"),
        remarks=tuple(f"{run.name}: {gap}" for gap in dump.gaps),
    )


def settings_of(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """A run's settings by dotted path; `None` without any."""

    def walk(value: Any, path: str) -> Iterable[tuple[str, Any]]:
        if isinstance(value, Mapping):
            for key, child in value.items():
                yield from walk(child, f"{path}.{key}" if path else str(key))
        else:
            yield path, value

    return dict(walk(config, "")) or None


def arm_settings(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Settings that runs of one arm have in common."""
    settings = settings_of(config)
    return None if settings is None else {k: v for k, v in settings.items() if k not in _OWN_SETTINGS}


def generation(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of generation that answers depend on; how many images are asked about at once is none of them."""
    return {f"generate.{key}": value for key, value in settings.items() if key != "batch_size"}


def dropped_ratio(answers: Sequence[tuple[int, Mapping[str, int]]]) -> Ratio:
    """Dropped records / records seen, from the kept ones and the dropped by reason of every image."""
    dropped = np.array([sum(reasons.values()) for _, reasons in answers], dtype=np.float64)
    kept = np.array([count for count, _ in answers], dtype=np.float64)
    return Ratio(dropped, dropped + kept)


def _sample(record: Record, objects: Iterable[ObjectRow]) -> Sample:
    instances = tuple(
        Instance(row["desc"], _box(row["bbox"]), row["iscrowd"], row["area"], row["id"]) for row in objects
    )
    return Sample(record["id"], Path(record["image"]), (record["width"], record["height"]), instances)


def _everything(record: Record) -> list[ObjectRow]:
    """The labels that are not crowd regions, and what is there but not labelled."""
    hidden: list[HiddenRow] = record["hidden"] or []
    return [row for row in record["objects"] if not row["iscrowd"]] + [
        ObjectRow(desc=row["desc"], bbox=row["bbox"], iscrowd=False, area=None, id=None, fate=None, slots=None)
        for row in hidden
    ]


def _detections(record: Record, folder: Path) -> list[Detection]:
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


def probe_ratios(records: Sequence[tuple[Sequence[ObjectRow], Probes | None]]) -> dict[str, Ratio]:
    """Probe figures as sums and counts by image; what could not be computed counts nowhere."""
    part: dict[str, FloatArray] = defaultdict(lambda: np.zeros(len(records)))
    whole: dict[str, FloatArray] = defaultdict(lambda: np.zeros(len(records)))

    def add(key: str, image: int, values: Iterable[float | None]) -> None:
        known = [value for value in values if value is not None]
        part[key][image] += float(sum(known))
        whole[key][image] += len(known)

    for image, (objects, probes) in enumerate(records):
        if probes is None:
            continue
        slots = probes["slots"]
        for name, figures in (("a1", slots["a1"]), ("last", slots["last"])):
            for key in SLOT_FIGURES:
                add(f"probes/{name}/{key}", image, figures[key])  # type: ignore[literal-required]
        add("probes/drift", image, slots["drift"])
        # Only a box with a neighbour of its class can be taken for it.
        of_class = Counter(row["desc"] for row in objects if not row["iscrowd"])
        rows = probes["objects"]
        crowded = [of_class[objects[i]["desc"]] > 1 for i in rows["object"]]
        for key, flags in (("flip", rows["flip"]), ("chimera", rows["chimera"])):
            add(f"probes/{key}", image, (float(flag) for flag, near in zip(flags, crowded, strict=True) if near))
        for row in probes["follow"]:
            for key in _FOLLOW:
                add(f"probes/follow/{key}", image, [row[key]])  # type: ignore[literal-required]
    return {key: Ratio(part[key], whole[key]) for key in part if whole[key].any()}
