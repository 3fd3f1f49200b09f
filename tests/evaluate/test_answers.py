"""Answers to scored boxes and back from their line in the file."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from written import rollout

from apiece.codec import parse
from apiece.evaluate.answers import read_answer, under_one_policy
from apiece.model.load import TextSide, load_text_side
from apiece.types import FinishReason, ParseStatus, Sample

RECORDS = [("cup", (0, 0, 999, 999)), ("person", (100, 200, 300, 400))]
SAMPLE = Sample("s", Path("s.png"), (500, 250))


@pytest.fixture(scope="module")
def side(tiny_checkpoint: Path) -> TextSide:
    return load_text_side(str(tiny_checkpoint))


def test_score_is_the_geometric_mean_of_the_four_coordinate_probabilities(side: TextSide) -> None:
    given = rollout(side, "s", RECORDS, logprob=-7.0)
    slots = side.renderer.render(RECORDS).slots
    probabilities = [0.5, 0.25, 1.0, 0.125]
    logprobs = given.logprobs.copy()
    logprobs[slots.position[:4]] = np.log(probabilities)
    answer = read_answer(SAMPLE, replace(given, logprobs=logprobs), side.tokenizer, side.vocab)
    first, second = (d.score for d in answer.detections)
    assert first == pytest.approx(math.prod(probabilities) ** 0.25)  # names and syntax at e^-7 do not count
    assert second == pytest.approx(math.exp(-7))


def test_boxes_are_in_pixels_of_the_original_image(side: TextSide) -> None:
    answer = read_answer(SAMPLE, rollout(side, "s", RECORDS), side.tokenizer, side.vocab)
    whole, part = answer.detections
    assert (whole.desc, whole.bbox_xyxy) == ("cup", (0, 0, 500, 250))
    assert part.bbox_xyxy == pytest.approx((500 * 100 / 999, 250 * 200 / 999, 500 * 300 / 999, 250 * 400 / 999))


def test_another_policy_scores_the_same_boxes(side: TextSide) -> None:
    answer = read_answer(SAMPLE, rollout(side, "s", RECORDS), side.tokenizer, side.vocab, policy="constant")
    assert [d.score for d in answer.detections] == [1.0, 1.0]
    again = answer.under("coord_logprob")
    assert [d.score for d in again.detections] == pytest.approx([math.exp(-0.5)] * 2)
    assert [d.bbox_xyxy for d in again.detections] == [d.bbox_xyxy for d in answer.detections]
    assert (answer.policy, again.policy) == ("constant", "coord_logprob")


def test_answers_of_one_split_have_one_policy(side: TextSide) -> None:
    """One answer without log-probabilities: scores of two kinds in one ranking would mean nothing."""
    given = rollout(side, "s", RECORDS)
    blind = replace(given, logprobs=np.full_like(given.logprobs, np.nan))
    answers = [read_answer(SAMPLE, r, side.tokenizer, side.vocab) for r in (given, blind)]
    assert [a.policy for a in answers] == ["coord_logprob", "constant"]
    assert [a.policy for a in under_one_policy(answers, "coord_logprob")] == ["constant", "constant"]
    assert {d.score for a in under_one_policy(answers, "coord_logprob") for d in a.detections} == {1.0}
    empty = read_answer(SAMPLE, rollout(side, "s", []), side.tokenizer, side.vocab)
    assert [a.policy for a in under_one_policy([answers[0], empty], "coord_logprob")] == ["coord_logprob"] * 2


def test_empty_answer(side: TextSide) -> None:
    answer = read_answer(SAMPLE, rollout(side, "s", []), side.tokenizer, side.vocab)
    assert (answer.detections, answer.parsed.closed, answer.line()["objects"]) == ((), True, [])


def test_answer_that_was_cut_off_keeps_its_complete_records_and_counts_the_other(side: TextSide) -> None:
    whole = rollout(side, "s", RECORDS)
    last = int(side.renderer.render(RECORDS).slots.position[-1])
    ids = whole.ids[:last]  # the second record lacks a coordinate
    text = side.tokenizer.decode(ids.tolist())
    cut = replace(whole, ids=ids, logprobs=whole.logprobs[:last], text=text, finish_reason=FinishReason.LENGTH)
    answer = read_answer(SAMPLE, cut, side.tokenizer, side.vocab)
    assert [d.desc for d in answer.detections] == ["cup"]
    assert answer.parsed.dropped == {ParseStatus.TRUNCATED: 1}
    assert (answer.line()["finish_reason"], answer.line()["dropped"]) == ("length", {"truncated": 1})


def test_record_goes_through_json_and_holds_all_that_was_said(side: TextSide) -> None:
    answer = read_answer(SAMPLE, rollout(side, "s", RECORDS, logprob=-0.25), side.tokenizer, side.vocab)
    line = json.loads(json.dumps(answer.line()))
    assert [(o["desc"], tuple(o["bins"])) for o in line["objects"]] == RECORDS
    assert line["objects"][0]["bbox"] == [0.0, 0.0, 500.0, 250.0]
    assert line["objects"][0]["score"] == pytest.approx(math.exp(-0.25), abs=1e-6)
    assert (line["id"], line["image"], line["width"], line["height"]) == ("s", "s.png", 500, 250)
    # The raw answer is there to be read again: ids and text say the same.
    assert line["ids"] == answer.rollout.ids.tolist()
    assert line["logprobs"] == pytest.approx(answer.rollout.logprobs.tolist(), abs=1e-5)
    reread = parse(line["text"].removesuffix("<|im_end|>"))
    assert [(o.desc, o.bins_xyxy) for o in reread.objects] == RECORDS


def test_record_holds_what_every_policy_needs(side: TextSide) -> None:
    given = rollout(side, "s", RECORDS, logprob=-0.25)
    slots = side.renderer.render(RECORDS).slots
    mass = np.full(len(given.ids), np.nan, dtype=np.float32)
    mass[slots.position] = np.linspace(0.1, 0.8, 8)
    answer = read_answer(SAMPLE, replace(given, near_mass=mass), side.tokenizer, side.vocab, policy="product")
    line = json.loads(json.dumps(answer.line()))
    assert line["score_policy"] == "product"
    second = line["objects"][1]
    assert second["coord_positions"] == slots.position[4:].tolist()
    assert second["near_mass"] == pytest.approx([0.5, 0.6, 0.7, 0.8], abs=1e-6)
    assert side.tokenizer.decode([line["ids"][p] for p in second["desc_positions"]]) == "person"
    assert second["score"] == second["scores"]["product"] == pytest.approx(math.exp(-0.5), abs=1e-6)
    assert list(second["scores"]) == ["constant", "coord_logprob", "coord_mass", "desc_logprob", "product"]


def test_record_has_no_nan(side: TextSide) -> None:
    given = rollout(side, "s", RECORDS)
    blind = replace(given, logprobs=np.full_like(given.logprobs, np.nan))
    line = json.loads(json.dumps(read_answer(SAMPLE, blind, side.tokenizer, side.vocab).line(), allow_nan=False))
    assert line["logprobs"] == [None] * len(given.ids)
    assert (line["score_policy"], line["objects"][0]["scores"]) == ("constant", {"constant": 1.0})
    assert line["objects"][0]["near_mass"] is None
