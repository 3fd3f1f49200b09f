"""Classes that only the complete truth has: named by their ids where the files agree, refused where they do not."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from splits import grid_box, split

from apiece.cli import main
from apiece.evaluate.detections import align_complete, load_coco_ground_truth, to_coco, with_classes_of

CUP, CAT, ZEBRA = ("cup", grid_box(0)), ("cat", grid_box(2)), ("zebra", grid_box(4))


def coco(ids: dict[str, int], labels: list[Any]) -> dict[str, Any]:
    """One image with its labels as a COCO file; classes by name and id, with or without labels."""
    content = to_coco(split((labels, []))[0])
    names = {category["id"]: category["name"] for category in content["categories"]}
    for annotation in content["annotations"]:
        annotation["category_id"] = ids[names[annotation["category_id"]]]
    return {**content, "categories": [{"id": number, "name": name} for name, number in ids.items()]}


@pytest.fixture
def evaluate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the command on annotations, complete truth and detections `(category_id, label)`; exit code and metrics."""

    def call(annotations: dict[str, Any], complete: dict[str, Any], results: list[tuple[int, Any]]) -> Any:
        rows = []
        for category, (_, (x1, y1, x2, y2)) in results:
            box = [x1, y1, x2 - x1, y2 - y1]
            rows.append({"image_id": 1, "category_id": category, "bbox": box, "score": 0.5})
        for name, content in (("gt", annotations), ("all", complete), ("dt", rows)):
            (tmp_path / f"{name}.json").write_text(json.dumps(content))
        paths = [str(tmp_path / f"{name}.json") for name in ("gt", "all", "dt")]
        options = ["--annotations", paths[0], "--complete", paths[1], "--predictions", paths[2]]
        monkeypatch.setattr(sys, "argv", ["apiece", "evaluate", *options, "--out", str(tmp_path / "out")])
        try:
            main()
        except SystemExit as stop:
            if stop.code:
                return stop.code, None
        return 0, json.loads((tmp_path / "out" / "metrics.json").read_text())

    return call


@pytest.mark.parametrize("number", [1, 4, 9], ids=["before", "between", "after"])
def test_a_class_that_only_the_complete_truth_has_is_named_by_its_id(evaluate, number) -> None:
    ids = {"cup": 3, "zebra": 5}
    code, metrics = evaluate(
        coco(ids, [CUP, ZEBRA]),
        coco({**ids, "cat": number}, [CUP, CAT, ZEBRA]),
        [(3, CUP), (number, CAT), (5, ZEBRA), (number, CUP)],
    )
    assert code == 0
    assert (metrics["outcomes/tp"], metrics["outcomes/unlabelled"], metrics["outcomes/wrong_class"]) == (2, 1, 1)
    assert metrics["f1/true"] == pytest.approx(6 / 7)
    assert metrics["coco/AP"] == pytest.approx(1)  # no label of it: the class has no AP
    assert (metrics["by_class"]["cat"]["AP"], metrics["by_class"]["cat"]["fp"]) == (-1, 2)


@pytest.mark.parametrize(
    "theirs",
    [
        {"cat": 1, "cup": 2, "zebra": 3},  # numbered anew: 3 is not 3
        {"cup": 1, "zebra": 2, "cat": 3, "mug": 0},
    ],
    ids=["an id of two names", "agrees"],
)
def test_an_id_that_may_mean_two_classes_names_none(evaluate, theirs, capsys) -> None:
    ours = {"cup": 1, "zebra": 2}
    code, metrics = evaluate(coco(ours, [CUP]), coco(theirs, [CUP, CAT]), [(1, CUP), (3, CAT)])
    if "mug" in theirs:
        assert (code, metrics["outcomes/unlabelled"]) == (0, 1)
        return
    assert code == 1
    error = capsys.readouterr().err
    assert "detection 1: expected a category_id of the annotations (2 ids: 1, 2), found 3" in error
    assert "fix: list the class among the categories of the annotations; it needs no label there" in error


def test_that_remedy_works(evaluate) -> None:
    ours = {"cup": 1, "zebra": 2, "cat": 7}
    complete = coco({"cat": 1, "cup": 2}, [CUP, CAT])
    code, metrics = evaluate(coco(ours, [CUP]), complete, [(1, CUP), (7, CAT)])
    assert (code, metrics["outcomes/unlabelled"], metrics["f1/true"]) == (0, 1, 1)


def test_labels_keep_their_class(tmp_path: Path) -> None:
    for name, ids in (("gt", {"cup": 3, "zebra": 5}), ("all", {"cat": 4, "cup": 3, "zebra": 5})):
        (tmp_path / f"{name}.json").write_text(json.dumps(coco(ids, [CUP, ZEBRA])))
    truth, complete = (load_coco_ground_truth(tmp_path / f"{name}.json") for name in ("gt", "all"))
    named = with_classes_of(complete, truth)
    assert named.names == ("cup", "cat", "zebra")
    assert [instance.desc for instance in named.instances(0)] == ["cup", "zebra"]
    assert align_complete(complete, named)[0].names == named.names  # nothing left to add
    assert align_complete(complete, truth)[0].names == ("cup", "zebra", "cat")  # numbers of classes never change here
