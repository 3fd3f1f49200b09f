"""A run that earlier code began goes on, and comes to the figures of the run that was never interrupted.

`runs/old` is a run of 12 steps, both channels by turns, stopped after 6: a random model of 79,280 parameters for the
embedded tokenizer. `golden/uninterrupted.jsonl` are the figures of the same run in one go. Both are of one day, so
neither is ever made anew: where the form of checkpoints changes, this test says whether old ones can still be read.
"""

from __future__ import annotations

import shutil

from guarding import GOLDEN, HERE, CommandLine, compare_training, read_lines

STEPS = 12


def test_a_run_of_before_goes_on(apiece: CommandLine) -> None:
    for name in ("scenes", "runs"):
        shutil.copytree(HERE / name, name)
    run = apiece.folder / "runs" / "old"
    # The start is gone, as it is on another machine; tokenizer and sizes are read from it, no weights are kept.
    shutil.copytree(run / "checkpoints" / "step_000006" / "model", "start")
    before = (run / "metrics.jsonl").read_text(encoding="utf-8")
    apiece("train", "--resume", "runs/old")
    after = (run / "metrics.jsonl").read_text(encoding="utf-8")
    assert after.startswith(before), "what was logged stays as it is"
    assert [line["step"] for line in read_lines(run / "metrics.jsonl")] == list(range(1, STEPS + 1))
    assert (run / "checkpoints" / f"step_{STEPS:06d}").is_dir()
    compare_training(GOLDEN / "uninterrupted.jsonl", run)
