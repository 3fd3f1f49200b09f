"""Kills a small run again and again, at any point, and goes on with it each time; run by test_faults.py.

Each attempt is a fork of a process that has imported everything, so it starts in no time. A kill is either at the n-th
call (of Python's or C's functions) within a certain part of the run, which makes it the same in every repetition, or
after a certain time.

    python faults.py FOLDER KILLS SEED
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers import small_config, small_scenes
from mini import write_mini

from apiece.config.schema import Config
from apiece.monitor import dump
from apiece.train import checkpoint, loop, run, watch
from apiece.train.loop import train

LIMIT_S = 90.0
STEPS = 6
CHANGES = {
    "stage2_ab__b_ratio": 0.5,
    "stage2_ab__n_softctx_iter": 2,
    "generate__max_objects": 2,
    "generate__max_new_tokens": 60,
    "generate__temperature": 1.0,
    "data__flip": True,
    "data__object_order": "random",
    "optim__lr": 1e-3,
    "train__steps": STEPS,
    "train__batch_size": 2,
    "train__save_every": 1,
    "train__keep_last": 2,
    "train__keep_best": "f1/mean_iou",
    "train__log_every": 2,
    "train__telemetry_window": 3,
    "eval__every_steps": 2,
    "eval__samples": 3,
    "monitor__every_steps": 3,
    "monitor__panel__size": 2,
}
PARTS = ("make the run", "save", "prune", "evaluate", "ask", "dump", "metrics", "A", "B")
TIMED = "any time"


@dataclass
class Kill:
    """Where a process ends: at call `at` of the `turn`-th time that it is in a part; of none if `part` is empty."""

    part: str = ""
    turn: int = 0
    at: int = 0


class Counted:
    """Counts calls in the parts of a run, and ends the process at the one that was asked for."""

    def __init__(self, kill: Kill) -> None:
        self.kill, self.turns, self.calls = kill, Counter[str](), Counter[str]()

    def wrap(self, owner: Any, name: str, part: Callable[..., str] | str) -> None:
        function = getattr(owner, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            here = part if isinstance(part, str) else part(*args)
            self.turns[here] += 1
            mine = not self.kill.part or (here, self.turns[here]) == (self.kill.part, self.kill.turn)
            if not mine:
                return function(*args, **kwargs)
            calls = 0

            def profile(*_: object) -> None:
                nonlocal calls
                calls += 1
                if self.kill.part and calls == self.kill.at:
                    os.kill(os.getpid(), signal.SIGKILL)

            before = sys.getprofile()
            sys.setprofile(profile)
            try:
                return function(*args, **kwargs)
            finally:
                sys.setprofile(before)
                self.calls[here] = min(self.calls.get(here, calls), calls)

        setattr(owner, name, counted)

    def wrap_all(self) -> None:
        self.wrap(loop, "create_run", "make the run")
        self.wrap(checkpoint, "save_checkpoint", "save")
        self.wrap(checkpoint, "prune", "prune")
        self.wrap(watch, "evaluate_step", "evaluate")
        self.wrap(dump.Monitor, "dump", "ask")
        self.wrap(dump, "write_dump", "dump")
        self.wrap(run.MetricsFile, "log", "metrics")
        self.wrap(
            loop, "one_step", lambda training, meter, micro, number: training.channels.channel_of(number - 1).upper()
        )


def attempt(config: Config, kill: Kill, report: Path | None = None) -> int:
    """Begin the run or go on with it in a process of its own; gives that process's id."""
    assert threading.active_count() == 1, "a fork of a process with threads may hang"
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        counted = Counted(kill)
        counted.wrap_all()
        folder = Path(config.run.dir) / "run"
        train(config, "run", resume=folder if folder.exists() else None)
        if report is not None:
            report.write_text(json.dumps(counted.calls))
        status = 0
    finally:
        if status:
            traceback.print_exc()
        sys.stderr.flush()
        os._exit(status)


def ended(child: int, kill_after_s: float = LIMIT_S) -> int:
    """Wait for a process, and end it after a while; its exit code, below 0 for a signal."""
    until = time.monotonic() + kill_after_s
    while True:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > until:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return -signal.SIGKILL
        time.sleep(0.005)


def main(folder: Path, kills: int, seed: int) -> None:
    rng = random.Random(seed)
    data = small_scenes(folder / "s", 6)
    os.environ["OMP_NUM_THREADS"] = "1"
    assert ended_well(fork(lambda: write_mini(folder / "mini"))), "no checkpoint to start from"

    def config(name: str) -> Config:
        return small_config(folder / name, folder / "mini", data, data__eval=data, **CHANGES)

    start = time.monotonic()
    assert ended_well(attempt(config("whole"), Kill(), folder / "calls.json")), "the uninterrupted run fails"
    duration = time.monotonic() - start
    calls = json.loads((folder / "calls.json").read_text())
    assert calls.keys() == set(PARTS), calls
    told: list[dict[str, Any]] = []
    broken, number = 0, 0
    while broken < kills:
        part = (*PARTS[1:], TIMED)[broken % len(PARTS)]
        if number < 2 and not (folder / f"killed{number}").exists():
            part = PARTS[0]
        kill = Kill("nowhere") if part == TIMED else Kill(part, rng.choice((1, 1, 2)), rng.randint(1, calls[part]))
        if part == PARTS[0]:
            kill.turn = 1
        child = attempt(config(f"killed{number}"), kill)
        code = ended(child, rng.uniform(0, duration)) if part == TIMED else ended(child)
        told.append({"run": number, "code": code, **vars(kill), "part": part})
        assert code in (0, -signal.SIGKILL), told[-1]
        broken += code != 0
        number += code == 0
    assert ended_well(attempt(config(f"killed{number}"), Kill("nowhere"))), "the last resume fails"
    (folder / "told.json").write_text(json.dumps(told))
    print(f"{broken} kills in {time.monotonic() - start:.0f} s, uninterrupted {duration:.1f} s")


def fork(work: Callable[[], object]) -> int:
    """Do something in a process of its own, so that this one never starts threads."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        work()
        status = 0
    finally:
        if status:
            traceback.print_exc()
        os._exit(status)


def ended_well(child: int) -> bool:
    """Whether a process does its work."""
    return ended(child) == 0


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
