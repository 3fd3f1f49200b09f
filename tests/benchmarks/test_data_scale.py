"""The benchmark of long files runs, and opens them with and without their index."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "data_scale.py"


@pytest.mark.slow
def test_data_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", [SCRIPT.name, "--quick", "--json", str(tmp_path / "out.json")])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    rows = json.loads((tmp_path / "out.json").read_text())["results"]
    assert [row["part"] for row in rows] == ["open_first", "open_again", "read_full", "read_buffer"]
    assert all(row["records"] == 2000 and row["cpu_seconds"] > 0 for row in rows)
    assert "2,000 records" in capsys.readouterr().out
