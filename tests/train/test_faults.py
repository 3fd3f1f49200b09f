"""A run that is killed at any point, again and again, ends with the same bits as one that never was."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

HERE = Path(__file__).parent
OPTIMIZER = "optimizer/shard-00001-model-00001-of-00001.safetensors"
KILLS, SEED = 27, 5
TIMES = ("speed/", "memory/", "b/generate_s", "b/update_s", "b/generate_time_share")
TIMED_COUNTS = ("seconds", "generate_s", "update_s")


def without_times(value: Any) -> Any:
    """A state or a line of metrics without what a clock has said."""
    if isinstance(value, dict):
        kept = {k: v for k, v in value.items() if k not in TIMED_COUNTS and not k.startswith(TIMES)}
        return {k: without_times(v) for k, v in kept.items()}
    return [without_times(v) for v in value] if isinstance(value, list) else value


def contents(run: Path) -> dict[str, Any]:
    """All files of a run that do not tell the time or the place."""
    found: dict[str, Any] = {}
    for path in sorted(p for p in run.rglob("*") if p.is_file()):
        name = path.relative_to(run).as_posix()
        if name in ("config.yaml", "manifest.json", "train.log") or (
            name.startswith("checkpoints/step_") and path.name == "manifest.json"
        ):
            continue
        if name == "metrics.jsonl":
            found[name] = [without_times(json.loads(line)) for line in path.read_text().splitlines()]
        elif path.name == "state.json":
            found[name] = without_times(json.loads(path.read_text()))
        elif name.endswith(OPTIMIZER):  # its header is in any order
            found[name] = {key: tensor.numpy().tobytes() for key, tensor in load_file(path).items()}
        else:
            found[name] = path.read_bytes()
    return found


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bits(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(HERE / "faults.py"), str(tmp_path), str(KILLS), str(SEED)],
        capture_output=True,
        text=True,
        timeout=900,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([*sys.path, str(HERE)])},
    )
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-4000:]
    told = json.loads((tmp_path / "told.json").read_text())
    killed = Counter(one["part"] for one in told if one["code"])
    assert sum(killed.values()) >= 20
    assert {
        "make the run",
        "save",
        "prune",
        "evaluate",
        "ask",
        "dump",
        "metrics",
        "A",
        "B",
        "any time",
    } <= killed.keys()

    whole = contents(tmp_path / "whole" / "runs" / "run")
    assert [line["step"] for line in whole["metrics.jsonl"]] == [2, 2, 4, 4, 6, 6]  # training and evaluation
    assert {f"checkpoints/step_{step:06d}/{OPTIMIZER}" for step in (5, 6)} <= whole.keys()
    assert {"eval/step_000006/metrics.json", "dumps/step_000000/records.jsonl"} <= whole.keys()
    runs = sorted(tmp_path.glob("killed*"))
    assert len(runs) == told[-1]["run"] + 1
    for folder in runs:
        assert [p.name for p in (folder / "runs").iterdir()] == ["run"]
        found = contents(folder / "runs" / "run")
        assert found.keys() == whole.keys(), folder.name
        for name, value in whole.items():
            assert found[name] == value, f"{folder.name}: {name}"
