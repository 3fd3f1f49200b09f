"""`apiece predict` and `apiece evaluate CHECKPOINT` as a user meets them: exit codes, messages, files."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from apiece.cli import main
from apiece.config.schema import GenerateSection
from apiece.data.jsonl import write_jsonl
from apiece.evaluate import predict as predict_module
from apiece.types import Instance, Sample

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Runs the command line in `tmp_path`; gives its exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("APIECE_DEBUG", raising=False)
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["apiece", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as caught:
            code = int(caught.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """An untrained model never stops: its answers end after 4 tokens. Gives what `load_predictor` was called with."""
    calls: list[dict[str, Any]] = []
    real = predict_module.load_predictor

    def load(checkpoint: str, settings: GenerateSection, **rest: Any) -> Any:
        calls.append({"settings": settings, **rest})
        return real(checkpoint, settings.model_copy(update={"max_new_tokens": 4}), **rest)

    monkeypatch.setattr(predict_module, "load_predictor", load)
    return calls


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a.png", "b.jpg"):
        Image.new("RGB", (64, 48), (90, 120, 60)).save(folder / name)
    return folder


def test_photos_are_answered(run: Run, short: list[dict[str, Any]], photos: Path, tiny_checkpoint: Path) -> None:
    arguments = ("--device", "cpu", "generate.max_objects=7", "generate={batch_size: 2, temperature: 0.5}", "seed=3")
    code, out, err = run("predict", tiny_checkpoint, "photos", "--out", "out", *arguments)
    assert (code, err) == (0, "")
    assert out == "2 photos, 0 objects, 1 malformed object dropped; wrote out\n"
    produced = {p.name for p in Path("out").iterdir()}
    assert produced == {"predictions.jsonl", "results.json", "coco.json", "protocol.json", "overlays"}
    settings = GenerateSection(max_objects=7, batch_size=2, temperature=0.5)
    (call,) = short
    asked = {name: call[name] for name in ("settings", "server", "prompt", "seed", "device", "policy")}
    assert asked == {
        **{"settings": settings, "server": None, "prompt": None, "seed": 3, "device": "cpu"},
        "policy": "coord_logprob",
    }


def test_unreadable_photo_is_named_and_the_exit_code_is_1(
    run: Run, short: list[dict[str, Any]], photos: Path, tiny_checkpoint: Path
) -> None:
    (photos / "b.jpg").write_bytes(b"no image")
    code, out, err = run("predict", tiny_checkpoint, "photos", "--out", "out")
    assert code == 1
    assert out.startswith("1 photo, ")
    assert "skipped: photos/b.jpg: not an image that can be read" in err
    assert err.endswith("1 photo skipped\n")


def test_prompt_is_passed_on_and_a_difference_told_first(
    run: Run, short: list[dict[str, Any]], photos: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = predict_module.load_predictor

    def load(*arguments: Any, **options: Any) -> Any:
        options["warn"]("another prompt")
        return loaded(*arguments, **options)

    monkeypatch.setattr(predict_module, "load_predictor", load)
    code, _, err = run("predict", tiny_checkpoint, "photos", "--out", "out", "prompt.name=text", "prompt.text=Find it.")
    assert (code, err) == (0, "warning: another prompt\n")
    assert short[0]["prompt"].model_dump() == {"name": "text", "text": "Find it."}


def test_interruption_says_how_to_go_on(
    run: Run, short: list[dict[str, Any]], photos: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from apiece.evaluate import predict as photos_module

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(photos_module, "draw_predictions", stop)
        code, _, err = run("predict", tiny_checkpoint, "photos", "--out", "out")
    assert code == 130
    assert err == "error: out: interrupted; finished answers are kept\n  fix: repeat the command with --resume\n"
    code, out, _ = run("predict", tiny_checkpoint, "photos", "--out", "out", "--resume")
    assert code == 0
    assert out.startswith("2 photos, ")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        pytest.param(["nothing"], 1, "nothing: expected a photo or a folder, found nothing", id="missing path"),
        pytest.param(["empty"], 1, "empty: expected photos, found none in this folder", id="empty folder"),
        pytest.param(["photos", "--out", "photos"], 2, "photos: the folder is not empty", id="out not empty"),
        pytest.param(["photos", "--device", "gpu"], 2, "unknown device 'gpu' (did you mean 'cpu'?)", id="device"),
        pytest.param(["photos", "prompt.name=plan"], 2, "found the text 'plan' (did you mean 'plain'?)", id="prompt"),
        pytest.param(["photos", "--score-policy", "logprob"], 2, "unknown score policy 'logprob'", id="policy"),
        pytest.param(["photos", "prompt.name=text", "prompt.text=' '"], 2, "found blank text", id="blank prompt"),
        pytest.param(["photos", "prompt.name=plain", "prompt.text=x"], 2, "set both or neither", id="two prompts"),
        pytest.param(["photos", "generate.batch_size=0"], 2, "expected a whole number >= 1, found 0", id="batch of 0"),
        pytest.param(
            ["photos", "generate.labels=[dog]", "generate.grammar=false"],
            2,
            "generate.labels: has no effect with `generate.grammar: false`",
            id="names without grammar",
        ),
        pytest.param(
            ["photos", "--label", "dog"], 2, "no such option: --label\n  fix: it is a setting now: 'gen", id="o"
        ),
        pytest.param(
            ["photos", "train.steps=3"], 2, "not a setting of this command: train.steps=3\n  fix: those are", id="key"
        ),
        pytest.param(["generate.batch_size=2"], 2, "name photos, or folders of them", id="settings alone"),
        pytest.param(
            ["photos", "generate.labels=['a\\b']"], 1, "holds a quote, a backslash", id="name that cannot be written"
        ),
        pytest.param(
            ["photos", "prompt.name=text", "prompt.text=<|image_pad|>"], 1, "one image placeholder, found 2", id="token"
        ),
    ],
)
def test_bad_usage_is_told_before_anything_is_written(
    run: Run, photos: Path, tiny_checkpoint: Path, arguments: list[str], code: int, message: str
) -> None:
    Path("empty").mkdir()
    got, _, err = run("predict", tiny_checkpoint, *arguments, *([] if "--out" in arguments else ["--out", "out"]))
    assert got == code
    assert message in err
    assert not Path("out").exists()


@pytest.fixture
def split(photos: Path) -> Path:
    labels = (Instance("cup", (1, 1, 20, 20)),)
    samples = [Sample(name, photos / name, (64, 48), labels) for name in ("a.png", "b.jpg")]
    write_jsonl(photos.parent / "x.jsonl", samples)
    return photos.parent / "x.jsonl"


def test_checkpoint_is_evaluated(run: Run, short: list[dict[str, Any]], split: Path, tiny_checkpoint: Path) -> None:
    base = ("evaluate", tiny_checkpoint, "--data", "x.jsonl", "--out", "out", "--device", "cpu")
    code, out, err = run(
        *base, "--pictures", 1, "prompt.name=atomic", "generate.max_objects=9", "generate.batch_size=1"
    )
    assert (code, err) == (0, "")
    assert out.startswith("2 images, 2 labels, 0 predictions\n")
    assert out.endswith("wrote out/metrics.json; look at out/contact_sheet.png\n")
    assert short[0]["prompt"].name == "atomic"
    assert (short[0]["settings"].max_objects, short[0]["settings"].batch_size) == (9, 1)
    assert Path("out/pictures/a.png.png").is_file()
    assert short[0]["policy"] == json.loads(Path("out/metrics.json").read_text())["score_policy"] == "coord_logprob"
    assert run(*base)[2].startswith("error: out/metrics.json: metrics are there already")
    code, out, _ = run(*base, "--overwrite", "--pictures", 0, "--score-policy", "product")
    assert code == 0
    metrics = json.loads(Path("out/metrics.json").read_text())
    assert metrics["score_policy"] == metrics["protocol"]["score_policy"] == "product"
    assert out.endswith("wrote out/metrics.json\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["tiny"], "CHECKPOINT needs --data as well", id="no data"),
        pytest.param(["--predictions", "a", "--annotations", "b", "--device", "cpu", "generate.max_objects=1"],
                     "only for a CHECKPOINT: generate.max_objects=1, --device", id="options of the other form"),
        pytest.param(["tiny", "--data", "x", "--annotations", "b"], "do not go together", id="both forms"),
    ],
)  # fmt: skip
def test_forms_of_evaluate_are_not_mixed(run: Run, arguments: list[str], message: str) -> None:
    code, _, err = run("evaluate", *arguments, "--out", "out")
    assert code == 2
    assert message in err


@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_help_has_an_example(run: Run, command: str) -> None:
    code, out, _ = run(command, "--help")
    assert code == 0
    assert f"apiece {command} tiny" in out


@pytest.mark.parametrize("existed", [False, True])
def test_nothing_is_left_where_no_photo_could_be_read(
    run: Run, tmp_path: Path, tiny_checkpoint: Path, existed: bool
) -> None:
    (tmp_path / "notes.jpg").write_text("no photo")
    if existed:
        (tmp_path / "out").mkdir()
    for _ in range(2):
        code, out, err = run("predict", tiny_checkpoint, "notes.jpg", "--out", "out")
        assert code == 1 and "wrote" not in out
        assert "skipped: notes.jpg: " in err
        assert "error: out: no photo could be read: 1 file skipped, nothing written\n  fix: name photos" in err
        assert list(tmp_path.glob("out/*")) == [] and (tmp_path / "out").exists() is existed
