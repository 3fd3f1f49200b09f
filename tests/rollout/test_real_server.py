"""A real server, `transformers serve` with the embedded checkpoint: it answers as the engine in this process does.

Needs what `pip install -c constraints.txt -e '.[test-server]'` brings; skipped without.
"""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import httpx2
import pytest

from apiece.config.schema import GenerateSection
from apiece.data.jsonl import read_jsonl
from apiece.errors import UserError
from apiece.evaluate.predict import evaluate_checkpoint, load_predictor
from apiece.model.find import resolve_checkpoint
from apiece.rollout.server import ServerSettings
from apiece_scenes.write import write_scenes

MISSING = [name for name in ("fastapi", "uvicorn", "openai", "accelerate") if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        bool(MISSING), reason=f"`transformers serve` needs {', '.join(MISSING)}: install .[test-server]"
    ),
]
CAPS = GenerateSection(max_objects=12, max_new_tokens=400, grammar=False, batch_size=4)
READY_S = 120


class Served(NamedTuple):
    """A server that runs: how it is asked, and its process."""

    settings: ServerSettings
    process: subprocess.Popen[bytes]


def start(folder: Path) -> Served:
    """Starts it on a free port of loopback, and waits until it answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    checkpoint = str(resolve_checkpoint("tiny"))
    script = Path(__file__).with_name("serve_images.py")
    command = [sys.executable, str(script), "serve", checkpoint, "--host", "127.0.0.1", "--port", str(port)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with open(folder / "serve.log", "wb") as log:
        options = {"stdout": log, "stderr": subprocess.STDOUT, "env": environment}
        process = subprocess.Popen([*command, "--device", "cpu", "--dtype", "float32"], **options)  # type: ignore[call-overload]
    url = f"http://127.0.0.1:{port}"
    end = time.monotonic() + READY_S
    while time.monotonic() < end and process.poll() is None:
        try:
            if httpx2.get(f"{url}/health", trust_env=False).status_code == 200:
                return Served(ServerSettings(url, checkpoint, concurrency=2, timeout_s=60, retries=0), process)
        except httpx2.TransportError:
            time.sleep(0.2)
    stop(process)
    raise AssertionError(f"the server did not start:\n{(folder / 'serve.log').read_text()[-3000:]}")


def stop(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    server = start(tmp_path_factory.mktemp("server"))
    yield server
    stop(server.process)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, 6, seed=9001)
    return folder / "complete.jsonl"


def test_answers_are_those_of_this_process(served: Served, scenes: Path) -> None:
    samples = read_jsonl(scenes)
    warned: list[str] = []
    remote = load_predictor("tiny", CAPS, server=served.settings, warn=warned.append)
    local = load_predictor("tiny", CAPS, device="cpu")
    theirs, ours = list(remote.answers(samples)), list(local.answers(samples))
    assert warned == []  # prompts of the same length
    assert [a.rollout.text for a in theirs] == [a.rollout.text for a in ours]
    assert [a.rollout.ids.tolist() for a in theirs] == [a.rollout.ids.tolist() for a in ours]
    assert [a.rollout.finish_reason for a in theirs] == [a.rollout.finish_reason for a in ours]
    assert sum(len(a.detections) for a in theirs) > 10
    assert {a.policy for a in theirs if a.detections} == {"constant"}


def test_another_model_is_refused(served: Served, scenes: Path) -> None:
    settings = ServerSettings(served.settings.url, "another", retries=0)
    predictor = load_predictor("tiny", CAPS, server=settings)
    with pytest.raises(UserError, match=r"refuses the request \(HTTP 400\): Server is pinned to"):
        list(predictor.answers(read_jsonl(scenes)))


def test_killed_in_the_middle_and_gone_on_with(scenes: Path, tmp_path: Path) -> None:
    server, out = start(tmp_path), tmp_path / "out"
    told: list[str] = []

    def kill_after_two() -> None:
        from apiece.evaluate.answers import AnswerFile

        write = AnswerFile.write

        def and_kill(self: AnswerFile, answer: object) -> None:
            write(self, answer)  # type: ignore[arg-type]
            if len(self.done) == 2:
                stop(server.process)

        patch.setattr(AnswerFile, "write", and_kill)

    with pytest.MonkeyPatch.context() as patch:
        kill_after_two()
        with pytest.raises(UserError, match=r"no answer in 1 attempt; .*Finished answers are kept\n.*--resume"):
            evaluate_checkpoint(
                "tiny", scenes, out, server=server.settings, settings=CAPS, pictures=0, warn=told.append
            )
    first = (out / "predictions.jsonl.part").read_text().splitlines()
    assert 2 <= len(first) < 6
    with pytest.raises(UserError, match="no server answers"):
        evaluate_checkpoint("tiny", scenes, out, server=server.settings, settings=CAPS, pictures=0, resume=True)
    again = start(tmp_path)
    try:
        metrics = evaluate_checkpoint(
            "tiny", scenes, out, server=again.settings, settings=CAPS, pictures=0, resume=True, warn=told.append
        )
    finally:
        stop(again.process)
    lines = (out / "predictions.jsonl").read_text().splitlines()
    assert lines[: len(first)] == first
    assert [json.loads(line)["id"] for line in lines] == [sample.id for sample in read_jsonl(scenes)]
    assert metrics["score_policy"] == "constant"
    assert [message for message in told if "scores are constant" not in message] == []
