"""Runs and evaluations made by hand: books in rows, found more or less well."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from apiece.evaluate.detections import (
    predictions_to_detections,
    samples_to_ground_truth,
    to_coco,
    to_coco_results,
)
from apiece.evaluate.forms import Detections, GroundTruth
from apiece.types import BoxXYXY, Detection, Instance, Sample

SIZE = (400, 200)


@dataclass(frozen=True)
class Picture:
    """An image: labels, predictions, and what is there but not labelled (`None`: nobody knows)."""

    id: str
    labels: tuple[Instance, ...] = ()
    predictions: tuple[Detection, ...] = ()
    hidden: tuple[Instance, ...] | None = None

    @property
    def sample(self) -> Sample:
        return Sample(self.id, Path(f"images/{self.id}.png"), SIZE, self.labels)


def book(i: int) -> BoxXYXY:
    """Book number `i` of a shelf."""
    return (20.0 * i, 40.0, 20.0 * i + 12, 100.0)


def shelves(
    count: int, found: float, *, seed: int = 0, extra: float = 1.0, shift: float = 1.0, labels_seed: int = 0
) -> list[Picture]:
    """Images of 1 to 12 books, each found with chance `found`, `shift` pixels off; `extra` wrong boxes an image."""
    of_labels, rng = np.random.default_rng([labels_seed, 1]), np.random.default_rng([seed, 2])
    pictures = []
    for k in range(count):
        books = [book(i) for i in range(int(of_labels.integers(1, 13)))]
        boxes = [tuple((np.array(b) + rng.normal(0, shift, 4)).tolist()) for b in books if rng.random() < found]
        boxes += [(x, 120.0, x + 9, 180.0) for x in rng.uniform(0, 380, rng.poisson(extra)).tolist()]
        predictions = tuple(Detection("book", box, float(rng.uniform(0.1, 0.9))) for box in boxes)
        pictures.append(Picture(f"{k:04d}", tuple(Instance("book", b) for b in books), predictions))
    return pictures


def with_predictions(pictures: Sequence[Picture], predictions: Mapping[str, Sequence[Detection]]) -> list[Picture]:
    """The same labels, other predictions for some."""
    return [replace(p, predictions=tuple(predictions.get(p.id, p.predictions))) for p in pictures]


def split_of(pictures: Sequence[Picture]) -> tuple[GroundTruth, Detections]:
    """Labels and predictions in the form that is scored."""
    truth = samples_to_ground_truth([p.sample for p in pictures])
    return predictions_to_detections(truth, {p.id: p.predictions for p in pictures})


def write_evaluation(folder: Path, pictures: Sequence[Picture], **changes: Any) -> Path:
    """A folder as `apiece evaluate` leaves it; `changes` are settings of the protocol, or `min_score`."""
    folder.mkdir(parents=True)
    truth, detections = split_of(pictures)
    coco = to_coco(truth)
    for image in coco["images"]:
        image["file_name"] = f"images/{image['file_name']}.png"
    (folder / "coco.json").write_text(json.dumps(coco))
    (folder / "results.json").write_text(json.dumps(to_coco_results(truth, detections)))
    lines = [
        {
            "id": p.id,
            "image": f"images/{p.id}.png",
            "width": SIZE[0],
            "height": SIZE[1],
            "finish_reason": "eos",
            "objects": [{"desc": d.desc, "bbox": list(d.bbox_xyxy), "score": d.score} for d in p.predictions],
            "dropped": {},
        }
        for p in pictures
    ]
    (folder / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    protocol = {
        "checkpoint": "x",
        "checkpoint_path": "/nowhere/x",
        "step": 300,
        "prompt_hash": "aa",
        "max_pixels": 50176,
        "generate": {"batch_size": 8, "temperature": 0.0},
        "data": "val.jsonl",
        "data_sha256": "d" * 64,
        **{key: value for key, value in changes.items() if key not in ("min_score", "score_policy")},
    }
    metrics = {
        "f1/min_score": changes.get("min_score", 0.0),
        "score_policy": changes.get("score_policy", "coord_logprob"),
        "protocol": protocol,
    }
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder


def probes_of(count: int, *, entropy: float = 1.0, own_mass: float = 0.8, flip: bool = False) -> dict[str, Any]:
    """Probes of a record with `count` labels."""
    one = {
        "argmax": [5] * 4 * count,
        "entropy": [entropy] * 4 * count,
        "modes": [1] * 4 * count,
        "own_mass": [own_mass] * 4 * count,
        "cross_instance_mass": [0.1] * 4 * count,
        "exp_argmax_gap": [2.0] * 4 * count,
    }
    slots = {
        "object": [i for i in range(count) for _ in range(4)],
        "coordinate": [0, 1, 2, 3] * count,
        "target": [5] * 4 * count,
        "a1": one,
        "last": one,
        "drift": [0.0] * 4 * count,
    }
    return {
        "passes": 2,
        "slots": slots,
        "objects": {"object": list(range(count)), "flip": [flip] * count, "chimera": [False] * count},
        "follow": [],
    }


def record_of(picture: Picture, step: int, probes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A record of docs/reference/records.md; outcomes are left to whoever reads it."""
    return {
        "schema": 1,
        "step": step,
        "id": picture.id,
        "image": f"images/{picture.id}.png",
        "width": SIZE[0],
        "height": SIZE[1],
        "objects": [
            {
                "desc": o.desc,
                "bbox": list(o.bbox_xyxy),
                "iscrowd": o.iscrowd,
                "area": None,
                "id": None,
                "fate": None if o.iscrowd else "missed",
                "slots": None,
            }
            for o in picture.labels
        ],
        "hidden": None
        if picture.hidden is None
        else [{"desc": o.desc, "bbox": list(o.bbox_xyxy)} for o in picture.hidden],
        "answer": {"ids": [], "logprobs": [], "text": "", "finish_reason": "eos", "closed": True, "dropped": {}},
        "predictions": [
            {
                "desc": d.desc,
                "bbox": list(d.bbox_xyxy),
                "bins": [0, 0, 1, 1],
                "span": [0, 1],
                "score": d.score,
                "scores": {},
                "outcome": "background",
                "target": None,
                "iou": 0.0,
                "covers": [],
                "near_duplicate": False,
                "strip": False,
                "slots": None,
            }
            for d in picture.predictions
        ],
        "counts": {
            "gt": len(picture.labels),
            "pred": len(picture.predictions),
            "matched": 0,
            "ignored": 0,
            "precision": 0.0,
            "recall": 0.0,
            "f1": 0.0,
            "f1_true": None,
            "by_class": {},
        },
        "probes": None if probes is None else probes_of(len(picture.labels), **probes),
    }


def write_run(
    run: Path,
    dumps: Mapping[int, Sequence[Picture]],
    *,
    config: str = "seed: 0\ntrain:\n  telemetry_window: 20\n",
    probes: Mapping[str, Any] | None = None,
    metrics: Sequence[Mapping[str, Any]] = (),
    **protocol: Any,
) -> Path:
    """A run with dumps by step."""
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(config)
    ids = [p.id for p in next(iter(dumps.values()))]
    panel = {"seed": 0, "ids": ids, "named": [], "missing": [], "by_crowding": {}, "data": "val.jsonl"}
    (run / "manifest.json").write_text(json.dumps({"panel": panel}))
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
    for step, pictures in dumps.items():
        folder = run / "dumps" / f"step_{step:06d}"
        folder.mkdir(parents=True)
        settings = {
            "schema": 1,
            "step": step,
            "run": run.name,
            "data": "val.jsonl",
            "data_sha256": "d" * 64,
            "complete": None,
            "complete_sha256": None,
            "prompt_hash": "aa",
            "max_pixels": 50176,
            "num_bins": 1000,
            "score_policy": "coord_logprob",
            "generate": {"temperature": 0.0},
            "seed": 0,
            "probes": None if probes is None else {"passes": 2},
            **protocol,
        }
        (folder / "protocol.json").write_text(json.dumps(settings))
        lines = (json.dumps(record_of(p, step, probes)) + "\n" for p in pictures)
        (folder / "records.jsonl").write_text("".join(lines))
    return run
