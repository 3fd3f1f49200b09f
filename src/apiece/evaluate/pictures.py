"""Pictures of an evaluation: labels next to predictions on a few images, from the emptiest to the most crowded."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from apiece.data.images import open_image
from apiece.evaluate.answers import Answer
from apiece.match import match_instances
from apiece.report.draw import contact_sheet, draw_comparison, save_png
from apiece.types import Sample

PICTURES = "pictures"
CONTACT_SHEET = "contact_sheet.png"

_SHEET_WIDTH = 1000  # pixels of one picture on the contact sheet, at most


def write_pictures(answers: Sequence[Answer], out: Path, count: int, *, min_score: float = 0.0) -> list[Path]:
    """Draw `count` images into `pictures/`, by ascending number of labels, and all of them into `contact_sheet.png`.

    Pictures of an earlier evaluation are removed. Detections below `min_score` are left out, so that a picture shows
    what F1 counted.
    """
    folder = out / PICTURES
    for old in [*folder.glob("*.png"), out / CONTACT_SHEET]:
        old.unlink(missing_ok=True)
    chosen = spread_over_crowding([answer.sample for answer in answers], count)
    names = file_names([answers[i].sample.id for i in chosen])
    paths, small = [folder / name for name in names], []
    for i, path in zip(chosen, paths, strict=True):
        picture = draw_answer(answers[i], min_score)
        save_png(path, picture)
        picture.thumbnail((_SHEET_WIDTH, picture.height), Image.Resampling.LANCZOS, reducing_gap=None)
        small.append(picture)
    if small:
        save_png(out / CONTACT_SHEET, contact_sheet(small))
    return paths


def draw_answer(answer: Answer, min_score: float = 0.0) -> Image.Image:
    """One image: its labels on the left, its predictions on the right, matched as for F1."""
    sample = answer.sample
    shown = [detection for detection in answer.detections if detection.score >= min_score]
    match = match_instances(shown, sample.objects)
    return draw_comparison(open_image(sample.image), sample.objects, shown, match, title=sample.id)


def spread_over_crowding(samples: Sequence[Sample], count: int) -> list[int]:
    """Indices of `count` samples at even steps from the fewest labels to the most; ties in the order given."""
    crowding = [sum(not instance.iscrowd for instance in sample.objects) for sample in samples]
    order = sorted(range(len(samples)), key=crowding.__getitem__)
    steps = np.linspace(0, len(order) - 1, min(count, len(order)))
    return [order[i] for i in np.rint(steps).astype(int)]


def file_names(ids: Sequence[str]) -> list[str]:
    """A file name for each id, all different; characters that no file name can have become `_`."""
    names: list[str] = []
    for identity in ids:
        plain = re.sub(r"[^\w.-]+", "_", identity)[:60]
        name, number = plain, 2
        while name.lower() in {taken.lower() for taken in names}:
            name, number = f"{plain}~{number}", number + 1
        names.append(name)
    return [f"{name}.png" for name in names]
