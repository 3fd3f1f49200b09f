"""Checkpoints: refused by name where one byte is not as it was written, the one before offered, old ones let go."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import small_config
from safetensors.torch import load_file
from test_train_loop import interrupt_at, weights

from apiece.errors import UserError
from apiece.train import loop, watch
from apiece.train.checkpoint import choose_checkpoint, complete_checkpoints, problem_of, prune, step_of
from apiece.train.distributed import World
from apiece.train.loop import train
from apiece.train.run import MetricsFile

CPU = World(0, 1, torch.device("cpu"))
LAST = "checkpoints/step_000004"
OPTIMIZER = "optimizer/shard-00001-model-00001-of-00001.safetensors"


@pytest.fixture
def scenes(finished_data: Path) -> Path:
    return finished_data


def config(root: Path, tiny_checkpoint: Path, scenes: Path, **changes: Any) -> Any:
    quick = {"train__steps": 4, "train__batch_size": 2, "train__save_every": 1, "generate__max_new_tokens": 12}
    return small_config(root, tiny_checkpoint, scenes, **(quick | changes))


@pytest.fixture
def run(plain_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(plain_run, tmp_path / "copy"))


def test_a_run_without_a_checkpoint_begins_anew(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    assert choose_checkpoint(tmp_path, None, CPU) is None
    assert choose_checkpoint(tmp_path / "nothing", None, CPU) is None


def test_the_newest_is_taken_whole_as_it_is(run: Path) -> None:
    assert [step_of(folder) for folder in complete_checkpoints(run)] == [3, 4]
    assert choose_checkpoint(run, None, CPU) == run / LAST
    assert choose_checkpoint(run, 3, CPU) == run / "checkpoints/step_000003"


def test_steps_are_counted_not_spelled(run: Path) -> None:
    shutil.copytree(run / LAST, run / "checkpoints/step_1000000")
    assert [step_of(folder) for folder in complete_checkpoints(run)] == [3, 4, 1000000]


def test_a_flipped_byte_in_any_file_is_found_and_named(run: Path) -> None:
    """In the first byte, in the middle and in the last one of each."""
    for file in sorted(p for p in (run / LAST).rglob("*") if p.is_file()):
        whole = file.read_bytes()
        for place in (0, len(whole) // 2, len(whole) - 1):
            file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            problem = problem_of(run / LAST, CPU)
            harmless = file.name == "manifest.json" and json.loads(whole) == _json(file)  # the newline at its end
            assert harmless or (problem is not None and file.name in problem), (file, place, problem)
        file.write_bytes(whole)
    assert problem_of(run / LAST, CPU) is None


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes())
    except ValueError:
        return None


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("model/model.safetensors", "remove", "model/model.safetensors is missing"),
        (OPTIMIZER, "cut", rf"{OPTIMIZER} has 100 bytes, expected \d{{5,}}"),
        ("state.json", "flip", "state.json is damaged: its checksum"),
        ("manifest.json", "remove", "manifest.json is damaged or missing"),
        ("manifest.json", "cut", "manifest.json is damaged or missing"),
    ],
)
def test_a_damaged_checkpoint_is_refused_by_name_and_the_one_before_is_offered(
    run: Path, name: str, change: str, said: str
) -> None:
    file = run / LAST / name
    whole = file.read_bytes()
    if change == "remove":
        file.unlink()
    else:
        file.write_bytes(whole[:100] if change == "cut" else bytes([whole[0] ^ 1]) + whole[1:])
    offered = rf"step_000004: this checkpoint is not used: {said}(?s:.*)fix: .*--resume {run} --step 3$"
    with pytest.raises(UserError, match=offered):
        choose_checkpoint(run, None, CPU)
    (run / "checkpoints/step_000003" / OPTIMIZER).unlink()
    with pytest.raises(UserError, match="there is no whole one before it"):
        choose_checkpoint(run, None, CPU)


def test_a_step_that_is_not_there_is_told_with_those_that_are(run: Path) -> None:
    with pytest.raises(UserError, match="no checkpoint of step 2; there are 3, 4"):
        choose_checkpoint(run, 2, CPU)


def test_one_without_checksums_by_an_earlier_version_is_taken(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    (run / LAST / "manifest.json").unlink()
    (run / LAST / "state.json").write_text('{"step": 4}')
    assert choose_checkpoint(run, None, CPU) == run / LAST
    assert "not verified" in caplog.text


def test_a_step_gone_over_again_gives_the_same_bits(run: Path, plain_run: Path) -> None:
    """Going on from step 3 removes what is after it, broken as it is, and makes it again."""
    (run / LAST / OPTIMIZER).write_bytes(b"broken")
    (run / "checkpoints" / ".step_000009.tmp").mkdir()
    from apiece.config.resolve import load_config

    said: list[str] = []
    train(load_config(run / "config.yaml").config, "copy", resume=run, step=3, say=said.append)
    assert said == [f"resuming from {run / 'checkpoints/step_000003'}"]
    assert problem_of(run / LAST, CPU) is None
    for name in (OPTIMIZER, "model/model.safetensors"):
        once, again = load_file(plain_run / LAST / name), load_file(run / LAST / name)
        assert once.keys() == again.keys()
        assert all(torch.equal(once[key], again[key]) for key in once)
    assert not list((run / "checkpoints").glob(".*"))


def test_the_best_is_kept_beside_the_newest(tmp_path: Path, tiny_checkpoint: Path, scenes: Path) -> None:
    changes = {"train__keep_last": 1, "train__keep_best": "f1/f1", "data__eval": scenes, "eval__every_steps": 1}
    values = iter([0.1, 0.3, 0.3, 0.2])

    def evaluated(*_: object, **__: object) -> Any:
        return {"eval/f1/f1": next(values)}, []

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(watch, "evaluate_step", evaluated)
        run = train(config(tmp_path, tiny_checkpoint, scenes, **changes), "run").run
    assert [step_of(folder) for folder in complete_checkpoints(run)] == [2, 4]  # of equal ones the first


def test_pruning_keeps_what_it_is_told(run: Path) -> None:
    prune(run, 1, best=3)
    assert [step_of(folder) for folder in complete_checkpoints(run)] == [3, 4]
    prune(run, 1, best=None)
    assert [step_of(folder) for folder in complete_checkpoints(run)] == [4]


def test_the_best_of_none_is_none(tmp_path: Path) -> None:
    with MetricsFile(tmp_path) as metrics:
        assert metrics.best("eval/f1/f1", {1, 2}) is None
        metrics.log(1, {"eval/f1/f1": 0.5})
        assert metrics.best("eval/f1/f1", {2}) is None
        assert metrics.best("eval/coco/AP", {1}) is None
    with MetricsFile(tmp_path, 1) as again:
        assert again.best("eval/f1/f1", {1}) == 1


def lines(run: Path) -> list[dict[str, Any]]:
    drop = ("speed/", "memory/")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith(drop)} for row in rows]


def test_an_evaluation_that_was_cut_short_is_made_when_the_run_goes_on(
    tmp_path: Path, tiny_checkpoint: Path, scenes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signal comes in the middle of the evaluation, between two lines of metrics, in a step that is not saved."""
    settings = {
        "data__eval": scenes,
        "eval__every_steps": 2,
        "eval__samples": 3,
        "train__save_every": 4,
        "train__log_every": 3,
        "train__telemetry_window": 3,
        "monitor__every_steps": 2,
        "monitor__panel__size": 2,
        "monitor__pictures": "false",
    }
    whole = train(config(tmp_path / "a", tiny_checkpoint, scenes, **settings), "run").run
    real = watch.evaluate_step

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(watch, "evaluate_step", interrupted)
        cut = train(config(tmp_path / "b", tiny_checkpoint, scenes, **settings), "run")
    assert (cut.step, cut.finished, cut.signal) == (2, False, signal.SIGTERM)
    assert not (cut.run / "eval" / "step_000002").exists()
    second = train(config(tmp_path / "b", tiny_checkpoint, scenes, **settings), "run", resume=cut.run)
    assert second.finished
    assert lines(second.run) == lines(whole)
    for name in ("eval/step_000002/predictions.jsonl", "dumps/step_000002/records.jsonl"):
        assert (second.run / name).read_bytes() == (whole / name).read_bytes()


def test_the_last_evaluation_is_made_when_a_finished_run_goes_on(
    tmp_path: Path, tiny_checkpoint: Path, scenes: Path
) -> None:
    whole = train(config(tmp_path, tiny_checkpoint, scenes, data__eval=scenes), "run").run
    shutil.rmtree(whole / "eval")
    kept = lines(whole)
    (whole / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in kept[:-1]))
    again = train(config(tmp_path, tiny_checkpoint, scenes, data__eval=scenes), "run", resume=whole)
    assert (again.step, again.finished) == (4, True)
    assert lines(whole) == kept
    assert (whole / "eval" / "step_000004" / "metrics.json").is_file()


def test_what_was_to_be_let_go_is_let_go_when_a_finished_run_goes_on(run: Path) -> None:
    """It was killed after its last checkpoint and before the oldest was removed."""
    from apiece.config.resolve import load_config

    shutil.copytree(run / LAST, run / "checkpoints" / "step_000002")
    assert train(load_config(run / "config.yaml").config, "copy", resume=run).finished
    assert [step_of(folder) for folder in complete_checkpoints(run)] == [3, 4]


def test_random_numbers_are_a_function_of_the_step(
    tmp_path: Path, tiny_checkpoint: Path, scenes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As dropout would draw them: the run that goes on draws what the unbroken one drew."""
    drawn: list[float] = []
    real = loop.train_step

    def drawing(*args: Any, **kwargs: Any) -> Any:
        drawn.append(float(torch.rand(1)))
        return real(*args, **kwargs)

    monkeypatch.setattr(loop, "train_step", drawing)
    train(config(tmp_path, tiny_checkpoint, scenes), "whole")
    first = list(drawn)
    drawn.clear()
    with monkeypatch.context() as patch:
        interrupt_at(patch, 2)
        run = train(config(tmp_path, tiny_checkpoint, scenes), "parts").run
    train(config(tmp_path, tiny_checkpoint, scenes), "parts", resume=run)
    second = list(drawn)
    assert second == first
    assert len(set(first)) == 4
    assert weights(run).keys() == weights(tmp_path / "runs" / "whole").keys()
