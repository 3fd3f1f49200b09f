"""Answers, labels and beliefs to the entries of a dump (`apiece.dumps.form`).

Shapes: N objects of a sample, P its predictions, K bins.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apiece.dumps.form import SCHEMA, CountsRow, Curve, Entry, ObjectSlots, PredictionRow, encode_curve
from apiece.evaluate.answers import Answer, under_one_policy
from apiece.evaluate.detections import (
    align_complete,
    hidden_instances,
    predictions_to_detections,
    samples_to_ground_truth,
)
from apiece.evaluate.forms import Detections, GroundTruth
from apiece.evaluate.rates import match_split, near_duplicates, strips
from apiece.outcomes import NONE, Fate, Outcome, Outcomes, SplitMatch, label_outcomes
from apiece.probes.labels import LabelProbes
from apiece.types import FinishReason, IntArray

Beliefs = NDArray[np.float32]
"""Distributions `[P, 4, K]` at the coordinates of an answer's boxes."""


@dataclass(frozen=True, slots=True, eq=False)
class _Split:
    """All samples of a dump, matched at once; rows are those of `detections` and `truth`."""

    truth: GroundTruth
    detections: Detections
    outcomes: Outcomes
    repeats: NDArray[np.bool_]
    strips: NDArray[np.bool_]
    complete: GroundTruth | None
    hidden: GroundTruth | None
    true_match: SplitMatch | None

    @classmethod
    def of(cls, answers: Sequence[Answer], complete: GroundTruth | None) -> _Split:
        truth, detections = predictions_to_detections(
            samples_to_ground_truth([answer.sample for answer in answers]),
            {answer.sample.id: answer.detections for answer in answers},
        )
        hidden = true_match = None
        if complete is not None:
            truth, complete = align_complete(complete, truth)
            hidden, true_match = hidden_instances(complete, truth), match_split(complete, detections)
        repeats = np.zeros(len(detections), dtype=bool)
        repeats[near_duplicates(truth, detections, np.arange(len(detections)))[:, 1]] = True
        outcomes = label_outcomes(truth, detections, match_split(truth, detections), hidden)
        return cls(truth, detections, outcomes, repeats, strips(truth, detections), complete, hidden, true_match)


def build_entries(
    answers: Sequence[Answer],
    step: int,
    *,
    complete: GroundTruth | None = None,
    labels: Sequence[LabelProbes | None] | None = None,
    beliefs: Sequence[Beliefs | None] | None = None,
) -> list[Entry]:
    """One entry per answer, in order; each answer is of another sample.

    Args:
        answers: What the model wrote.
        step: Optimizer steps done.
        complete: Complete truth of (at least) their images, where it is known.
        labels: Probes at the labels of each sample; `None` where none were run.
        beliefs: Distributions of each answer's boxes; `None` where they were not kept.
    """
    if not answers:
        return []
    answers = under_one_policy(answers, answers[0].policy)
    split = _Split.of(answers, complete)
    place = {image.name: i for i, image in enumerate(split.truth.images)}
    none: list[Any] = [None] * len(answers)
    return [
        _entry(answer, place[answer.sample.id], split, step, probes, written)
        for answer, probes, written in zip(answers, labels or none, beliefs or none, strict=True)
    ]


def failures(answers: Sequence[Answer], panel: Collection[str], most: int) -> list[Answer]:
    """At most `most` broken answers outside a panel: unfinished ones first, then by how many objects were dropped."""
    broken = [a for a in answers if a.sample.id not in panel and (_unfinished(a) or a.parsed.dropped)]
    return sorted(broken, key=lambda a: (not _unfinished(a), -sum(a.parsed.dropped.values())))[:most]


def _unfinished(answer: Answer) -> bool:
    return not answer.parsed.closed or answer.rollout.finish_reason is not FinishReason.EOS


def _entry(
    answer: Answer, image: int, split: _Split, step: int, probes: LabelProbes | None, beliefs: Beliefs | None
) -> Entry:
    sample, rollout, parsed = answer.sample, answer.rollout, answer.parsed
    labels, found = np.flatnonzero(split.truth.image == image), np.flatnonzero(split.detections.image == image)
    slots = _object_slots(probes)
    return {
        "schema": SCHEMA,
        "step": step,
        "id": sample.id,
        "image": os.path.abspath(sample.image),  # noqa: PTH100  `resolve` would follow links
        "width": sample.size_wh[0],
        "height": sample.size_wh[1],
        "objects": [
            {
                "desc": instance.desc,
                "bbox": list(instance.bbox_xyxy),
                "iscrowd": instance.iscrowd,
                "area": instance.area,
                "id": instance.id,
                "fate": _name(Fate, split.outcomes.of_truth[row]),
                "slots": slots.get(i),
            }
            for i, (instance, row) in enumerate(zip(sample.objects, labels, strict=True))
        ],
        "hidden": None
        if split.hidden is None
        else [{"desc": x.desc, "bbox": _rounded(x.bbox_xyxy)} for x in split.hidden.instances(image)],
        "answer": {
            "ids": rollout.ids.tolist(),
            "logprobs": [_short(v) for v in rollout.logprobs],
            "text": rollout.text,
            "finish_reason": str(rollout.finish_reason),
            "closed": parsed.closed,
            "dropped": {str(reason): count for reason, count in parsed.dropped.items()},
        },
        "predictions": list(_predictions(answer, found, labels, split, beliefs)),
        "counts": _counts(image, labels, found, split),
        "probes": None if probes is None else probes.as_json(),
    }


def _predictions(
    answer: Answer, rows: IntArray, labels: IntArray, split: _Split, beliefs: Beliefs | None
) -> Iterator[PredictionRow]:
    """The kept objects of one answer; labels are counted within the sample."""
    outcomes, first = split.outcomes, int(labels[0]) if len(labels) else 0
    covers: dict[int, list[int]] = {}
    for p, t in outcomes.covered[np.isin(outcomes.covered[:, 0], rows)].tolist():
        covers.setdefault(p, []).append(t - first)
    for i, (item, detection, row) in enumerate(zip(answer.parsed.objects, answer.detections, rows, strict=True)):
        target = int(outcomes.target[row])
        yield {
            "desc": detection.desc,
            "bbox": _rounded(detection.bbox_xyxy),
            "bins": list(item.bins_xyxy),
            "span": list(item.span),
            "score": _short(detection.score),
            "scores": {policy: _short(scores[i]) for policy, scores in answer.scores.items()},
            "outcome": _name(Outcome, outcomes.of_prediction[row]),
            "target": None if target == NONE else target - first,
            "iou": _short(outcomes.iou[row]),
            "covers": covers.get(int(row), []),
            "near_duplicate": bool(split.repeats[row]),
            "strip": bool(split.strips[row]),
            "slots": None if beliefs is None else _curves(beliefs[i]),
        }


def _counts(image: int, labels: IntArray, found: IntArray, split: _Split) -> CountsRow:
    outcome, category = split.outcomes.of_prediction[found], split.detections.category[found]
    objects = labels[~split.truth.iscrowd[labels]]
    label_category = split.truth.category[objects]
    matched, ignored = int((outcome == Outcome.TP).sum()), int((outcome == Outcome.IGNORED).sum())
    judged = len(found) - ignored
    true = None
    if split.complete is not None and split.true_match is not None:
        there = int(((split.complete.image == image) & ~split.complete.iscrowd).sum())
        pairs = int((split.detections.image[split.true_match.pairs[:, 0]] == image).sum())
        wrong = int((split.detections.image[split.true_match.false_positives] == image).sum())
        true = _ratio(2 * pairs, pairs + wrong + there)
    return {
        "gt": len(objects),
        "pred": len(found),
        "matched": matched,
        "ignored": ignored,
        "precision": _ratio(matched, judged),
        "recall": _ratio(matched, len(objects)),
        "f1": _ratio(2 * matched, judged + len(objects)),
        "f1_true": true,
        "by_class": {
            split.truth.names[c]: {
                "gt": int((label_category == c).sum()),
                "pred": int((category == c).sum()),
                "matched": int(((outcome == Outcome.TP) & (category == c)).sum()),
            }
            for c in sorted({*label_category.tolist(), *category.tolist()})
        },
    }


def _object_slots(probes: LabelProbes | None) -> dict[int, ObjectSlots]:
    """Curves at the slots of each object that has some."""
    if probes is None:
        return {}
    return {
        int(number): {"a1": _curves(a1), "last": _curves(last)}
        for number, a1, last in zip(probes.objects, probes.a1_N4K, probes.last_N4K, strict=True)
    }


def _curves(mass_4K: NDArray[np.float32]) -> list[Curve | None]:
    return [encode_curve(mass) for mass in mass_4K]


def _name(names: type[Outcome] | type[Fate], value: int) -> str | None:
    return None if value == NONE else names(value).label


def _ratio(part: int, whole: int) -> float | None:
    return round(part / whole, 6) if whole else None


def _rounded(box: Sequence[float]) -> list[float]:
    return [round(v, 3) for v in box]


def _short(value: float) -> float | None:
    """Six digits behind the point; `None` for what is not finite."""
    return round(float(value), 6) if np.isfinite(value) else None
