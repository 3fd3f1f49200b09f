"""Scores compared in the metrics: AP by policy, calibration, and the table that is printed."""

from __future__ import annotations

import io
import math
import re
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from splits import forms, grid_box, random_coco, split

from apiece.evaluate.answers import ScorePolicy
from apiece.evaluate.ap import coco_scores
from apiece.evaluate.metrics import Metrics, evaluate_detections, ranking_table

LABELS = [("cup", grid_box(i)) for i in range(2)]
FAR = [("cup", grid_box(i)) for i in (8, 9)]


def metrics(scores, *, policy="coord_logprob", min_score=0.0, **others) -> Metrics:
    """Two labels, each with a right box, and two boxes beside them: right, wrong, right, wrong."""
    boxes = [LABELS[0], FAR[0], LABELS[1], FAR[1]]
    truth, detections = split((LABELS, [(*box, score) for box, score in zip(boxes, scores, strict=True)]))
    further = {name: np.array(values) for name, values in others.items()}
    return evaluate_detections(truth, detections, policy=policy, scores=further, min_score=min_score)


def test_ap_of_each_policy_side_by_side() -> None:
    found = metrics([0.9, 0.8, 0.7, 0.6], coord_mass=[0.9, 0.1, 0.8, 0.2], desc_logprob=[0.1, 0.9, 0.2, 0.8])
    after = (51 * 1 + 50 * 2 / 3) / 101  # right, wrong, right
    assert found["coco/AP"] == found["coco_by_policy/coord_logprob/AP"] == pytest.approx(after)
    assert found["coco_by_policy/coord_mass/AP"] == found["coco_by_policy/coord_mass/AP50"] == pytest.approx(1)
    assert found["coco_by_policy/desc_logprob/AP"] == pytest.approx((51 * 0.5 + 50 * 0.5) / 101)
    assert found["coco_by_policy/constant/AP"] == pytest.approx(after)  # the order written
    assert found["score_policy"] == "coord_logprob"


def test_calibration_of_each_policy() -> None:
    found = metrics([0.9, 0.8, 0.7, 0.6], coord_mass=[1.0, 0.0, 1.0, 0.0])
    assert found["calibration/coord_mass/ece"] == 0
    assert found["calibration/constant/ece"] == 0.5
    assert found["calibration/coord_logprob/ece"] == pytest.approx((0.1 + 0.8 + 0.3 + 0.6) / 4)
    assert found["calibration_curve"]["constant"] == {
        "1": {"from": 1.0, "to": 1.0, "score": 1.0, "tp": 0.5, "count": 4}
    }
    assert list(found["calibration_curve"]) == ["coord_logprob", "coord_mass", "constant"]


def test_the_same_predictions_are_judged_under_every_policy() -> None:
    """Those that `min_score` leaves in by the scores that they have; never those in a crowd region."""
    found = metrics([0.9, 0.8, 0.7, 0.6], min_score=0.75, coord_mass=[0.1] * 4)
    counts = {name: sum(row["count"] for row in curve.values()) for name, curve in found["calibration_curve"].items()}
    assert counts == {"coord_logprob": 2, "coord_mass": 2, "constant": 2}
    crowd = ("cup", grid_box(8), True)
    truth, detections = split(([*LABELS, crowd], [(*LABELS[0], 0.5), (*FAR[0], 0.5)]))
    assert evaluate_detections(truth, detections, policy="x")["calibration/constant/ece"] == 0


def test_scores_of_another_kind_have_no_calibration() -> None:
    found = metrics([9.0, -1.0, 7.0, 6.0], policy="as_given", min_score=-math.inf)
    assert "calibration/as_given/ece" not in found
    assert "as_given" not in found["calibration_curve"]
    assert found["coco_by_policy/as_given/AP"] == pytest.approx(1)
    assert printed(found)[1][-1] == "not in 0..1"


def test_table() -> None:
    rows = printed(metrics([0.9, 0.8, 0.7, 0.6], coord_mass=[0.9, 0.1, 0.8, 0.2]))
    assert rows[1:] == [
        ["coord_logprob (used)", "0.835", "0.835", "0.450"],
        ["coord_mass", "1.000", "1.000", "0.150"],
        ["constant", "0.835", "0.835", "0.500"],
    ]
    nothing = printed(evaluate_detections(*split(([], [])), policy="as_given"))
    assert nothing[1] == ["as_given (used)", "-", "-", "-"]


def printed(found: Metrics) -> list[list[str]]:
    file = io.StringIO()
    Console(file=file, width=80).print(ranking_table(found))
    return [re.split(r" {2,}", line.strip()) for line in file.getvalue().splitlines()]


@pytest.mark.parametrize("seed", range(2))
def test_a_policy_changes_scores_and_nothing_else(seed, tmp_path) -> None:
    truth, detections = forms(*random_coco(seed), tmp_path)
    found = evaluate_detections(truth, detections, policy="a", scores={"b": detections.score[::-1].copy()})
    plain = evaluate_detections(truth, detections, policy="a")
    assert {key: value for key, value in found.items() if key in plain and key != "calibration_curve"} == {
        key: value for key, value in plain.items() if key != "calibration_curve"
    }
    assert found["coco_by_policy/a/AP50"] == coco_scores(truth, detections).figures["AP50"]
    assert found["coco_by_policy/b/AP"] != found["coco_by_policy/a/AP"]


def test_the_document_has_every_policy_and_key() -> None:
    document = (Path(__file__).parents[2] / "docs" / "reference" / "metrics.md").read_text(encoding="utf-8")
    keys = ("coco_by_policy/<policy>/AP", "calibration/<policy>/ece")
    for name in (*ScorePolicy, *keys, "calibration_curve", "desc_positions", "coord_positions", "near_mass"):
        assert f"`{name}`" in document, name
