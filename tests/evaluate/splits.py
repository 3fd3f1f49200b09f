"""Small splits for the tests: by hand, and random ones with everything that COCO files hold."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from apiece.evaluate.detections import (
    load_coco_ground_truth,
    load_coco_results,
    predictions_to_detections,
    samples_to_ground_truth,
)
from apiece.evaluate.forms import Detections, GroundTruth
from apiece.types import BoxXYXY, Detection, Instance, Sample

Labels = Sequence[tuple[str, BoxXYXY] | tuple[str, BoxXYXY, bool]]
Predictions = Sequence[tuple[str, BoxXYXY, float]]


def grid_box(i: int, side: float = 10) -> BoxXYXY:
    """Box number `i` of a row of boxes that do not touch."""
    return (i * 2 * side, 0.0, i * 2 * side + side, side)


def split(*images: tuple[Labels, Predictions]) -> tuple[GroundTruth, Detections]:
    """Images 1, 2, ... of 640 x 480, each given as its labels `(desc, xyxy[, iscrowd])` and predictions."""
    samples = [
        Sample(str(i + 1), Path(f"{i + 1}.png"), (640, 480), tuple(Instance(*label) for label in labels))
        for i, (labels, _) in enumerate(images)
    ]
    predictions = {str(i + 1): [Detection(*row) for row in rows] for i, (_, rows) in enumerate(images)}
    return predictions_to_detections(samples_to_ground_truth(samples), predictions)


def forms(coco: dict[str, Any], results: list[dict[str, Any]], folder: Path) -> tuple[GroundTruth, Detections]:
    """A COCO annotation file and its results, written to `folder` and read back."""
    (folder / "gt.json").write_text(json.dumps(coco))
    (folder / "dt.json").write_text(json.dumps(results))
    truth = load_coco_ground_truth(folder / "gt.json")
    return truth, load_coco_results(folder / "dt.json", truth)


def random_coco(seed: int, *, images: int = 12, classes: int = 4) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A COCO annotation file and results for it, with what makes evaluators disagree.

    Crowd regions, images without labels or detections, classes without labels, more than 100 detections of a class,
    many equal scores, boxes on a grid so that IoUs hit thresholds exactly, mask areas below box areas, boxes without
    area, image ids in no order, annotation id 0, detections shuffled over the images.
    """
    rng = np.random.default_rng(seed)
    image_ids = rng.choice(10_000, images, replace=False).tolist()
    categories = [{"id": int(i), "name": f"class {i}"} for i in rng.choice(90, classes, replace=False)]
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image_id in image_ids:
        for _ in range(rng.choice([0, 1, 5, 20])):
            box = [
                *rng.integers(0, 300, 2).tolist(),
                *rng.choice([0, 8, 20, 40, 90, 200], 2, p=[0.05, *[0.19] * 5]).tolist(),
            ]
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": image_id,
                    "category_id": categories[rng.integers(classes - 1)]["id"],
                    "bbox": [float(v) for v in box],
                    "area": box[2] * box[3] * float(rng.choice([1.0, 0.6])),
                    "iscrowd": int(rng.random() < 0.1),
                }
            )
    for label in annotations:
        for _ in range(rng.integers(0, 4)):
            shift = rng.integers(-8, 9, 4) * rng.integers(0, 2, 4)
            box = np.maximum(np.array(label["bbox"]) + shift, 0).tolist()
            category = label["category_id"] if rng.random() < 0.9 else categories[rng.integers(classes)]["id"]
            score = round(float(rng.random()), 1)
            results.append({"image_id": label["image_id"], "category_id": category, "bbox": box, "score": score})
    for _ in range(150):
        box = [*rng.uniform(0, 300, 2).tolist(), *rng.uniform(0, 200, 2).tolist()]
        row = {"image_id": image_ids[0], "category_id": categories[0]["id"], "bbox": box, "score": 0.5}
        results.append(row)
    order = rng.permutation(len(results))
    coco = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 640, "height": 480} for i in image_ids],
        "annotations": annotations,
        "categories": categories,
    }
    return coco, [results[i] for i in order]
