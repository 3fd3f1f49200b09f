"""The diagnosis of a split as one JSON document: what fails, how often, where, what is believed, and why.

Every key is explained in docs/diagnosing.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from apiece.codec.bins import COORDINATE_NAMES
from apiece.data.jsonl import read_jsonl
from apiece.diagnosis.evidence import FOLLOW, Evidence, labelled_groups
from apiece.diagnosis.explain import explain, several_peaks
from apiece.diagnosis.figures import Figure, Sampler
from apiece.evaluate.detections import samples_to_ground_truth
from apiece.evaluate.f1 import CROWDING, crowding_of_images
from apiece.evaluate.forms import Detections, GroundTruth
from apiece.evaluate.metrics import Metrics, evaluate_detections
from apiece.evaluate.rates import POSITIONS, position_of
from apiece.outcomes import MISSES, NONE, Fate, Outcome
from apiece.types import IntArray

SCHEMA = 1
DIAGNOSIS_FILE = "diagnosis.json"
_FINE = {Outcome.TP, Outcome.IGNORED}
_FEWEST = 20
"""Items of a class, a crowding or a place in the answer, below which it is not named as the worst."""
Row = dict[str, Any]


def diagnose(
    truth: GroundTruth,
    detections: Detections,
    probes: Mapping[str, Mapping[str, Any] | None],
    *,
    policy: str,
    complete: GroundTruth | None = None,
    sigma: float = 2.0,
    training: Path | None = None,
    seed: int = 0,
) -> Row:
    """Everything about a split.

    Args:
        truth: Labels.
        detections: Predictions, in the order written.
        probes: `PROBES` of docs/records.md by sample id.
        policy: Name of the rule that the scores follow.
        complete: Everything that is on the images, where it is known.
        sigma: Width of the training target, bins.
        training: JSONL that the model was trained on; its labels are looked at if the file is there.
        seed: Of the bootstrap.
    """
    evidence = Evidence.of(truth, detections, probes, complete)
    sampler = Sampler(len(truth.images), seed=seed)
    metrics = evaluate_detections(truth, detections, policy=policy, complete=complete)
    groups = training_groups(training, seed) if training is not None and training.is_file() else None
    verdict = explain(evidence, sampler, sigma=sigma, training_groups=groups)
    return {
        "schema": SCHEMA,
        "images": len(truth.images),
        "probed_images": sum(found is not None for found in probes.values()),
        "probed_labels": len(evidence.probes.label),
        "verdict": list(verdict.verdict),
        "long_boxes": verdict.rate.as_dict(),
        "explanations": {name: explanation.as_dict() for name, explanation in verdict.explanations.items()},
        "fails": failures(evidence, sampler, metrics),
        "misses": misses(evidence, sampler, metrics),
        "probes": probe_tables(evidence, sampler),
        "metrics": metrics,
    }


def training_groups(path: Path, seed: int = 0) -> Figure:
    """Labelled group boxes / labels of a training file, with an interval over its images."""
    truth = samples_to_ground_truth(read_jsonl(path))
    objects = ~truth.iscrowd
    return Sampler(len(truth.images), seed=seed).mean(truth.image[objects], labelled_groups(truth)[objects])


def failures(evidence: Evidence, sampler: Sampler, metrics: Metrics) -> list[Row]:
    """Every kind of wrong prediction that there is, the most frequent first: how often, where, what fixing it gives."""
    found, outcomes = evidence.detections, evidence.outcomes
    used = np.flatnonzero(outcomes.of_prediction != NONE)
    image, value = found.image[used], outcomes.of_prediction[used].astype(np.int64)
    axes: dict[str, tuple[IntArray, Sequence[str]]] = {
        "class": (found.category[used], evidence.truth.names),
        "crowding": (crowding_of_images(evidence.truth)[image], CROWDING),
        "position": (position_of(found.image)[used], POSITIONS),
    }
    kinds = [(outcome, outcome.label) for outcome in Outcome if outcome not in _FINE]
    return _named(sampler, image, value, kinds, axes, metrics, "outcome")


def misses(evidence: Evidence, sampler: Sampler, metrics: Metrics) -> list[Row]:
    """Every kind of missed label that there is, per label."""
    truth, fates = evidence.truth, evidence.outcomes.of_truth
    objects = np.flatnonzero(fates != NONE)
    image, value = truth.image[objects], fates[objects].astype(np.int64)
    axes: dict[str, tuple[IntArray, Sequence[str]]] = {
        "class": (truth.category[objects], truth.names),
        "crowding": (crowding_of_images(truth)[image], CROWDING),
    }
    kinds = [(fate, fate.label) for fate in MISSES if fate is not Fate.MATCHED]
    return _named(sampler, image, value, kinds, axes, metrics, "fate")


def _named(
    sampler: Sampler,
    image: IntArray,
    value: IntArray,
    kinds: Sequence[tuple[int, str]],
    axes: Mapping[str, tuple[IntArray, Sequence[str]]],
    metrics: Metrics,
    key: str,
) -> list[Row]:
    rows = []
    tables = {
        axis: sampler.bootstrap.rates(image, group, value, groups=max(len(names), 1), values=len(Outcome))
        for axis, (group, names) in axes.items()
    }
    for kind, label in kinds:
        count = int((value == kind).sum())
        if not count:
            continue
        worst = {}
        for axis, (_, names) in axes.items():
            table = tables[axis]
            enough = table.count.sum(1) >= _FEWEST
            if len(names) and (enough & (table.rate[:, kind] > 0)).any():
                # The highest lower end: high, and known to be.
                place = int(np.argmax(np.where(enough & (table.rate[:, kind] > 0), table.lo[:, kind], -1)))
                worst[axis] = {"name": names[place], "count": int(table.count[place, kind])} | {
                    end: round(float(getattr(table, end)[place, kind]), 5) for end in ("rate", "lo", "hi")
                }
        rate = sampler.mean(image, value == kind).as_dict()
        fix = {name: metrics.get(f"fix/{label}/{name}") for name in ("f1", "ap")}
        rows.append({key: label, "count": count, "rate": rate, "fixed": fix, "most_often": worst})
    return sorted(rows, key=lambda row: -row["count"])


def probe_tables(evidence: Evidence, sampler: Sampler) -> Row:
    """Probe figures over the split, by coordinate, by class and by crowding of the image."""
    probes, truth = evidence.probes, evidence.truth
    image = truth.image[probes.label]
    bucket = crowding_of_images(truth)
    return {
        "all": _probe_row(evidence, sampler, np.ones(len(truth), dtype=bool)),
        "by_coordinate": {
            name: {
                figure: sampler.mean(image, values[:, coordinate]).as_dict() for figure, values in probes.slots.items()
            }
            for coordinate, name in enumerate(COORDINATE_NAMES)
        },
        "by_class": {
            name: _probe_row(evidence, sampler, chosen)
            for i, name in enumerate(truth.names)
            if (chosen := truth.category == i)[probes.label].any()
        },
        "by_crowding": {
            name: _probe_row(evidence, sampler, chosen)
            for i, name in enumerate(CROWDING)
            if (chosen := bucket[truth.image] == i)[probes.label].any()
        },
    }


def _probe_row(evidence: Evidence, sampler: Sampler, chosen: np.ndarray[Any, np.dtype[np.bool_]]) -> Row:
    """Means over the probed labels among those chosen `[M]`; flips and chimeras over those with a neighbour."""
    probes, image = evidence.probes.objects(chosen), evidence.truth.image
    crowd = evidence.probes.objects(chosen & evidence.has_neighbour)
    slots = np.repeat(image[probes.label], 4)
    row = {name: sampler.mean(slots, values.ravel()).as_dict() for name, values in probes.slots.items()}
    row["several_peaks"] = sampler.mean(image[probes.label], several_peaks(probes)).as_dict()
    for name, values in (("flip", crowd.flip), ("chimera", crowd.chimera)):
        row[name] = sampler.mean(image[crowd.label], values).as_dict()
    for name in FOLLOW:
        row[f"follow/{name}"] = sampler.mean(image[probes.follow_label], probes.follow[name]).as_dict()
    return row
