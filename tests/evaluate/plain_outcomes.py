"""The taxonomy again, one image and one box at a time in plain Python, from the text of the design alone."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

Box = tuple[float, float, float, float]


def size(a: Box) -> float:
    return max(a[2] - a[0], 0) * max(a[3] - a[1], 0)


def shared(a: Box, b: Box) -> float:
    return max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)


def iou(a: Box, b: Box) -> float:
    union = size(a) + size(b) - shared(a, b)
    return shared(a, b) / union if union else 0.0


def pair(a: list[Any], b: list[Any]) -> dict[int, int]:
    """Most pairs of one name at IoU >= 0.5, then the highest total IoU: index in `a` to index in `b`."""
    if not a or not b:
        return {}
    worth = np.zeros((len(a), len(b)))
    for i, (name, box, *_) in enumerate(a):
        for j, (other, other_box, *_) in enumerate(b):
            if name == other and iou(box, other_box) >= 0.5:
                worth[i, j] = 1000 + iou(box, other_box)
    rows, columns = linear_sum_assignment(worth, maximize=True)
    return {int(i): int(j) for i, j in zip(rows, columns, strict=True) if worth[i, j] > 0}


def plain_outcomes(labels: list[Any], predictions: list[Any], complete: list[Any]) -> tuple[list[str], list[str]]:
    """Outcome of each prediction and fate of each label (`-` for crowd regions)."""
    objects = [i for i, label in enumerate(labels) if not label[2]]
    crowds = [label for label in labels if label[2]]
    match = {p: objects[t] for p, t in pair(predictions, [labels[i] for i in objects]).items()}
    outcome = []
    for p, (name, box, _) in enumerate(predictions):
        own = [labels[i][1] for i in objects if labels[i][0] == name]
        found = [labels[i][1] for i in match.values() if labels[i][0] == name]
        others = [labels[i][1] for i in objects if labels[i][0] != name]
        if p in match:
            outcome.append("tp")
        elif any(c[0] == name and size(box) and shared(box, c[1]) >= 0.5 * size(box) for c in crowds):
            outcome.append("ignored")
        elif any(iou(box, t) >= 0.5 for t in found):
            outcome.append("duplicate")
        elif sum(size(t) > 0 and shared(box, t) / size(t) >= 0.5 for t in own) >= 2:
            outcome.append("group")
        elif size(box) and any(shared(box, t) / size(box) >= 0.7 for t in own):
            outcome.append("fragment")
        elif max((iou(box, t) for t in own), default=0) >= 0.1:
            outcome.append("mislocalised")
        elif any(iou(box, t) >= 0.5 for t in others):
            outcome.append("wrong_class")
        else:
            outcome.append("background")
    known = pair(complete, [labels[i] for i in objects])
    hidden = [instance for i, instance in enumerate(complete) if i not in known]
    rest = [p for p, name in enumerate(outcome) if name == "background"]
    for i in pair([predictions[p] for p in rest], hidden):
        outcome[rest[i]] = "unlabelled"
    return outcome, [fate(i, labels, predictions, match, outcome) for i in range(len(labels))]


def fate(i: int, labels: list[Any], predictions: list[Any], match: dict[int, int], outcome: list[str]) -> str:
    name, box, crowd = labels[i]
    unmatched = [p for p in range(len(predictions)) if p not in match]
    if crowd:
        return "-"
    if i in match.values():
        return "matched"
    for p in unmatched:
        other, found, _ = predictions[p]
        if outcome[p] == "group" and other == name and size(box) and shared(found, box) / size(box) >= 0.5:
            return "merged"
    if any(predictions[p][0] != name and iou(predictions[p][1], box) >= 0.5 for p in unmatched):
        return "misclassified"
    if any(predictions[p][0] == name and 0.1 <= iou(predictions[p][1], box) < 0.5 for p in unmatched):
        return "near_miss"
    return "missed"
