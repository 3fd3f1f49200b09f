"""What can happen to a run: each has its message, nothing is lost, and it goes on to the bits of an unbroken one."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import TOOLS, small_config, small_scenes
from replay import replay
from test_train_loop import weights

from apiece.channels.a_soft_context import SoftContext
from apiece.cli import main
from apiece.config.reference import dump_config
from apiece.config.schema import Config
from apiece.data.collate import Batch
from apiece.errors import UserError
from apiece.train import checkpoint, loop
from apiece.train.checkpoint import complete_checkpoints, step_of
from apiece.train.loop import train
from apiece.train.stop import UpdateBrokenError
from apiece.types import LossTerm

STEPS = 4


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_scenes(tmp_path_factory.mktemp("scenes") / "s", 2 * STEPS)


@pytest.fixture
def make(tmp_path: Path, tiny_checkpoint: Path, scenes: Path) -> Callable[..., Config]:
    def config(name: str = "a", **changes: Any) -> Config:
        quick = {"train__steps": STEPS, "train__batch_size": 2}
        return small_config(tmp_path / name, tiny_checkpoint, scenes, **(quick | changes))

    return config


def steps(run: Path) -> list[int]:
    return [step_of(folder) for folder in complete_checkpoints(run)]


def same_bits(one: Path, two: Path) -> bool:
    before, after = weights(one), weights(two)
    return before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)


@contextmanager
def poisoned(step: int, how: Callable[[LossTerm], LossTerm] | None = None) -> Iterator[dict[str, str]]:
    """The last sample of a step is not finite, whenever it is seen; gives its id once it was."""
    names: dict[str, str] = {}
    number = 0
    real, real_step = SoftContext.forward, loop.one_step

    def nan(term: LossTerm) -> LossTerm:
        return LossTerm(term.name, term.weight, term.total * float("nan"), term.per)

    def forward(self: SoftContext, batch: Batch) -> list[LossTerm]:
        terms = real(self, batch)
        if number == step and "id" not in names:
            names["id"] = batch.sample_ids[-1]
        if names.get("id") in batch.sample_ids:
            return [(how or nan)(t) if t.name == "a1/bbox_geo/ciou" else t for t in terms]
        return terms

    def counted(training: Any, meter: Any, batches: Any, count: int) -> None:
        nonlocal number
        number = count
        real_step(training, meter, batches, count)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SoftContext, "forward", forward)
        patch.setattr(loop, "one_step", counted)
        yield names


def test_a_step_that_is_not_finite_stops_the_run_saved_and_can_be_gone_over_again(make: Callable[..., Config]) -> None:
    with poisoned(3) as names:
        with pytest.raises(UserError) as caught:
            train(make(), "run")
        run = Path(make().run.dir) / "run"
        assert "step 3: a1/bbox_geo/ciou is not finite; the weights were not updated (samples " in str(caught.value)
        assert names["id"] in str(caught.value)
        assert f"{run}/nonfinite/step_000003.json" in str(caught.value)
        assert f"resume with apiece train --resume {run}" in str(caught.value)
        assert steps(run) == [2]
        report = json.loads((run / "nonfinite" / "step_000003.json").read_text())
        assert (report["channel"], report["found"][0]["value"]) == ("a", "nan")
        assert names["id"] in report["samples"]
        with pytest.raises(UserError, match="step 3: a1/bbox_geo/ciou is not finite"):  # it comes again
            train(make(), "run", resume=run)
        said: list[str] = []
        done = replay(run, say=said.append)
        assert (done.step, done.channel, done.begun, len(done.samples)) == (3, "a", 2, 2)
        assert [(bad.sample, list(bad.terms)) for bad in done.bad] == [(names["id"], ["a1/bbox_geo/ciou"])]
        assert done.bad[0].gradients
    # The poison gone, the run goes on to the end of one that was never stopped.
    assert train(make(), "run", resume=run).finished
    assert same_bits(run, train(make("whole"), "run").run)
    assert replay(run, 3, say=said.append).bad == ()


def test_as_many_steps_are_left_out_as_is_allowed(make: Callable[..., Config]) -> None:
    config = make(train__skip_nonfinite=1, train__log_every=1)
    with poisoned(2) as names:
        done = train(config, "run")
        assert done.finished
        state = json.loads((complete_checkpoints(done.run)[-1] / "state.json").read_text())
        assert state["skipped"] == [2]
        rows = [json.loads(line) for line in (done.run / "metrics.jsonl").read_text().splitlines()]
        assert [row["step"] for row in rows] == [1, 3, 4]
        assert "step 2 is skipped (1 of 1): a1/bbox_geo/ciou" in (done.run / "train.log").read_text()
        again = replay(done.run, 4, say=lambda _: None)  # from the first step on, without the second
        assert again.bad == ()
        assert again.begun == 0
        bad = replay(done.run, say=lambda _: None)
        assert (bad.step, [one.sample for one in bad.bad]) == (2, [names["id"]])
    with poisoned(2), pytest.raises(UserError, match="step 2: "):
        train(make("none"), "run")


def test_a_gradient_that_is_not_finite_is_told_without_a_term(make: Callable[..., Config]) -> None:
    def root_of_nothing(term: LossTerm) -> LossTerm:
        return LossTerm(term.name, term.weight, term.total + (term.total * 0).sqrt(), term.per)

    with poisoned(1, root_of_nothing):
        with pytest.raises(UserError, match=r"step 1: the gradient is not finite; the weights were not updated"):
            train(make(), "run")
        run = Path(make().run.dir) / "run"
        assert steps(run) == []  # there is nothing before the first step
        bad = replay(run, say=lambda _: None).bad
    assert [list(one.terms) for one in bad] == [[]]
    assert len(bad[0].gradients) > 10


def failing(number: int, error: BaseException) -> Callable[..., Any]:
    """A step that fails at its `number`-th call."""
    calls, real = 0, loop.train_step

    def step(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            raise error
        return real(*args, **kwargs)

    return step


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore"),
            r"step 3: the GPU's memory is too small for a step: CUDA out of memory. Tried to allocate 2.00 GiB.\n"
            r"  fix: lower train.micro_batch_size \(now unset, so up to 2 samples at once; the step stays the same\); "
            r"set model.gradient_checkpointing: true; share the model .*train.parallel: fsdp\); or, in a new run, "
            r"lower data.max_pixels \(now 1048576\) or train.batch_size; nothing is lost: resume with apiece train",
        ),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:1] . DefaultCPUAllocator: can't allocate memory"),
            "this machine's memory is too small",
        ),
        (UserError("a photo is gone", where="a.png"), r"a.png: step 3: a photo is gone\n  fix: nothing is lost"),
    ],
    ids=["GPU", "CPU", "data"],
)
def test_a_failure_before_the_update_saves_the_step_before(
    make: Callable[..., Config], monkeypatch: pytest.MonkeyPatch, error: BaseException, said: str
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", failing(3, error))
        with pytest.raises(UserError, match=said):
            train(make(), "run")
    run = Path(make().run.dir) / "run"
    assert steps(run) == [2]
    train(make(), "run", resume=run)
    assert same_bits(run, train(make("whole"), "run").run)


def test_a_step_and_a_save_longer_than_the_grace_are_warned_of_once(
    make: Callable[..., Config], caplog: pytest.LogCaptureFixture
) -> None:
    train(make(train__save_every=1, train__grace_s=1e-6), "run")
    assert caplog.text.count("take longer than train.grace_s (1e-06)") == 1
    caplog.clear()
    train(make("b", train__save_every=1, train__grace_s=1e4), "run")
    assert "grace" not in caplog.text


def test_a_mistake_of_ours_stays_one(make: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "train_step", failing(2, RuntimeError("a shape is wrong")))
    with pytest.raises(RuntimeError, match="a shape is wrong"):
        train(make(), "run")


def test_an_update_that_was_broken_off_is_not_saved(
    make: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, real = 0, torch.optim.AdamW.step

    def step(self: Any, *args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", step)
        with pytest.raises(UpdateBrokenError, match="the update was broken off: CUDA out of memory"):
            train(make(train__save_every=1), "run")
    run = Path(make().run.dir) / "run"
    assert steps(run) == [1, 2]


@pytest.mark.slow
def test_a_data_worker_that_is_killed(make: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = loop.one_step, 0

    def step(*args: Any) -> None:
        nonlocal calls
        calls += 1
        real(*args)
        if calls == 1:
            for child in multiprocessing.active_children():
                os.kill(child.pid or 0, signal.SIGKILL)
                child.join(20)

    config = make(train__steps=60, data__workers=1)  # more than the worker has made ahead
    with monkeypatch.context() as patch:
        patch.setattr(loop, "one_step", step)
        with pytest.raises(
            UserError,
            match=r"a data worker \(process \d+\) (ended unexp|was killed by signal K)(?s:.*)memory.*data.workers",
        ):
            train(config, "run")
    run = Path(config.run.dir) / "run"
    assert multiprocessing.active_children() == []
    assert train(make(train__steps=60, data__workers=0), "run", resume=run).finished


@contextmanager
def small_disk(most_bytes: int) -> Iterator[None]:
    """No file may become larger: the nearest to a full disk that a process can do to itself."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_the_checkpoints_before(
    make: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, real = make(train__save_every=1), checkpoint.save_pretrained

    def full_at_three(*args: Any) -> None:
        with small_disk(20_000 if args[4]["step"] == 3 else 2**30):
            real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_pretrained", full_at_three)
        with pytest.raises(UserError, match=r"step_000003: the checkpoint could not be written: (?s:.*)--resume"):
            train(config, "run")
    run = Path(config.run.dir) / "run"
    assert steps(run) == [1, 2]
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["step_000001", "step_000002"]
    train(config, "run", resume=run)
    assert same_bits(run, train(make("whole"), "run").run)


def test_a_full_disk_under_the_metrics(make: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> None:
    with small_disk(10), pytest.raises(UserError, match=r"cannot write|no line can be written"):
        train(make(), "run")


def test_a_folder_that_cannot_be_written_to(make: Callable[..., Config], tmp_path: Path) -> None:
    (tmp_path / "a" / "runs").parent.mkdir()
    (tmp_path / "a" / "runs").write_text("a file")
    with pytest.raises(UserError, match=r"runs/run: the run's folder cannot be made: (?s:.*)run.dir=DIR"):
        train(make(), "run")


@pytest.mark.slow
def test_a_run_is_trained_by_one_process_at_a_time(make: Callable[..., Config]) -> None:
    """Such as where a cluster starts a run again while the one before still saves."""
    run = train(make(), "run").run
    kept = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    code = (
        "import fcntl, sys, time\nfile = open(sys.argv[1], 'w')\nfcntl.flock(file, fcntl.LOCK_EX)\n"
        "print('held', flush=True)\ntime.sleep(120)\n"
    )
    arguments = [sys.executable, "-c", code, str(run / ".held")]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "held\n"
            with pytest.raises(UserError, match=r"runs/run: another process is training this run\n  fix: wait"):
                train(make(), "run", resume=run)
        finally:
            process.kill()  # however it ends, it holds nothing any more
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == kept
    assert train(make(), "run", resume=run).finished


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int | str | None:
    monkeypatch.setattr(sys, "argv", ["apiece", *arguments])
    monkeypatch.delenv("APIECE_DEBUG", raising=False)
    with pytest.raises(SystemExit) as caught:
        main()
    return caught.value.code


@pytest.mark.slow
def test_sigterm_saves_and_says_so_and_exits_143(
    make: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.yaml").write_text(dump_config(make()))
    real, calls = loop.train_step, 0

    def step(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", step)
        assert command(monkeypatch, "train", str(tmp_path / "run.yaml")) == 143
    run = Path(make().run.dir) / "run"
    assert f"stopped after step 2, which is saved; resume with: apiece train --resume {run}" in capsys.readouterr().out
    assert steps(run) == [2]
    assert "stopped by SIGTERM after step 2" in (run / "train.log").read_text()
    # What decides how fast a run is may change when it goes on, and stays.
    assert command(monkeypatch, "train", "train.micro_batch_size=1", "--resume", str(run)) in (0, None)
    assert f"resuming from {run / 'checkpoints/step_000002'}" in capsys.readouterr().out
    assert "micro_batch_size: 1" in (run / "config.yaml").read_text()
    replayed = [sys.executable, str(TOOLS / "replay.py"), str(run)]
    done = subprocess.run([*replayed, "3"], capture_output=True, text=True, timeout=120)
    assert "everything is finite here" in done.stdout, done.stderr
    done = subprocess.run(replayed, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (1, "")
    assert "every step of this run had finite loss and gradients" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_the_process_at_once(second: signal.Signals) -> None:
    code = (
        "import time\nfrom apiece.train.stop import stop_signals\n"
        "with stop_signals() as stop:\n print('ready', flush=True)\n"
        " while not stop.now: time.sleep(.01)\n print('asked', flush=True)\n time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "ready\n"
            process.send_signal(signal.SIGTERM)
            assert process.stdout.readline() == "asked\n"
            start = time.monotonic()
            process.send_signal(second)
            assert process.wait(30) == -second
            assert time.monotonic() - start < 20
        finally:
            process.kill()
