"""One rate of one set of images has one interval, whichever command gives it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apiece.evaluate.detections import predictions_to_detections, samples_to_ground_truth
from apiece.evaluate.forms import Detections, GroundTruth
from apiece.evaluate.metrics import evaluate_detections
from apiece.stats.ratio import Ratio
from apiece.study.arms import Arm, RunBoxes
from apiece.study.comparison import compare
from apiece.study.diagnosis import diagnose
from apiece.study.results import Counts, Result, count_split
from apiece.study.summary import ALL, summarise
from apiece.types import Detection, Instance, Sample

ROW = [(20.0 + 60 * i, 20.0, 70.0 + 60 * i, 80.0) for i in range(4)]
LONG = (20.0, 20.0, 250.0, 80.0)
AWAY = (300.0, 10.0, 340.0, 20.0)
Interval = tuple[float, float]


def split(images: int, *, right: bool = False) -> tuple[GroundTruth, Detections]:
    """Rows of books: some found, some under one long box, some with boxes far away; or every book found."""
    rng = np.random.default_rng(0)
    samples, found = [], {}
    for number in range(images):
        row = ROW[: rng.integers(1, 5)]
        books = tuple(Instance("book", box) for box in row)
        samples.append(Sample(f"s{number}", Path(f"{number}.png"), (400, 100), books))
        kind, times, away = rng.random(), int(rng.integers(1, 3)), int(rng.integers(0, 2))
        boxes = row if right else ([LONG] if kind < 0.4 else row[1:] * times or [AWAY]) + [AWAY] * away
        found[f"s{number}"] = [Detection("book", box, 0.9) for box in boxes]
    return predictions_to_detections(samples_to_ground_truth(samples), found)


def by_evaluate(images: int) -> Mapping[str, Interval]:
    metrics = evaluate_detections(*split(images), policy="x")
    return {key: (metrics[f"{key}_lo"], metrics[f"{key}_hi"]) for key in metrics if f"{key}_lo" in metrics}


def by_compare(images: int) -> Mapping[str, Interval]:
    """The difference to an arm without a single error: there these rates are 0 in every draw."""
    protocol: dict[str, Any] = {"data": "x"}
    arms = [
        Arm(name, (RunBoxes(name, Path(name), "evaluation", *split(images, right=right), protocol=protocol),))
        for name, right in (("right", True), ("wrong", False))
    ]
    return {row.key: (row.found.lo, row.found.hi) for row in compare(arms)[0].rows}


def by_ladder(images: int) -> Mapping[str, Interval]:
    panel = Counts(np.ones(2, dtype=np.int64), {"probes/drift": Ratio(np.ones(2), np.ones(2))})
    result = Result(
        ladder="l", arms=("a",), references=("a",), arm="a", seed=0, made_from={"settings": {}}, protocol={},
        match="steps", steps=10, batch_size=1, flops={}, telemetry={}, telemetry_window=5, speed=1.0, metrics={},
        seconds={}, machine={}, test=count_split(*split(images)), panel=panel,
    )  # fmt: skip
    means = summarise([result], ["a"]).means
    return {key: (mean.lo, mean.hi) for (_, scope, key), mean in means.items() if scope == ALL}


def by_diagnose(images: int) -> Mapping[str, Interval]:
    found = diagnose(*split(images), {}, policy="x")
    rates = {f"rates/{row['outcome']}": row["rate"] for row in found["fails"]}
    return {key: (rate["lo"], rate["hi"]) for key, rate in rates.items()}


@pytest.mark.parametrize("images", [5, 40])
def test_the_four_commands_agree(images: int) -> None:
    evaluated = by_evaluate(images)
    for key in ("rates/duplicate", "rates/group", "rates/background"):
        for other, digits in ((by_compare, 1e-12), (by_ladder, 1e-12), (by_diagnose, 1e-5)):
            assert other(images)[key] == pytest.approx(evaluated[key], abs=digits), (key, other)
        assert evaluated[key][0] < evaluated[key][1]


def test_one_image_has_no_interval_anywhere() -> None:
    assert by_evaluate(1)["rates/group"] == by_diagnose(1)["rates/group"] == (None, None)
    assert by_compare(1)["rates/group"] == by_ladder(1)["rates/group"] == (None, None)
