"""COCO files and samples to forms and back; everything that cannot be scored is refused where it stands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from splits import forms, grid_box, random_coco, split

from apiece.errors import UserError
from apiece.evaluate.ap import coco_scores
from apiece.evaluate.detections import (
    load_coco_ground_truth,
    load_coco_results,
    load_ground_truth,
    predictions_to_detections,
    samples_to_ground_truth,
    to_coco,
    to_coco_results,
)
from apiece.evaluate.forms import Category, Detections, GroundTruth, ImageInfo
from apiece.types import Detection, Instance, Sample

COCO = {
    "images": [{"id": 7, "file_name": "a.jpg", "width": 64, "height": 48}, {"id": 3, "width": 10, "height": 20}],
    "annotations": [
        {"id": 0, "image_id": 7, "category_id": 5, "bbox": [1, 2, 3, 4], "area": 6.5, "iscrowd": 1},
        {"id": 0, "image_id": 3, "category_id": 2, "bbox": [0, 0, 10, 20.5]},
    ],
    "categories": [{"id": 5, "name": "mug"}, {"id": 2, "name": "cup", "supercategory": "kitchen"}],
}
DETECTION = {"image_id": 7, "category_id": 5, "bbox": [1, 2, 3, 4], "score": 0.5}


@pytest.fixture
def write(tmp_path):
    def to_file(content: Any, name: str = "file.json") -> Path:
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return to_file


def changed(path: str, value: Any) -> dict[str, Any]:
    """`COCO` with one entry changed, such as `annotations.0.bbox`; `...` takes it away."""
    content = json.loads(json.dumps(COCO))
    target: Any = content
    *parents, last = path.split(".")
    for key in parents:
        target = target[int(key) if key.isdigit() else key]
    if value is ...:
        del target[last]
    else:
        target[int(last) if last.isdigit() else last] = value
    return content


def test_ground_truth_of_a_coco_file(write) -> None:
    truth = load_ground_truth(write(COCO))
    assert truth.images == (ImageInfo(3, "3", (10, 20)), ImageInfo(7, "a.jpg", (64, 48)))
    assert truth.categories == (Category(2, "cup"), Category(5, "mug"))
    assert truth.image.tolist() == [1, 0]
    assert truth.category.tolist() == [1, 0]
    assert truth.bbox_xyxy.tolist() == [[1, 2, 4, 6], [0, 0, 10, 20.5]]
    assert truth.area.tolist() == [6.5, 205.0]
    assert truth.iscrowd.tolist() == [True, False]
    assert truth.objects_per_image.tolist() == [1, 0]
    assert truth.instances(1) == (Instance("mug", (1, 2, 4, 6), True, 6.5),)


@pytest.mark.parametrize(
    ("path", "value", "where", "message"),
    [
        ("images", ..., None, "expected the lists 'images', 'annotations', 'categories'; missing 'images', found"),
        ("images.0.width", ..., "images[0] (id 7)", "expected 'width' and 'height' in whole pixels, found None and 48"),
        ("images.0.height", 0, "images[0] (id 7)", "in whole pixels, found 64 and 0"),
        ("images.0.id", "7", "images[0] (id '7')", "to be scored, image ids must be whole numbers"),
        ("images.1.id", 7, "images[1] (id 7)", "image id 7 appears twice"),
        ("images.0", [], "images[0]", r"expected a JSON object, found \[\]"),
        ("categories.1.id", 5, "categories[1]", "category id 5 appears twice: 'mug' and 'cup'"),
        ("categories.1.name", "mug", "categories", "categories 5, 2 share the name 'mug'"),
        ("categories.1.name", 3, "categories[1]", "expected a number 'id' and a text 'name', found 2 and 3"),
        ("annotations.1.image_id", 9, "annotations[1] (id 0)", "no image has the id 9"),
        ("annotations.1.image_id", "3", "annotations[1] (id 0)", "no image has the id '3'"),
        ("annotations.1.image_id", True, "annotations[1] (id 0)", "no image has the id True"),
        ("annotations.1.category_id", True, "annotations[1] (id 0)", "no category has the id True"),
        ("annotations.1.bbox", [1, 2, 3], "annotations[1] (id 0)", "expected a list of 4 numbers, found a list of 3"),
        (
            "annotations.0.bbox",
            [5, 5, -1, 2],
            "annotations[0] (id 0)",
            r"width and height >= 0, found \[5, 5, -1, 2\]",
        ),
        ("annotations.0.iscrowd", "0", "annotations[0] (id 0)", "'iscrowd': expected 0 or 1, found '0'"),
        ("annotations.0.area", "6", "annotations[0] (id 0)", "'area': expected a number, found the text '6'"),
    ],
)
def test_broken_annotations(path, value, where, message, write) -> None:
    file = write(changed(path, value))
    with pytest.raises(UserError, match=message) as caught:
        load_coco_ground_truth(file)
    assert caught.value.where == str(file)
    if where:
        assert f"\n  {file}: {where}: " in str(caught.value)


def test_all_broken_annotations_are_listed(write) -> None:
    content = COCO | {"annotations": [{"image_id": 7, "category_id": 5}] * 12}
    with pytest.raises(UserError, match=r"at least 10 errors:(\n  .*annotations\[\d\]: missing 'bbox'.*){10}\n  fix:"):
        load_coco_ground_truth(write(content))


def test_null_as_area_is_no_area_as_on_import(write) -> None:
    assert load_coco_ground_truth(write(changed("annotations.0.area", None))).area.tolist() == [12.0, 205.0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"score": ...}, "expected a score, found none\n  fix: AP ranks by score"),
        ({"score": float("nan")}, r"expected a finite number up to 1e\+12 in score, found nan"),
        ({"score": "0.5"}, "in score, found '0.5'"),
        ({"image_id": 4}, r"expected an image_id of the annotations \(2 ids: 3, 7\), found 4"),
        ({"image_id": ...}, "expected an integer image_id, found none"),
        ({"image_id": 7.0}, "expected an integer image_id, found 7.0"),
        ({"category_id": 1}, r"expected a category_id of the annotations \(2 ids: 2, 5\), found 1"),
        ({"bbox": [1, 2, 3, 4, 5]}, r"expected bbox to be \[x, y, width, height\], found 5 numbers"),
        ({"bbox": ...}, "found none"),
        ({"bbox": "1 2 3 4"}, "found a str"),
        ({"bbox": [1, float("nan"), 3, 4]}, "in bbox, found nan"),
        ({"bbox": [1, float("inf"), 3, 4]}, "in bbox, found inf"),
        ({"bbox": [1, 10**400, 3, 4]}, "in bbox, found 10000"),
        ({"bbox": [9, 9, 4, -1]}, r"found \[9, 9, 4, -1\]\n  fix: write COCO's width and height"),
        (None, "expected an object, found a null"),
    ],
)
def test_broken_detections(change, message, write) -> None:
    truth = load_coco_ground_truth(write(COCO, "gt.json"))
    row = None if change is None else {k: v for k, v in {**DETECTION, **change}.items() if v is not ...}
    file = write([DETECTION, row])
    with pytest.raises(UserError, match=message) as caught:
        load_coco_results(file, truth)
    assert caught.value.where == f"{file}: detection 1"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (COCO, "expected a list of detections, found an object with keys"),
        (3, "expected a list of detections, found a int"),
        ("[" * 100_000, "broken JSON: nested too deep"),
        ("[", "broken JSON: .*\n  fix: name a COCO results file"),
    ],
)
def test_not_a_results_file(content, message, write) -> None:
    with pytest.raises(UserError, match=message):
        load_coco_results(write(content), split()[0])


def test_annotations_and_detections_swapped(write, tmp_path) -> None:
    with pytest.raises(UserError, match=r"this is a COCO results file.*\n  fix: give the file .* to --annotations"):
        load_coco_ground_truth(write([DETECTION]))
    with pytest.raises(UserError, match="COCO annotation file not found"):
        load_coco_ground_truth(tmp_path / "none.json")


def test_zero_sizes_no_detections_and_boxes_off_the_image_are_fine(write) -> None:
    truth = load_coco_ground_truth(write(COCO, "gt.json"))
    assert len(load_coco_results(write([]), truth)) == 0
    rows = [{**DETECTION, "bbox": [-5, 0, 0, 9999]}]
    assert load_coco_results(write(rows), truth).bbox_xyxy.tolist() == [[-5, 0, -5, 9999]]


@pytest.mark.parametrize(
    ("ids", "numbers", "names"),
    [
        (["12", "3"], [3, 12], ["3", "12"]),  # integers: kept, in order
        (["b", "a"], [1, 2], ["b", "a"]),  # names: numbered
        (["01", "2"], [1, 2], ["01", "2"]),  # 01 would not come back as 01
    ],
)
def test_image_ids_of_samples(ids, numbers, names) -> None:
    truth = samples_to_ground_truth([Sample(name, Path("x.png"), (9, 9)) for name in ids])
    assert [image.id for image in truth.images] == numbers
    assert [image.name for image in truth.images] == names


def test_samples_with_one_id_are_refused() -> None:
    with pytest.raises(UserError, match="samples: expected every id once, found 'a' twice"):
        samples_to_ground_truth([Sample("a", Path("x.png"), (9, 9))] * 2)


def test_areas_of_samples() -> None:
    objects = (Instance("cup", (0, 0, 4, 5)), Instance("cup", (0, 0, 4, 5), area=7.5))
    assert samples_to_ground_truth([Sample("a", Path("x"), (9, 9), objects)]).area.tolist() == [20.0, 7.5]


def test_coco_of_samples() -> None:
    objects = (Instance("mug", (1, 2, 4, 6)), Instance("cup", (0, 0, 9, 9), iscrowd=True, area=5))
    samples = [Sample("a", Path("images/a.png"), (64, 48), objects), Sample("b", Path("b.png"), (8, 8))]
    coco = to_coco(samples_to_ground_truth(samples), samples)
    assert coco["images"] == [
        {"id": 1, "file_name": "images/a.png", "width": 64, "height": 48},
        {"id": 2, "file_name": "b.png", "width": 8, "height": 8},
    ]
    assert coco["annotations"] == [
        {"id": 1, "image_id": 1, "category_id": 2, "bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 0},
        {"id": 2, "image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9], "area": 5, "iscrowd": 1},
    ]
    assert coco["categories"] == [{"id": 1, "name": "cup"}, {"id": 2, "name": "mug"}]


@pytest.mark.parametrize("seed", range(3))
def test_round_trip_through_files_is_exact(seed, tmp_path) -> None:
    truth, detections = forms(*random_coco(seed), tmp_path)
    (tmp_path / "again.json").write_text(json.dumps(to_coco(truth)))
    (tmp_path / "results.json").write_text(json.dumps(to_coco_results(truth, detections)))
    truth_again = load_coco_ground_truth(tmp_path / "again.json")
    again = load_coco_results(tmp_path / "results.json", truth_again)
    assert (truth_again.images, truth_again.categories) == (truth.images, truth.categories)
    for name in ("image", "category", "bbox_xywh", "iscrowd", "area"):
        assert_array_equal(getattr(truth_again, name), getattr(truth, name))
    for name in ("image", "category", "bbox_xywh", "score"):
        assert_array_equal(getattr(again, name), getattr(detections, name))
    assert coco_scores(truth_again, again).figures == coco_scores(truth, detections).figures


def test_jsonl_and_coco_of_one_split_score_the_same(tmp_path) -> None:
    from apiece.data.jsonl import write_jsonl

    coco, results = random_coco(0)
    clean = [x for x in coco["annotations"] if min(x["bbox"][2:]) > 0 and x["bbox"][1] + x["bbox"][3] <= 480]
    truth, detections = forms({**coco, "annotations": clean}, results, tmp_path)
    samples = [
        Sample(str(image.id), tmp_path / image.name, image.size_wh, truth.instances(i))
        for i, image in enumerate(truth.images)
    ]
    write_jsonl(tmp_path / "split.jsonl", samples)
    from_jsonl = load_ground_truth(tmp_path / "split.jsonl")
    assert [image.id for image in from_jsonl.images] == [image.id for image in truth.images]
    number = {name: i for i, name in enumerate(from_jsonl.names)}
    kept = [i for i, k in enumerate(detections.category) if truth.names[k] in number]
    same = Detections(
        detections.image[kept],
        np.array([number[truth.names[k]] for k in detections.category[kept]]),
        detections.bbox_xywh[kept],
        detections.score[kept],
    )
    assert coco_scores(from_jsonl, same).figures == pytest.approx(coco_scores(truth, detections).figures, abs=1e-12)


def test_predictions_by_sample_keep_their_order_and_may_name_new_classes() -> None:
    truth, _ = split(([("cup", grid_box(0))], []), ([], []))
    rows = {"2": [Detection("zebra", (0, 0, 1, 1), 0.5), Detection("cup", (1, 1, 2, 3), 0.5)], "1": []}
    extended, detections = predictions_to_detections(truth, rows)
    assert extended.names == ("cup", "zebra")
    assert extended.categories[0] == truth.categories[0]
    assert detections.of_image(1, extended.names) == tuple(rows["2"])
    assert [row["category_id"] for row in to_coco_results(extended, detections)] == [2, 1]
    assert detections.of_image(0, extended.names) == ()


def test_predictions_for_an_unknown_sample() -> None:
    truth = samples_to_ground_truth([Sample("shelf-1", Path("x"), (9, 9))])
    with pytest.raises(UserError, match=r"found 'shelf-l' \(did you mean 'shelf-1'\?\)"):
        predictions_to_detections(truth, {"shelf-l": []})


BOXES = np.array([[0.0, 0, 1, 1]])


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ((np.zeros(1, int), np.zeros(2, int), BOXES, np.ones(1)), r"one length, got \[1, 2, 1, 1\]"),
        ((np.zeros(1, int), np.zeros(1, int), BOXES[:, :3], np.ones(1)), r"shape \[N, 4\], got \[1, 3\]"),
        ((np.zeros(1, int), np.zeros(1, int), -BOXES, np.ones(1)), "width and height >= 0"),
        ((np.zeros(1, int), np.zeros(1, int), BOXES * np.nan, np.ones(1)), "finite"),
        ((np.zeros(1, int), np.zeros(1, int), BOXES, np.full(1, np.nan)), "scores must be finite"),
    ],
)
def test_detections_are_checked_when_made(columns, message) -> None:
    with pytest.raises(ValueError, match=message):
        Detections(*columns)


def test_ground_truth_is_checked_when_made() -> None:
    truth, _ = split(([("cup", grid_box(0))], []))
    columns = {name: getattr(truth, name) for name in ("image", "category", "bbox_xywh", "iscrowd", "area")}
    with pytest.raises(ValueError, match=r"image ids must ascend without repeats, got \[1, 1\]"):
        GroundTruth(truth.images * 2, truth.categories, **columns)
    with pytest.raises(ValueError, match="category names must be unique"):
        GroundTruth(truth.images, (Category(1, "cup"), Category(2, "cup")), **columns)
    with pytest.raises(ValueError, match=r"image numbers must be in 0..-1, got 0..0"):
        GroundTruth((), truth.categories, **columns)
