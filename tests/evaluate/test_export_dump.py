"""Dumps for other tools: the same figures come back from the files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from apiece.cli import app, commands  # noqa: F401  registers the commands
from apiece.dumps.folder import Dump, open_run
from apiece.errors import UserError
from apiece.evaluate.detections import load_coco_ground_truth, load_coco_results
from apiece.evaluate.export import export_coco
from apiece.evaluate.rates import match_split, total_scores
from made_runs import Made, make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs"), Made(samples=4, steps=(100, 200)))


@pytest.fixture
def dump(run: Path) -> Dump:
    return open_run(run).dump()


def apiece(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["export", *map(str, arguments)])
    if isinstance(result.exception, UserError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_coco_files_give_the_figures_of_the_dump(dump: Dump, tmp_path: Path) -> None:
    done = export_coco(dump, tmp_path / "results.json", tmp_path / "labels.json")
    truth = load_coco_ground_truth(tmp_path / "labels.json")
    detections = load_coco_results(tmp_path / "results.json", truth)
    scores = total_scores(match_split(truth, detections))
    counts = [record["counts"] for record in dump.entries]
    assert scores.tp == sum(row["matched"] for row in counts) > 0
    assert scores.tp + scores.fn == sum(row["gt"] for row in counts)
    assert done.predictions == len(detections) == sum(row["pred"] for row in counts)
    assert done.images == len(truth.images) == 4
    assert done.unscored == 0
    assert [image.name for image in truth.images] == [record["image"] for record in dump.entries]
    assert sum(truth.iscrowd) == sum(row["iscrowd"] for record in dump.entries for row in record["objects"])


def test_ids_that_are_whole_numbers_stay(dump: Dump, tmp_path: Path) -> None:
    for record, name in zip(dump.entries, ("139", "285", "632", "724"), strict=True):
        record["id"] = name
    export_coco(dump, tmp_path / "results.json")
    found = {row["image_id"] for row in json.loads((tmp_path / "results.json").read_text())}
    assert found <= {139, 285, 632, 724}
    assert found


def test_a_score_that_is_not_known_is_zero_and_counted(dump: Dump, tmp_path: Path) -> None:
    dump.entries[0]["predictions"][0]["score"] = None
    assert export_coco(dump, tmp_path / "results.json").unscored == 1
    assert json.loads((tmp_path / "results.json").read_text())[0]["score"] == 0


def test_the_command(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    assert "step 200: " in apiece(run, "--coco", out, "--annotations", tmp_path / "labels.json")
    assert "which was not asked for" in apiece(run, "--coco", out, "--step", 100)
    with pytest.raises(UserError, match="no dump of step 7; there are 2: 100, 200"):
        apiece(run, "--coco", out, "--step", 7)
    with pytest.raises(UserError, match="expected the folder of a run, found none"):
        apiece(tmp_path / "nowhere", "--coco", out)
