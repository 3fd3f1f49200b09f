"""A dump for other tools: COCO files, and a folder that FiftyOne imports.

Boxes whose score is not known get 0, as both formats rank by it; they are counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apiece.boxes import xyxy_to_xywh
from apiece.data.images import read_image_file
from apiece.dumps.folder import Dump, find_image, picture_name
from apiece.dumps.form import Entry, ObjectRow, PredictionRow
from apiece.errors import UserError
from apiece.evaluate.detections import (
    predictions_to_detections,
    samples_to_ground_truth,
    to_coco,
    write_coco_results,
)
from apiece.files import write_json
from apiece.types import BoxXYXY, Detection, Instance, Sample


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written.

    Attributes:
        images: How many.
        predictions: How many.
        unscored: Predictions without a score, which got 0.
        missing: Sample ids whose image file is gone.
    """

    images: int
    predictions: int
    unscored: int
    missing: tuple[str, ...] = ()


def export_coco(dump: Dump, out: Path, annotations: Path | None = None) -> Exported:
    """Write the predictions as COCO results, and the labels that they belong to.

    Image ids are the sample ids where all of them are whole numbers, else 1, 2, ...; category ids are 1, 2, ... over
    the sorted names of labels and predictions. Both files have the same.

    Args:
        dump: Read from a run's folder.
        out: Of the results.
        annotations: Of the labels; `None` leaves them out.
    """
    _require_records(dump)
    samples = [_sample(record) for record in dump.entries]
    truth, detections = predictions_to_detections(
        samples_to_ground_truth(samples),
        {record["id"]: [_detection(row) for row in record["predictions"]] for record in dump.entries},
    )
    if annotations is not None:
        coco, files = to_coco(truth), {sample.id: sample.image.as_posix() for sample in samples}
        for image, info in zip(coco["images"], truth.images, strict=True):
            image["file_name"] = files[info.name]
        write_json(annotations, coco)
    write_coco_results(out, truth, detections)
    return _counted(dump.entries)


def export_fiftyone(dump: Dump, run: Path, out: Path) -> Exported:
    """Write a folder in the layout of FiftyOne's `FiftyOneImageDetectionDataset`, once for labels and for predictions.

    `data/` holds the images, `labels.json` the labels, `predictions.json` the predictions with their outcomes. Samples
    whose image is gone are left out.

    Args:
        dump: Read from a run's folder.
        run: That folder.
        out: New folder.

    Raises:
        UserError: The folder has something in it, or every image is gone.
    """
    _require_records(dump)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError("expected a new or empty folder", where=out, fix="choose another --fiftyone", exit_code=2)
    found = [(i, record, find_image(record, run)) for i, record in enumerate(dump.entries)]
    kept = [(i, record, image) for i, record, image in found if image is not None]
    if not kept:
        raise UserError(f"none of the {len(found)} images of the dump is there any more", where=dump.folder)
    labels: dict[str, Any] = {}
    predictions: dict[str, Any] = {}
    try:
        (out / "data").mkdir(parents=True, exist_ok=True)
        for number, record, image in kept:
            name = Path(picture_name(number, record["id"])).stem
            (out / "data" / f"{name}{image.suffix}").write_bytes(read_image_file(image))
            labels[name] = [_fiftyone_label(row, record) for row in record["objects"]]
            predictions[name] = [_fiftyone_prediction(row, record) for row in record["predictions"]]
    except OSError as error:
        raise UserError(f"the images could not be copied: {error}", where=out, fix="free some space") from error
    rows = [row for side in (labels, predictions) for rows in side.values() for row in rows]
    classes = sorted({row["label"] for row in rows})
    write_json(out / "labels.json", {"classes": classes, "labels": labels})
    write_json(out / "predictions.json", {"classes": classes, "labels": predictions})
    missing = tuple(record["id"] for _, record, image in found if image is None)
    done = _counted([record for _, record, _ in kept])
    return Exported(done.images, done.predictions, done.unscored, missing)


def _require_records(dump: Dump) -> None:
    if not dump.entries:
        raise UserError("the dump has no record that can be read", where=dump.folder)


def _counted(records: Sequence[Entry]) -> Exported:
    rows = [row for record in records for row in record["predictions"]]
    return Exported(len(records), len(rows), sum(row["score"] is None for row in rows))


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


def _fiftyone_label(row: ObjectRow, record: Entry) -> dict[str, Any]:
    attributes = {"fate": row["fate"], "iscrowd": row["iscrowd"]}
    return {"label": row["desc"], "bounding_box": _relative(row["bbox"], record), "attributes": attributes}


def _fiftyone_prediction(row: PredictionRow, record: Entry) -> dict[str, Any]:
    return {
        "label": row["desc"],
        "bounding_box": _relative(row["bbox"], record),
        "confidence": row["score"] or 0.0,
        "attributes": {"outcome": row["outcome"], "iou": row["iou"]},
    }


def _relative(bbox: Sequence[float], record: Entry) -> list[float]:
    """`[x, y, width, height]` as shares of the image."""
    (box,) = xyxy_to_xywh([bbox])
    sides = (record["width"], record["height"]) * 2
    return [round(float(value) / side, 7) for value, side in zip(box, sides, strict=True)]
