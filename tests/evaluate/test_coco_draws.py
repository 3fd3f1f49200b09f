"""AP of draws of images, from matches made once: equal to the library's on the images as drawn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from splits import forms, random_coco

from apiece.evaluate.ap import ap_of_draws, coco_matches, coco_scores
from apiece.evaluate.forms import Detections, GroundTruth, ImageInfo


def repeated(truth: GroundTruth, detections: Detections, times: list[int]) -> tuple[GroundTruth, Detections]:
    """Every image as often as `times` says, each time as an image of its own."""
    copies = [(i, k) for i, n in enumerate(times) for k in range(n)]
    rows = [(new, np.flatnonzero(truth.image == i)) for new, (i, _) in enumerate(copies)]
    drawn = [(new, np.flatnonzero(detections.image == i)) for new, (i, _) in enumerate(copies)]
    t, d = (np.concatenate([np.zeros(0, dtype=np.int64), *(r for _, r in x)]) for x in (rows, drawn))
    at_t, at_d = (np.repeat(np.arange(len(copies)), [len(r) for _, r in x]) for x in (rows, drawn))
    return (
        replace(
            truth,
            images=tuple(ImageInfo(n + 1, f"{n}", truth.images[i].size_wh) for n, (i, _) in enumerate(copies)),
            image=at_t,
            category=truth.category[t],
            bbox_xywh=truth.bbox_xywh[t],
            iscrowd=truth.iscrowd[t],
            area=truth.area[t],
        ),
        Detections(at_d, detections.category[d], detections.bbox_xywh[d], detections.score[d]),
    )


@pytest.mark.parametrize("seed", range(4))
def test_every_image_once_is_the_official_ap(seed: int, tmp_path: Path) -> None:
    truth, detections = forms(*random_coco(seed), tmp_path)
    ap, ap50 = ap_of_draws(coco_matches(truth, detections), np.ones((1, len(truth.images))))
    official = coco_scores(truth, detections).figures
    assert ap[0] == pytest.approx(official["AP"], abs=1e-12)
    assert ap50[0] == pytest.approx(official["AP50"], abs=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_a_draw_is_the_ap_of_the_images_drawn(seed: int, tmp_path: Path) -> None:
    coco, results = random_coco(seed)
    rng = np.random.default_rng(seed)
    for row in results:  # at equal scores the order decides, and copies of an image stand elsewhere in it
        row["score"] = float(rng.random())
    truth, detections = forms(coco, results, tmp_path)
    times = rng.multinomial(len(truth.images), np.full(len(truth.images), 1 / len(truth.images)), size=3)
    ap, ap50 = ap_of_draws(coco_matches(truth, detections), times)
    for i, row in enumerate(times.tolist()):
        official = coco_scores(*repeated(truth, detections, row)).figures
        assert ap[i] == pytest.approx(official["AP"], abs=1e-9)
        assert ap50[i] == pytest.approx(official["AP50"], abs=1e-9)


def test_a_draw_without_labels_has_no_ap(tmp_path: Path) -> None:
    truth, detections = forms(*random_coco(0), tmp_path)
    weights = np.zeros((1, len(truth.images)), dtype=np.int64)
    weights[0, np.flatnonzero(np.bincount(truth.image, minlength=len(truth.images)) == 0)[:1]] = 1
    assert np.isnan(ap_of_draws(coco_matches(truth, detections), weights)).all()
