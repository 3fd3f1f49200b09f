"""Splits whose explanation is known: rows of books, some under one long box, with beliefs made to order."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from apiece.codec import Bins
from apiece.evaluate.detections import predictions_to_detections, samples_to_ground_truth
from apiece.evaluate.forms import Detections, GroundTruth
from apiece.study.evidence import Evidence
from apiece.types import BoxXYXY, Detection, Instance, Sample

SIZE = (400, 100)
ROW: tuple[BoxXYXY, ...] = tuple((20.0 + 60 * i, 20.0, 70.0 + 60 * i, 80.0) for i in range(4))
STRIP: BoxXYXY = (20.0, 20.0, 250.0, 80.0)
PASS = {"argmax": 0, "entropy": 1.0, "modes": 1, "own_mass": 0.8, "cross_instance_mass": 0.1, "exp_argmax_gap": 0.5}


@dataclass(frozen=True)
class Beliefs:
    """Of the labels of one image.

    Attributes:
        gap: At x2 and y2 of the first pass.
        modes: There.
        chimeras: How many of the objects mix instances.
        follow: Mass near the neighbour's and near the own, after the neighbour's x1, y1.
    """

    gap: float = 0.5
    modes: int = 1
    chimeras: int = 0
    follow: tuple[float, float] = (0.8, 0.1)


@dataclass(frozen=True)
class World:
    """A split of `images` images with four books each.

    Attributes:
        images: How many.
        strips: In how many of them one long box is predicted in place of four.
        under: Beliefs where a long box is.
        elsewhere: Beliefs elsewhere.
        labelled_strips: In how many of the others the row is labelled as one more box.
        hidden: The books are there, but only the strip over them is labelled.
    """

    images: int = 40
    strips: int = 20
    under: Beliefs = Beliefs()
    elsewhere: Beliefs = Beliefs()
    labelled_strips: int = 0
    hidden: bool = False
    probed: bool = True
    more: Sequence[Sample] = field(default_factory=tuple)

    def samples(self) -> list[Sample]:
        found = []
        for number in range(self.images):
            row = [Instance("book", box) for box in ROW]
            if number >= self.images - self.labelled_strips:
                row = [Instance("book", STRIP)] if self.hidden else [*row, Instance("book", STRIP)]
            found.append(Sample(f"s{number}", Path(f"{number}.png"), SIZE, tuple(row)))
        return [*found, *self.more]

    def split(self) -> tuple[GroundTruth, Detections, dict[str, Any], GroundTruth | None]:
        samples = self.samples()
        predictions: Mapping[str, list[Detection]] = {
            sample.id: [Detection("book", box, 0.9) for box in ([STRIP] if number < self.strips else ROW)]
            for number, sample in enumerate(samples[: self.images])
        }
        truth, detections = predictions_to_detections(samples_to_ground_truth(samples), predictions)
        complete = None
        if self.hidden:
            everything = [
                Sample(s.id, s.image, s.size_wh, tuple(Instance("book", box) for box in ROW)) for s in samples
            ]
            complete = samples_to_ground_truth(everything)
        probes = {
            sample.id: probes_of(sample, self.under if number < self.strips else self.elsewhere)
            for number, sample in enumerate(samples)
            if self.probed
        }
        return truth, detections, probes, complete

    def evidence(self) -> Evidence:
        truth, detections, probes, complete = self.split()
        return Evidence.of(truth, detections, probes, complete)


def probes_of(sample: Sample, beliefs: Beliefs) -> dict[str, Any]:
    """`PROBES` of docs/reference/records.md."""
    count = len(sample.objects)
    targets = Bins().to_bins([o.bbox_xyxy for o in sample.objects], sample.size_wh).ravel().tolist()
    last = {name: [value] * 4 * count for name, value in PASS.items()}
    first = {name: list(values) for name, values in last.items()}
    first["exp_argmax_gap"] = [0.5, 0.5, beliefs.gap, beliefs.gap] * count
    first["modes"] = [1, 1, beliefs.modes, 1] * count
    near, own = beliefs.follow
    follow = [
        {"object": i, "neighbour": (i + 1) % count, "coordinate": 2,
         "near_neighbour": near, "near_own": own, "elsewhere": 1 - near - own}
        for i in range(count) if count > 1
    ]  # fmt: skip
    return {
        "passes": 2,
        "slots": {
            "object": [i for i in range(count) for _ in range(4)],
            "coordinate": [0, 1, 2, 3] * count,
            "target": targets,
            "a1": first,
            "last": last,
            "drift": [1] * 4 * count,
        },
        "objects": {
            "object": list(range(count)),
            "flip": [False] * count,
            "chimera": [i < beliefs.chimeras for i in range(count)],
        },
        "follow": follow,
    }


def write_run(run: Path, world: World, *, step: int = 300, config: str = "seed: 0\n", **protocol: Any) -> Path:
    """The folder of a run with a dump of the world."""
    truth, detections, probes, _ = world.split()
    folder = run / "dumps" / f"step_{step:06d}"
    folder.mkdir(parents=True)
    (run / "config.yaml").write_text(config, encoding="utf-8")
    about = {
        "schema": 1, "step": step, "run": run.name, "data": "val.jsonl", "data_sha256": "0", "complete": None,
        "complete_sha256": None, "prompt_hash": "0", "max_pixels": 50176, "num_bins": 1000,
        "score_policy": "coord_logprob", "generate": {}, "seed": 0, "probes": {"passes": 2, "sigma": 2.0}, **protocol,
    }  # fmt: skip
    (folder / "protocol.json").write_text(json.dumps(about), encoding="utf-8")
    with (folder / "records.jsonl").open("w", encoding="utf-8") as file:
        for sample in world.samples():
            place = next(i for i, image in enumerate(truth.images) if image.name == sample.id)
            file.write(json.dumps(_record(sample, detections.of_image(place, truth.names), probes, world, step)) + "\n")
    return run


def _record(sample: Sample, found: Sequence[Detection], probes: Mapping[str, Any], world: World, step: int) -> Any:
    hidden = [{"desc": "book", "bbox": list(box)} for box in ROW] if world.hidden and len(sample.objects) == 1 else []
    width, height = sample.size_wh
    return {
        "schema": 1, "step": step, "id": sample.id, "image": str(sample.image), "width": width, "height": height,
        "objects": [
            {"desc": o.desc, "bbox": list(o.bbox_xyxy), "iscrowd": o.iscrowd, "area": None, "id": None, "fate": None,
             "slots": None} for o in sample.objects
        ],
        "hidden": hidden if world.hidden else None,
        "answer": {"ids": [], "logprobs": [], "text": "", "finish_reason": "eos", "closed": True, "dropped": {}},
        "predictions": [
            {"desc": d.desc, "bbox": list(d.bbox_xyxy), "bins": [0, 0, 1, 1], "span": [0, 1], "score": d.score,
             "scores": {}, "outcome": None, "target": None, "iou": None, "covers": [], "near_duplicate": False,
             "strip": False, "slots": None} for d in found
        ],
        "counts": {"gt": 0, "pred": 0, "matched": 0, "ignored": 0, "precision": 0, "recall": 0, "f1": 0,
                   "f1_true": None, "by_class": {}},
        "probes": probes.get(sample.id),
    }  # fmt: skip
