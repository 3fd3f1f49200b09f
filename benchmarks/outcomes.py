"""How long the instrument takes on a split: outcomes, rates and fixes for 5,000 images x 100 predictions, and COCO AP.

AP by the library (hotcoco) is timed beside pycocotools on the same split, and the two must agree.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from apiece.evaluate.ap import FIGURES, coco_scores
from apiece.evaluate.detections import to_coco, to_coco_results
from apiece.evaluate.forms import Category, Detections, GroundTruth, ImageInfo
from apiece.evaluate.metrics import fix_figures, outcome_row
from apiece.evaluate.rates import by_position, counted_images, match_split, near_duplicates, strips, total_scores
from apiece.files import write_json
from apiece.outcomes import label_outcomes
from apiece.stats.draws import ImageDraws

SIZE = (640, 480)


def random_split(images: int, labels: int, predictions: int, classes: int, seed: int) -> tuple[GroundTruth, Detections]:
    """Crowded images: rows of neighbours of a few classes, and predictions around them, a third of them far off."""
    rng = np.random.default_rng(seed)
    image = np.repeat(np.arange(images), labels)
    index = np.tile(np.arange(labels), images)
    size = np.repeat(rng.uniform(10, 40, (images, 2)), labels, axis=0)
    columns = np.maximum(SIZE[0] // size[:, 0], 1)
    corner = np.stack([index % columns * size[:, 0], index // columns * size[:, 1]], axis=1)
    boxes = np.concatenate([corner, size], axis=1)
    category = np.repeat(rng.integers(classes, size=images), labels) + rng.integers(2, size=len(image))
    truth = GroundTruth(
        tuple(ImageInfo(i + 1, str(i + 1), SIZE) for i in range(images)),
        tuple(Category(i + 1, f"class {i}") for i in range(classes + 1)),
        image,
        category,
        boxes,
        rng.random(len(image)) < 0.01,
        boxes[:, 2] * boxes[:, 3],
    )
    source = (np.arange(images)[:, None] * labels + rng.integers(labels, size=(images, predictions))).ravel()
    spread = rng.choice([0.05, 0.3, 2.0], len(source))[:, None]
    new = boxes[source].copy()
    new[:, :2] = np.maximum(new[:, :2] + rng.normal(0, 1, (len(source), 2)) * spread * new[:, 2:], 0)
    new[:, 2:] *= np.where(rng.random((len(source), 1)) < 0.1, [[5.0, 1.0]], [[1.0, 1.0]])
    return truth, Detections(image[source], category[source], new, rng.random(len(source)))


def seconds_of(work: Callable[[], object], repeats: int) -> float:
    """Median seconds of a call."""
    taken = []
    for _ in range(repeats):
        before = time.perf_counter()
        work()
        taken.append(time.perf_counter() - before)
    return statistics.median(taken)


def pycocotools_figures(truth: GroundTruth, detections: Detections) -> dict[str, float]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        labels = COCO()
        labels.dataset = to_coco(truth)
        labels.createIndex()
        evaluator = COCOeval(labels, labels.loadRes(to_coco_results(truth, detections)), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return dict(zip(FIGURES, map(float, evaluator.stats), strict=True))


def measure(truth: GroundTruth, detections: Detections, repeats: int) -> dict[str, float]:
    """Seconds by part."""
    match = match_split(truth, detections)
    outcomes = label_outcomes(truth, detections, match)
    scores = total_scores(match)
    every = np.arange(len(detections))

    def rates() -> None:
        draws = ImageDraws(counted_images(truth, detections, None))
        outcome_row(truth, detections, outcomes, np.ones(len(detections), dtype=bool), draws)
        by_position(detections, outcomes)

    def shapes() -> None:
        near_duplicates(truth, detections, every)
        strips(truth, detections)

    theirs = time.perf_counter()
    expected = pycocotools_figures(truth, detections)
    theirs = time.perf_counter() - theirs
    found = coco_scores(truth, detections).figures
    worst = max(abs(found[name] - expected[name]) for name in FIGURES)
    assert worst < 1e-9, f"AP differs from pycocotools' by {worst}"
    seconds = {
        "match": seconds_of(lambda: match_split(truth, detections), repeats),
        "outcomes": seconds_of(lambda: label_outcomes(truth, detections, match), repeats),
        "rates": seconds_of(rates, repeats),
        "shapes": seconds_of(shapes, repeats),
    }
    return {
        **seconds,
        "match, outcomes, rates, shapes": sum(seconds.values()),
        "AP, hotcoco": seconds_of(lambda: coco_scores(truth, detections), repeats),
        "AP, pycocotools": theirs,
        "fixes, each with its AP": seconds_of(lambda: fix_figures(truth, detections, outcomes, scores, 0.0), 1),
    }


def main() -> None:
    p = argparse.ArgumentParser(description=(__doc__ or "").strip())
    p.add_argument("--images", type=int, default=5000)
    p.add_argument("--labels", type=int, default=20, help="an image")
    p.add_argument("--predictions", type=int, default=100, help="an image")
    p.add_argument("--classes", type=int, default=80)
    p.add_argument("--repeats", type=int, default=3, help="measurements of each; medians are reported (3)")
    p.add_argument("--quick", action="store_true", help="50 images once: does it run?")
    p.add_argument("--json", type=Path, metavar="OUT", help="also write the figures here")
    p.add_argument("--seed", type=int, default=0)
    options = p.parse_args()
    images, repeats = (50, 1) if options.quick else (options.images, options.repeats)
    truth, detections = random_split(images, options.labels, options.predictions, options.classes, options.seed)
    counts = label_outcomes(truth, detections, match_split(truth, detections)).counts()
    seconds = measure(truth, detections, repeats)
    table = Table("part", "seconds", title=f"{images} images, {len(truth)} labels, {len(detections)} predictions")
    for name, value in seconds.items():
        table.add_row(name, f"{value:.3f}")
    Console().print(table)
    Console().print(", ".join(f"{name} {count}" for name, count in counts.items()))
    if options.json:
        case = {"images": images, "labels": len(truth), "predictions": len(detections)}
        write_json(options.json, {"benchmark": "outcomes", "results": [{**case, "seconds": seconds}]})


if __name__ == "__main__":
    main()
