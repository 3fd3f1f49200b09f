"""The metrics of a run: keys, rates, bytes on disk, the printed table and the command."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from splits import forms, grid_box, random_coco, split

from apiece.cli import main
from apiece.errors import UserError
from apiece.evaluate.ap import FIGURES
from apiece.evaluate.detections import to_coco, to_coco_results
from apiece.evaluate.metrics import (
    evaluate_detections,
    new_metrics_path,
    parse_figures,
    print_table,
)
from apiece.evaluate.rates import POSITIONS
from apiece.files import write_json
from apiece.outcomes import MISSES, Fate, Outcome
from apiece.stats.ratio import CROWDING
from apiece.types import FinishReason, ParsedObject, ParseResult, ParseStatus

NESTED = {"by_class", "by_crowding", "by_position", "calibration_curve"}


def printed(metrics, **options) -> str:
    file = io.StringIO()
    print_table(metrics, Console(file=file, width=80, **options))
    return file.getvalue()


def test_labels_as_detections_are_perfect_everywhere() -> None:
    labels = [("cup", grid_box(i)) for i in range(7)]
    metrics = evaluate_detections(*split((labels, [(*x, 1.0) for x in labels])), policy="coord_logprob")
    for key in ("coco/AP", "coco/AR100", "f1/f1", "f1/precision", "f1/recall", "f1/mean_iou"):
        assert metrics[key] == pytest.approx(1.0), key
    assert metrics["score_policy"] == "coord_logprob"
    assert metrics["by_class"]["cup"]["AP"] == pytest.approx(1.0)
    assert metrics["by_crowding"]["6-15"]["images"] == 1


def test_keys_and_types(tmp_path) -> None:
    metrics = evaluate_detections(*forms(*random_coco(0), tmp_path), policy="as_given")
    assert {f"coco/{name}" for name in FIGURES} <= set(metrics)
    assert all(
        value is None or isinstance(value, int | float)
        for key, value in metrics.items()
        if key not in {*NESTED, "score_policy"}
    )
    assert list(metrics["by_crowding"]) == list(CROWDING)
    for row in (*metrics["by_class"].values(), *metrics["by_crowding"].values()):
        assert {"f1", "precision", "recall", "mean_iou", "tp", "fp", "fn", "ignored", "AP", "AP50"} <= set(row)
    assert sum(row["images"] for row in metrics["by_crowding"].values()) == metrics["count/images"]
    assert sum(row["tp"] + row["fn"] for row in metrics["by_class"].values()) == metrics["count/truths"]
    assert metrics["count/predictions"] == metrics["f1/tp"] + metrics["f1/fp"] + metrics["f1/ignored"]
    assert not any(key.startswith("parse/") for key in metrics)


def test_min_score_is_for_f1_alone(tmp_path) -> None:
    every, some = (
        evaluate_detections(*forms(*random_coco(0), tmp_path), policy="x", min_score=score) for score in (0.0, 0.5)
    )
    assert every["coco/AP"] == some["coco/AP"]
    assert some["f1/tp"] + some["f1/fp"] < every["f1/tp"] + every["f1/fp"]
    assert some["f1/min_score"] == 0.5


def test_parse_rates() -> None:
    kept = ParsedObject("cup", (1, 2, 3, 4), (0, 1))
    rates = parse_figures(
        [
            (ParseResult((kept,) * 3, {ParseStatus.ZERO_AREA: 1}), FinishReason.EOS),
            (
                ParseResult((kept,) * 2, {ParseStatus.TRUNCATED: 1, ParseStatus.ZERO_AREA: 1}, False),
                FinishReason.LENGTH,
            ),
        ]
    )
    assert (rates["count/answers"], rates["count/records"], rates["parse/unclosed"]) == (2, 8, 1 / 2)
    assert rates["parse/dropped"] == 3 / 8
    assert rates["parse/zero_area"] == 2 / 8
    assert rates["parse/truncated"] == 1 / 8
    assert rates["parse/malformed"] == 0
    assert rates["parse/unclosed"] == rates["parse/finish_length"] == rates["parse/finish_eos"] == 1 / 2
    assert {f"parse/{status}" for status in ParseStatus} <= set(rates)
    assert sum(rates[f"parse/{status}"] for status in ParseStatus) == pytest.approx(rates["parse/dropped"])
    metrics = evaluate_detections(*split(([], [])), policy="x", parse=rates)
    assert metrics["parse/zero_area"] == 2 / 8
    assert "zero_area 25.0%" in printed(metrics)
    assert "malformed" not in printed(metrics)
    assert parse_figures([])["parse/dropped"] is None


def test_equal_metrics_give_equal_bytes(tmp_path) -> None:
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        write_json(folder / "metrics.json", evaluate_detections(*forms(*random_coco(2), folder), policy="x"))
    first, second = ((tmp_path / name / "metrics.json").read_bytes() for name in "ab")
    assert first == second
    assert json.loads(first)["coco/APl"] == json.loads(second)["coco/APl"]


def test_table(tmp_path) -> None:
    text = printed(evaluate_detections(*forms(*random_coco(0), tmp_path), policy="x"))
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    for words in ("12 images", "ceiling of the bins", "16+", "class "):
        assert words in text


def test_table_of_nothing_has_dashes_and_one_of_many_classes_is_cut() -> None:
    assert "nan" not in printed(evaluate_detections(*split(([], [])), policy="x"))
    many = [(f"class [{i}]", grid_box(i)) for i in range(25)]
    text = printed(evaluate_detections(*split((many, [])), policy="x"))
    assert "class [4]" in text
    assert "and 5 classes with fewer labels in metrics.json" in text


def test_metrics_are_not_overwritten(tmp_path) -> None:
    path = new_metrics_path(tmp_path / "out")
    write_json(path, {})
    with pytest.raises(UserError, match=r"are there already.*\n  fix: .*--overwrite") as caught:
        new_metrics_path(tmp_path / "out")
    assert caught.value.exit_code == 2
    assert new_metrics_path(tmp_path / "out", overwrite=True) == path
    with pytest.raises(UserError, match="expected a folder, found a file"):
        new_metrics_path(path)


def run(monkeypatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["apiece", "evaluate", *map(str, arguments)])
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_command(tmp_path, monkeypatch, capsys) -> None:
    forms(*random_coco(0), tmp_path)
    files = ("--predictions", tmp_path / "dt.json", "--annotations", tmp_path / "gt.json", "--out", tmp_path / "out")
    assert run(monkeypatch, *files) == 0
    assert "AP50" in capsys.readouterr().out
    assert json.loads((tmp_path / "out/metrics.json").read_text())["score_policy"] == "as_given"
    assert run(monkeypatch, *files) == 2
    assert "are there already" in capsys.readouterr().err
    assert run(monkeypatch, *files, "--overwrite", "--min-score", "0.5") == 0
    assert json.loads((tmp_path / "out/metrics.json").read_text())["f1/min_score"] == 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "nothing to evaluate"),
        (("run/last",), "CHECKPOINT needs --data as well"),
        (("--data", "x.jsonl"), "--data needs CHECKPOINT as well"),
        (("--predictions", "d.json"), "--predictions needs --annotations as well"),
        (("--annotations", "g.json"), "--annotations needs --predictions as well"),
        (("run/last", "--annotations", "g.json"), "these do not go together: CHECKPOINT, --annotations"),
        (
            ("--data", "x", "--predictions", "d", "--annotations", "g"),
            "these do not go together: --data, --predictions",
        ),
    ],
)
def test_usage(arguments, message, tmp_path, monkeypatch, capsys) -> None:
    assert run(monkeypatch, *arguments, "--out", tmp_path) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "fix: apiece evaluate CHECKPOINT --data X.jsonl" in error


def test_bad_content_exits_with_1_and_writes_nothing(tmp_path, monkeypatch, capsys) -> None:
    forms(*random_coco(0), tmp_path)
    (tmp_path / "dt.json").write_text('[{"image_id": 1}]')
    files = ("--predictions", tmp_path / "dt.json", "--annotations", tmp_path / "gt.json", "--out", tmp_path / "out")
    assert run(monkeypatch, *files) == 1
    assert "dt.json: detection 0: " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_scoring_files_and_drawing_never_import_torch() -> None:
    code = (
        "import sys, apiece.evaluate.metrics, apiece.evaluate.detections, apiece.report.draw, apiece.cli.evaluate;"
        "print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_outcome_keys(tmp_path) -> None:
    metrics = evaluate_detections(*forms(*random_coco(0), tmp_path), policy="x")
    labels = [outcome.label for outcome in Outcome]
    for label in labels:
        assert {f"outcomes/{label}", f"rates/{label}", f"rates/{label}_lo", f"rates/{label}_hi"} <= set(metrics)
    assert sum(metrics[f"outcomes/{label}"] for label in labels) == metrics["count/predictions"]
    assert sum(metrics[f"misses/{fate.label}"] for fate in MISSES) == metrics["f1/fn"]
    assert metrics["outcomes/tp"] == metrics["f1/tp"]
    assert {"shape/near_duplicate", "shape/strip", "f1/lenient", "rates/merged"} <= set(metrics)
    assert "f1/true" not in metrics
    for row in (*metrics["by_class"].values(), *metrics["by_crowding"].values()):
        assert {"outcomes/group", "rates/group", "rates/group_lo"} <= set(row)
        assert row["outcomes/tp"] <= row["tp"] + row["fp"]
    document = (Path(__file__).parents[2] / "docs" / "reference" / "metrics.md").read_text(encoding="utf-8")
    for name in (*labels, *(fate.label for fate in Fate), *POSITIONS):
        assert f"`{name}`" in document, name


def test_command_with_complete_truth(tmp_path, monkeypatch, capsys) -> None:
    labels = [("cup", grid_box(i)) for i in range(4)]
    truth, detections = split((labels[:2], [(*label, 0.5) for label in labels]))
    everything, _ = split((labels, []))
    (tmp_path / "gt.json").write_text(json.dumps(to_coco(truth)))
    (tmp_path / "all.json").write_text(json.dumps(to_coco(everything)))
    (tmp_path / "dt.json").write_text(json.dumps(to_coco_results(truth, detections)))
    files = ("--predictions", tmp_path / "dt.json", "--annotations", tmp_path / "gt.json", "--out", tmp_path / "out")
    assert run(monkeypatch, *files, "--complete", tmp_path / "all.json") == 0
    assert "1.000 on complete truth" in capsys.readouterr().out
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert metrics["f1/true"] == 1
    assert metrics["f1/f1"] == pytest.approx(2 / 3)
    assert (metrics["outcomes/unlabelled"], metrics["outcomes/background"]) == (2, 0)
    (tmp_path / "all.json").write_text(json.dumps({**to_coco(everything), "images": [], "annotations": []}))
    assert run(monkeypatch, *files, "--overwrite", "--complete", tmp_path / "all.json") == 1
    assert "all.json: expected every image of the split, found none of id 1" in capsys.readouterr().err
