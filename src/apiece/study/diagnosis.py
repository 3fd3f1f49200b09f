"""Why a split fails: which explanation of long boxes the numbers support, and all of it as JSON and as tables.

Averaging, chimeras or the labels: each explanation makes predictions that can fail. It is supported if the whole
interval of every number that it speaks of is on its side of a threshold, refuted if that of one is on the other side;
else nobody can tell. Every key is explained in docs/guides/diagnosing.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from apiece.boxes import FloatArray
from apiece.codec.bins import COORDINATE_NAMES
from apiece.data.jsonl import read_jsonl
from apiece.dumps.form import PASSES
from apiece.evaluate.detections import samples_to_ground_truth
from apiece.evaluate.forms import Detections, GroundTruth
from apiece.evaluate.metrics import Metrics, evaluate_detections
from apiece.evaluate.rates import POSITIONS, crowding_of_images, position_of
from apiece.outcomes import MISSES, NONE, Fate, Outcome
from apiece.printed import stdout_console, table
from apiece.probes.slots import reach
from apiece.stats.draws import ImageDraws
from apiece.stats.ratio import CROWDING
from apiece.study.evidence import Evidence, Figure, Probes, contrast, labelled_groups, mean, means, quotient
from apiece.types import IntArray

RATE_LOW = 0.01  # share of long boxes among predictions below which there is nothing to explain
MULTI_HIGH = 0.2
"""Share of labels whose x2 or y2 has several peaks, from which on the beliefs are averages of instances."""
CHIMERA_HIGH = 0.1  # share of context boxes that mix instances, from which on training on them could matter
FOLLOW_HALF = 0.5
"""Share of the mass near either box that goes to the one that was begun: below it the model finishes another one."""
FOLLOW_KNOWN = 0.1  # mass near either box, below which `follow` decides nothing
LABELS_ENOUGH = 0.5
"""Labelled group boxes / labels over long boxes / predictions, from which on the labels explain the predictions."""
LABELS_TOO_FEW = 0.1  # the same, below which they cannot


class Stand(StrEnum):
    """The verdict on an explanation."""

    SUPPORTED = "supported"
    REFUTED = "refuted"
    CANNOT_TELL = "can't tell"


NOTHING = "nothing to explain"


@dataclass(frozen=True, slots=True)
class Explanation:
    """One explanation: its verdict, its numbers by name, and the same in one sentence."""

    stand: Stand
    numbers: Mapping[str, Figure]
    because: str

    def as_dict(self) -> dict[str, Any]:
        return {
            "verdict": str(self.stand),
            "because": self.because,
            "numbers": {name: figure.as_dict() for name, figure in self.numbers.items()},
        }


@dataclass(frozen=True, slots=True)
class Explained:
    """The verdict (names of the supported explanations, `nothing to explain`, or `can't tell`), with its reasons."""

    verdict: tuple[str, ...]
    rate: Figure  # long boxes / predictions
    explanations: Mapping[str, Explanation]


def explain(evidence: Evidence, *, sigma: float = 2.0, training_groups: Figure | None = None) -> Explained:
    """Check every explanation; `training_groups`: labelled group boxes / labels of the training file, if known."""
    found = evidence.detections
    used = evidence.outcomes.of_prediction >= 0
    rate = mean(evidence.draws, found.image[used], evidence.long[used])
    explanations = {
        "averaging": averaging(evidence, reach(sigma)),
        "chimera": chimera(evidence),
        "labels": labels(evidence, rate, training_groups),
    }
    if not evidence.long.any() or rate.below(RATE_LOW):
        verdict: tuple[str, ...] = (NOTHING,)
    else:
        verdict = tuple(name for name, e in explanations.items() if e.stand is Stand.SUPPORTED) or (
            str(Stand.CANNOT_TELL),
        )
    return Explained(verdict, rate, explanations)


def several_peaks(evidence: Evidence, chosen: NDArray[np.bool_]) -> tuple[IntArray, FloatArray]:
    """Probed labels among those chosen; whether x2 or y2 has two or more modes in the first pass, NaN if unknown."""
    label, modes = evidence.at_x2_y2("a1/modes", chosen)
    return label, np.where(np.isnan(modes).any(1), np.nan, (modes >= 2).any(1))


def averaging(evidence: Evidence, high: float) -> Explanation:
    """Beliefs between instances: expectations far from peaks, and several peaks, where long boxes are.

    x2 and y2 of the first pass alone: the true x1, y1 stand before them, so several peaks there are not several objects
    that could come next.
    """
    label, gaps = evidence.at_x2_y2("a1/exp_argmax_gap", evidence.has_neighbour)
    image, here = evidence.truth.image[label], evidence.under_long[label]
    gap, gap_off, gap_more = contrast(evidence.draws, image, gaps.max(1, initial=0), here)
    peaks = several_peaks(evidence, evidence.has_neighbour)[1]
    multi, multi_off, multi_more = contrast(evidence.draws, image, peaks, here)
    numbers = {
        "gap": gap, "gap_elsewhere": gap_off, "gap_difference": gap_more,
        "several_peaks": multi, "several_peaks_elsewhere": multi_off, "several_peaks_difference": multi_more,
    }  # fmt: skip
    stand = Stand.CANNOT_TELL
    if gap.above(high) and multi.above(MULTI_HIGH) and gap_more.above(0) and multi_more.above(0):
        stand = Stand.SUPPORTED
    elif gap.below(high) or multi.below(MULTI_HIGH) or gap_more.below(0) or multi_more.below(0):
        stand = Stand.REFUTED
    return Explanation(stand, numbers, _said_of_averaging(gap, gap_off, multi, multi_off, high))


def _said_of_averaging(gap: Figure, gap_off: Figure, multi: Figure, multi_off: Figure, high: float) -> str:
    if gap.value is None or multi.value is None:
        if gap_off.value is None or multi_off.value is None:
            return "no label was probed"
        return (
            f"no probed label is under a long box; elsewhere the expectation of x2, y2 is {gap_off.text(' bins', 1)} "
            f"from the peak (high is {high:g}), and {multi_off.text(percent=True)} have several peaks "
            f"(high is {MULTI_HIGH:.0%})"
        )
    elsewhere = ("", "")
    if gap_off.value is not None and multi_off.value is not None:
        elsewhere = (f"{gap_off.text('', 1)} elsewhere; ", f"{multi_off.text(percent=True)} elsewhere; ")
    return (
        f"under long boxes the expectation of x2, y2 is {gap.text(' bins', 1)} from the peak ({elsewhere[0]}"
        f"high is {high:g}), and {multi.text(percent=True)} have several peaks "
        f"({elsewhere[1]}high is {MULTI_HIGH:.0%})"
    )


def chimera(evidence: Evidence) -> Explanation:
    """Contexts that mix instances, in a model that does not finish the box that was begun."""
    image, draws, chosen = evidence.truth.image, evidence.draws, evidence.has_neighbour
    label, mixes = evidence.belief("chimera", chosen)
    mixed, mixed_off, _ = contrast(draws, image[label], mixes, evidence.under_long[label])
    rate = mean(draws, image[label], mixes)
    flip = mean(draws, image[label], evidence.belief("flip", chosen)[1])
    label, neighbour = evidence.belief("follow/near_neighbour", chosen)
    own = evidence.belief("follow/near_own", chosen)[1]
    near = mean(draws, image[label], neighbour + own)
    followed = quotient(draws, image[label], neighbour, neighbour + own)
    numbers = {
        "chimera": rate, "chimera_under_long": mixed, "chimera_elsewhere": mixed_off, "flip": flip,
        "follow": followed, "follow_mass": near,
    }  # fmt: skip
    stand = Stand.CANNOT_TELL
    knows = near.above(FOLLOW_KNOWN)
    if rate.above(CHIMERA_HIGH) and knows and followed.below(FOLLOW_HALF):
        stand = Stand.SUPPORTED
    elif rate.below(CHIMERA_HIGH) or (knows and followed.above(FOLLOW_HALF)):
        stand = Stand.REFUTED
    return Explanation(stand, numbers, _said_of_chimeras(rate, followed, near))


def _said_of_chimeras(rate: Figure, followed: Figure, near: Figure) -> str:
    if rate.value is None:
        return "no box of the model's own context was probed"
    said = (
        f"{rate.text(percent=True)} of the boxes in the model's own context mix instances (high is {CHIMERA_HIGH:.0%})"
    )
    if near.value is None:
        return f"{said}; no label was probed after a neighbour's x1, y1"
    if followed.value is not None:
        said += (
            f"; after a neighbour's x1, y1, {followed.text(percent=True)} of the mass near either box "
            f"finishes the neighbour's (low is under {FOLLOW_HALF:.0%})"
        )
    if not near.above(FOLLOW_KNOWN):
        said += f"; only {near.text(percent=True)} of the mass is near either"
    return said


def labels(evidence: Evidence, rate: Figure, training_groups: Figure | None) -> Explanation:
    """Group boxes in the labels: the model writes what it was shown."""
    truth = evidence.truth
    objects = ~truth.iscrowd
    shares = {"labelled_groups": mean(evidence.draws, truth.image[objects], evidence.labelled_groups[objects])}
    if training_groups is not None:
        shares["labelled_groups_training"] = training_groups
    stands = [_labels_stand(share, rate) for share in shares.values()]
    stand = Stand.CANNOT_TELL
    if Stand.SUPPORTED in stands:
        stand = Stand.SUPPORTED
    elif all(s is Stand.REFUTED for s in stands):
        stand = Stand.REFUTED
    said = "there are no labels"
    if shares["labelled_groups"].value is not None:
        said = f"{shares['labelled_groups'].text(percent=True)} of the labels hold two or more of their class"
    if training_groups is None:
        said += " (those trained on are not known)"
    elif training_groups.value is not None:
        said += f", {training_groups.text(percent=True)} of those trained on"
    found = "there are no predictions"
    if rate.value is not None:
        found = f"{rate.text(percent=True)} of the predictions are long boxes"
    return Explanation(stand, {**shares, "long_boxes": rate}, f"{said}; {found}")


def _labels_stand(share: Figure, rate: Figure) -> Stand:
    if share.interval is None or rate.interval is None:
        return Stand.CANNOT_TELL
    (low, high), (rate_low, rate_high) = share.interval, rate.interval
    if rate_high > 0 and low >= LABELS_ENOUGH * rate_high:
        return Stand.SUPPORTED
    return Stand.REFUTED if high < LABELS_TOO_FEW * rate_low else Stand.CANNOT_TELL


SCHEMA = 1
DIAGNOSIS_FILE = "diagnosis.json"
_FINE = {Outcome.TP, Outcome.IGNORED}
_FEWEST = 20  # items of a class, a crowding or a place in the answer, below which it is not named as the worst
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
        detections: Predictions, in the order written.
        policy: Name of the rule that the scores follow.
        complete: All objects of the images, where they are known.
        sigma: Width of the training target, bins.
        training: JSONL that the model was trained on; its labels are looked at if the file exists.
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
    """Every kind of wrong prediction, the most frequent first: how often, where, and the figures without it."""
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
    """Every kind of missed label, per label."""
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
    """Print what fails, how often and where, the beliefs, and which explanation the numbers support."""
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
    columns = {"all": tables["all"], **tables["by_coordinate"], **tables["by_crowding"]}
    made = table(title, *columns)
    for figure, name in _FIGURES:
        made.add_row(name, *(_shown(row.get(figure), figure) for row in columns.values()))
    return made


def _shown(figure: Mapping[str, Any] | None, name: str) -> str:
    if figure is None or figure["value"] is None:
        return "-"
    return f"{figure['value']:.0%}" if name in _SHARES else f"{figure['value']:.2f}"
