"""The benchmark of outcomes runs, and its AP is pycocotools'."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "outcomes.py"


@pytest.mark.slow
def test_outcomes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", [SCRIPT.name, "--quick", "--json", str(tmp_path / "out.json")])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    (row,) = json.loads((tmp_path / "out.json").read_text())["results"]
    assert (row["images"], row["labels"], row["predictions"]) == (50, 1000, 5000)
    assert all(seconds > 0 for seconds in row["seconds"].values())
    assert "AP, pycocotools" in capsys.readouterr().out
