"""Outcomes: closed forms, random scenes, and parity with a slow reference written on its own."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from plain_outcomes import plain_outcomes
from splits import grid_box, split

from apiece.evaluate.complete import align_complete, hidden_instances
from apiece.evaluate.f1 import match_split, total_scores
from apiece.evaluate.outcomes import NONE, Fate, Outcome, Outcomes, label_outcomes

CUP = ("cup", grid_box(0))
CROWD = ("cup", (100.0, 0.0, 200.0, 100.0), True)


def names(labels, predictions, complete=None) -> tuple[list[str], list[str]]:
    """Outcomes of the predictions and fates of the labels of one image, by name; `-` for none."""
    outcomes = named((labels, predictions), complete=complete)
    return (
        ["-" if code == NONE else Outcome(code).label for code in outcomes.of_prediction.tolist()],
        ["-" if code == NONE else Fate(code).label for code in outcomes.of_truth.tolist()],
    )


def named(*images, complete=None, min_score=0.0) -> Outcomes:
    truth, detections = split(*images)
    hidden = None
    if complete is not None:
        truth, everything = align_complete(split((complete, []))[0], truth)
        hidden = hidden_instances(everything, truth)
    return label_outcomes(truth, detections, match_split(truth, detections, min_score=min_score), hidden)


@pytest.mark.parametrize(
    ("labels", "predictions", "outcome", "fate"),
    [
        ([], [], [], []),  # nothing there, nothing said
        ([], [(*CUP, 0.9)], ["background"], []),  # nothing there
        ([CUP], [], [], ["missed"]),  # nothing said
        ([CUP], [("cup", (5, 5, 5, 9), 0.9)], ["background"], ["missed"]),  # a box without area
        ([("cup", (5, 5, 5, 9))], [(*CUP, 0.9)], ["background"], ["missed"]),  # a label without area
        ([CUP], [("mug", CUP[1], 0.9)], ["wrong_class"], ["misclassified"]),
        ([CUP], [("mug", CUP[1], 0.9), (*CUP, 0.1)], ["wrong_class", "tp"], ["matched"]),
        ([CUP], [("mug", (0, 0, 10, 4.9), 0.9)], ["background"], ["missed"]),  # another class, but too far off
        ([CUP], [("cup", (0, 0, 10, 4.9), 0.9)], ["fragment"], ["near_miss"]),
        ([CUP], [("cup", (0, 0, 2, 4), 0.9)], ["fragment"], ["missed"]),  # IoU 0.08: no near miss, still a part of it
        ([CUP], [("cup", (-3, 0, 7, 10), 0.9)], ["tp"], ["matched"]),  # IoU 7/13
        ([CROWD], [("cup", (195, 0, 205, 10), 0.9)], ["ignored"], ["-"]),  # half in a crowd region
        ([CROWD], [("cup", (196, 0, 206, 10), 0.9)], ["background"], ["-"]),  # less than half
        ([CROWD], [("mug", (110, 10, 120, 20), 0.9)], ["background"], ["-"]),  # a crowd of another class
        ([CROWD], [("mug", (100, 0, 200, 100), 0.9)], ["background"], ["-"]),  # a crowd region is no label
        ([CROWD, ("mug", (110, 10, 120, 20))], [("cup", (110, 10, 120, 20), 1.0)], ["ignored"], ["-", "misclassified"]),
        ([CROWD, ("cup", (110, 10, 120, 20))], [("cup", (110, 10, 120, 26), 1.0)] * 2, ["tp", "ignored"], None),
    ],
)
def test_one_of_each(labels, predictions, outcome, fate) -> None:
    found = names(labels, predictions)
    assert found[0] == outcome
    if fate is not None:
        assert found[1] == fate


def row(k: int, gap: float = 0.0) -> list[tuple[str, tuple[float, float, float, float]]]:
    """k equal neighbours."""
    return [("book", (i * (10 + gap), 0.0, i * (10 + gap) + 10, 40.0)) for i in range(k)]


@pytest.mark.parametrize("k", range(2, 17))
def test_a_strip_over_neighbours_is_a_group(k: int) -> None:
    strip = ("book", (0.0, 0.0, 10.0 * k, 40.0), 0.9)
    outcome, fate = names(row(k), [strip])
    if k == 2:  # IoU 1/2 exactly with each: one of them is found
        assert outcome == ["tp"]
        assert Counter(fate) == {"matched": 1, "missed": 1}
    else:
        assert outcome == ["group"]
        assert fate == ["merged"] * k
    wide = ("book", (0.0, 0.0, 12.0 * k - 2, 40.0), 0.9)  # over gaps: IoU below 1/k
    assert names(row(k, gap=2), [wide]) == (["group"], ["merged"] * k)


def test_a_group_covers_half_of_each() -> None:
    labels = row(4)
    for height, expected in ((20.0, ["group"]), (19.9, ["mislocalised"])):
        outcome, _ = names(labels, [("book", (0.0, 0.0, 40.0, height), 0.9)])
        assert outcome == expected
    # Found already, and still what makes it a group; only those that were missed are merged.
    own = [("book", box, 0.9) for _, box in labels[:3]]
    outcome, fate = names(labels, [*own, ("book", (0, 0, 40, 40), 0.5)])
    assert outcome == ["tp"] * 3 + ["group"]
    assert fate == ["matched"] * 3 + ["merged"]
    mixed = [labels[0], ("mug", labels[1][1])]
    assert names(mixed, [("book", (0, 0, 21, 40), 0.9)])[0] == ["mislocalised"]  # of one class only


@pytest.mark.parametrize("n", [1, 2, 5, 40])
def test_copies_are_duplicates(n: int) -> None:
    outcomes = named(([CUP], [(*CUP, 0.5)] * n))
    assert outcomes.counts() == {o.label: 0 for o in Outcome} | {"tp": 1, "duplicate": n - 1}
    assert outcomes.target.tolist() == [0] * n
    assert outcomes.iou.tolist() == [1.0] * n


def test_offset_ladder() -> None:
    label = ("cup", (100.0, 100.0, 200.0, 200.0))
    for shift in range(0, 101, 2):
        box = (100.0 + shift, 100.0, 200.0 + shift, 200.0)
        iou = (100 - shift) / (100 + shift)
        outcome, fate = names([label], [("cup", box, 1.0)])
        if iou >= 0.5:
            assert (outcome, fate) == (["tp"], ["matched"])
        elif iou >= 0.1:
            assert (outcome, fate) == (["mislocalised"], ["near_miss"])
        else:
            assert (outcome, fate) == (["background"], ["missed"])
        copy_of_found, _ = names([label], [(*label, 1.0), ("cup", box, 1.0)])
        assert copy_of_found == ["tp", "duplicate" if iou >= 0.5 else "mislocalised" if iou >= 0.1 else "background"]


def test_unlabelled_needs_complete_truth() -> None:
    hidden = ("cup", grid_box(3))
    predictions = [(*CUP, 0.9), (*hidden, 0.8), (*hidden, 0.7), ("cup", grid_box(7), 0.6)]
    assert names([CUP], predictions)[0] == ["tp"] + ["background"] * 3
    assert names([CUP], predictions, complete=[hidden, CUP])[0] == ["tp", "unlabelled", "background", "background"]
    assert names([CUP], predictions, complete=[CUP])[0] == ["tp"] + ["background"] * 3


def test_complete_truth_must_be_of_the_same_images() -> None:
    truth, _ = split(([CUP], []), ([], []))
    with pytest.raises(ValueError, match=r"expected every image of the split, found none of id 2 \(2\)"):
        align_complete(split(([CUP], []))[0], truth)


def test_low_scores_have_no_outcome() -> None:
    outcomes = named(([CUP], [(*CUP, 0.9), (*CUP, 0.2)]), min_score=0.5)
    assert outcomes.of_prediction.tolist() == [Outcome.TP, NONE]


@pytest.mark.parametrize(
    ("labels", "predictions", "matched", "expected"),
    [(17, 43, 5, (0.116, 0.294, 0.167)), (29, 33, 11, (1 / 3, 0.379, 0.355))],
)
def test_the_scenes_of_the_seed(labels, predictions, matched, expected) -> None:
    truth, detections = split(
        (
            [("book", grid_box(i)) for i in range(labels)],
            [("book", grid_box(i if i < matched else 100 + i), 0.5) for i in range(predictions)],
        )
    )
    scores = total_scores(match_split(truth, detections))
    assert (scores.precision, scores.recall, scores.f1) == pytest.approx(expected, abs=5e-4)
    counts = label_outcomes(truth, detections, match_split(truth, detections)).counts()
    assert (counts["tp"], counts["background"]) == (matched, predictions - matched)


def random_scene(rng: np.random.Generator):
    """Labels and predictions of an image: rows, crowds of two classes, copies, strips, shifted and split boxes."""
    labels, predictions = [], []
    for _ in range(rng.integers(0, 9)):
        x, y, w, h = (*rng.uniform(0, 200, 2), *rng.uniform(5, 80, 2))
        for i in range(rng.integers(1, 6)):
            box = np.array([x + i * w, y, x + (i + 1) * w, y + h]) + rng.normal(0, 1, 4) * 0.02 * min(w, h)
            labels.append((str(rng.choice(["book", "cup"])), tuple(box.tolist()), bool(rng.random() < 0.06)))
    for desc, box, _ in labels:
        for _ in range(rng.integers(0, 3)):
            x1, y1, x2, y2 = box
            shift = rng.normal(0, rng.choice([0.02, 0.2, 0.5]), 4) * (x2 - x1)
            stretch = rng.choice([1, 1, 1, 3, 0.4])
            new = np.array([x1, y1, x1 + (x2 - x1) * stretch, y2]) + shift
            new = np.concatenate([np.minimum(new[:2], new[2:]), np.maximum(new[:2], new[2:])])
            name = desc if rng.random() < 0.85 else str(rng.choice(["book", "cup", "mug"]))
            predictions.append((name, tuple(new.tolist()), float(rng.random())))
    for _ in range(rng.integers(0, 3)):
        x, y, w, h = rng.uniform(0, 200, 4)
        predictions.append(("cup", (x, y, x + w, y + h), float(rng.random())))
    complete = [label[:2] for label in labels if not label[2]]
    observed = [label for label in labels if label[2] or rng.random() < 0.7]
    return observed, [predictions[i] for i in rng.permutation(len(predictions))], complete


def check_scenes(seed: int, count: int) -> Counter[str]:
    rng = np.random.default_rng(seed)
    scenes = [random_scene(rng) for _ in range(count)]
    truth, detections = split(*((labels, predictions) for labels, predictions, _ in scenes))
    everything, _ = split(*((complete, []) for _, _, complete in scenes))
    truth, everything = align_complete(everything, truth)
    match = match_split(truth, detections)
    outcomes = label_outcomes(truth, detections, match, hidden_instances(everything, truth))
    assert set(outcomes.of_prediction.tolist()) <= set(Outcome)
    assert ((outcomes.of_truth == NONE) == truth.iscrowd).all()
    scores, counts, misses = total_scores(match), outcomes.counts(), outcomes.miss_counts()
    assert sum(counts.values()) == len(detections)
    assert counts["tp"] == scores.tp == len(outcomes.truths(Fate.MATCHED))
    assert counts["ignored"] == scores.ignored
    assert counts["tp"] + sum(misses.values()) == int((~truth.iscrowd).sum())
    prediction_start, label_start = 0, 0
    for labels, predictions, complete in scenes:
        expected = plain_outcomes(labels, predictions, complete)
        rows = slice(prediction_start, prediction_start := prediction_start + len(predictions))
        label_rows = slice(label_start, label_start := label_start + len(labels))
        assert [Outcome(i).label for i in outcomes.of_prediction[rows].tolist()] == expected[0]
        assert ["-" if i == NONE else Fate(i).label for i in outcomes.of_truth[label_rows].tolist()] == expected[1]
    return Counter(counts) + Counter(misses)


def test_random_scenes() -> None:
    seen = check_scenes(0, 300)
    assert set(seen) == {o.label for o in Outcome} | {f.label for f in Fate} - {"matched"}, "one never comes up"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 21))
def test_many_random_scenes(seed: int) -> None:
    check_scenes(seed, 1000)
