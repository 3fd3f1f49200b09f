"""`apiece diagnose` as a user meets it: from a dump, from a checkpoint, what is in the file, what is refused."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from worlds import Beliefs, World, write_run

from apiece.cli import main
from apiece.config.schema import GenerateSection, ObjectOrder
from apiece.data.jsonl import write_jsonl
from apiece.evaluate import predict as predict_module
from apiece.study.diagnosis import diagnose
from apiece.types import Instance, Sample

Run = Callable[..., tuple[int, str, str]]
AVERAGED = World(under=Beliefs(gap=30.0, modes=2))


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Runs `apiece diagnose` in `tmp_path`; gives its exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("APIECE_DEBUG", raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    real = predict_module.load_predictor

    def short(checkpoint: str, settings: GenerateSection, **rest: Any) -> Any:
        """An untrained model never stops."""
        return real(checkpoint, settings.model_copy(update={"max_new_tokens": 4}), **rest)

    monkeypatch.setattr(predict_module, "load_predictor", short)

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["apiece", "diagnose", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as caught:
            code = int(caught.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return call


def split(folder: Path, count: int = 3) -> Path:
    """A JSONL of small photos with two cups each, one of them without."""
    samples = []
    for number in range(count):
        Image.new("RGB", (64, 48), (90, 120, 60 + number)).save(folder / f"{number}.png")
        cups = (Instance("cup", (1, 1, 20, 20)), Instance("cup", (30, 5, 60, 40)))
        samples.append(Sample(f"s{number}", folder / f"{number}.png", (64, 48), cups if number else ()))
    write_jsonl(folder / "x.jsonl", samples)
    return folder / "x.jsonl"


def test_a_dump_is_read_without_a_model(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict_module, "load_predictor", None)
    write_run(tmp_path / "a", AVERAGED, step=100)
    write_run(tmp_path / "b", World(strips=0), step=100)
    shutil.move(tmp_path / "b" / "dumps" / "step_000100", tmp_path / "a" / "dumps" / "step_000020")
    code, out, err = run("a")
    assert (code, err) == (0, "")
    assert "explanation: averaging\n" in out
    assert out.endswith("wrote a/diagnosis/diagnosis.json\n")
    found = json.loads(Path("a/diagnosis/diagnosis.json").read_text())
    assert (found["verdict"], found["source"]["from"], found["source"]["step"]) == (["averaging"], "dump", 100)
    assert (found["images"], found["probed_images"], found["probed_labels"]) == (40, 40, 160)
    worst = found["fails"][0]
    assert (worst["outcome"], worst["count"], worst["rate"]["value"]) == ("group", 20, 0.2)
    assert worst["most_often"]["position"]["name"] == "1"
    assert found["misses"][0]["fate"] == "merged"
    tables = found["probes"]
    assert tables["by_coordinate"]["x2"]["a1/exp_argmax_gap"]["value"] == pytest.approx(15.25)
    assert tables["by_class"].keys() == {"book"}
    assert tables["by_crowding"].keys() == {"1-5"}
    assert tables["all"]["several_peaks"]["value"] == 0.5
    assert run("a")[0] == 2
    assert run("a", "--overwrite")[0] == 0


def test_hidden_instances_of_a_dump_are_known(run: Run, tmp_path: Path) -> None:
    write_run(tmp_path / "a", World(strips=12, labelled_strips=25, hidden=True))
    assert run("a", "--out", "here")[0] == 0
    found = json.loads(Path("here/diagnosis.json").read_text())
    assert found["verdict"] == ["labels"]
    assert found["explanations"]["labels"]["verdict"] == "supported"


def test_training_labels_are_looked_at(run: Run, tmp_path: Path) -> None:
    strips = World(images=60, strips=0, labelled_strips=60)
    write_jsonl(tmp_path / "train.jsonl", strips.samples())
    write_run(tmp_path / "a", World(strips=12), config="seed: 0\ndata:\n  train: train.jsonl\n")
    assert run("a")[0] == 0
    found = json.loads(Path("a/diagnosis/diagnosis.json").read_text())
    assert found["explanations"]["labels"]["numbers"]["labelled_groups_training"]["value"] == pytest.approx(0.2)
    assert found["verdict"] == ["labels"]


def test_a_dump_without_probes_says_so(run: Run, tmp_path: Path) -> None:
    write_run(tmp_path / "a", World(probed=False))
    code, out, err = run("a")
    assert code == 0
    assert "the dump holds no probes: add --data to run the model" in err
    assert "no probes" in out
    assert "explanation: can't tell" in out


def test_a_checkpoint_is_run(run: Run, tmp_path: Path, tiny_checkpoint: Path) -> None:
    split(tmp_path)
    code, out, err = run(tiny_checkpoint, "--data", "x.jsonl", "--device", "cpu", "--batch-size", 2)
    assert code == 0
    assert "does not say in which order it writes objects; labels are probed sorted" in err
    assert err.startswith("3 images to answer and probe; answers and diagnosis go to diagnosis/\n")
    assert out.startswith("3 images, 4 labels, 0 predictions")
    assert "explanation: nothing to explain" in out
    found = json.loads(Path("diagnosis/diagnosis.json").read_text())
    assert (found["probed_images"], found["probed_labels"]) == (3, 4)
    assert found["source"]["protocol"]["probes"]["object_order"] == "sorted"
    assert Path("diagnosis/predictions.jsonl").is_file()
    assert found["probes"]["all"]["a1/entropy"]["value"] == pytest.approx(6.9, abs=0.3)  # ln 1000 is 6.9


def test_a_run_without_dumps_is_run_on_its_own_split(run: Run, tmp_path: Path, tiny_checkpoint: Path) -> None:
    data = split(tmp_path)
    shutil.copytree(tiny_checkpoint, tmp_path / "a" / "checkpoints" / "step_000001" / "model")
    settings = f"seed: 0\ndata:\n  eval: {data}\n  object_order: random\nstage2_ab:\n  n_softctx_iter: 3\n"
    (tmp_path / "a" / "config.yaml").write_text(settings)
    for number, target in enumerate(("a", "a/checkpoints/step_000001/model")):
        code, _, err = run(target, "--device", "cpu", "--samples", 2, "--out", f"out{number}")
        assert (code, err) == (0, f"2 images to answer and probe; answers and diagnosis go to out{number}/\n")
        found = json.loads(Path(f"out{number}/diagnosis.json").read_text())
        assert found["images"] == 2
        assert found["source"]["protocol"]["probes"]["passes"] == 3
        assert found["source"]["protocol"]["probes"]["object_order"] == "random"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        pytest.param(["tiny"], 2, "no split to diagnose on: this is not the folder of a run", id="no data"),
        pytest.param(["a"], 2, "no split to diagnose on: its run has no data.eval", id="a run without eval"),
        pytest.param(["tiny", "--data", "none.jsonl"], 1, "none.jsonl", id="missing data"),
        pytest.param(["nowhere", "--data", "x.jsonl"], 1, "expected a checkpoint folder", id="no checkpoint"),
        pytest.param(
            ["CHECKPOINT", "--data", "x.jsonl", "--object-order", "sortd"], 2,
            "unknown order 'sortd' (did you mean 'sorted'?)", id="order",
        ),
        pytest.param(["tiny", "--data", "x.jsonl", "--samples", "0"], 2, "--samples", id="no samples"),
    ],
)  # fmt: skip
def test_what_is_refused(
    run: Run, tmp_path: Path, tiny_checkpoint: Path, arguments: list[str], code: int, message: str
) -> None:
    split(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "config.yaml").write_text("seed: 0\n")
    got, _, err = run(*(str(tiny_checkpoint) if x == "CHECKPOINT" else x for x in arguments))
    assert (got, message in err) == (code, True), err
    assert not (tmp_path / "diagnosis").exists()


def test_a_dump_of_another_schema_is_refused(run: Run, tmp_path: Path) -> None:
    write_run(tmp_path / "a", AVERAGED, schema=0)
    code, _, err = run("a")
    assert code == 1
    assert "expected a dump of schema 1" in err


def test_the_json_is_strict_and_repeats() -> None:
    def once() -> str:
        truth, detections, probes, complete = AVERAGED.split()
        return json.dumps(
            diagnose(truth, detections, probes, policy="constant", complete=complete), allow_nan=False, sort_keys=True
        )

    assert once() == once()


def test_help_has_an_example(run: Run) -> None:
    code, out, _ = run("--help")
    assert code == 0
    assert "apiece diagnose runs/a_only" in out
    assert all(order in out for order in ObjectOrder)
    for default in (GenerateSection().batch_size, GenerateSection().max_objects):
        assert f"{default} without one" in " ".join(out.replace("│", " ").split())
