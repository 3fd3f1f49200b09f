"""A benchmark's scenes: one picture, labelled in several ways, as `apiece scenes` would label each."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from apiece import plugins
from apiece.config.resolve import load_file
from apiece.data.jsonl import read_jsonl
from apiece.errors import UserError
from apiece_scenes.benchmark import BenchmarkFile, SplitSection, ladder_data, prepare, split_files
from apiece_scenes.scene import SceneSettings
from apiece_scenes.write import write_scenes

BENCHMARK = BenchmarkFile(
    name="toy",
    drawings=1,
    size=64,
    families=("shelf", "sparse"),
    train=SplitSection(n=5, seed=1),
    panel=SplitSection(n=1, seed=2),
    test=SplitSection(n=3, seed=3),
    unlabelled=(0.0, 0.5),
    group_boxes=(0.0, 0.9),
)


def boxes(path: Path) -> list[list[tuple[str, list[float]]]]:
    lines = path.read_text().splitlines()
    return [[(o["desc"], o["bbox"]) for o in json.loads(line)["objects"]] for line in lines]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("benchmark") / "toy"
    assert prepare(BENCHMARK, out)[0] == ("train", "panel", "test")
    return out


@pytest.mark.parametrize(("unlabelled", "group_boxes"), [(0.0, 0.0), (0.5, 0.0), (0.5, 0.9)])
def test_labels_and_pictures_are_those_of_single_scenes(
    folder: Path, tmp_path: Path, unlabelled: float, group_boxes: float
) -> None:
    write_scenes(
        tmp_path / "s",
        5,
        SceneSettings(size=64, families=("shelf", "sparse"), unlabelled=unlabelled, group_boxes=group_boxes),
        seed=1,
    )
    files = split_files(BENCHMARK, folder, "train", unlabelled, group_boxes)
    assert boxes(files.observed) == boxes(tmp_path / "s" / "observed.jsonl")
    assert boxes(files.complete) == boxes(tmp_path / "s" / "complete.jsonl")
    for k in range(5):
        name = f"images/{k:06d}.png"
        assert (folder / "train" / name).read_bytes() == (tmp_path / "s" / name).read_bytes()


def test_an_instance_has_one_id_in_every_file(folder: Path) -> None:
    whole = {o.id: o for s in read_jsonl(folder / "train" / "complete.jsonl") for o in s.objects}
    assert len(whole) == sum(len(s.objects) for s in read_jsonl(folder / "train" / "complete.jsonl"))
    seen = [o for s in read_jsonl(folder / "train" / "u50_g90.jsonl") for o in s.objects]
    of_one = [o for o in seen if o.id in whole]
    assert 0 < len(of_one) < len(whole)
    assert all(whole[o.id].bbox_xyxy == o.bbox_xyxy for o in of_one)
    assert len({o.id for o in seen}) == len(seen)


def test_what_is_there_is_not_drawn_again_and_what_is_lost_is(folder: Path) -> None:
    before = (folder / "test" / "complete.jsonl").stat().st_mtime_ns
    drawn, counts = prepare(BENCHMARK, folder)
    assert drawn == ()
    assert (folder / "test" / "complete.jsonl").stat().st_mtime_ns == before
    assert counts["panel"]["complete"] >= counts["panel"]["u50_g00"] >= 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test": SplitSection(n=4, seed=3)}, "test: other scenes lie here: n: 3 here, 4 wanted"),
        ({"drawings": 9}, "toy was made for version 9 of the drawings, this package draws 1"),
        ({"families": ("shelv",)}, r"unknown family 'shelv' \(did you mean 'shelf'\?\)"),
    ],
)
def test_other_scenes_are_refused(folder: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        prepare(BENCHMARK.model_copy(update=changes), folder)


def test_a_way_of_labelling_that_there_is_none_of(folder: Path) -> None:
    with pytest.raises(UserError, match=r"toy has unlabelled 0.0, 0.5, found 0.4"):
        split_files(BENCHMARK, folder, "test", 0.4, 0.0)


def test_splits_that_share_scenes_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "b.yaml"
    splits = "train: {n: 1, seed: 1}\npanel: {n: 1, seed: 1}\ntest: {n: 1, seed: 2}\n"
    file.write_text(f"name: x\ndrawings: 1\n{splits}unlabelled: [0.0]\n")
    with pytest.raises(UserError, match="must have seeds of their own, or they share scenes"):
        load_file(file, BenchmarkFile)


def test_scenes_are_found_by_their_entry_points(monkeypatch: pytest.MonkeyPatch) -> None:
    assert plugins.load_plugin(plugins.LADDER_DATA, "scenes") is ladder_data
    assert [entry.name for entry in plugins.plugins(plugins.COMMANDS)] == ["scenes"]
    monkeypatch.setattr(plugins, "entry_points", lambda group: ())
    with pytest.raises(UserError, match=r"no installed package offers 'scenes'.*\n  fix: install apiece again"):
        plugins.load_plugin(plugins.LADDER_DATA, "scenes")
