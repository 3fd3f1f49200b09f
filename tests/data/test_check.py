"""`data check`: every kind of dirt by name, with its line; the numbers; the clean copy."""

from __future__ import annotations

import io
import json
import resource
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from records import DOG, kinds, record, save_image, write_lines
from rich.console import Console

from apiece import boxes
from apiece.data import check as check_module
from apiece.data import jsonl
from apiece.data.check import CheckReport, check_jsonl, print_report, same_class_overlaps, write_clean
from apiece.data.coco import import_coco
from apiece.data.jsonl import read_jsonl, write_jsonl
from apiece.data.lines import Level, ProblemKind
from apiece.errors import UserError


def check(tmp_path: Path, *lines: Any, **options: Any) -> CheckReport:
    """Check these lines; a.jpg and b.jpg exist."""
    for name in ("a.jpg", "b.jpg"):
        if not (tmp_path / name).exists():
            save_image(tmp_path / name)
    return check_jsonl(write_lines(tmp_path / "x.jsonl", *lines), **options)


def boxed(*bboxes: list[float], desc: str = "dog", **more: Any) -> list[dict[str, Any]]:
    return [{"desc": desc, "bbox": bbox} | more for bbox in bboxes]


def test_a_clean_file(tmp_path: Path) -> None:
    report = check(tmp_path, record(), record("b.jpg", objects=[]))
    assert report.problems == []
    assert (report.lines, report.images, report.objects, report.crowd_regions) == (2, 2, 1, 0)
    assert report.crowding == {"0": 1, "1-5": 1, "6-15": 0, "16+": 0}
    assert report.image_modes == {"RGB": 2} and report.most_objects == (1, 1)


def _truncate(path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:1500])


def _turned(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    save_image(path, (64, 48), exif=exif)


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda path: path.unlink(), "missing_image", "a.jpg: image file not found"),
        (_truncate, "truncated_image", "a.jpg: image is truncated or damaged (image file is truncated"),
        (lambda path: path.write_bytes(b""), "truncated_image", "a.jpg: image file is empty (0 bytes)"),
        (lambda path: path.write_text("x"), "not_an_image", "a.jpg: not an image that can be read"),
        (lambda path: save_image(path, (65, 48)), "size_differs", "expected 65 x 48 as in "),
        (_turned, "size_unrotated", "size is the one before EXIF rotation: expected 48 x 64 as in "),
        (lambda path: path.write_bytes(b"P6 20000 20000 255\n"), "image_too_large", "a.jpg: image is too large"),
    ],
)
def test_a_bad_image_is_named(tmp_path: Path, make: Any, kind: str, message: str) -> None:
    make(save_image(tmp_path / "a.jpg"))
    if kind == "missing_image":
        path = write_lines(tmp_path / "x.jsonl", "", record())
        report = check_jsonl(path)
    else:
        report = check(tmp_path, "", record())
    assert kinds(report.errors) == [kind] and message in report.errors[0].message
    assert report.errors[0].where == f"{tmp_path / 'x.jsonl'}:2"
    assert check_jsonl(tmp_path / "x.jsonl", open_images=False).problems == []


def test_boxes_outside_a_wrong_size_are_not_errors_of_their_own(tmp_path: Path) -> None:
    save_image(tmp_path / "b.jpg", (64, 48))
    outside = boxed([1, 1, 60, 40], [2, 2, 50, 45])
    lines = (record("b.jpg", size_wh=(32, 32), objects=outside), record("c.jpg", size_wh=(32, 32), objects=outside))
    report = check(tmp_path, *lines)
    assert [(p.line, str(p.kind)) for p in report.errors] == [
        *((1, "size_differs"), (2, "missing_image"), (2, "box_outside"), (2, "box_outside"))
    ]


def test_a_turned_photo_with_its_upright_size_is_fine(tmp_path: Path) -> None:
    _turned(tmp_path / "a.jpg")
    assert check(tmp_path, record(size_wh=(48, 64))).problems == []


@pytest.mark.parametrize(
    ("mode", "suffix"), [("L", "jpg"), ("CMYK", "jpg"), ("RGBA", "png"), ("P", "png"), ("I;16", "png")]
)
def test_other_modes_are_noted(tmp_path: Path, mode: str, suffix: str) -> None:
    for name in ("c", "d"):
        save_image(tmp_path / f"{name}.{suffix}", mode=mode)
    report = check(tmp_path, record(), record(f"c.{suffix}"), record(f"d.{suffix}"))
    (note,) = report.problems
    assert note.kind is ProblemKind.CONVERTED_TO_RGB and note.level is Level.NOTE and note.line == 2
    assert note.message == f"2 images of mode {mode} will be converted to RGB, this the first"


@pytest.mark.parametrize(
    ("lines", "kind", "message"),
    [
        ([record(size_wh=(31, 48), objects=[])], "tiny_image", "expected sides of 32 pixels or more, found 31 x 48"),
        ([record(size_wh=(1, 1), objects=[])], "tiny_image", "found 1 x 1"),
        ([record(objects=[DOG] * 61)], "many_objects", "61 objects, more than max_objects (60): training drops"),
        (
            [record(objects=boxed([0, 0, 20, 20], [40, 0, 60, 20], [0, 0, 20, 20.5]))],
            "duplicate_boxes",
            "1 pair of the same class with IoU >= 0.9: one object labelled twice? (such as objects 0 and 2, 'dog')",
        ),
        (
            [record(objects=boxed([0, 0, 60, 40], [0, 0, 20, 40], [20, 0, 40, 40], [30, 0, 64, 40]))],
            "group_box",
            "object 0 ('dog') contains 3 boxes of its own class: a group?",
        ),
        ([record(), record(id="other")], "repeated_image", "the same image file as line 1"),
        (
            [record(objects=boxed([1, 1, 9, 9], [20, 1, 29, 9], desc="é"))],
            "desc_non_ascii",
            "'desc' holds letters beyond",
        ),
        ([record(objects=boxed([1, 1, 9, 9], [20, 1, 29, 9], desc="a."))], "desc_punctuation", "'desc' ends in '.'"),
    ],
)
def test_a_warning_is_named_once(tmp_path: Path, lines: list[Any], kind: str, message: str) -> None:
    report = check(tmp_path, *lines, open_images=False)
    warnings = [problem for problem in report.problems if problem.kind == kind]
    assert len(warnings) == 1 and message in warnings[0].message and warnings[0].level is Level.WARNING
    assert report.errors == [] and warnings[0].line == len(lines)


def test_crowd_regions_other_classes_and_images_do_not_overlap(tmp_path: Path) -> None:
    same = [0, 0, 60, 40]
    lines = [
        record(objects=boxed(same) + boxed(same, desc="cat") + boxed(same, iscrowd=True) + boxed(same, iscrowd=True)),
        record("b.jpg", objects=boxed(same)),
    ]
    report = check(tmp_path, *lines)
    assert (report.overlap_50, report.overlap_90, report.group_boxes, report.problems) == (0, 0, 0, [])
    assert report.crowd_regions == 2 and report.crowding["1-5"] == 2 and report.class_objects == {"dog": 4, "cat": 1}
    assert report.class_images == {"dog": 2, "cat": 1}


def test_the_numbers(tmp_path: Path) -> None:
    grid = [[3.0 * k, 0, 3.0 * k + 2, 10] for k in range(16)]
    lines = [
        record(objects=boxed(*grid)),
        record("b.jpg", objects=boxed([0, 0, 40, 40], area=9216)),
        "{",
        record("c.jpg", objects=boxed([0, 0, 64, 48], area=1024)),
    ]
    report = check(tmp_path, *lines, open_images=False, max_objects=15)
    assert (report.lines, report.images, report.objects) == (4, 3, 18)
    assert report.crowding == {"0": 0, "1-5": 2, "6-15": 0, "16+": 1}
    assert report.sizes == {"small": 16, "medium": 1, "large": 1}
    assert report.short_side["50%"] == 2 and report.short_side["95%"] == pytest.approx(41.2)
    assert report.most_objects == (16, 1) and report.over_max_objects == 1
    assert kinds(report.problems) == ["many_objects", "broken_json"]


@pytest.mark.slow
def test_ten_thousand_objects_take_seconds_and_little_memory(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    low = rng.random((10_000, 2)) * 900
    corners = np.concatenate([low, low + rng.random((10_000, 2)) * 95 + 5], axis=1)
    objects = boxed(*np.concatenate([corners[:5000], np.tile([[0.0, 0, 900, 900]], (5000, 1))]).tolist())
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    report = check(tmp_path, record(size_wh=(1000, 1000), objects=objects), open_images=False)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert time.process_time() - start < 30 and grown < 300
    assert report.objects == 10_000 and report.overlap_90 >= 5000 * 4999 // 2 and report.group_boxes >= 5000
    assert {"many_objects", "duplicate_boxes", "group_box"} == set(kinds(report.problems))


def _slow_overlaps(box: np.ndarray, label: list[int]) -> tuple[int, int, list[int]]:
    iou, inside = boxes.iou(box, box), boxes.intersection_over_area(box, box)
    same = [(i, j) for i in range(len(box)) for j in range(len(box)) if i != j and label[i] == label[j]]
    contained = [sum(i == k and inside[j, i] >= 0.8 and iou[i, j] < 0.5 for i, j in same) for k in range(len(box))]
    return sum(iou[p] >= 0.5 for p in same) // 2, sum(iou[p] >= 0.9 for p in same) // 2, contained


@given(
    st.lists(st.tuples(*[st.integers(0, 9)] * 2, *[st.integers(1, 9)] * 2, st.integers(0, 2)), max_size=90),
)
@settings(max_examples=80, deadline=None)
def test_overlaps_equal_those_of_the_full_matrix(rows: list[tuple[int, ...]]) -> None:
    box = boxes.xywh_to_xyxy([row[:4] for row in rows])
    label = [row[4] for row in rows]
    found = same_class_overlaps(box, label)
    expected = _slow_overlaps(box, label)
    assert (found.pairs.sum(), found.duplicates.sum(), found.contained.tolist()) == expected
    for place in np.flatnonzero(found.duplicates):
        twin = found.twin[place]
        assert twin != place and label[twin] == label[place] and boxes.iou(box[[place]], box[[twin]])[0, 0] >= 0.9


DIRTY = [
    record(objects=[DOG | {"id": 1}, *boxed([5, 5, 5, 9]), DOG | {"desc": ""}, DOG | {"id": 2}]),
    "{",
    record("b.jpg", id="a.jpg"),
    record("none.jpg"),
    record("b.jpg", size_wh=(64, 49), objects=boxed([9, 9, 1, 1])),
    record("b.jpg", id="b", objects=[DOG | {"id": 3}, DOG | {"id": 1}]),
]


@pytest.mark.parametrize("kept", [1, 10_000])
def test_the_clean_copy_is_without_what_has_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    monkeypatch.setenv("APIECE_DATA_ROOT", str(tmp_path))
    report = check(tmp_path, *DIRTY)
    assert kinds(report.errors) == [
        "box_zero_size",
        "desc_empty",
        "broken_json",
        "duplicate_id",
        "missing_image",
        "size_differs",
        "box_inverted",
        "duplicate_object_id",
    ]
    monkeypatch.setattr(check_module, "MAX_KEPT", kept)
    report = check_jsonl(tmp_path / "x.jsonl")
    assert len(report.errors) == 8 and report.counted(Level.ERROR).total() == 8, "one of each kind"
    out = tmp_path / "elsewhere" / "clean.jsonl"
    assert write_clean(report, out) == (4, 3)
    assert check_jsonl(out).errors == []
    assert [(s.id, [o.id for o in s.objects]) for s in read_jsonl(out)] == [("a.jpg", [1, 2]), ("b", [3])]


def test_a_clean_copy_of_nothing_or_over_itself_is_refused(tmp_path: Path) -> None:
    report = check(tmp_path, "{", "{")
    with pytest.raises(UserError, match="every image has an error: nothing would be left"):
        write_clean(report, tmp_path / "clean.jsonl")
    with pytest.raises(UserError, match="the clean copy would replace the file itself"):
        write_clean(report, tmp_path / "." / "x.jsonl")


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected one image a line, found an empty file"):
        check(tmp_path, "")


def test_the_report_as_json(tmp_path: Path) -> None:
    value = json.loads(json.dumps(check(tmp_path, *DIRTY).as_dict(), allow_nan=False))
    assert value["counts"]["box_zero_size"] == 1 and value["classes"] == {"dog": {"objects": 4, "images": 3}}
    assert [problem for problem in value["problems"] if problem["kind"] == "box_zero_size"] == [
        {
            "kind": "box_zero_size",
            "level": "error",
            "where": f"{tmp_path / 'x.jsonl'}:1",
            "line": 1,
            "object": 1,
            "message": "object 1 ('dog'): box has zero width: [5, 5, 5, 9]",
        }
    ]


def test_many_problems_are_counted_and_the_first_ones_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_module, "MAX_KEPT", 3)
    lines = [record(f"none{i}.jpg", objects=boxed([5, 5, 5, 9])) for i in range(7)]
    report = check(tmp_path, *lines, record())
    assert kinds(report.errors) == ["missing_image", "box_zero_size"] * 3
    assert report.counted(Level.ERROR) == {ProblemKind.MISSING_IMAGE: 7, ProblemKind.BOX_ZERO_SIZE: 7}
    assert report.as_dict()["counts"] == {"box_zero_size": 7, "missing_image": 7}
    assert report.as_dict()["not_listed"] == 8
    stream = io.StringIO()
    print_report(report, Console(file=stream, width=200), show=5)
    assert "14 errors:" in stream.getvalue()
    assert "  ... and 8 more, which are counted but not listed" in stream.getvalue()
    assert write_clean(report, tmp_path / "clean.jsonl") == (7, 0)


@pytest.mark.parametrize("size", [1, 2, 100])
def test_how_many_images_are_opened_together_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    outside = record("b.jpg", id="c", size_wh=(32, 32), objects=boxed([1, 1, 60, 40]))
    expected = check(tmp_path, *DIRTY, outside).as_dict()
    assert expected["counts"]["repeated_image"] == 2 and "box_outside" not in expected["counts"]
    monkeypatch.setattr(check_module, "_LINES", size)
    assert check_jsonl(tmp_path / "x.jsonl").as_dict() == expected


@pytest.mark.slow
def test_a_check_holds_no_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it keeps of each is a few numbers."""
    monkeypatch.setattr(jsonl, "_LONG_BYTES", 0)

    def most(count: int) -> int:
        lines = [record(f"{i}.jpg", objects=[DOG | {"id": 20 * i + j} for j in range(20)]) for i in range(count)]
        path = write_lines(tmp_path / "x.jsonl", *lines)
        tracemalloc.start()
        try:
            assert check_jsonl(path, open_images=False).objects == 20 * count
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    most(600)  # what is cached for good is there now
    assert most(3000) - most(1000) < 100 * 20 * 2000, "bytes an object; all that is read would be over 300"


def test_the_guide_lists_every_kind_under_its_level() -> None:
    guide = (Path(__file__).resolve().parents[2] / "docs" / "start" / "your_data.md").read_text(encoding="utf-8")
    rows = [line for line in guide.splitlines() if line.startswith("| `")]
    for kind in ProblemKind:
        assert any(row.startswith(f"| `{kind}` | {kind.level} |") for row in rows), kind


@pytest.mark.real_data
@pytest.mark.parametrize(("split", "images", "line"), [("train", 205, 171), ("val", 87, 69)])
def test_each_bccd_split_has_one_box_without_size(
    tmp_path: Path, shared_data: Path, monkeypatch: pytest.MonkeyPatch, split: str, images: int, line: int
) -> None:
    monkeypatch.setenv("APIECE_DATA_ROOT", str(shared_data))
    imported = import_coco(shared_data / "bccd" / f"{split}.json", shared_data / "bccd" / "images")
    assert imported.problems == []
    write_jsonl(tmp_path / "x.jsonl", imported.samples)
    report = check_jsonl(tmp_path / "x.jsonl")
    assert [(str(e.kind), e.line) for e in report.errors] == [("box_zero_size", line)] and report.images == images


@pytest.mark.real_data
def test_coco128_is_clean(tmp_path: Path, shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APIECE_DATA_ROOT", str(shared_data))
    imported = import_coco(shared_data / "coco128" / "instances.json", shared_data / "coco128" / "images")
    write_jsonl(tmp_path / "x.jsonl", imported.samples)
    report = check_jsonl(tmp_path / "x.jsonl")
    assert report.errors == [] and (report.images, report.objects, report.crowd_regions) == (128, 935, 6)
    assert report.image_modes == {"RGB": 127, "L": 1}
    assert read_jsonl(tmp_path / "x.jsonl")[0].id == "9"
