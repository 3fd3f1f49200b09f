"""`apiece data` as a user meets it: exit codes, what is on stdout and stderr, plain text when piped."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path

import pytest
from records import DOG, record, save_image, write_lines
from rich.console import Console

from apiece.cli import main
from apiece.data.check import check_jsonl, print_report


class Run:
    """Runs the command line and keeps what it said."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self._capsys, self._monkeypatch = capsys, monkeypatch

    def __call__(self, *arguments: object) -> tuple[int, str, str]:
        self._monkeypatch.setattr(sys, "argv", ["apiece", *map(str, arguments)])
        self._monkeypatch.delenv("APIECE_DEBUG", raising=False)
        code = 0
        try:
            main()
        except SystemExit as caught:
            code = int(caught.code or 0)
        out, err = self._capsys.readouterr()
        return code, out, err


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    return Run(capsys, monkeypatch)


def coco_file(tmp_path: Path, bbox: list[float], category: int = 1) -> Path:
    save_image(tmp_path / "images" / "a.jpg")
    document = {
        "images": [{"id": 7, "file_name": "a.jpg", "width": 64, "height": 48}],
        "categories": [{"id": 1, "name": "dog"}],
        "annotations": [{"id": k, "image_id": 7, "category_id": category, "bbox": bbox} for k in range(1, 31)],
    }
    (tmp_path / "c.json").write_text(json.dumps(document))
    return tmp_path / "c.json"


def test_import_then_check_then_fix(tmp_path: Path, run: Run) -> None:
    out, clean = tmp_path / "x.jsonl", tmp_path / "clean.jsonl"
    source = coco_file(tmp_path, [1, 1, 63.5, 9])
    code, said, _ = run(
        "data", "import", "coco", "--annotations", source, "--images", tmp_path / "images", "--out", out
    )
    assert code == 0
    assert f"wrote {out}: 1 image (0 without objects), 30 objects (0 iscrowd), 1 class" in said
    assert "30 boxes stuck out of the image by at most one pixel and were cut to it" in said
    assert f"next: apiece data check {out}" in said
    code, said, err = run("data", "check", out)
    assert code == 0 and f"{out}: no errors" in said and err == ""
    write_lines(out, record("images/a.jpg", objects=[DOG, DOG | {"bbox": [5, 5, 5, 9]}]), "{")
    code, said, err = run("data", "check", out)
    assert code == 1
    assert f"  {out}:1: object 1 ('dog'): box has zero width: [5, 5, 5, 9] [box_zero_size]\n" in said
    assert f"error: {out}: 2 errors: 1 box_zero_size, 1 broken_json\n  fix: " in err
    code, said, err = run("data", "check", out, "--fix", "drop", "--out", clean, "--json", tmp_path / "n.json")
    assert code == 0 and err == ""
    assert f"wrote {clean} without the errors above: dropped 1 image and 1 object of other images" in said
    assert json.loads((tmp_path / "n.json").read_text())["counts"] == {"box_zero_size": 1, "broken_json": 1}
    assert run("data", "check", clean)[0] == 0


def test_what_to_set_for_images_outside_is_said(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("APIECE_DATA_ROOT", raising=False)
    out, clean = tmp_path / "labels" / "x.jsonl", tmp_path / "clean" / "x.jsonl"
    source = coco_file(tmp_path, [1, 1, 9, 9])
    words = ("data", "import", "coco", "--annotations", source, "--images", tmp_path / "images", "--out")
    assert "outside" not in run(*words, tmp_path / "x.jsonl")[1]
    said = run(*words, out)[1]
    assert f"images lie outside the folder of {out}: commands that read this file need APIECE_DATA_ROOT" in said
    assert f"next: export APIECE_DATA_ROOT={tmp_path / 'images'} && apiece data check {out}" in said
    code, said, err = run("data", "check", out)
    assert code == 1 and "leads out of this file's folder: '../images/a.jpg'" in said
    assert "if you trust this file: export APIECE_DATA_ROOT=FOLDER, a folder that holds its images\n" in err
    monkeypatch.setenv("APIECE_DATA_ROOT", str(tmp_path / "images"))
    code, said, _ = run("data", "check", out, "--fix", "drop", "--out", clean)
    roots = os.pathsep.join([str(tmp_path / "images"), str(tmp_path / "labels")])
    assert code == 0 and f"to read this file, export APIECE_DATA_ROOT={roots}\n" in said
    assert run("data", "check", clean)[0] == 0


def test_import_refuses_with_at_most_20_listed_or_skips_with_all(tmp_path: Path, run: Run) -> None:
    out = tmp_path / "x.jsonl"
    source = coco_file(tmp_path, [1, 1, 9, 9], category=5)
    arguments = ["data", "import", "coco", "--annotations", source, "--images", tmp_path / "images", "--out", out]
    code, _, err = run(*arguments)
    assert code == 1 and not out.exists()
    assert "error: 30 problems, nothing written: 30 unknown_category" in err
    assert err.count("no category has the id 5") == 20 and "... and 10 more" in err and "--skip-bad" in err
    code, said, _ = run(*arguments, "--skip-bad")
    assert code == 0 and "dropped, 30 problems:" in said and said.count("no category has the id 5") == 30
    assert "1 image (1 without objects), 0 objects" in said


def test_import_yolo_and_voc(tmp_path: Path, run: Run) -> None:
    save_image(tmp_path / "images" / "a.jpg")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    (tmp_path / "names.txt").write_text("dog\n")
    (tmp_path / "labels" / "a.xml").write_text("<annotation><filename>a.jpg</filename></annotation>")
    images, labels, out = tmp_path / "images", tmp_path / "labels", tmp_path / "x.jsonl"
    names = tmp_path / "names.txt"
    assert run("data", "import", "yolo", "--images", images, "--labels", labels, "--names", names, "--out", out)[0] == 0
    assert run("data", "check", out)[0] == 0
    assert (
        run("data", "import", "voc", "--images", images, "--annotations", labels, "--out", out, "--overwrite")[0] == 0
    )
    assert run("data", "check", out)[0] == 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["check", "none.jsonl"], 1, "a JSONL data file not found"),
        (["check", "x.jsonl", "--fix", "drop"], 2, "--fix drop and --out go together"),
        (["check", "x.jsonl", "--out", "y.jsonl"], 2, "--fix drop and --out go together"),
        (["check", "x.jsonl", "--fix", "drop", "--out", "x.jsonl"], 2, "would replace the file that it is made from"),
        (["import", "coco", "--annotations", "x.jsonl", "--images", ".", "--out", "y"], 1, "missing 'images'"),
    ],
)
def test_wrong_use(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path / "x.jsonl", record())
    found, said, err = run("data", *arguments)
    assert found == code and message in err and "Traceback" not in err and said == ""


def test_warnings_are_cut_to_a_few_of_each_kind(tmp_path: Path, run: Run) -> None:
    lines = [record("a.jpg", id=str(k), objects=[]) for k in range(9)]
    path = write_lines(tmp_path / "x.jsonl", *lines)
    code, said, _ = run("data", "check", path, "--no-images", "--show", "2")
    assert code == 0 and "8 warnings repeated_image:" in said and said.count("[repeated_image]") == 2
    assert "... and 6 more (--show -1 lists all)" in said and "image files were not opened" in said
    assert run("data", "check", path, "--no-images", "--show", "-1")[1].count("[repeated_image]") == 8


@pytest.mark.parametrize("width", [20, 80, 300])
def test_the_report_fits_its_width_and_problems_stay_on_one_line(tmp_path: Path, width: int) -> None:
    objects = [{"desc": name, "bbox": [1, 1, 9, 9]} for name in ("a" * 100, "[red]dog[/]", "cat :smile:")]
    path = write_lines(
        tmp_path / "x.jsonl", record(objects=objects), record("b.jpg", objects=[{"desc": "\x1b[31m" * 3}])
    )
    stream = io.StringIO()
    print_report(check_jsonl(path, open_images=False), Console(file=stream, width=width), show=5)
    said = stream.getvalue()
    assert "\x1b" not in said
    assert width == 20 or "[red]dog[/]" in said
    assert f"  {path}:2: object 0 ('\\x1b[31m\\x1b[31m\\x1b[31m'): " in said
    tables = said.split("most:")[0].splitlines()[2:]
    assert max(map(len, tables)) <= width


@pytest.mark.parametrize("indent", [None, 1])
def test_a_coco_file_is_to_be_imported_and_nothing_else(tmp_path: Path, run: Run, indent: int | None) -> None:
    source = coco_file(tmp_path, [1, 1, 9, 9])
    source.write_text(json.dumps(json.loads(source.read_text()), indent=indent))
    fix = f"  fix: apiece data import coco --annotations {source} --images FOLDER --out data.jsonl\n"
    code, said, err = run("data", "check", source)
    assert code == 1 and err.startswith(f"error: {source}: 1 error: ") and err.endswith(fix)
    assert "--fix drop" not in said + err
    code, _, err = run("evaluate", "tiny", "--data", source, "--out", tmp_path / "out")
    assert code == 1 and err.endswith(fix) and "--fix drop" not in err


def test_an_import_replaces_a_file_only_when_told_to(tmp_path: Path, run: Run) -> None:
    out = tmp_path / "x.jsonl"
    out.write_text("kept")
    source = coco_file(tmp_path, [1, 1, 9, 9])
    words = ("data", "import", "coco", "--annotations", source, "--images", tmp_path / "images", "--out", out)
    code, _, err = run(*words)
    assert code == 2 and out.read_text() == "kept"
    assert f"error: {out}: this file is there already and is not overwritten\n  fix: choose another name, or" in err
    assert run(*words, "--overwrite")[0] == 0 and out.read_text() != "kept"
