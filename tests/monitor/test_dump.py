"""Dumps: whole or absent, written on another thread, and never in the way of the training."""

from __future__ import annotations

import errno
import logging
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from said import answer, shelf, with_id

from apiece.config.resolve import load_config
from apiece.config.schema import Config
from apiece.data.jsonl import read_jsonl, write_jsonl
from apiece.dumps.folder import dumped_steps, open_run
from apiece.model.encode import PromptTokens, SampleEncoder
from apiece.monitor import dump as dump_module
from apiece.monitor.dump import Monitor
from apiece.monitor.panel import choose_panel


@pytest.fixture
def data(tmp_path: Path) -> Path:
    samples = [with_id(shelf(count=count, folder=tmp_path), f"{count} books") for count in (1, 3, 7)]
    Image.new("RGB", (500, 200), (120, 90, 60)).save(tmp_path / "shelf.png")
    for sample in samples:
        shutil.copyfile(tmp_path / "shelf.png", copy := tmp_path / f"{len(sample.objects)}.png")
        object.__setattr__(sample, "image", copy)
    write_jsonl(tmp_path / "val.jsonl", samples)
    return tmp_path / "val.jsonl"


def config(data: Path, *overrides: str) -> Config:
    fixed = ["data.max_pixels=12544", "generate.max_new_tokens=24", "monitor.every_steps=5"]
    return load_config(None, [f"data.eval={data}", *fixed, *overrides]).config


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def encoder(side: Any) -> SampleEncoder:
    return SampleEncoder(side.with_max_pixels(12544), PromptTokens.of(side, "Detect."), 8192)


def monitor(run: Path, side: Any, settings: Config, start: int = 0) -> Monitor:
    return Monitor(run, start, settings, choose_panel(settings), encoder(side))


def test_a_dump_holds_the_panel(tiny_model: Any, tiny_side: Any, data: Path, run: Path) -> None:
    settings = config(data)
    outside = answer(tiny_side, with_id(read_jsonl(data)[0], "outside"), [("book", (0, 0, 40, 100))], cut=-6)
    tiny_model.eval()
    before = torch.random.get_rng_state()
    with monitor(run, tiny_side, settings) as watch:
        watch.dump(5, tiny_model, [outside])
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not tiny_model.training
    dump = open_run(run).dump()
    assert dump.gaps == ()
    assert [record["id"] for record in dump.entries] == ["1 books", "3 books", "7 books"]
    assert [record["step"] for record in dump.entries] == [5, 5, 5]
    assert [record["id"] for record in dump.elsewhere] == ["outside"]
    assert dump.elsewhere[0]["probes"] is None
    assert {name: path.name for name, path in dump.pictures.items()} == {
        f"{n} books": f"000{i}_{n}_books.png" for i, n in enumerate((1, 3, 7))
    }
    with Image.open(dump.pictures["7 books"]) as picture:
        assert picture.size[0] > 900
    for record in dump.entries:
        assert record["probes"] is not None
        assert all(row["slots"] is not None for row in record["objects"] if not row["iscrowd"])
        assert all(row["slots"] is not None for row in record["predictions"])
    protocol = dump.protocol
    assert (protocol["step"], protocol["run"], protocol["max_pixels"], protocol["num_bins"]) == (5, "run", 12544, 1000)
    assert protocol["probes"] is not None
    assert protocol["probes"]["passes"] == 2
    assert protocol["generate"]["max_new_tokens"] == 24
    assert protocol["data_sha256"] == choose_panel(settings).entry["data_sha256"]
    assert sorted(path.name for path in (run / "dumps").iterdir()) == ["step_000005"]


def test_probes_and_pictures_can_be_left_out(tiny_model: Any, tiny_side: Any, data: Path, run: Path) -> None:
    tiny_model.train()
    with monitor(run, tiny_side, config(data, "monitor.probes=false", "monitor.pictures=false")) as watch:
        watch.dump(5, tiny_model)
    assert tiny_model.training
    tiny_model.eval()
    dump = open_run(run).dump()
    assert dump.pictures == {}
    assert dump.protocol["probes"] is None
    assert dump.elsewhere == ()
    assert [record["probes"] for record in dump.entries] == [None] * 3


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tiny_side: Any) -> Iterator[list[int]]:
    """Answers that cost nothing; gives the steps asked for."""
    asked: list[int] = []
    real = Monitor._material

    def material(self: Monitor, step: int, *rest: Any) -> Any:
        asked.append(step)
        return real(self, step, *rest)

    class Silent:
        def __init__(self, *_: object) -> None: ...

        def answers(self, samples: Any) -> Any:
            return (answer(tiny_side, sample, []) for sample in samples)

        policy = "coord_logprob"

    monkeypatch.setattr(Monitor, "_material", material)
    monkeypatch.setattr(dump_module, "Predictor", Silent)
    yield asked


OFF = ("monitor.probes=false",)


@pytest.mark.parametrize(
    ("place", "error"),
    [
        ("save_png", OSError(errno.ENOSPC, "No space left on device")),
        ("write_text", OSError(errno.ENOSPC, "No space left on device")),
        ("draw_entry", OSError(errno.EIO, "Input/output error")),
    ],
)
def test_a_full_disk_stops_dumping_with_one_warning(
    tiny_model: Any,
    tiny_side: Any,
    data: Path,
    run: Path,
    quick: list[int],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    place: str,
    error: OSError,
) -> None:
    with monitor(run, tiny_side, config(data, *OFF)) as watch:
        watch.dump(5, tiny_model)
        watch.wait()

        def fail(*_: object, **__: object) -> None:
            raise error

        monkeypatch.setattr(dump_module, place, fail)
        for step in (10, 15, 20):
            watch.dump(step, tiny_model)
    assert dumped_steps(run) == (5,)
    assert sorted(path.name for path in (run / "dumps").iterdir()) == ["step_000005"]
    assert quick == [5, 10]
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "no more dumps from here on, training continues: " in caplog.text
    assert error.strerror in caplog.text


def test_a_folder_that_cannot_be_made_stops_dumping(
    tiny_model: Any, tiny_side: Any, data: Path, run: Path, quick: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    with monitor(run, tiny_side, config(data, *OFF)) as watch:
        (run / "dumps").write_text("a file in the way")
        watch.dump(5, tiny_model)
        watch.dump(10, tiny_model)
    assert len(caplog.records) == 1
    assert quick == [5]


def test_a_mistake_of_ours_is_told_with_its_traceback_and_the_training_goes_on(
    tiny_model: Any,
    tiny_side: Any,
    data: Path,
    run: Path,
    quick: list[int],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(dump_module, "draw_entry", lambda *_: 1 / 0)
    with monitor(run, tiny_side, config(data, *OFF)) as watch:
        watch.dump(5, tiny_model)
        watch.dump(10, tiny_model)
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert "this is a bug in apiece" in caplog.text
    assert "ZeroDivisionError" in caplog.text
    assert dumped_steps(run) == ()


def test_writing_is_off_the_training_thread_and_bounded(
    tiny_model: Any, tiny_side: Any, data: Path, run: Path, quick: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    go, writers = threading.Event(), []
    real = dump_module.write_dump

    def held(*args: Any, **options: Any) -> None:
        writers.append(threading.current_thread())
        assert go.wait(30)
        real(*args, **options)

    monkeypatch.setattr(dump_module, "write_dump", held)
    with monitor(run, tiny_side, config(data, *OFF)) as watch:
        watch.dump(5, tiny_model)  # returns, though nothing is written yet
        assert dumped_steps(run) == ()
        second = threading.Thread(target=watch.dump, args=(10, tiny_model))
        second.start()
        second.join(0.2)
        assert second.is_alive()  # waits: at most one is being written
        assert quick == [5]
        go.set()
        second.join(30)
    assert dumped_steps(run) == (5, 10)
    assert threading.current_thread() not in writers


def test_an_error_of_the_training_still_finishes_the_dump(
    tiny_model: Any, tiny_side: Any, data: Path, run: Path, quick: list[int]
) -> None:
    with pytest.raises(KeyboardInterrupt), monitor(run, tiny_side, config(data, *OFF)) as watch:
        watch.dump(5, tiny_model)
        raise KeyboardInterrupt
    assert dumped_steps(run) == (5,)


def test_resuming_drops_what_comes_after_and_what_was_unfinished(
    tiny_model: Any, tiny_side: Any, data: Path, run: Path, quick: list[int]
) -> None:
    settings = config(data, *OFF)
    with monitor(run, tiny_side, settings) as watch:
        for step in (0, 5, 10):
            watch.dump(step, tiny_model)
    (run / "dumps" / "step_000015.part").mkdir()
    kept = (run / "dumps" / "step_000005" / "records.jsonl").stat()
    with monitor(run, tiny_side, settings, start=7) as watch:
        assert (watch.has(5), watch.has(10)) == (True, False)
        watch.dump(10, tiny_model)
    assert sorted(path.name for path in (run / "dumps").iterdir()) == ["step_000000", "step_000005", "step_000010"]
    assert (run / "dumps" / "step_000005" / "records.jsonl").stat() == kept


def test_a_dump_of_the_same_step_is_replaced(
    tiny_model: Any, tiny_side: Any, data: Path, run: Path, quick: list[int]
) -> None:
    with monitor(run, tiny_side, config(data, *OFF)) as watch:
        watch.dump(5, tiny_model)
        watch.wait()
        (run / "dumps" / "step_000005" / "of_before").touch()
        watch.dump(5, tiny_model)
    assert not (run / "dumps" / "step_000005" / "of_before").exists()


def test_an_image_that_goes_missing_is_said_once_and_the_others_are_dumped(
    tiny_model: Any, tiny_side: Any, data: Path, run: Path, quick: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    with monitor(run, tiny_side, config(data, *OFF)) as watch:
        (data.parent / "4.png").unlink()
        watch.dump(5, tiny_model)
        watch.dump(10, tiny_model)
    dump = open_run(run).dump(10)
    assert [record["id"] for record in dump.entries] == ["1 books", "7 books"]
    assert dump.pictures["7 books"].name == "0002_7_books.png"
    assert len(caplog.records) == 1
    assert "the panel's sample '3 books' is left out of dumps: " in caplog.text
