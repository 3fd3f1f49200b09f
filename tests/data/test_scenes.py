"""Crowd scenes: the same bytes for the same seed, honest boxes, and a known share of labels left out."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from apiece.boxes import intersection_over_area
from apiece.cli import app
from apiece.cli import commands as _commands  # noqa: F401  registers the commands
from apiece.errors import UserError
from apiece_scenes import write
from apiece_scenes.canvas import MIN_SIDE, UNITS, Dice, Item, Pen, render
from apiece_scenes.layouts import Family
from apiece_scenes.scene import Scene, SceneSettings, generate_scene, leave_out
from apiece_scenes.sprites import CLASSES
from apiece_scenes.write import write_scenes


def _hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _whole(scene: Scene) -> tuple[bytes, tuple[object, ...]]:
    return scene.image.tobytes(), (scene.family, scene.complete, scene.observed)


@pytest.fixture(scope="module")
def many() -> list[Scene]:
    return [generate_scene(0, index, SceneSettings(unlabelled=0.4)) for index in range(200)]


# --- degenerate scenes first


def _blank() -> Image.Image:
    return Image.new("RGB", (8, 8), (90, 90, 90))


def _square(desc: str | None, x: float, y: float, side: float) -> Item:
    item = Item(desc)
    Pen(item, x, y, side, side).rect(0, 0, 1, 1, (200, 0, 0))
    return item


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        pytest.param([], [], id="nothing"),
        pytest.param([_square(None, 10, 10, 40)], [], id="decoration only"),
        pytest.param([_square("box", 10, 10, 40)], ["box"], id="one"),
        pytest.param([_square("box", 10, 10, MIN_SIDE - 2)], [], id="too small"),
        pytest.param([_square("box", 184, 10, 40)], [], id="mostly outside"),
        pytest.param([_square("box", 300, 300, 40)], [], id="all outside"),
        pytest.param([_square("back", 10, 10, 40), _square("front", 8, 8, 44)], ["front"], id="hidden by an object"),
        pytest.param([_square("back", 10, 10, 40), _square(None, 8, 8, 44)], [], id="hidden by decoration"),
        pytest.param(
            [_square("a", 10, 10, 40), _square("b", 8, 30, 44), _square("c", 8, 8, 60)], ["c"], id="hidden twice"
        ),
    ],
)
def test_what_cannot_be_seen_is_not_in_the_truth(items: list[Item], expected: list[str]) -> None:
    _, seen = render(_blank(), items, 192)
    assert [entry.item.desc for entry in seen] == expected


def test_an_object_taken_out_of_the_truth_is_not_in_the_picture_either() -> None:
    back, front = _square("back", 10, 10, 40), _square("front", 16, 10, 44)
    picture, seen = render(_blank(), [back, front], 192)
    assert [entry.item.desc for entry in seen] == ["front"]
    assert picture.getpixel((12, 30)) == (90, 90, 90)


def test_an_object_behind_a_removed_one_is_seen_in_full() -> None:
    items = [_square("a", 10, 10, 40), _square("b", 36, 10, 40), _square("c", 44, 6, 50)]
    _, seen = render(_blank(), items, 192)
    assert [entry.item.desc for entry in seen] == ["a", "c"]
    assert seen[0].bbox_xyxy[2] - seen[0].bbox_xyxy[0] >= 34 and seen[0].visible > 0.8


def test_a_box_shrinks_to_what_can_be_seen() -> None:
    _, seen = render(_blank(), [_square("a", 10, 10, 40), _square("b", 30, 4, 60)], 192)
    assert seen[0].bbox_xyxy == pytest.approx((10, 10, 30, 50), abs=1)
    assert seen[0].area == pytest.approx(20 * 40, rel=0.06)
    assert seen[0].visible == pytest.approx(0.5, abs=0.05)


# --- randomness


def test_a_scene_is_a_function_of_seed_and_index() -> None:
    for index in range(8):
        assert _whole(generate_scene(3, index, SceneSettings(unlabelled=0.4))) == _whole(
            generate_scene(3, index, SceneSettings(unlabelled=0.4))
        )
    assert _whole(generate_scene(3, 0))[0] != _whole(generate_scene(4, 0))[0]


def test_labelling_settings_do_not_change_the_picture() -> None:
    plain, poor = (
        generate_scene(1, 0),
        generate_scene(1, 0, SceneSettings(unlabelled=0.6, group_boxes=1.0, iscrowd_rows=0.5)),
    )
    assert plain.image.tobytes() == poor.image.tobytes() and plain.complete == poor.complete
    assert plain.observed == plain.complete != poor.observed


def test_images_differ_from_each_other(many: list[Scene]) -> None:
    assert len({scene.image.tobytes() for scene in many}) == len(many)


# --- truth


@pytest.mark.parametrize("size", [64, 192, 300])
def test_boxes_are_inside_and_not_too_small(size: int) -> None:
    for index in range(24):
        scene = generate_scene(7, index, SceneSettings(size=size))
        assert scene.image.size == (size, size) and scene.image.mode == "RGB"
        for instance in scene.complete:
            x1, y1, x2, y2 = instance.bbox_xyxy
            assert 0 <= x1 < x2 <= size and 0 <= y1 < y2 <= size
            assert min(x2 - x1, y2 - y1) >= MIN_SIDE * size / UNITS
            assert instance.area is not None and 0 < instance.area <= (x2 - x1) * (y2 - y1)
        assert [instance.id for instance in scene.complete] == list(range(1, len(scene.complete) + 1))


def test_all_families_and_classes_occur_in_balance(many: list[Scene]) -> None:
    assert [scene.family for scene in many] == list(Family) * 50
    assert {instance.desc for scene in many for instance in scene.complete} == set(CLASSES)


@pytest.mark.parametrize(
    ("family", "desc", "low", "high"),
    [(Family.SHELF, "book", 5, 30), (Family.STANDS, "person", 8, 40), (Family.STREET, None, 2, 15)],
)
def test_crowding(many: list[Scene], family: Family, desc: str | None, low: int, high: int) -> None:
    counts = [
        sum(desc in (None, instance.desc) for instance in scene.complete) for scene in many if scene.family is family
    ]
    assert np.percentile(counts, 5) >= low - 1 and max(counts) <= high and len(set(counts)) >= 6


def test_sparse_has_few_objects_and_now_and_then_none() -> None:
    counts = [
        len(generate_scene(0, index, SceneSettings(size=64, families=(Family.SPARSE,))).complete)
        for index in range(400)
    ]
    assert max(counts) <= 5 and min(counts) == 0 and 0 < np.mean(np.array(counts) == 0) < 0.05


# --- labels


def test_observed_is_a_part_of_complete(many: list[Scene]) -> None:
    for scene in many:
        assert set(scene.observed) <= set(scene.complete)
        assert scene.observed or not scene.complete
        if scene.family is Family.SPARSE:
            assert scene.observed == scene.complete


@pytest.mark.parametrize("share", [0.1, 0.4, 0.8])
def test_the_share_left_out_is_the_one_asked_for(share: float) -> None:
    whole = kept = 0
    shares = []
    for index in range(200):
        scene = generate_scene(2, index, SceneSettings(size=64, families=(Family.SHELF,), unlabelled=share))
        books = [instance for instance in scene.complete if instance.desc == "book"]
        labelled = [instance for instance in scene.observed if instance.desc == "book"]
        whole, kept = whole + len(books), kept + len(labelled)
        shares.append(1 - len(labelled) / len(books))
    assert 1 - kept / whole == pytest.approx(share, abs=0.04)
    assert np.std(shares) > 0.05  # drawn once for each image, not once for each book


@pytest.mark.parametrize("total", [1, 2, 5])
def test_never_is_every_instance_left_out(total: int) -> None:
    dice = Dice(np.random.default_rng(0))
    for _ in range(100):
        assert len(leave_out(dice, range(total), total, 0.95)) < total


def test_group_boxes_hold_two_or_more_instances_of_their_class() -> None:
    groups = 0
    for index in range(30):
        scene = generate_scene(
            0, index, SceneSettings(size=96, families=(Family.SHELF, Family.STANDS), unlabelled=0.3, group_boxes=0.5)
        )
        whole = {instance.id for instance in scene.complete}
        for group in (instance for instance in scene.observed if instance.id not in whole):
            members = [one.bbox_xyxy for one in scene.complete if one.desc == group.desc]
            assert (intersection_over_area(members, [group.bbox_xyxy]) > 0.99).sum() >= 3
            assert not group.iscrowd
            groups += 1
    assert groups > 20


def test_iscrowd_rows_replace_every_member() -> None:
    regions = 0
    for index in range(10):
        scene = generate_scene(0, index, SceneSettings(size=96, families=(Family.SHELF,), iscrowd_rows=1.0))
        for region in (instance for instance in scene.observed if instance.iscrowd):
            assert region.desc == "book"
            regions += 1
        assert sum(one.desc == "book" and not one.iscrowd for one in scene.observed) < 6  # stacks of two stay
    assert regions > 10


# --- files


def test_two_writes_are_equal_to_the_byte_and_so_are_more_workers(tmp_path: Path) -> None:
    for name, workers in (("a", 1), ("b", 1), ("c", 2)):
        write_scenes(tmp_path / name, 5, SceneSettings(size=64, unlabelled=0.4), seed=1, workers=workers)
    a = _hashes(tmp_path / "a")
    assert a == _hashes(tmp_path / "b") == _hashes(tmp_path / "c")
    assert sorted(a) == [
        "complete.json",
        "complete.jsonl",
        "contact_sheet.png",
        *[f"images/{index:06d}.png" for index in range(5)],
        "observed.json",
        "observed.jsonl",
        "scenes.json",
    ]


def test_scene_k_does_not_depend_on_n(tmp_path: Path) -> None:
    for n in (2, 4):
        write_scenes(tmp_path / str(n), n, SceneSettings(size=64, unlabelled=0.4), seed=1)
    few, more = tmp_path / "2", tmp_path / "4"
    for index in range(2):
        name = f"images/{index:06d}.png"
        assert (few / name).read_bytes() == (more / name).read_bytes()
    for kind in ("complete", "observed"):
        lines = (more / f"{kind}.jsonl").read_text().splitlines()
        assert (few / f"{kind}.jsonl").read_text().splitlines() == lines[:2]


def test_coco_and_jsonl_say_the_same(tmp_path: Path) -> None:
    written = write_scenes(
        tmp_path / "out", 12, SceneSettings(size=96, unlabelled=0.4, group_boxes=0.3, iscrowd_rows=0.3), seed=5
    )
    ids: dict[str, set[int]] = {}
    for kind in ("complete", "observed"):
        coco = json.loads((tmp_path / "out" / f"{kind}.json").read_text())
        lines = [json.loads(line) for line in (tmp_path / "out" / f"{kind}.jsonl").read_text().splitlines()]
        names = {category["id"]: category["name"] for category in coco["categories"]}
        assert names == dict(enumerate(CLASSES, start=1))
        assert [image["id"] for image in coco["images"]] == list(range(1, 13))
        assert [image["file_name"] for image in coco["images"]] == [line["image"] for line in lines]
        assert [line["id"] for line in lines] == [f"{index:06d}" for index in range(12)]
        from_lines = [
            (number, one["id"], one["desc"], tuple(one["bbox"]), one["area"], one.get("iscrowd", False))
            for number, line in enumerate(lines, start=1)
            for one in line["objects"]
        ]
        from_coco = []
        for one in coco["annotations"]:
            x, y, w, h = one["bbox"]
            box = (x, y, x + w, y + h)
            name = names[one["category_id"]]
            from_coco.append((one["image_id"], one["id"], name, box, one["area"], bool(one["iscrowd"])))
        assert from_lines == from_coco
        ids[kind] = {one["id"] for one in coco["annotations"]}
        assert len(ids[kind]) == len(coco["annotations"]) and min(ids[kind]) >= 1
        assert len(coco["annotations"]) == sum(getattr(written, kind).values())
        for line in lines:
            with Image.open(tmp_path / "out" / line["image"]) as image:
                assert image.size == (line["width"], line["height"]) == (96, 96)
    assert ids["observed"] - ids["complete"] and ids["observed"] & ids["complete"]


def test_settings_are_kept(tmp_path: Path) -> None:
    write_scenes(tmp_path / "out", 1, SceneSettings(size=64, families=("street",), unlabelled=0.25), seed=9)
    assert json.loads((tmp_path / "out" / "scenes.json").read_text()) == {
        "version": write.VERSION,
        "n": 1,
        "seed": 9,
        "size": 64,
        "families": ["street"],
        "unlabelled": 0.25,
        "group_boxes": 0.0,
        "iscrowd_rows": 0.0,
    }


def test_a_run_that_breaks_off_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(write.ContactSheet, "write", broken)
    (tmp_path / "there").mkdir()
    for name in ("there", "new"):
        with pytest.raises(KeyboardInterrupt):
            write_scenes(tmp_path / name, 1, SceneSettings(size=64))
    assert [path.name for path in tmp_path.rglob("*")] == ["there"]


# --- bad input


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"n": 0}, r"number of scenes must be at least 1, got 0", id="n"),
        pytest.param({"seed": -1}, r"seed must be 0 or more, got -1", id="seed"),
        pytest.param({"size": 63}, r"size must be 64 to 1024 pixels, got 63", id="small"),
        pytest.param({"size": 1025}, r"size must be 64 to 1024 pixels, got 1025", id="large"),
        pytest.param({"unlabelled": 1.0}, r"unlabelled must be a share in \[0, 1\), got 1.0", id="all"),
        pytest.param({"unlabelled": -0.1}, r"unlabelled must be a share .*, got -0.1", id="negative"),
        pytest.param({"unlabelled": float("nan")}, r"unlabelled must be a share .*, got nan", id="nan"),
        pytest.param({"group_boxes": 1.5}, r"group_boxes must be a probability in \[0, 1\], got 1.5", id="group"),
        pytest.param({"iscrowd_rows": -1.0}, r"iscrowd_rows must be a probability in \[0, 1\], got -1.0", id="crowd"),
        pytest.param({"families": ()}, r"expected at least one family of shelf, stands, street, sparse", id="none"),
    ],
)
def test_bad_settings(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    arguments: dict[str, Any] = {"n": 1, "seed": 0, "size": 64, **changes}
    n, seed = arguments.pop("n"), arguments.pop("seed")
    with pytest.raises(UserError, match=message) as caught:
        write_scenes(tmp_path / "out", n, SceneSettings(**arguments), seed=seed)
    assert caught.value.exit_code == 2 and not (tmp_path / "out").exists()


def test_all_mistakes_are_named_at_once(tmp_path: Path) -> None:
    words = ["scenes", str(tmp_path / "out"), "--n", "0", "--size", "5", "--families", "shelve", "--unlabelled", "1"]
    result = CliRunner().invoke(app, words)
    assert isinstance(result.exception, UserError)
    assert str(result.exception).splitlines() == [
        "4 mistakes",
        "  size must be 64 to 1024 pixels, got 5",
        "  unknown family 'shelve' (did you mean 'shelf'?); known: shelf, stands, street, sparse",
        "  unlabelled must be a share in [0, 1), got 1.0",
        "  the number of scenes must be at least 1, got 0",
    ]
    assert not (tmp_path / "out").exists()


def test_an_unknown_family_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown family 'shelve' \(did you mean 'shelf'\?\); known: shelf, stands"):
        write_scenes(tmp_path / "out", 1, SceneSettings(families=("street", "shelve")))


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(UserError, match="folder is not empty\n  fix: name a new folder"):
        write_scenes(tmp_path, 1, SceneSettings(size=64))
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]
    with pytest.raises(UserError, match="expected a new or empty folder, found a file"):
        write_scenes(tmp_path / "note.txt", 1, SceneSettings(size=64))


def test_command(tmp_path: Path) -> None:
    out = tmp_path / "crowd"
    result = CliRunner().invoke(app, ["scenes", str(out), "--n", "4", "--size", "64", "--unlabelled", "0.4"])
    assert result.exit_code == 0, result.output
    assert [line.split()[0] for line in result.output.splitlines()[:6]] == [
        "family",
        "shelf",
        "stands",
        "street",
        "sparse",
        "all",
    ]
    assert "contact_sheet.png" in result.output and (out / "contact_sheet.png").is_file()


def test_command_help_has_an_example() -> None:
    result = CliRunner().invoke(app, ["scenes", "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0 and "apiece scenes data/crowd --n 2000" in result.output
