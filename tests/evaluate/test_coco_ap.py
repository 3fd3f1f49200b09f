"""COCO AP: closed forms, and figure by figure the same as pycocotools."""

from __future__ import annotations

import contextlib
import copy
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from splits import forms, grid_box, random_coco, split

from apiece.evaluate.ap import FIGURES, coco_scores
from apiece.evaluate.forms import Detections

SHARED = Path(__file__).parents[3] / "shared" / "data"


def oracle(coco: dict[str, Any], results: list[dict[str, Any]], image_ids: list[int] | None = None) -> COCOeval:
    """pycocotools' evaluation; annotations numbered from 1, as it takes id 0 for unmatched."""
    coco = copy.deepcopy(coco)
    for i, annotation in enumerate(coco["annotations"]):
        annotation["id"] = i + 1
    with contextlib.redirect_stdout(io.StringIO()):
        labels = COCO()
        labels.dataset = coco
        labels.createIndex()
        evaluator = COCOeval(labels, labels.loadRes(copy.deepcopy(results)), "bbox")
        if image_ids is not None:
            evaluator.params.imgIds = image_ids
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator


def assert_equal_figures(found: dict[str, float], expected: list[float], what: str) -> None:
    rows = [(name, found[name], float(value)) for name, value in zip(FIGURES, expected, strict=True)]
    wrong = [
        f"  {name:6} apiece {mine:.17g}  pycocotools {its:.17g}" for name, mine, its in rows if abs(mine - its) > 1e-12
    ]
    assert not wrong, "\n".join([f"{what}: {len(wrong)} of 12 figures differ", *wrong])


@pytest.mark.parametrize("seed", range(8))
def test_parity_with_pycocotools(seed, tmp_path) -> None:
    coco, results = random_coco(seed)
    truth, detections = forms(coco, results, tmp_path)
    subsets = {"even": np.arange(0, 12, 2), "one": np.array([3]), "none": np.zeros(0, dtype=np.int64)}
    scores = coco_scores(truth, detections, subsets)
    expected = oracle(coco, results)
    assert_equal_figures(scores.figures, expected.stats, "the whole split")
    for number, category in enumerate(truth.categories):
        for figure, precision in (
            ("AP", expected.eval["precision"][:, :, number, 0, -1]),
            ("AP50", expected.eval["precision"][0, :, number, 0, -1]),
        ):
            known = precision[precision > -1]
            mean = known.mean() if known.size else -1
            assert scores.by_class[category.name][figure] == pytest.approx(mean, abs=1e-12), (category, figure)
    for name in ("even", "one"):
        ids = [truth.images[i].id for i in subsets[name]]
        assert_equal_figures(scores.by_subset[name], oracle(coco, results, ids).stats, f"subset {name}")
    assert set(scores.by_subset["none"].values()) == {-1.0}


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["coco128/instances.json", "bccd/val.json"])
def test_parity_on_real_labels(name, tmp_path) -> None:
    if not (SHARED / name).is_file():
        pytest.skip(f"{SHARED / name} is missing")
    coco = json.loads((SHARED / name).read_text())
    rng = np.random.default_rng(0)
    results = []
    for label in coco["annotations"]:
        for _ in range(rng.integers(0, 4)):
            x, y, w, h = label["bbox"]
            dx, dy, dw, dh = rng.normal(0, 0.1, 4)
            box = [x + dx * w, y + dy * h, w * abs(1 + dw), h * abs(1 + dh)]
            score = round(float(rng.random()), 2)
            row = {"image_id": label["image_id"], "category_id": label["category_id"], "bbox": box, "score": score}
            results.append(row)
    truth, detections = forms(coco, results, tmp_path)
    assert_equal_figures(coco_scores(truth, detections).figures, oracle(coco, results).stats, name)


def test_annotation_ids_do_not_matter(tmp_path) -> None:
    coco, results = random_coco(1)
    first = coco_scores(*forms(coco, results, tmp_path)).figures
    for annotation in coco["annotations"]:
        annotation["id"] = 0
    assert coco_scores(*forms(coco, results, tmp_path)).figures == first


def test_order_of_equal_scores_matters_and_is_kept() -> None:
    right, wrong = ("cup", grid_box(0), 0.5), ("cup", grid_box(9), 0.5)
    first = coco_scores(*split(([("cup", grid_box(0))], [right, wrong]))).figures["AP"]
    last = coco_scores(*split(([("cup", grid_box(0))], [wrong, right]))).figures["AP"]
    assert (first, last) == pytest.approx((1.0, 0.5))


@pytest.mark.parametrize(("found", "labels"), [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4), (7, 9)])
def test_ap_without_false_positives_is_the_recall_on_the_grid(found, labels) -> None:
    truth, detections = split(
        ([("cup", grid_box(i)) for i in range(labels)], [("cup", grid_box(i), 1.0) for i in range(found)])
    )
    levels = sum(level <= found / labels for level in np.linspace(0, 1, 101)) if found else 0
    figures = coco_scores(truth, detections).figures
    assert figures["AP"] == pytest.approx(levels / 101)
    assert figures["AR100"] == pytest.approx(found / labels)


@pytest.mark.parametrize(
    ("labels", "predictions", "ap"),
    [
        ([], [], -1.0),  # nothing there, nothing said
        ([], [("cup", grid_box(0), 1.0)], -1.0),  # nothing there
        ([("cup", grid_box(0))], [], 0.0),  # nothing said
        ([("cup", grid_box(0))], [("mug", grid_box(0), 1.0)], 0.0),  # a class without labels
        ([("cup", grid_box(0))], [("cup", grid_box(0), 1.0), ("mug", grid_box(0), 1.0)], 1.0),  # leaves the mean alone
        ([("cup", grid_box(0), True)], [("cup", grid_box(0), 1.0)], -1.0),  # only a crowd region
        ([("cup", (5, 5, 5, 9))], [("cup", (5, 5, 5, 9), 1.0)], 0.0),  # a label of no area cannot be found
    ],
)
def test_degenerate_splits(labels, predictions, ap) -> None:
    assert coco_scores(*split((labels, predictions))).figures["AP"] == pytest.approx(ap)


def test_no_images_at_all() -> None:
    assert set(coco_scores(*split()).figures.values()) == {-1.0}


label = st.tuples(st.sampled_from(["cup", "mug"]), st.integers(0, 300), st.integers(0, 200), st.integers(1, 90))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(label, max_size=6, unique=True), min_size=1, max_size=4))
def test_labels_as_detections_have_ap_1(images) -> None:
    rows = [[(desc, (x, y, x + side, y + side)) for desc, x, y, side in image] for image in images]
    truth, detections = split(*((labels, [(*x, 1.0) for x in labels]) for labels in rows))
    assert coco_scores(truth, detections).figures["AP"] == pytest.approx(1.0 if len(truth) else -1.0)


def test_detections_of_another_split_are_refused() -> None:
    truth, _ = split(([("cup", grid_box(0))], []))
    stray = Detections(np.array([7]), np.array([0]), np.ones((1, 4)), np.ones(1))
    with pytest.raises(ValueError, match=r"image numbers must be in 0..0, got 7..7"):
        coco_scores(truth, stray)
