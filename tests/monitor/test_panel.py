"""The panel: spread over crowding, the same every time, and honest about what is missing."""

from __future__ import annotations

import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from apiece.config.resolve import load_config
from apiece.config.schema import Config
from apiece.data.jsonl import write_jsonl
from apiece.errors import UserError
from apiece.files import file_hash
from apiece.monitor.panel import ChosenPanel, choose_panel, panel_again, spread
from apiece.types import Instance, Sample


def sample(name: str, labels: int, folder: Path = Path()) -> Sample:
    objects = [Instance("cup", (0.0, 0.0, 10.0 + i, 20.0)) for i in range(labels)]
    return Sample(name, folder / f"{name}.png", (64, 48), (*objects, Instance("cup", (0, 0, 64, 48), iscrowd=True)))


def many(*counts: int, folder: Path = Path()) -> list[Sample]:
    """Samples named by their number of labels: `16-0`, `16-1`, ..."""
    seen: Counter[int] = Counter()
    samples = []
    for count in counts:
        samples.append(sample(f"{count}-{seen[count]}", count, folder))
        seen[count] += 1
    return samples


@pytest.fixture
def data(tmp_path: Path) -> Path:
    samples = many(*[3] * 6, *[9] * 6, *[20] * 6, 0, 0, folder=tmp_path)
    for each in samples:
        Image.new("RGB", each.size_wh, (90, 90, 90)).save(each.image)
    write_jsonl(tmp_path / "val.jsonl", samples)
    return tmp_path / "val.jsonl"


def config(data: Path, **settings: Any) -> Config:
    changes = {f"monitor.panel.{key.rstrip('_')}": json.dumps(value) for key, value in settings.items()}
    overrides = [f"data.eval={data}", "monitor.every_steps=5", *(f"{k}={v}" for k, v in changes.items())]
    return load_config(None, overrides).config


@pytest.mark.parametrize(
    ("counts", "size", "shares"),
    [
        ([], 4, {}),
        ([3], 4, {3: 1}),
        ([3] * 9, 4, {3: 4}),
        ([3] * 9 + [9] * 9 + [20] * 9, 6, {3: 2, 9: 2, 20: 2}),
        ([3] * 9 + [9] * 9 + [20] * 9, 7, {3: 3, 9: 2, 20: 2}),
        ([3] * 9 + [9] * 1 + [20] * 9, 7, {3: 3, 9: 1, 20: 3}),
        ([3] * 9 + [0] * 9, 8, {3: 7, 0: 1}),
        ([3] * 2 + [0] * 9, 8, {3: 2, 0: 6}),
        ([0] * 9, 3, {0: 3}),
        ([5, 6, 15, 16], 3, {5: 1, 6: 1, 16: 1}),
        ([3] * 9, 0, {}),
    ],
)
def test_it_is_spread_over_crowding(counts: list[int], size: int, shares: dict[int, int]) -> None:
    samples = many(*counts)
    chosen = spread(samples, size, seed=0)
    assert len(set(chosen)) == len(chosen)
    found = Counter(int(name.split("-")[0]) for name in chosen)
    if set(counts) == {5, 6, 15, 16}:
        found[6] += found.pop(15, 0)  # of one bucket
    assert found == Counter(shares)


def test_the_choice_depends_on_the_seed_and_not_on_the_order_of_the_file() -> None:
    samples = many(*[3] * 30, *[9] * 30)
    assert spread(samples, 10, seed=1) == spread(samples[::-1], 10, seed=1)
    assert spread(samples, 10, seed=1) != spread(samples, 10, seed=2)


def test_named_ids_come_on_top_and_first(data: Path) -> None:
    panel = choose_panel(config(data, size=3, ids=["20-5", "0-1", "20-5"]))
    assert panel.entry["ids"][:2] == ["20-5", "0-1"]
    assert len(panel.entry["ids"]) == 5
    assert panel.entry["named"] == ["20-5", "0-1"]
    assert panel.entry["by_crowding"] == {"0": 1, "1-5": 1, "6-15": 1, "16+": 2}
    assert panel.entry["data_sha256"] == file_hash(data)
    assert panel.entry["missing"] == []
    assert [s.id for s in panel.samples] == panel.entry["ids"]
    assert choose_panel(config(data, size=3, ids=["20-5", "0-1"])).entry == panel.entry


def test_what_is_missing_is_said_once_and_left_out(data: Path, caplog: pytest.LogCaptureFixture) -> None:
    (data.parent / "9-1.png").unlink()
    (data.parent / "9-2.png").write_bytes(b"no image")
    Image.new("RGB", (48, 64)).save(data.parent / "9-3.png")
    with caplog.at_level(logging.WARNING, logger="apiece"):
        panel = choose_panel(config(data, size=0, ids=["9-0", "9-1", "9-2", "9-3", "20-77"]))
    assert panel.entry["ids"] == ["9-0"]
    assert panel.entry["missing"] == ["9-1", "9-2", "9-3", "20-77"]
    assert len(caplog.records) == 1
    text = caplog.records[0].getMessage()
    assert "4 of the panel's 5 samples are left out:" in text
    assert f"'20-77' is not in {data} (did you mean '20-" in text
    assert f"'9-1': {data.parent / '9-1.png'}: " in text
    assert "9-3.png: expected 64 x 48 pixels, found 48 x 64" in text


def test_a_panel_of_nothing_is_refused(data: Path) -> None:
    with pytest.raises(UserError, match=r"none of the panel's 1 samples can be shown:\n  'x' is not in"):
        choose_panel(config(data, size=0, ids=["x"]))


def run_with(folder: Path, panel: ChosenPanel | None) -> Path:
    folder.mkdir()
    manifest = {} if panel is None else {"panel": panel.entry}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_another_runs_panel_is_taken_over(data: Path, tmp_path: Path) -> None:
    first = choose_panel(config(data, size=5, seed=3, ids=["0-0"]))
    second = choose_panel(config(data, from_=str(run_with(tmp_path / "first", first))))
    assert second.entry == {**first.entry, "from": str(tmp_path / "first")}
    assert second.samples == first.samples


def test_a_panel_of_other_data_is_refused(data: Path, tmp_path: Path) -> None:
    run = run_with(tmp_path / "first", choose_panel(config(data, size=5)))
    other = data.with_name("other.jsonl")
    other.write_text("".join(data.read_text().splitlines(keepends=True)[1:]))
    with pytest.raises(UserError, match=r"chosen from other data: .*val.jsonl \(sha256 \w{12}\), while data.eval is"):
        choose_panel(config(other, from_=str(run)))


def test_a_run_without_a_panel_has_none_to_give(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"names a run without a panel\n  fix: name a run that was trained with"):
        choose_panel(config(data, from_=str(run_with(tmp_path / "first", None))))
    with pytest.raises(UserError, match="expected the folder of a run, found none"):
        choose_panel(config(data, from_=str(tmp_path / "nowhere")))


def test_a_resumed_run_keeps_its_panel(data: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = config(data, size=5, seed=4)
    chosen = choose_panel(settings)
    manifest = json.loads(json.dumps({"panel": chosen.entry}))
    again = panel_again(config(data, size=9), manifest)
    assert again.entry == chosen.entry
    assert again.samples == chosen.samples
    assert panel_again(settings, {}).entry == chosen.entry
    assert caplog.records == []
    chosen.samples[2].image.unlink()
    with data.open("a") as file:
        file.write("\n")
    fewer = panel_again(settings, manifest)
    assert fewer.entry["ids"] == [*chosen.entry["ids"][:2], *chosen.entry["ids"][3:]]
    assert fewer.entry["missing"] == [chosen.entry["ids"][2]]
    assert "has changed since the run began" in caplog.text
    assert "1 of the panel's 5 samples are left out" in caplog.text


def test_samples_are_those_of_the_entry() -> None:
    with pytest.raises(ValueError, match="samples must be those of the entry's ids"):
        ChosenPanel({"ids": ["a"]}, ())  # type: ignore[typeddict-item]
