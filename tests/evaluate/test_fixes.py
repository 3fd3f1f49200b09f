"""What fixing one kind of error would give: each kind by hand, and F1 against a fresh match of the fixed split."""

from __future__ import annotations

import pytest
from splits import forms, grid_box, random_coco, split

from apiece.evaluate.ap import coco_scores
from apiece.evaluate.metrics import FIXABLE, fix, fix_figures
from apiece.evaluate.rates import match_split, total_scores
from apiece.outcomes import Fate, Outcome, label_outcomes

CUP = ("cup", grid_box(0))
ROW = [("book", (i * 10.0, 0.0, i * 10.0 + 10, 40.0)) for i in range(4)]


def figures(labels, predictions):
    truth, detections = split((labels, predictions))
    match = match_split(truth, detections)
    ap = coco_scores(truth, detections).figures["AP"]
    return fix_figures(truth, detections, label_outcomes(truth, detections, match), total_scores(match), ap)


@pytest.mark.parametrize(
    ("kind", "labels", "predictions", "f1"),
    [
        ("duplicate", [CUP], [(*CUP, 0.9), (*CUP, 0.8)], 1),
        ("group", ROW, [("book", (0, 0, 40, 40), 0.9)], 1),  # a box apiece
        ("fragment", [CUP], [("cup", (0, 0, 4, 10), 0.9)], 1),
        ("fragment", [CUP], [("cup", (0, 0, 4, 10), 0.9), ("cup", (6, 0, 10, 10), 0.8)], 1),  # the second is dropped
        ("mislocalised", [CUP], [("cup", (6, 0, 16, 10), 0.9)], 1),
        ("mislocalised", [CUP], [(*CUP, 0.9), ("cup", (6, 0, 16, 10), 0.9)], 1),  # found already
        ("wrong_class", [CUP], [("mug", CUP[1], 0.9)], 1),
        ("wrong_class", [CUP], [(*CUP, 0.9), ("mug", CUP[1], 0.9)], 1),
        ("background", [CUP], [(*CUP, 0.9), ("cup", grid_box(4), 0.9)], 1),
        ("missed", [CUP, ("cup", grid_box(4))], [(*CUP, 0.9)], 1),
    ],
)
def test_each_kind(kind, labels, predictions, f1) -> None:
    found = figures(labels, predictions)
    others = {name: value for name, value in found.items() if name.endswith("/f1") and f"/{kind}/" not in name}
    assert found[f"fix/{kind}/f1"] == f1
    assert found[f"fix/{kind}/ap"] == pytest.approx(1)
    assert set(others.values()) - {1} or kind == "missed", others
    assert max(others.values()) < 1


def test_what_stays_is_as_sure_as_its_surest_copy() -> None:
    labels = [CUP, ("cup", grid_box(4))]
    predictions = [(*CUP, 0.1), ("cup", (0, 0, 10, 9), 0.9), ("cup", grid_box(9), 0.5), ("cup", grid_box(4), 0.6)]
    truth, detections = split((labels, predictions))
    outcomes = label_outcomes(truth, detections, match_split(truth, detections))
    fixed = fix(truth, detections, outcomes, Outcome.DUPLICATE)[0]
    assert fixed.score.tolist() == [0.9, 0.5, 0.6]
    assert fixed.bbox_xyxy[0].tolist() == list(CUP[1])


@pytest.mark.parametrize("kind", [Outcome.FRAGMENT, Outcome.MISLOCALISED, Outcome.GROUP])
def test_a_missed_label_goes_to_the_surest(kind) -> None:
    box = {Outcome.FRAGMENT: (0, 0, 10, 4), Outcome.MISLOCALISED: (0, -6, 10, 4), Outcome.GROUP: (0, 0, 40, 40)}[kind]
    labels, name = (ROW, "book") if kind is Outcome.GROUP else ([CUP], "cup")
    truth, detections = split((labels, [(name, box, score) for score in (0.2, 0.9, 0.4)]))
    outcomes = label_outcomes(truth, detections, match_split(truth, detections))
    assert outcomes.counts()[kind.label] == 3
    fixed = fix(truth, detections, outcomes, kind)[0]
    assert fixed.score.tolist() == [0.9] * len(labels)
    assert sorted(fixed.bbox_xyxy.tolist()) == sorted(list(map(float, label[1])) for label in labels)


def test_nothing_to_fix_changes_nothing() -> None:
    found = figures([CUP], [(*CUP, 0.9)])
    assert set(found.values()) == {1.0} or list(found.values()) == pytest.approx([1.0] * len(found))
    assert set(figures([], []).values()) == {None, -1.0}


@pytest.mark.parametrize("seed", range(6))
def test_f1_is_that_of_a_fresh_match(seed, tmp_path) -> None:
    truth, detections = forms(*random_coco(seed), tmp_path)
    match = match_split(truth, detections)
    scores, outcomes = total_scores(match), label_outcomes(truth, detections, match)
    found = fix_figures(truth, detections, outcomes, scores, 0.0)
    for outcome in FIXABLE:
        fixed, more = fix(truth, detections, outcomes, outcome)
        again = total_scores(match_split(truth, fixed))
        assert found[f"fix/{outcome.label}/f1"] == pytest.approx(again.f1), outcome
        assert found[f"fix/{outcome.label}/f1"] >= scores.f1
        assert again.tp == scores.tp + more
        assert again.ignored == scores.ignored
    fewer = truth.rows(outcomes.of_truth != Fate.MISSED)
    assert found["fix/missed/f1"] == pytest.approx(total_scores(match_split(fewer, detections)).f1)
