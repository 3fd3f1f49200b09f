"""A server that answers for a checkpoint, from the command line: files, figures, and what happens when it fails."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from written import bins_of, evaluated, written_predictor

from apiece.cli import main
from apiece.codec.vocab import decode_exact
from apiece.data.jsonl import write_jsonl
from apiece.model.load import load_text_side
from apiece.rollout import server as client
from apiece.types import Instance, Sample
from fake_server import FakeServer, Reply, serving

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "FIRST_WAIT_S", 0.001)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", client.KEY_VARIABLE, "APIECE_DEBUG"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Runs the command line in `tmp_path`; gives its exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
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
def samples(tmp_path: Path) -> list[Sample]:
    """Image i is of grey value i and has i % 4 cups."""
    made = []
    (tmp_path / "images").mkdir()
    for i in range(12):
        Image.new("RGB", (200, 100), (i, i, i)).save(path := tmp_path / "images" / f"{i}.png")
        cups = tuple(Instance("cup", (8.0 * k, 10.0, 8.0 * k + 6, 40.0)) for k in range(i % 4))
        made.append(Sample(f"s{i}", path, (200, 100), cups))
    write_jsonl(tmp_path / "x.jsonl", made)
    return made


@pytest.fixture
def fake(samples: list[Sample], tiny_checkpoint: Path) -> Iterator[FakeServer]:
    """Answers every image but one with its labels; that one with an answer that is cut off."""
    side = load_text_side(str(tiny_checkpoint))

    def answer(_: dict[str, Any], grey: int) -> Reply:
        text = decode_exact(side.tokenizer, side.renderer.render(bins_of(samples[grey])).ids.tolist())
        return Reply(text[:60], finish="length") if grey == 7 else Reply(text.removesuffix("<|im_end|>"))

    with serving(FakeServer(answer)) as server:
        yield server


def test_split_is_evaluated_and_scores_are_constant(
    run: Run, fake: FakeServer, samples: list[Sample], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    code, _, err = run("evaluate", tiny_checkpoint, "--data", "x.jsonl", "--out", "out", "--server", fake.url)
    assert code == 0
    assert err.splitlines() == [
        "warning: scores are constant: not all answers have what coord_logprob needs (the engine keeps no "
        "log-probabilities)"
    ]
    produced = {p.name for p in Path("out").iterdir()}
    assert produced >= {"predictions.jsonl", "metrics.json", "coco.json", "results.json", "protocol.json", "pictures"}
    metrics = json.loads(Path("out/metrics.json").read_text())
    assert metrics["score_policy"] == "constant"
    assert metrics["protocol"]["server"] == {"url": f"{fake.url}/v1", "model": "m"}
    assert metrics["protocol"]["generate"]["grammar"] is False
    lines = [json.loads(line) for line in Path("out/predictions.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == [s.id for s in samples]
    assert {item["score"] for line in lines for item in line["objects"]} == {1.0}
    # The same answers by an engine in this process give the same figures.
    predictor, _ = written_predictor(tiny_checkpoint, {s.id: bins_of(s) for s in samples if s.id != "s7"})
    expected, _ = evaluated(predictor, samples, tmp_path / "here")
    assert metrics["f1/recall"] == pytest.approx(expected["f1/recall"])
    assert metrics["f1/recall"] < 1
    assert metrics["parse/dropped"] > 0


def test_server_killed_in_the_middle_and_a_second_call_does_only_what_is_missing(
    run: Run, fake: FakeServer, tiny_checkpoint: Path
) -> None:
    whole = ("evaluate", tiny_checkpoint, "--data", "x.jsonl", "--server", fake.url)
    assert run(*whole, "--out", "whole", "--pictures", 0)[0] == 0
    fake.asked.clear()
    answer = fake.answer
    fake.answer = lambda body, grey: Reply(status=0) if grey >= 5 else answer(body, grey)
    command = (*whole, "--out", "out", "--pictures", 0, "server.concurrency=2", "server.retries=1")
    code, _, err = run(*command)
    assert code == 1
    assert "sample s5: no answer in 2 attempts; the last time: " in err
    assert "Finished answers are kept" in err and "repeat the command with --resume" in err
    assert {p.name for p in Path("out").iterdir()} == {"predictions.jsonl.part", "protocol.json"}
    assert len(Path("out/predictions.jsonl.part").read_text().splitlines()) == 5

    code, _, err = run(*command)
    assert (code, "add --resume to finish it, or --overwrite to start again" in err) == (2, True)

    fake.answer = answer
    fake.asked.clear()
    assert run(*command, "--resume", "server.concurrency=3")[0] == 0
    assert sorted(fake.asked) == list(range(5, 12))
    for name in ("predictions.jsonl", "results.json", "metrics.json"):
        assert Path("out", name).read_bytes() == Path("whole", name).read_bytes()

    fake.asked.clear()
    assert run(*command, "--resume")[0] == 0  # nothing is missing: figures alone
    assert fake.asked == []
    code, _, err = run(*command)
    assert (code, "metrics are there already" in err) == (2, True)
    assert run(*command, "--overwrite")[0] == 0
    assert len(fake.asked) == 12


def test_resuming_under_other_settings_is_refused(run: Run, fake: FakeServer, tiny_checkpoint: Path) -> None:
    command = ("evaluate", tiny_checkpoint, "--data", "x.jsonl", "--out", "out", "--server", fake.url, "--pictures", 0)
    assert run(*command)[0] == 0
    code, _, err = run(*command, "--resume", "generate.max_objects=3")
    assert (code, "generate.max_objects was 100, is 3" in err) == (2, True)
    fake.models = ["other"]
    code, _, err = run(*command, "--resume")
    assert (code, "server.model was 'm', is 'other'" in err) == (2, True)


def test_photos_are_answered_and_gone_on_with(run: Run, fake: FakeServer, tiny_checkpoint: Path) -> None:
    command = ("predict", tiny_checkpoint, "images", "--out", "out", "--server", fake.url, "server.retries=0")
    answer, first = fake.answer, list[int]()

    def some(body: dict[str, Any], grey: int) -> Reply:
        first.append(grey)
        return answer(body, grey) if len(first) <= 4 else Reply(status=503)

    fake.answer = some
    code, _, err = run(*command, "server.concurrency=1")
    assert (code, "HTTP 503" in err) == (1, True)
    fake.answer = answer
    done = len(Path("out/predictions.jsonl.part").read_text().splitlines())
    assert done == 4
    fake.asked.clear()
    code, out, err = run(*command, "--resume")
    assert code == 0
    assert out.startswith("12 photos (4 of them earlier), ")
    assert "scores are constant" in err
    assert sorted(fake.asked + first[:4]) == list(range(12))
    assert len(list(Path("out/overlays").iterdir())) == 12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("server.concurrency=2", "--model", "m"), "only with --server: --model, server.concurrency"),
        (("--server", "URL", "generate.labels=[cup]"), "not with --server.*: generate.labels"),
        (("--server", "URL", "generate.grammar=true"), "not with --server.*: generate.grammar=true"),
        (
            ("--server", "URL", "--device", "cpu", "generate.batch_size=2"),
            "not with --server.*: generate.batch_size, --dev",
        ),
        (("--server", "localhost:8000"), "expected an address such as http://localhost:8000/v1"),
    ],
)
def test_options_that_do_not_go_together(
    run: Run, samples: list[Sample], tiny_checkpoint: Path, arguments: tuple[object, ...], message: str
) -> None:
    given = ("http://127.0.0.1:9" if a == "URL" else a for a in arguments)
    code, _, err = run("evaluate", tiny_checkpoint, "--data", "x.jsonl", "--out", "out", *given)
    assert code == 2
    assert re.search(message, err), err
    assert not Path("out").exists()


def test_no_grammar_is_what_a_server_does_anyway(run: Run, fake: FakeServer, tiny_checkpoint: Path) -> None:
    command = ("evaluate", tiny_checkpoint, "--data", "x.jsonl", "--out", "out", "--server", fake.url, "--pictures", 0)
    assert run(*command, "generate.grammar=false", "--score-policy", "constant")[::2] == (0, "")


def test_interruption_says_how_to_go_on(
    run: Run, fake: FakeServer, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from apiece.evaluate import predict as remote

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(remote, "answer_split", interrupted)
    code, _, err = run("evaluate", tiny_checkpoint, "--data", "x.jsonl", "--out", "out", "--server", fake.url)
    assert code == 130
    assert "interrupted; finished answers are kept" in err and "--resume" in err
