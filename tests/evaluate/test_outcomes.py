"""Outcomes: closed forms, random scenes, and parity with a slow reference written on its own."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from plain_outcomes import plain_outcomes
from splits import grid_box, split

from apiece.boxes import iou
from apiece.evaluate.detections import align_complete, hidden_instances, load_complete, samples_to_ground_truth
from apiece.evaluate.forms import Category, Detections, GroundTruth, ImageInfo
from apiece.evaluate.rates import match_split, total_scores
from apiece.outcomes import MISSES, NONE, Fate, Outcome, Outcomes, label_outcomes
from apiece.types import Sample

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


@pytest.mark.parametrize("k", range(2, 17))
def test_a_strip_over_k_neighbours_has_iou_1_in_k(k: int) -> None:
    """As long as labels stand in a column as in a row; found ones still make it a group, but nothing is merged then."""
    column = [("book", (y1, x1, y2, x2)) for _, (x1, y1, x2, y2) in row(k)]
    strip = (0.0, 0.0, 40.0, 10.0 * k)
    assert iou([strip], [box for _, box in column]) == pytest.approx(np.full((1, k), 1 / k))
    assert names(column, [("book", strip, 0.9)])[0] == ["tp" if k == 2 else "group"]
    own = [(*label, 0.9) for label in column]
    outcome, fate = names(column, [("book", strip, 0.95), *own])
    assert outcome == ["duplicate" if k == 2 else "group", *["tp"] * k]
    assert fate == ["matched"] * k


BIG = ("cup", (0.0, 0.0, 30.0, 10.0))


@pytest.mark.parametrize(
    ("label", "box", "outcome", "fate"),
    [
        (CUP, (0, 0, 10, 5), "tp", "matched"),  # IoU 1/2 exactly
        (CUP, (0, 0, 10, 4.99), "fragment", "near_miss"),
        (CUP, (8, 0, 20, 10), "mislocalised", "near_miss"),  # IoU 20/200, exactly 0.1
        (CUP, (8.01, 0, 20, 10), "background", "missed"),
        (BIG, (23, 0, 33, 10), "fragment", "near_miss"),  # 70/100 inside, IoU 70/330
        (BIG, (23.01, 0, 33.01, 10), "mislocalised", "near_miss"),
        (BIG, (0, 0, 2.9, 10), "fragment", "missed"),  # inside, IoU below 0.1
        (BIG, (28, 0, 30.8, 10), "fragment", "missed"),  # 20/28 inside
        (BIG, (28, 0, 30.9, 10), "background", "missed"),  # 20/29
    ],
)
def test_at_each_border(label, box, outcome, fate) -> None:
    assert names([label], [("cup", box, 1.0)]) == ([outcome], [fate])
    # The same of another class: only IoU >= 0.5 says anything of it.
    other = (["wrong_class"], ["misclassified"]) if outcome == "tp" else (["background"], ["missed"])
    assert names([label], [("mug", box, 1.0)]) == other


def test_a_box_belongs_to_its_image() -> None:
    outcomes = named(([CUP], []), ([], [(*CUP, 0.9)]))
    assert (outcomes.counts()["background"], outcomes.miss_counts()["missed"]) == (1, 1)


@pytest.mark.parametrize(
    ("labels", "predictions", "expected"),
    [
        # Each of these fits the row below it as well, and the first that fits is given.
        ([("cup", (0, 0, 60, 60), True), CUP], [(*CUP, 0.9)] * 2, ["tp", "ignored"]),  # and duplicate
        ([("cup", (0, 0, 60, 60), True), *[("cup", grid_box(i)) for i in range(3)]], "strip", ["ignored"]),  # and group
        ([("cup", (0, 0, 10, 10)), ("cup", (0, 0, 10, 12))], "three", ["tp", "tp", "duplicate"]),  # and group
        (
            [BIG, ("cup", (0, 0, 4, 10)), ("cup", (5, 0, 9, 10))],
            [("cup", (0, 0, 9, 10), 0.9)],
            ["group"],
        ),  # and fragment
        ([BIG], [(*BIG, 0.9), ("cup", (0, 0, 10, 10), 0.5)], ["tp", "fragment"]),  # and mislocalised
        ([CUP, ("mug", (6, 0, 16, 10))], [("cup", (6, 0, 16, 10), 0.9)], ["mislocalised"]),  # and wrong class
    ],
)
def test_the_first_that_fits(labels, predictions, expected) -> None:
    named_boxes = {
        "strip": [("cup", (0.0, 0.0, 60.0, 10.0), 0.9)],
        "three": [("cup", (0, 0, 10, 10), 0.9), ("cup", (0, 0, 10, 12), 0.9), ("cup", (0, 0, 10, 11), 0.9)],
    }
    rows = named_boxes[predictions] if isinstance(predictions, str) else predictions
    assert names(labels, rows)[0] == expected


def test_the_first_fate_that_fits() -> None:
    """A label in a group box, with a box of another class on it and a poor one of its own."""
    labels = row(4)
    strip, wrong = ("book", (0, 0, 40, 40), 0.9), ("mug", labels[0][1], 0.9)
    poor = ("book", (-7.0, 0.0, 3.0, 40.0), 0.9)  # IoU 3/17 with the first
    assert names(labels, [strip, wrong, poor])[1] == ["merged"] * 4
    assert names(labels, [wrong, poor])[1] == ["misclassified", "missed", "missed", "missed"]
    assert names(labels, [poor])[1] == ["near_miss", "missed", "missed", "missed"]
    # What is matched explains no miss: the mug is right, so the book under it is simply missed.
    assert names([*labels[:1], ("mug", labels[0][1])], [wrong])[1] == ["missed", "matched"]


def test_a_box_with_iou_at_half_makes_no_group() -> None:
    """Two neighbours of unequal size: the box over both is a copy of the larger, found already, not a group."""
    labels = [("book", (0.0, 0.0, 30.0, 10.0)), ("book", (30.0, 0.0, 40.0, 10.0))]
    outcome, fate = names(labels, [(*labels[0], 0.9), ("book", (0, 0, 40, 10), 0.5)])
    assert (outcome, fate) == (["tp", "duplicate"], ["matched", "near_miss"])


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


@pytest.mark.parametrize("folder", ["", "images/"])
@pytest.mark.parametrize("ending", [".png", ".JPG"])
def test_sample_ids_are_found_among_file_names(tmp_path: Path, folder: str, ending: str) -> None:
    """A part of a split has image ids of its own, so joining by id would take the wrong images."""
    coco = {
        "images": [{"id": i, "file_name": f"{folder}00{i}{ending}", "width": 640, "height": 480} for i in (1, 2, 3)],
        "annotations": [{"id": 1, "image_id": 3, "category_id": 1, "bbox": [0, 0, 10, 10]}],
        "categories": [{"id": 1, "name": "cup"}],
    }
    (tmp_path / "complete.json").write_text(json.dumps(coco))
    part = [Sample(name, Path(f"{name}.png"), (640, 480)) for name in ("003", "002")]
    truth, complete = load_complete(tmp_path / "complete.json", samples_to_ground_truth(part))
    assert [image.name for image in truth.images] == ["003", "002"]
    assert complete.image.tolist() == [0]


def test_low_scores_have_no_outcome() -> None:
    outcomes = named(([CUP], [(*CUP, 0.9), (*CUP, 0.2)]), min_score=0.5)
    assert outcomes.of_prediction.tolist() == [Outcome.TP, NONE]


def test_a_crowd_region_is_no_label_and_hides_no_label() -> None:
    inside = ("cup", (110.0, 10.0, 120.0, 20.0))
    # Half of the box exactly; of a class of its own; a region is not covered, copied, merged or missed.
    assert names([CROWD, inside], [])[1] == ["-", "missed"]
    assert names([CROWD, CROWD], [("cup", (100, 0, 200, 100), 0.9)]) == (["ignored"], ["-", "-"])
    assert names([CROWD, ("cup", (200.0, 0.0, 300.0, 100.0))], [("cup", (100, 0, 300, 100), 0.9)]) == (
        ["tp"],  # IoU 1/2 with the label: found before anything is ignored
        ["-", "matched"],
    )
    # A poor box inside a region is ignored, and still says that its label was nearly found.
    assert names([CROWD, inside], [("cup", (114, 10, 124, 20), 0.9)]) == (["ignored"], ["-", "near_miss"])
    two_halves = [("cup", (0.0, 0.0, 4.0, 10.0), True), ("cup", (6.0, 0.0, 10.0, 10.0), True)]
    assert names(two_halves, [(*CUP, 0.9)])[0] == ["background"]  # .4 in each: in no one region by half


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


def test_20_000_random_scenes_at_once() -> None:
    """Every prediction and every label has exactly one name, in every image, whatever is there."""
    rng = np.random.default_rng(0)
    images, labels, boxes = 20_000, 120_000, 200_000
    corner, side = rng.integers(0, 40, (labels, 2)), rng.integers(0, 30, (labels, 2))
    image, category = rng.integers(images, size=labels), rng.integers(3, size=labels)
    truth = GroundTruth(
        tuple(ImageInfo(i + 1, str(i), (64, 64)) for i in range(images)),
        tuple(Category(i + 1, name) for i, name in enumerate("abc")),
        image,
        category,
        np.concatenate([corner, side], axis=1).astype(float),
        rng.random(labels) < 0.05,
        (side[:, 0] * side[:, 1]).astype(float),
    )
    source = rng.integers(labels, size=boxes)  # most predictions are near a label, on a grid: borders are hit exactly
    moved = truth.bbox_xywh[source] + rng.integers(-6, 7, (boxes, 4)) * rng.integers(0, 2, (boxes, 1))
    moved[:, 2:] = np.maximum(moved[:, 2:] * rng.choice([1, 1, 3], (boxes, 1)), 0)
    named_as = np.where(rng.random(boxes) < 0.8, category[source], rng.integers(3, size=boxes))
    detections = Detections(image[source], named_as, moved, rng.random(boxes))
    match = match_split(truth, detections)
    hidden = truth.rows(rng.random(labels) < 0.1)  # some labels twice: those boxes are no background
    outcomes = label_outcomes(truth, detections, match, hidden)
    every = np.bincount(outcomes.of_prediction, minlength=len(Outcome))
    assert every.sum() == boxes
    assert len(every) == len(Outcome)
    assert (np.delete(every, Outcome.UNLABELLED) > 1000).all()
    objects = ~truth.iscrowd
    assert (outcomes.of_truth[objects] != NONE).all()
    assert (outcomes.of_truth[~objects] == NONE).all()
    found = outcomes.of_prediction == Outcome.TP
    per_image = [np.bincount(rows, minlength=images) for rows in (detections.image[found], image[objects])]
    missed = np.bincount(image[np.isin(outcomes.of_truth, MISSES)], minlength=images)
    assert (per_image[0] + missed == per_image[1]).all()
    assert len(set(outcomes.target[found].tolist())) == found.sum(), "a label is found once"
    assert (outcomes.of_truth[outcomes.target[found]] == Fate.MATCHED).all()
    order = rng.permutation(boxes)  # the order of the rows names nothing, but may choose between equals
    again = replace(detections, **{f.name: getattr(detections, f.name)[order] for f in fields(detections)})
    counts = label_outcomes(truth, again, match_split(truth, again), hidden).counts()
    assert counts["tp"] == found.sum()
    assert counts["ignored"] == pytest.approx(every[Outcome.IGNORED], rel=0.01)


def test_random_scenes() -> None:
    seen = check_scenes(0, 300)
    assert set(seen) == {o.label for o in Outcome} | {f.label for f in Fate} - {"matched"}, "one never comes up"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 21))
def test_many_random_scenes(seed: int) -> None:
    check_scenes(seed, 1000)
