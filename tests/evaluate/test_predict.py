"""A checkpoint on a split: streaming, files, figures, what is refused."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from written import bins_of, evaluated, labelled, save_photo, written_predictor

from apiece.config.schema import GenerateSection, PromptSection
from apiece.data.collate import EncodedSample
from apiece.data.jsonl import write_jsonl
from apiece.errors import UserError
from apiece.evaluate import predict
from apiece.evaluate.answers import open_answers
from apiece.evaluate.detections import load_coco_ground_truth, load_coco_results
from apiece.evaluate.metrics import evaluate_detections
from apiece.evaluate.pictures import file_names, spread_over_crowding, write_pictures
from apiece.evaluate.predict import answer_split, evaluate_checkpoint, load_predictor, read_split, write_coco_files
from apiece.files import file_hash
from apiece.model.encode import PromptTokens
from apiece.model.load import CARD, load_text_side
from apiece.types import Rollout, Sample


def test_perfect_answers_score_1_in_every_figure(tmp_path: Path, tiny_checkpoint: Path) -> None:
    samples = labelled(tmp_path, [3, 0, 17, 1, 8])
    predictor, _ = written_predictor(tiny_checkpoint, {s.id: bins_of(s) for s in samples})
    metrics, answers = evaluated(predictor, samples, tmp_path / "out")
    assert (metrics["f1/f1"], metrics["f1/precision"], metrics["f1/recall"]) == (1, 1, 1)
    assert (metrics["f1/tp"], metrics["count/answers"], metrics["count/records"]) == (29, 5, 29)
    assert metrics["coco/AP50"] == pytest.approx(1)
    assert (metrics["parse/dropped"], metrics["parse/unclosed"], metrics["parse/finish_eos"]) == (0, 0, 1)
    assert metrics["score_policy"] == "coord_logprob"
    policies = ("coord_logprob", "constant", "desc_logprob", "product")  # given answers have no distribution
    assert {key.split("/")[1] for key in metrics if key.startswith("coco_by_policy/")} == set(policies)
    assert metrics["calibration/constant/ece"] == 0
    assert metrics["calibration/product/ece"] == pytest.approx(1 - math.exp(-1), abs=1e-6)
    lines = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == [answer.sample.id for answer in answers] == [s.id for s in samples]


def test_answers_that_say_nothing_find_nothing(tmp_path: Path, tiny_checkpoint: Path) -> None:
    predictor, _ = written_predictor(tiny_checkpoint)
    metrics, _ = evaluated(predictor, labelled(tmp_path, [3, 2]), tmp_path / "out")
    assert (metrics["f1/f1"], metrics["f1/fn"], metrics["count/predictions"]) == (0, 5, 0)


def test_an_engine_without_log_probabilities_gives_constant_scores_and_the_result_says_so(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = labelled(tmp_path / "images", [3, 2])
    write_jsonl(tmp_path / "x.jsonl", samples)
    predictor, engine = written_predictor(tiny_checkpoint, {s.id: bins_of(s) for s in samples})
    engine.logprob = math.nan
    monkeypatch.setattr(predict, "load_predictor", lambda *_, **__: predictor)
    told: list[str] = []
    out = tmp_path / "out"
    metrics = evaluate_checkpoint("any", tmp_path / "x.jsonl", out, pictures=0, warn=told.append)
    assert metrics["score_policy"] == "constant"
    assert {key.split("/")[1] for key in metrics if key.startswith("coco_by_policy/")} == {"constant"}
    assert {row["score"] for row in json.loads((out / "results.json").read_text())} == {1.0}
    assert told == [
        "scores are constant: not all answers have what coord_logprob needs (the engine keeps no log-probabilities)"
    ]


def test_coco_files_give_the_same_figures(tmp_path: Path, tiny_checkpoint: Path) -> None:
    samples = labelled(tmp_path, [3, 5, 2])
    # One box off, one of a class that no label has: its category must be in the file as well.
    records = {s.id: bins_of(s) for s in samples}
    records["s0"] = [("cup", (500, 500, 600, 600)), ("zebra", (1, 1, 90, 90)), *records["s0"][1:]]
    predictor, _ = written_predictor(tiny_checkpoint, records)
    metrics, answers = evaluated(predictor, samples, tmp_path)
    write_coco_files(samples, answers, tmp_path)
    truth = load_coco_ground_truth(tmp_path / "coco.json")
    again = evaluate_detections(truth, load_coco_results(tmp_path / "results.json", truth), policy="coord_logprob")
    curves = again.pop("calibration_curve")  # the file has scores of one policy
    assert again == {key: value for key, value in metrics.items() if key in again}
    assert curves == {name: metrics["calibration_curve"][name] for name in ("coord_logprob", "constant")}
    assert json.loads((tmp_path / "coco.json").read_text())["images"][0]["file_name"].endswith("0.png")


def test_samples_stream_a_batch_at_a_time(tmp_path: Path, tiny_checkpoint: Path) -> None:
    predictor, engine = written_predictor(tiny_checkpoint, batch_size=2)
    read: list[str] = []

    def reading() -> Iterator[Sample]:
        for sample in labelled(tmp_path, [1] * 5):
            read.append(sample.id)
            yield sample

    answers = predictor.answers(reading())
    assert read == []
    assert next(answers).sample.id == "s0"
    assert read == ["s0", "s1"]
    assert [answer.sample.id for answer in answers] == ["s1", "s2", "s3", "s4"]
    assert engine.batches == [["s0", "s1"], ["s2", "s3"], ["s4"]]


def test_interrupted_evaluation_keeps_what_is_done_and_resumes(tmp_path: Path, tiny_checkpoint: Path) -> None:
    samples, out = labelled(tmp_path / "images", [1] * 5), tmp_path / "out"
    predictor, engine = written_predictor(tiny_checkpoint, {s.id: bins_of(s) for s in samples})
    whole = answer_split(predictor, samples)
    engine.batches.clear()
    engine.stop_after = 1
    with pytest.raises(KeyboardInterrupt):
        answer_split(predictor, samples, out)
    assert {p.name for p in out.iterdir()} == {"predictions.jsonl.part", "protocol.json"}
    assert engine.batches == [["s0", "s1"]]
    engine.stop_after = None
    resumed = answer_split(predictor, samples, out)
    assert engine.batches == [["s0", "s1"], ["s2", "s3"], ["s4"]]
    assert [a.line() for a in resumed] == [a.line() for a in whole]
    assert {p.name for p in out.iterdir()} == {"predictions.jsonl", "protocol.json"}


def test_what_an_earlier_run_left_is_resumed_replaced_or_refused(tmp_path: Path, tiny_checkpoint: Path) -> None:
    samples, out = labelled(tmp_path / "images", [1] * 3), tmp_path / "out"
    predictor, engine = written_predictor(tiny_checkpoint)
    answer_split(predictor, samples, out)
    for protocol, resume, asked in (({}, None, 0), ({}, True, 0), ({}, False, 2), ({"seed": 1}, None, 2)):
        engine.batches.clear()
        answer_split(predictor, samples, out, protocol={**predictor.protocol, **protocol}, resume=resume)
        assert len(engine.batches) == asked, (protocol, resume)
    with pytest.raises(UserError, match="other settings: seed was 1, is 0"):
        answer_split(predictor, samples, out)


def test_two_processes_do_not_write_one_file(tmp_path: Path, tiny_checkpoint: Path) -> None:
    samples, out = labelled(tmp_path / "images", [1]), tmp_path / "out"
    predictor, _ = written_predictor(tiny_checkpoint)
    with (
        open_answers(out, predictor.protocol, resume=True),
        pytest.raises(UserError, match="another process is writing answers to this folder"),
    ):
        answer_split(predictor, samples, out)
    assert len(answer_split(predictor, samples, out)) == 1


def test_unfinished_evaluation_is_not_lost_by_accident(tmp_path: Path, tiny_checkpoint: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "predictions.jsonl.part").touch()
    with pytest.raises(UserError, match=r"unfinished evaluation\n.*--resume to finish it, or --overwrite"):
        evaluate_checkpoint(str(tiny_checkpoint), tmp_path / "x.jsonl", tmp_path / "out")
    with pytest.raises(UserError, match="no run to resume"):
        evaluate_checkpoint(str(tiny_checkpoint), tmp_path / "x.jsonl", tmp_path / "out", resume=True)


def test_batch_that_does_not_fit_into_memory_says_what_to_do(tmp_path: Path, tiny_checkpoint: Path) -> None:
    predictor, engine = written_predictor(tiny_checkpoint)

    def full(questions: Sequence[EncodedSample]) -> list[Rollout]:
        raise torch.OutOfMemoryError

    engine.generate = full  # type: ignore[method-assign]
    with pytest.raises(UserError, match=r"2 images at once do not fit into memory\n.*generate.batch_size"):
        list(predictor.answers(labelled(tmp_path, [1, 1])))


SHORT = GenerateSection(max_new_tokens=6, batch_size=2, grammar=False)


def test_checkpoint_is_evaluated_into_a_folder(tmp_path: Path, tiny_checkpoint: Path) -> None:
    samples = labelled(tmp_path / "images", [2, 1, 4])
    data = tmp_path / "x.jsonl"
    write_jsonl(data, samples)
    out = tmp_path / "out"
    metrics = evaluate_checkpoint(str(tiny_checkpoint), data, out, settings=SHORT, pictures=2, device="cpu")
    assert {p.name for p in out.iterdir()} == {
        *("metrics.json", "predictions.jsonl", "protocol.json", "coco.json", "results.json"),
        *("pictures", "contact_sheet.png"),
    }
    assert sorted(p.name for p in (out / "pictures").iterdir()) == ["s1.png", "s2.png"]
    assert json.loads((out / "metrics.json").read_text()) == metrics
    protocol = metrics["protocol"]
    assert (protocol["checkpoint"], protocol["data"]) == (str(tiny_checkpoint), str(data))
    assert protocol["data_sha256"] == file_hash(data)
    assert protocol["generate"] == SHORT.model_dump(mode="json")
    assert protocol["prompt"] == {"name": "plain", "text": None}
    assert len(protocol["prompt_hash"]) == 12
    assert "f1/true" not in metrics
    again = evaluate_checkpoint(
        str(tiny_checkpoint), data, tmp_path / "again", settings=SHORT, pictures=0, complete=data, device="cpu"
    )
    assert again["f1/true"] == metrics["f1/f1"]
    assert again["outcomes/unlabelled"] == 0
    assert again["protocol"]["complete_sha256"] == file_hash(data)


def test_random_model_answers_the_same_twice(tmp_path: Path, tiny_checkpoint: Path) -> None:
    samples = labelled(tmp_path, [1, 1, 1])
    predictor = load_predictor(str(tiny_checkpoint), SHORT, device="cpu")
    first, second = ([a.line() for a in predictor.answers(samples)] for _ in range(2))
    assert first == second
    assert {line["finish_reason"] for line in first} == {"length"}


@pytest.mark.parametrize(
    ("asked", "warned"),
    [
        pytest.param(None, False, id="its own"),
        pytest.param(PromptSection(name="atomic"), False, id="its own, by name"),
        pytest.param(PromptSection(name="plain"), True, id="another"),
        pytest.param(PromptSection(name="text", text="Find it all."), True, id="of the user"),
    ],
)
def test_another_prompt_than_the_trained_one_is_told(
    tmp_path: Path, tiny_checkpoint: Path, asked: PromptSection | None, warned: bool
) -> None:
    from apiece.model.prompt import PROMPTS

    checkpoint = tmp_path / "trained"
    shutil.copytree(tiny_checkpoint, checkpoint)
    trained = PromptTokens.of(load_text_side(str(checkpoint)), PROMPTS["atomic"]).hash
    card = {"prompt": {"name": "atomic", "text": None}, "prompt_hash": trained, "max_pixels": 9216, "step": 7}
    (checkpoint / CARD).write_text(json.dumps(card))
    warned_of: list[str] = []
    predictor = load_predictor(str(checkpoint), SHORT, prompt=asked, device="cpu", warn=warned_of.append)
    name = asked.name if asked else "atomic"
    expected = f"the checkpoint was trained under prompt 'atomic', it is asked under '{name}'"
    assert warned_of == ([expected] if warned else [])
    assert (predictor.protocol["prompt_hash"] == trained) is not warned
    assert (predictor.protocol["trained_prompt_hash"], predictor.protocol["step"]) == (trained, 7)
    assert predictor.protocol["max_pixels"] == 9216
    assert predictor.encoder.prompt.hash == predictor.protocol["prompt_hash"]


def test_unknown_and_missing_devices_are_refused(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"unknown device 'cpus' \(did you mean 'cpu'\?\); known: auto, cpu, cuda"):
        load_predictor(str(tiny_checkpoint), SHORT, device="cpus")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"no CUDA device found .*\n.*--device cpu"):
        load_predictor(str(tiny_checkpoint), SHORT, device="cuda")


def test_split_with_a_missing_or_changed_image_is_refused_before_anything_is_answered(tmp_path: Path) -> None:
    samples = labelled(tmp_path, [1, 1])
    write_jsonl(tmp_path / "x.jsonl", samples)
    save_photo(samples[1].image, (100, 200))
    with pytest.raises(UserError, match=r"1\.png: sample s1: expected an image of 200 x 100 pixels, found 100 x 200"):
        read_split(tmp_path / "x.jsonl")
    samples[1].image.unlink()
    with pytest.raises(UserError, match=r"1\.png: image file not found"):
        read_split(tmp_path / "x.jsonl")


@pytest.mark.parametrize(
    ("crowding", "count", "chosen"),
    [
        pytest.param([5, 0, 9, 2, 7], 5, [1, 3, 0, 4, 2], id="all"),
        pytest.param([5, 0, 9, 2, 7], 3, [1, 0, 2], id="fewest, middle, most"),
        pytest.param([5, 0, 9, 2, 7], 1, [1], id="one"),
        pytest.param([5, 0], 9, [1, 0], id="fewer than asked for"),
        pytest.param([3, 3, 3], 2, [0, 2], id="ties in order"),
        pytest.param([5, 0], 0, [], id="none"),
    ],
)
def test_pictures_are_spread_over_crowding(tmp_path: Path, crowding: list[int], count: int, chosen: list[int]) -> None:
    assert spread_over_crowding(labelled(tmp_path, crowding), count) == chosen


def test_picture_names_are_files_and_all_different() -> None:
    names = file_names(["a/b", "a b", "A_b", "ok-1.jpg", "ü" * 300])
    assert names == ["a_b.png", "a_b~2.png", "A_b~3.png", "ok-1.jpg.png", "ü" * 60 + ".png"]


def test_pictures_of_an_earlier_evaluation_are_replaced(tmp_path: Path, tiny_checkpoint: Path) -> None:
    samples = labelled(tmp_path / "images", [2, 1])
    predictor, _ = written_predictor(tiny_checkpoint, {s.id: bins_of(s) for s in samples})
    answers = list(predictor.answers(samples))
    assert [p.name for p in write_pictures(answers, tmp_path, 2)] == ["s1.png", "s0.png"]
    write_pictures(answers, tmp_path, 1)
    assert [p.name for p in (tmp_path / "pictures").iterdir()] == ["s1.png"]
    write_pictures(answers, tmp_path, 0)
    assert not (tmp_path / "contact_sheet.png").exists()
