"""Records against what is known of the answers they are made of."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from said import answer, shelf, with_id

from apiece.dumps.form import decode_curve, json_line, parse_entry
from apiece.evaluate.detections import samples_to_ground_truth
from apiece.monitor.entry import build_entries, failures
from apiece.types import Instance, Sample

ROW = (0.0, 50.0, 160.0, 150.0)


def book(i: float) -> tuple[str, tuple[float, float, float, float]]:
    return "book", (40 * i, 50.0, 40 * i + 40, 150.0)


def test_every_prediction_and_label_has_its_name(tiny_side: Any) -> None:
    said = [
        book(0),
        book(0),
        ("book", ROW),
        ("cup", book(1)[1]),
        ("book", (410, 10, 490, 190)),
        ("cup", (300, 0, 330, 9)),
    ]
    (record,) = build_entries([answer(tiny_side, shelf(), said)], 7)
    assert parse_entry(json_line(record), "x:1") == record
    assert [p["outcome"] for p in record["predictions"]] == [
        "tp", "duplicate", "group", "wrong_class", "ignored", "background",
    ]  # fmt: skip
    assert [o["fate"] for o in record["objects"]] == ["matched", "merged", "merged", "merged", None]
    assert [p["target"] for p in record["predictions"]] == [0, 0, None, 1, None, None]
    assert [p["covers"] for p in record["predictions"]] == [[], [], [0, 1, 2, 3], [], [], []]
    assert [p["near_duplicate"] for p in record["predictions"]] == [False, True, False, False, False, False]
    assert [p["strip"] for p in record["predictions"]] == [False] * 6
    assert record["predictions"][0]["iou"] == pytest.approx(1, abs=0.05)
    assert record["predictions"][0]["score"] == pytest.approx(math.exp(-0.5), abs=1e-6)
    assert set(record["predictions"][0]["scores"]) >= {"constant", "coord_logprob", "desc_logprob", "product"}
    assert record["predictions"][0]["slots"] is None
    assert [o["slots"] for o in record["objects"]] == [None] * 5
    assert record["hidden"] is None
    assert record["probes"] is None
    assert record["counts"] == {
        "gt": 4,
        "pred": 6,
        "matched": 1,
        "ignored": 1,
        "precision": 0.2,
        "recall": 0.25,
        "f1": round(2 / 9, 6),
        "f1_true": None,
        "by_class": {"book": {"gt": 4, "pred": 4, "matched": 1}, "cup": {"gt": 0, "pred": 2, "matched": 0}},
    }


def test_samples_keep_their_own_rows_in_any_order(tiny_side: Any) -> None:
    """Ground truth is sorted by image id; records are in the order asked for."""
    samples = [with_id(shelf(count=count), str(10 - count)) for count in (4, 2, 0, 3)]
    said = [[book(3)], [], [book(9)], [("book", (0, 50, 120, 150)), book(2)]]
    answers = [answer(tiny_side, *pair) for pair in zip(samples, said, strict=True)]
    together = build_entries(answers, 7)
    assert [record["id"] for record in together] == ["6", "8", "10", "7"]
    for record, alone in zip(together, answers, strict=True):
        assert record == build_entries([alone], 7)[0]
    assert [[o["fate"] for o in r["objects"]] for r in together] == [
        ["missed", "missed", "missed", "matched", None],
        ["missed", "missed", None],
        [None],
        ["merged", "merged", "matched", None],
    ]
    assert together[3]["predictions"][0]["covers"] == [0, 1, 2]
    assert together[1]["counts"]["precision"] is None
    assert together[2]["counts"]["recall"] is None
    assert together[2]["counts"]["f1"] == 0
    assert build_entries([], 7) == []


def test_complete_truth_names_the_unlabelled(tiny_side: Any) -> None:
    sample, other = shelf(count=2), with_id(shelf(count=4), "other")
    everything = Sample(sample.id, sample.image, sample.size_wh, shelf(count=4).objects)
    complete = samples_to_ground_truth([everything, other])
    answers = [answer(tiny_side, sample, [book(0), book(3), book(7)]), answer(tiny_side, other, [])]
    first, second = build_entries(answers, 7, complete=complete)
    assert [p["outcome"] for p in first["predictions"]] == ["tp", "unlabelled", "background"]
    assert first["hidden"] == [{"desc": "book", "bbox": list(book(i)[1])} for i in (2, 3)]
    assert second["hidden"] == []
    assert first["counts"]["f1"] == pytest.approx(2 / 5)
    assert first["counts"]["f1_true"] == pytest.approx(4 / 7, abs=1e-6)
    assert second["counts"]["f1_true"] == 0


def test_beliefs_become_curves_at_their_boxes(tiny_side: Any) -> None:
    beliefs = np.zeros((2, 4, 1000), dtype=np.float32)
    for p in range(2):
        for c in range(4):
            beliefs[p, c, 100 * p + 10 * c] = 1
    (record,) = build_entries([answer(tiny_side, shelf(), [book(0), book(1)])], 7, beliefs=[beliefs])
    for p, row in enumerate(record["predictions"]):
        assert row["slots"] is not None
        found = [decode_curve(curve, 1000).argmax() for curve in row["slots"]]
        assert found == [100 * p + 10 * c for c in range(4)]
    beliefs[0, 1] = np.nan
    (record,) = build_entries([answer(tiny_side, shelf(), [book(0), book(1)])], 7, beliefs=[beliefs])
    assert record["predictions"][0]["slots"][1] is None
    json_line(record)


def test_scores_that_are_nan_leave_their_policy_out(tiny_side: Any) -> None:
    """An engine without log-probabilities: the boxes are still there, with a constant score."""
    (record,) = build_entries([answer(tiny_side, shelf(), [book(0)], logprob=math.nan)], 7)
    row = record["predictions"][0]
    assert (row["score"], row["scores"]) == (1.0, {"constant": 1.0})
    assert record["answer"]["logprobs"] == [None] * len(record["answer"]["ids"])
    assert json.loads(json_line(record)) == record


def test_a_cut_answer_is_one(tiny_side: Any) -> None:
    (record,) = build_entries([answer(tiny_side, shelf(), [book(0), book(1)], cut=-6)], 7)
    assert record["answer"]["finish_reason"] == "length"
    assert not record["answer"]["closed"]
    assert record["answer"]["dropped"] == {"truncated": 1}
    assert len(record["predictions"]) == 1


def test_failures_are_those_outside_the_panel_worst_first(tiny_side: Any) -> None:
    said = [book(0), book(1)]
    whole = answer(tiny_side, with_id(shelf(), "whole"), said)
    cut = answer(tiny_side, with_id(shelf(), "cut"), said, cut=-6)
    twice = answer(tiny_side, with_id(shelf(), "panel"), said, cut=-6)
    assert [a.sample.id for a in failures([whole, twice, cut], ["panel"], 5)] == ["cut"]
    assert failures([whole, cut], [], 0) == []


def test_labels_without_slots_are_null(tiny_model: Any, tiny_side: Any, tmp_path: Path) -> None:
    """A crowd region, and a box that is thinner than a bin: neither is in the target."""
    import toy
    from apiece.monitor.probing import Prober

    thin = Instance("book", (10.0, 10.0, 10.001, 40.0))
    sample = toy.sample("thin", (64, 48), ("book", (0, 0, 20, 40)))
    sample = Sample(
        sample.id, sample.image, sample.size_wh, (thin, Instance("book", (0, 0, 9, 9), iscrowd=True), *sample.objects)
    )
    labels = Prober(tiny_model, toy.encoder(tiny_side)).labels([sample])
    (record,) = build_entries([answer(tiny_side, sample, [])], 7, labels=labels)
    assert [row["slots"] is None for row in record["objects"]] == [True, True, False]
    slots = record["objects"][2]["slots"]
    assert slots is not None
    assert [len(slots[name]) for name in ("a1", "last")] == [4, 4]
    assert record["probes"] is not None
    assert record["probes"]["objects"]["object"] == [2]
    assert parse_entry(json_line(record), "x:1")["probes"] == record["probes"]
