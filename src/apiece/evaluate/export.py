"""A dump as COCO files, which most viewers and evaluators import.

Boxes without a known score get 0, as the format ranks by it; they are counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from apiece.dumps.folder import Dump
from apiece.dumps.form import Entry, PredictionRow
from apiece.errors import UserError
from apiece.evaluate.detections import predictions_to_detections, samples_to_ground_truth, to_coco, to_coco_results
from apiece.files import write_json
from apiece.types import BoxXYXY, Detection, Instance, Sample


@dataclass(frozen=True, slots=True)
class Exported:
    """How much was written; `unscored` predictions have no score and got 0."""

    images: int
    predictions: int
    unscored: int


def export_coco(dump: Dump, out: Path, annotations: Path | None = None) -> Exported:
    """Write the predictions of a dump as COCO results to `out`, and the labels that they belong to to `annotations`.

    Image ids are the sample ids where all of them are whole numbers, else 1, 2, ...; category ids are 1, 2, ... over
    the sorted names of labels and predictions.
    """
    if not dump.entries:
        raise UserError("the dump has no record that can be read", where=dump.folder)
    samples = [_sample(record) for record in dump.entries]
    truth, detections = predictions_to_detections(
        samples_to_ground_truth(samples),
        {record["id"]: [_detection(row) for row in record["predictions"]] for record in dump.entries},
    )
    if annotations is not None:
        write_json(annotations, to_coco(truth, samples))
    write_json(out, to_coco_results(truth, detections), indent=None)
    rows = [row for record in dump.entries for row in record["predictions"]]
    return Exported(len(dump.entries), len(rows), sum(row["score"] is None for row in rows))


def _sample(record: Entry) -> Sample:
    objects = tuple(
        Instance(row["desc"], _box(row["bbox"]), row["iscrowd"], row["area"], row["id"]) for row in record["objects"]
    )
    return Sample(record["id"], Path(record["image"]), (record["width"], record["height"]), objects)


def _detection(row: PredictionRow) -> Detection:
    return Detection(row["desc"], _box(row["bbox"]), row["score"] or 0.0)


def _box(values: Sequence[float]) -> BoxXYXY:
    x1, y1, x2, y2 = values
    return x1, y1, x2, y2
