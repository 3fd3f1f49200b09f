"""Dumps for other tools: the same figures come back from the files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from apiece.cli import app, commands  # noqa: F401  registers the commands
from apiece.dumps.folder import Dump, open_run
from apiece.errors import UserError
from apiece.evaluate.detections import load_coco_ground_truth, load_coco_results
from apiece.evaluate.export import export_coco, export_fiftyone
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


def test_fiftyones_layout(dump: Dump, run: Path, tmp_path: Path) -> None:
    done = export_fiftyone(dump, run, tmp_path / "out")
    files: dict[str, Any] = {
        name: json.loads((tmp_path / "out" / f"{name}.json").read_text()) for name in ("labels", "predictions")
    }
    images = sorted(path.stem for path in (tmp_path / "out" / "data").iterdir())
    assert len(images) == done.images == 4
    for content in files.values():
        assert set(content) == {"classes", "labels"}
        assert sorted(content["labels"]) == images
        assert content["classes"] == files["labels"]["classes"]
    record = dump.entries[0]
    row, first = files["predictions"]["labels"][images[0]][0], record["predictions"][0]
    x1, y1, x2, y2 = first["bbox"]
    width, height = record["width"], record["height"]
    assert row["bounding_box"] == pytest.approx([x1 / width, y1 / height, (x2 - x1) / width, (y2 - y1) / height])
    assert row["label"] == first["desc"]
    assert row["confidence"] == first["score"]
    assert row["attributes"]["outcome"] == first["outcome"]
    assert len(files["labels"]["labels"][images[0]]) == len(record["objects"])


def test_images_that_are_gone_are_left_out_and_named(dump: Dump, run: Path, tmp_path: Path) -> None:
    dump.entries[1]["image"] = "gone.png"
    done = export_fiftyone(dump, run, tmp_path / "out")
    assert done.missing == (dump.entries[1]["id"],)
    assert done.images == 3
    for record in dump.entries:
        record["image"] = "gone.png"
    with pytest.raises(UserError, match="none of the 4 images of the dump is there any more"):
        export_fiftyone(dump, run, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_folder_with_something_in_it_is_refused(dump: Dump, run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"expected a new or empty folder\n  fix: choose another --fiftyone"):
        export_fiftyone(dump, run, run)
    export_fiftyone(dump, run, tmp_path / "new")


def test_the_command(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    assert "step 200: " in apiece(run, "--coco", out, "--annotations", tmp_path / "labels.json")
    assert "which was not asked for" in apiece(run, "--coco", out, "--step", 100)
    assert "on 4 images in" in apiece(run, "--fiftyone", tmp_path / "out")
    with pytest.raises(UserError, match="nothing to write: name --coco FILE or --fiftyone DIR"):
        apiece(run)
    with pytest.raises(UserError, match="--annotations goes with --coco"):
        apiece(run, "--fiftyone", tmp_path / "x", "--annotations", out)
    with pytest.raises(UserError, match="no dump of step 7; there are 2: 100, 200"):
        apiece(run, "--coco", out, "--step", 7)
    with pytest.raises(UserError, match="expected the folder of a run, found none"):
        apiece(tmp_path / "nowhere", "--coco", out)
