"""The ceiling of the bins."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from splits import grid_box, split

from apiece.evaluate.ap import codec_ceiling
from apiece.evaluate.detections import load_coco_ground_truth

SHARED = Path(__file__).parents[3] / "shared" / "data"


def test_boxes_on_the_grid_have_no_ceiling() -> None:
    truth, _ = split(([("cup", (0.0, 0.0, 640.0, 480.0)), ("mug", (0.0, 0.0, 640 * 300 / 999, 480 * 500 / 999))], []))
    ceiling = codec_ceiling(truth)
    assert ceiling["codec/AP"] == pytest.approx(1.0)
    assert ceiling["codec/max_error_px"] == pytest.approx(0.0, abs=1e-9)


def test_error_is_at_most_half_a_bin_and_small_boxes_suffer() -> None:
    truth, _ = split(([("cup", (10.3 + 9 * i, 20.4, 11.9 + 9 * i, 22.1)) for i in range(50)], []))
    fine, coarse = codec_ceiling(truth), codec_ceiling(truth, num_bins=100)
    assert 0 < fine["codec/max_error_px"] <= 640 / 999 / 2
    assert fine["codec/max_error_px"] < coarse["codec/max_error_px"] <= 640 / 99 / 2
    assert 1 > fine["codec/AP"] > coarse["codec/AP"]
    assert fine["codec/AP50"] > 0.9


def test_crowd_regions_are_not_sent_and_nothing_is_fine() -> None:
    nothing = codec_ceiling(split(([("cup", grid_box(0), True)], []))[0])
    assert nothing["codec/AP"] == -1.0
    assert nothing["codec/max_error_px"] == 0.0
    assert codec_ceiling(split()[0])["codec/AP"] == -1.0


@pytest.mark.real_data
def test_ceiling_of_coco128() -> None:
    path = SHARED / "coco128" / "instances.json"
    if not path.is_file():
        pytest.skip(f"{path} is missing")
    ceiling = codec_ceiling(load_coco_ground_truth(path))
    assert ceiling["codec/AP"] > 0.98
    assert ceiling["codec/AP50"] == pytest.approx(1.0, abs=1e-3)
    longest = max(max(x["width"], x["height"]) for x in json.loads(path.read_text())["images"])
    assert ceiling["codec/max_error_px"] <= longest / 999 / 2
