"""`apiece train` as a user meets it: what is said of a wrong command, and at the end."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from apiece.cli import main
from apiece.cli.train import _closing


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "name a CONFIG, or a run to --resume"),
        (
            ["data.train=x", "seed=1"],
            "CONFIG comes first, then settings; found the setting data.train=x\n"
            "  fix: apiece train CONFIG.yaml data.train=x seed=1",
        ),
        (
            ["--resume", "runs/mine", "seed=1"],
            "these settings affect training and cannot be changed when resuming: seed=1\n  fix: leave them out, or "
            "start a new run: apiece train runs/mine/config.yaml model.checkpoint=runs/mine run.name=NEW seed=1; "
            "these can: train.micro_batch_size",
        ),
        (["c.yaml", "--step", "4"], "--step goes with --resume"),
        (["c.yaml", "--resume", "runs/mine"], "name a CONFIG (c.yaml), or a run to --resume: one of the two"),
        (
            ["--resume", "runs/mien"],
            "runs/mien: expected the folder of a run, with its config.yaml; found nothing (did you mean 'mine'?)\n"
            "  fix: runs in runs: mine, other",
        ),
        (["--resume", "mine"], "found nothing\n  fix: there are no runs in ."),
    ],
)
def test_a_wrong_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    for run in ("mine", "other"):
        (tmp_path / "runs" / run).mkdir(parents=True)
        (tmp_path / "runs" / run / "config.yaml").write_text("seed: 0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("APIECE_DEBUG", raising=False)
    monkeypatch.setattr(sys, "argv", ["apiece", "train", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    assert said in capsys.readouterr().err


def test_the_end_of_a_run_says_what_it_gave_and_what_comes_next(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "mine"
    assert _closing(run, None) == [
        f"log: {run}/train.log",
        f"next: apiece evaluate {run} --data X.jsonl --out {run}/evaluation",
    ]
    for step, f1 in ((50, 0.1), (100, 0.25)):
        folder = run / "eval" / f"step_{step:06d}"
        folder.mkdir(parents=True)
        (folder / "metrics.json").write_text(json.dumps({"f1/f1": f1, "coco/AP": 0.125}))
    assert _closing(run, "val.jsonl") == [
        "last evaluation (step 100): F1 0.250, AP 0.125",
        f"log: {run}/train.log",
        f"next: apiece evaluate {run} --data val.jsonl --out {run}/evaluation",
    ]


def test_a_missing_data_file_is_named_with_its_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text("seed: 0\ndata:\n  train: trian.jsonl\n")
    (tmp_path / "train.jsonl").write_text("{}\n")
    monkeypatch.setattr(sys, "argv", ["apiece", "train", "c.yaml", "data.eval=gone/val.jsonl"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 1
    assert capsys.readouterr().err == (
        "error: 2 mistakes in the config\n"
        "  c.yaml:3: data.train: expected a data file at trian.jsonl, found nothing (did you mean 'train.jsonl'?)\n"
        "  command line: data.eval: expected a data file at gone/val.jsonl, found nothing\n"
        "  fix: check the path; it is relative to the current folder\n"
    )
