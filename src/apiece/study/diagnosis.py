"""A diagnosis as tables and sentences: coloured on a terminal, plain text elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from apiece.codec.bins import COORDINATE_NAMES
from apiece.data.jsonl import read_jsonl
from apiece.evaluate.detections import samples_to_ground_truth
from apiece.evaluate.forms import Detections, GroundTruth
from apiece.evaluate.metrics import Metrics, evaluate_detections
from apiece.evaluate.rates import POSITIONS, crowding_of_images, position_of
from apiece.outcomes import MISSES, NONE, Fate, Outcome
from apiece.stats.ratio import CROWDING
from apiece.study.evidence import FOLLOW, Evidence, Figure, Sampler, labelled_groups
from apiece.study.explanations import explain, several_peaks
from apiece.types import IntArray

# The diagnosis of a split as one JSON document: what fails, how often, where, what is believed, and why.
#
# Every key is explained in docs/diagnosing.md.


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


_FIGURES = (
    ("a1/entropy", "entropy, nats"),
    ("a1/modes", "modes"),
    ("a1/own_mass", "mass on the own"),
    ("a1/cross_instance_mass", "mass on others"),
    ("a1/exp_argmax_gap", "gap, bins"),
    ("last/own_mass", "mass on the own, last"),
    ("last/exp_argmax_gap", "gap, bins, last"),
    ("drift", "drift, bins"),
    ("several_peaks", "several peaks"),
    ("flip", "flip"),
    ("chimera", "chimera"),
    ("follow/near_neighbour", "follow: the neighbour"),
    ("follow/near_own", "follow: the own"),
)
_SHARES = {"several_peaks", "flip", "chimera"}


def print_diagnosis(found: Mapping[str, Any], console: Console | None = None) -> None:
    """Print what fails, how often and where, what is believed, and which explanation the numbers support."""
    console = console or Console()

    def say(text: str = "") -> None:
        console.print(escape(text), highlight=False, soft_wrap=True)

    counts = found["metrics"]
    say(
        f"{found['images']:,} images, {counts['count/truths']:,} labels, {counts['count/predictions']:,} predictions: "
        f"F1 {counts['f1/f1']:.3f}, AP {max(counts['coco/AP'], 0):.3f}"
    )
    for title, rows, key in (("what fails", found["fails"], "outcome"), ("what is missed", found["misses"], "fate")):
        say()
        if rows:
            console.print(_failures(title, rows, key))
        else:
            say(f"{title}: nothing")
    say()
    if found["probed_labels"]:
        console.print(_probes("beliefs at labels", found["probes"]))
    else:
        say("no probes: the dump holds none, or there are no labels")
    say()
    rate = found["long_boxes"]
    if rate["value"] is not None:
        ends = "" if rate["lo"] is None else f" [{rate['lo']:.1%}, {rate['hi']:.1%}]"
        say(f"long boxes (group boxes and strips): {rate['value']:.1%} of the predictions{ends}")
    for name, explanation in found["explanations"].items():
        say(f"  {name}: {explanation['verdict']}. {explanation['because'][:1].upper()}{explanation['because'][1:]}.")
    console.print(f"[bold]explanation: {escape(' and '.join(found['verdict']))}[/bold]", highlight=False)


def _failures(title: str, rows: Sequence[Mapping[str, Any]], key: str) -> Table:
    axes = ("class", "crowding", "position") if key == "outcome" else ("class", "crowding")
    table = _table(title, "count", "rate", "95 % interval", "F1 if fixed", "most often at " + ", ".join(axes))
    for row in rows:
        rate, fixed, most = row["rate"], row["fixed"]["f1"], row["most_often"]
        table.add_row(
            row[key],
            f"{row['count']:,}",
            f"{rate['value']:.3f}",
            "-" if rate["lo"] is None else f"{rate['lo']:.3f} - {rate['hi']:.3f}",
            "-" if fixed is None else f"{fixed:.3f}",
            ", ".join(escape(most[axis]["name"]) if axis in most else "-" for axis in axes),
        )
    return table


def _probes(title: str, tables: Mapping[str, Any]) -> Table:
    """Figures down, coordinates and labels per image across: fits a narrow terminal. Classes are in the file."""
    columns = {
        "all": tables["all"],
        **tables["by_coordinate"],
        **tables["by_crowding"],
    }
    table = _table(title, *columns)
    for figure, name in _FIGURES:
        table.add_row(name, *(_shown(row.get(figure), figure) for row in columns.values()))
    return table


def _shown(figure: Mapping[str, Any] | None, name: str) -> str:
    if figure is None or figure["value"] is None:
        return "-"
    return f"{figure['value']:.0%}" if name in _SHARES else f"{figure['value']:.2f}"


def _table(head: str, *columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(head, no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=column[:4] != "most")
    return table
