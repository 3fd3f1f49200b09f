"""F1 at IoU 0.5: closed forms, crowd regions, classes and crowding."""

from __future__ import annotations

import numpy as np
import pytest
from splits import forms, grid_box, random_coco, split

from apiece.evaluate.rates import (
    class_scores,
    crowding_of_images,
    crowding_scores,
    match_split,
    total_scores,
)
from apiece.match import inside_crowd, match_boxes, number_names
from apiece.stats.ratio import CROWDING

CUP = ("cup", grid_box(0))
CROWD = ("cup", (100.0, 0.0, 200.0, 100.0), True)


def scores(*images, **options):
    return total_scores(match_split(*split(*images), **options))


@pytest.mark.parametrize(
    ("labels", "predictions", "expected"),  # expected: tp, fp, fn, ignored
    [
        ([], [], (0, 0, 0, 0)),  # nothing there, nothing said
        ([], [(*CUP, 0.9)], (0, 1, 0, 0)),  # nothing there
        ([CUP], [], (0, 0, 1, 0)),  # nothing said
        ([CUP], [(*CUP, 0.9)], (1, 0, 0, 0)),  # perfect
        ([CUP], [("mug", CUP[1], 0.9)], (0, 1, 1, 0)),  # wrong class
        ([CUP], [("cup", (0, 0, 10, 5), 0.9)], (1, 0, 0, 0)),  # IoU 0.5 exactly
        ([CUP], [(*CUP, 0.0)], (1, 0, 0, 0)),  # a score of 0 counts
        ([CROWD], [("cup", (110, 10, 120, 20), 0.9)], (0, 0, 0, 1)),  # inside a crowd region
        ([CROWD], [("cup", (195, 0, 205, 10), 0.9)], (0, 0, 0, 1)),  # half inside
        ([CROWD], [("cup", (196, 0, 206, 10), 0.9)], (0, 1, 0, 0)),  # less than half
        ([CROWD], [("mug", (110, 10, 120, 20), 0.9)], (0, 1, 0, 0)),  # a crowd of another class
        ([CROWD], [], (0, 0, 0, 0)),  # a crowd region is no miss
        ([CROWD, ("cup", (110, 10, 120, 20))], [("cup", (110, 10, 120, 20), 0.9)] * 2, (1, 0, 0, 1)),  # labelled in it
    ],
)
def test_counts(labels, predictions, expected) -> None:
    found = scores((labels, predictions))
    assert (found.tp, found.fp, found.fn, found.ignored) == expected


@pytest.mark.parametrize("copies", [1, 2, 5, 40])
def test_copies_cost_precision(copies) -> None:
    found = scores(([CUP], [(*CUP, 0.5)] * copies))
    assert found.precision == pytest.approx(1 / copies)
    assert found.recall == 1.0
    assert found.f1 == pytest.approx(2 / (copies + 1))
    assert found.mean_iou == 1.0


@pytest.mark.parametrize("instances", [3, 10])
def test_a_strip_over_instances_finds_none_of_them(instances) -> None:
    row = [("book", grid_box(i)) for i in range(instances)]
    found = scores((row, [("book", (0.0, 0.0, 20.0 * instances, 10.0), 0.9)]))
    assert (found.tp, found.fp, found.fn, found.f1) == (0, 1, instances, 0.0)


def test_nothing_to_divide_is_0() -> None:
    found = scores(([], []))
    assert (found.f1, found.precision, found.recall, found.mean_iou) == (0.0, 0.0, 0.0, 0.0)


def test_min_score_leaves_lower_ones_out() -> None:
    images = ([CUP], [(*CUP, 0.3), ("cup", grid_box(5), 0.6)])
    kept = scores(images, min_score=0.5)
    assert (kept.tp, kept.fp, kept.fn) == (0, 1, 1)
    split_match = match_split(*split(images), min_score=0.5)
    assert split_match.false_positives.tolist() == [1]  # rows of the detections as given


def test_counts_are_summed_over_images_and_not_averaged() -> None:
    found = scores(([CUP], [(*CUP, 1.0)]), ([], [("cup", grid_box(i), 1.0) for i in range(3)]))
    assert found.precision == pytest.approx(1 / 4)


def test_by_class_and_by_crowding() -> None:
    def row(desc: str, count: int) -> list:
        return [(desc, grid_box(i)) for i in range(count)]

    truth, detections = split(
        ([], [("cup", grid_box(0), 1.0)]),  # 0 labels
        ([*row("cup", 5), CROWD], [(*x, 1.0) for x in row("cup", 5)]),  # 5, the crowd region not counted
        (row("mug", 6), []),
        (row("mug", 15), []),
        (row("mug", 16), [(*x, 1.0) for x in row("mug", 8)]),
    )
    match = match_split(truth, detections)
    assert crowding_of_images(truth).tolist() == [0, 1, 2, 2, 3]
    by_crowding = {name: (x.tp, x.fp, x.fn) for name, x in crowding_scores(match, truth, detections).items()}
    assert by_crowding == {"0": (0, 1, 0), "1-5": (5, 0, 0), "6-15": (0, 0, 21), "16+": (8, 0, 8)}
    by_class = {name: (x.tp, x.fp, x.fn) for name, x in class_scores(match, truth, detections).items()}
    assert by_class == {"cup": (5, 1, 0), "mug": (8, 0, 29)}
    assert class_scores(match, truth, detections)["cup"].mean_iou == 1.0


@pytest.mark.parametrize("seed", range(3))
def test_the_split_at_once_equals_its_images_one_by_one(seed, tmp_path) -> None:
    truth, detections = forms(*random_coco(seed), tmp_path)
    tp = fp = fn = ignored = 0
    for image in range(len(truth.images)):
        labels, predictions = truth.instances(image), detections.of_image(image, truth.names)
        objects, crowds = ([x for x in labels if x.iscrowd is crowd] for crowd in (False, True))
        match = match_boxes(*columns(predictions), *columns(objects))
        left = [predictions[i] for i in match.unmatched_predictions]
        groups = number_names([x.desc for x in left], [x.desc for x in crowds])
        inside = inside_crowd(corners(left), groups[0], corners(crowds), groups[1])
        tp, fn = tp + len(match.pairs), fn + len(match.unmatched_truths)
        fp, ignored = fp + int((~inside).sum()), ignored + int(inside.sum())
    found = match_split(truth, detections)
    total = total_scores(found)
    assert (total.tp, total.fp, total.fn, total.ignored) == (tp, fp, fn, ignored)
    assert min(tp, fp, fn, ignored) > 0
    parts = crowding_scores(found, truth, detections), class_scores(found, truth, detections)
    assert list(parts[0]) == list(CROWDING)
    for part in parts:
        assert sum(x.tp for x in part.values()) == tp
        assert sum(x.fp for x in part.values()) == fp
        assert sum(x.fn for x in part.values()) == fn
        assert sum(x.ignored for x in part.values()) == ignored
        assert sum(x.iou_total for x in part.values()) == pytest.approx(total.iou_total)


def corners(items) -> np.ndarray:
    return np.array([x.bbox_xyxy for x in items], dtype=float).reshape(-1, 4)


def columns(items) -> tuple[np.ndarray, list[str]]:
    return corners(items), [x.desc for x in items]
