"""A diagnosis as tables and sentences: coloured on a terminal, plain text elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from apiece.codec.bins import COORDINATE_NAMES
from apiece.data.jsonl import read_jsonl
from apiece.dumps.form import PASSES
from apiece.evaluate.detections import samples_to_ground_truth
from apiece.evaluate.forms import Detections, GroundTruth
from apiece.evaluate.metrics import Metrics, evaluate_detections
from apiece.evaluate.rates import POSITIONS, crowding_of_images, position_of
from apiece.outcomes import MISSES, NONE, Fate, Outcome
from apiece.printed import stdout_console, table
from apiece.stats.draws import ImageDraws
from apiece.stats.ratio import CROWDING
from apiece.study.evidence import Evidence, Figure, Probes, labelled_groups, mean, means
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
    probes: Probes,
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
    evidence = Evidence.of(truth, detections, probes, complete, seed)
    metrics = evaluate_detections(truth, detections, policy=policy, complete=complete)
    groups = training_groups(training, seed) if training is not None and training.is_file() else None
    everywhere = np.ones(len(evidence.truth), dtype=bool)
    verdict = explain(evidence, sigma=sigma, training_groups=groups)
    return {
        "schema": SCHEMA,
        "images": len(truth.images),
        "probed_images": sum(found is not None for found in probes.values()),
        "probed_labels": len(evidence.belief("flip", everywhere)[0]),
        "verdict": list(verdict.verdict),
        "long_boxes": verdict.rate.as_dict(),
        "explanations": {name: explanation.as_dict() for name, explanation in verdict.explanations.items()},
        "fails": failures(evidence, metrics),
        "misses": misses(evidence, metrics),
        "probes": probe_tables(evidence),
        "metrics": metrics,
    }


def training_groups(path: Path, seed: int = 0) -> Figure:
    """Labelled group boxes / labels of a training file, with an interval over its images."""
    truth = samples_to_ground_truth(read_jsonl(path))
    objects = ~truth.iscrowd
    draws = ImageDraws(truth.objects_per_image > 0, seed=seed)
    return mean(draws, truth.image[objects], labelled_groups(truth)[objects])


def failures(evidence: Evidence, metrics: Metrics) -> list[Row]:
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
    return _named(evidence.draws, image, value, kinds, axes, metrics, "outcome")


def misses(evidence: Evidence, metrics: Metrics) -> list[Row]:
    """Every kind of missed label that there is, per label."""
    truth, fates = evidence.truth, evidence.outcomes.of_truth
    objects = np.flatnonzero(fates != NONE)
    image, value = truth.image[objects], fates[objects].astype(np.int64)
    axes: dict[str, tuple[IntArray, Sequence[str]]] = {
        "class": (truth.category[objects], truth.names),
        "crowding": (crowding_of_images(truth)[image], CROWDING),
    }
    kinds = [(fate, fate.label) for fate in MISSES if fate is not Fate.MATCHED]
    return _named(evidence.draws, image, value, kinds, axes, metrics, "fate")


def _named(
    draws: ImageDraws,
    image: IntArray,
    value: IntArray,
    kinds: Sequence[tuple[int, str]],
    axes: Mapping[str, tuple[IntArray, Sequence[str]]],
    metrics: Metrics,
    key: str,
) -> list[Row]:
    rows = []
    for kind, label in kinds:
        count = int((value == kind).sum())
        if not count:
            continue
        worst = {}
        for axis, (group, names) in axes.items():
            found = {
                name: mean(draws, image[own], value[own] == kind)
                for i, name in enumerate(names)
                if (own := group == i).sum() >= _FEWEST and (value[own] == kind).any()
            }
            if found:
                # The highest lower end: high, and known to be.
                name, most = max(found.items(), key=lambda item: -1.0 if item[1].lo is None else item[1].lo)
                ends = {"rate": most.value, "lo": most.lo, "hi": most.hi}
                worst[axis] = {
                    "name": name,
                    "count": int(((group == names.index(name)) & (value == kind)).sum()),
                    **{end: None if x is None else round(x, 5) for end, x in ends.items()},
                }
        fixed = {name: metrics.get(f"fix/{label}/{name}") for name in ("f1", "ap")}
        rate = mean(draws, image, value == kind).as_dict()
        rows.append({key: label, "count": count, "rate": rate, "fixed": fixed, "most_often": worst})
    return sorted(rows, key=lambda row: -row["count"])


def probe_tables(evidence: Evidence) -> Row:
    """Probe figures over the split, by coordinate, by class and by crowding of the image."""
    truth = evidence.truth
    everywhere = np.ones(len(truth), dtype=bool)
    probed = evidence.belief("flip", everywhere)[0]
    groups = {
        "by_class": (truth.names, truth.category),
        "by_crowding": (CROWDING, crowding_of_images(truth)[truth.image]),
    }
    return {
        "all": _probe_row(evidence, everywhere),
        "by_coordinate": {name: _coordinate_row(evidence, i) for i, name in enumerate(COORDINATE_NAMES)},
        **{
            axis: {
                name: _probe_row(evidence, chosen)
                for i, name in enumerate(names)
                if (chosen := group == i)[probed].any()
            }
            for axis, (names, group) in groups.items()
        },
    }


def _probe_row(evidence: Evidence, chosen: NDArray[np.bool_]) -> Row:
    """Means over the probed labels among those chosen `[M]`; flips and chimeras over those with a neighbour."""
    image = evidence.truth.image
    columns = {"several_peaks": several_peaks(evidence, chosen)}
    for name in evidence.beliefs:
        near = name in ("flip", "chimera")
        columns[name] = evidence.belief(name, chosen & evidence.has_neighbour if near else chosen)
    found = means(evidence.draws, {name: (image[label], value) for name, (label, value) in columns.items()})
    return {name: figure.as_dict() for name, figure in found.items()}


def _coordinate_row(evidence: Evidence, coordinate: int) -> Row:
    """Means of the figures of a slot at one coordinate."""
    slots = {name: column for name, column in evidence.beliefs.items() if name.split("/")[0] in (*PASSES, "drift")}
    rows = {name: column.coordinate == coordinate for name, column in slots.items()}
    columns = {name: (column.image[rows[name]], column.value[rows[name]]) for name, column in slots.items()}
    return {name: figure.as_dict() for name, figure in means(evidence.draws, columns).items()}


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
    console = console or stdout_console()

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
    made = table(title, "count", "rate", "95 % interval", "F1 if fixed", "most often at " + ", ".join(axes))
    for row in rows:
        rate, fixed, most = row["rate"], row["fixed"]["f1"], row["most_often"]
        made.add_row(
            row[key],
            f"{row['count']:,}",
            f"{rate['value']:.3f}",
            "-" if rate["lo"] is None else f"{rate['lo']:.3f} - {rate['hi']:.3f}",
            "-" if fixed is None else f"{fixed:.3f}",
            ", ".join(escape(most[axis]["name"]) if axis in most else "-" for axis in axes),
        )
    return made


def _probes(title: str, tables: Mapping[str, Any]) -> Table:
    """Figures down, coordinates and labels per image across: fits a narrow terminal. Classes are in the file."""
    columns = {
        "all": tables["all"],
        **tables["by_coordinate"],
        **tables["by_crowding"],
    }
    made = table(title, *columns)
    for figure, name in _FIGURES:
        made.add_row(name, *(_shown(row.get(figure), figure) for row in columns.values()))
    return made


def _shown(figure: Mapping[str, Any] | None, name: str) -> str:
    if figure is None or figure["value"] is None:
        return "-"
    return f"{figure['value']:.0%}" if name in _SHARES else f"{figure['value']:.2f}"
