"""Photos without labels: answers, COCO files and pictures, for any number of them.

Photos stream: one batch is in memory at a time. One that cannot be read is named, and the rest is done.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apiece.data.collate import EncodedSample
from apiece.data.images import ImageError, open_image
from apiece.data.photos import Photo
from apiece.evaluate.answer_file import PREDICTIONS_FILE, discard_run, open_answers, read_records
from apiece.evaluate.answers import Answer
from apiece.evaluate.predict import COCO_FILE, RESULTS_FILE, Predictor
from apiece.evaluate.scores import DEFAULT_POLICY, ScorePolicy
from apiece.files import atomic_open, write_json
from apiece.progress import progress_bar
from apiece.report.draw import draw_predictions, save_png
from apiece.types import Sample

OVERLAYS = "overlays"

_LONGEST_NAME = 200
"""Bytes; file systems take 255, and writing adds some."""


@dataclass(frozen=True, slots=True)
class PhotosDone:
    """What came of a run over photos.

    Attributes:
        images: Photos answered, those of an earlier run among them.
        resumed: How many of them an earlier run had answered.
        policy: Score policy of `results.json`: the predictor's, or `constant` where an answer lacks it.
        objects: In all of their answers.
        dropped: Records that could not be used.
        skipped: Photos that could not be read, a message each.
    """

    images: int
    resumed: int
    objects: int
    dropped: int
    skipped: tuple[str, ...]
    policy: str = DEFAULT_POLICY


def predict_photos(
    predictor: Predictor, photos: Sequence[Photo], out: Path, *, overlays: bool = True, resume: bool = False
) -> PhotosDone:
    """Answer photos into a folder: `predictions.jsonl`, `coco.json`, `results.json`, `overlays/`.

    Interrupted, it leaves what is done in `predictions.jsonl.part`; with `resume` only the rest is done.

    Args:
        predictor: Asks the model.
        photos: From `find_photos`.
        out: New or empty folder; with `resume`, that of an earlier run under the same protocol.
        overlays: Draw the boxes on each photo.
        resume: Go on with the run in `out`.

    Returns:
        What came of it. Where no photo could be read nothing is left in `out`, so that it is free for the next try.

    Raises:
        UserError: `out` may not be written to, or its run had other settings.
    """
    skipped: list[str] = []
    existed = out.is_dir()
    with open_answers(out, predictor.protocol, resume=resume) as answers, progress_bar() as bar:
        resumed = len(answers.done)
        left = [photo for photo in photos if photo.id not in answers.done]
        task = bar.add_task("predict", total=len(left), note="")
        for answer in predictor.answer_questions(_questions(predictor, left, skipped)):
            # The picture first: a photo that counts as done has one.
            if overlays:
                _draw(answer, out, skipped)
            answers.write(answer)
            count = len(answers.done) - resumed
            bar.update(task, completed=count + len(skipped), note=f"{answers.objects} objects")
        bar.update(task, completed=len(left))
    if not answers.done:
        discard_run(out, existed=existed)
        return PhotosDone(0, 0, 0, 0, tuple(skipped), predictor.policy)
    policy = write_coco(out, predictor.policy)
    return PhotosDone(len(answers.done), resumed, answers.objects, answers.dropped, tuple(skipped), policy)


def _questions(
    predictor: Predictor, photos: Sequence[Photo], skipped: list[str]
) -> Iterator[tuple[Sample, EncodedSample]]:
    """Photos as questions; those that cannot be read are told in `skipped`."""
    for photo in photos:
        name = os.fsencode(photo.path).decode("utf-8", "backslashreplace")
        if name != str(photo.path):
            skipped.append(f"{name}: the file's name is not UTF-8 text")
            continue
        try:
            image = open_image(photo.path)
        except ImageError as error:
            skipped.append(f"{error.where}: {error.message}")
            continue
        sample = Sample(photo.id, photo.path, image.size)
        yield sample, predictor.encoder.question(sample, image)


def _draw(answer: Answer, out: Path, skipped: list[str]) -> None:
    """The photo with its boxes. It is opened once more, so that a batch of decoded photos is never held in memory."""
    sample = answer.sample
    try:
        image = open_image(sample.image)
    except ImageError as error:
        skipped.append(f"{error.where}: no picture drawn: {error.message}")
        return
    save_png(out / OVERLAYS / overlay_name(sample.id), draw_predictions(image, answer.detections, title=sample.id))


def overlay_name(photo_id: str) -> str:
    """Path of a photo's picture below `overlays/`: its id and `.png`, shortened if no file can be called so."""
    folder, slash, name = photo_id.rpartition("/")
    if len(name.encode()) > _LONGEST_NAME:
        name = f"{name[:40]}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"
    return f"{folder}{slash}{name}.png"


def write_coco(out: Path, policy: str) -> str:
    """`coco.json` (images and categories, no annotations) and `results.json` from the `predictions.jsonl` in `out`.

    Image ids are 1, 2, ... in the order of the lines, category ids 1, 2, ... over the sorted names. Boxes are read line
    by line: memory grows only with the number of photos, by a line of `coco.json` each.

    Returns:
        The score policy of the results: `policy`, or `constant` where an answer with boxes lacks it.
    """
    images: list[dict[str, Any]] = []
    names: set[str] = set()
    policies: set[str] = set()
    for number, record in enumerate(read_records(out / PREDICTIONS_FILE), 1):
        images.append({"id": number, "file_name": record["id"], "width": record["width"], "height": record["height"]})
        names.update(item["desc"] for item in record["objects"])
        policies.update(record.get("score_policy", policy) for _ in record["objects"])
    used = policy if policies <= {policy} else str(ScorePolicy.CONSTANT)
    category = {name: number for number, name in enumerate(sorted(names), 1)}
    categories = [{"id": number, "name": name} for name, number in category.items()]
    write_json(out / COCO_FILE, {"images": images, "annotations": [], "categories": categories})
    with atomic_open(out / RESULTS_FILE) as file:
        separator = "[\n"
        for number, record in enumerate(read_records(out / PREDICTIONS_FILE), 1):
            for item in record["objects"]:
                x1, y1, x2, y2 = item["bbox"]
                row = {
                    "image_id": number,
                    "category_id": category[item["desc"]],
                    "bbox": [x1, y1, round(x2 - x1, 3), round(y2 - y1, 3)],
                    "score": item["score"] if used == policy else 1.0,
                }
                file.write(separator + json.dumps(row))
                separator = ",\n"
        file.write("[]\n" if separator == "[\n" else "\n]\n")
    return used
