"""The benchmark of cross-entropy runs, and both arms have the same loss."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "token_ce.py"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads a process's memory where Linux keeps it")
def test_token_ce(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [SCRIPT.name, "--quick", "--json", str(tmp_path / "out.json")])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    whole, pieces = json.loads((tmp_path / "out.json").read_text())["results"]
    assert (whole["arm"], pieces["arm"]) == ("whole", "pieces")
    assert pieces["loss"] == pytest.approx(whole["loss"], rel=1e-5)
