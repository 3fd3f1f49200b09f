"""What the planner works out from shapes is what a real step does: FLOPs to the last one, tensors within a tenth."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script as a module; its folder is on the path only inside a test."""
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.delitem(sys.modules, "plan", raising=False)
    import plan

    return plan


ARMS = (
    *("n1", "n2_padded", "n4", "n1_frozen", "n2_recompute", "n1_half", "n2_half_recompute", "n2_frozen_padded"),
    *("n1_lora", "n2_half_lora", "n2_lora_recompute", "n2_half_lora_recompute"),
)


@pytest.mark.parametrize("arm", ARMS)
def test_counts_are_those_of_a_real_step(bench: Any, arm: str) -> None:
    plan = bench.foretold(bench.QUICK, arm)
    assert plan["flops"] == pytest.approx(bench.count_flops(bench.QUICK, arm), rel=1e-6)
    assert plan["tensors"] == pytest.approx(bench.count_tensors(bench.QUICK, arm), rel=0.1)


OTHER_ARMS = ("n1", "n2_padded", "n1_frozen", "n2_recompute", "n2_half_recompute", "n1_lora")


@pytest.mark.parametrize("arm", OTHER_ARMS)
def test_counts_of_the_other_family(bench: Any, arm: str) -> None:
    plan = bench.foretold(bench.QUICK_OTHER, arm)
    assert plan["flops"] == pytest.approx(bench.count_flops(bench.QUICK_OTHER, arm), rel=1e-6)
    assert plan["tensors"] == pytest.approx(bench.count_tensors(bench.QUICK_OTHER, arm), rel=0.1)


@pytest.mark.slow
def test_the_script(tmp_path: Path) -> None:
    script = [sys.executable, str(FOLDER / "plan.py"), "--quick", "--json", str(tmp_path / "out.json")]
    done = subprocess.run(script, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["benchmark"] == "plan"
    assert [row["arm"] for row in report["results"]] == ["n1"]  # --quick measures the first arm alone
    for row in report["results"]:
        assert row["flops_ratio"] == pytest.approx(1)
        assert row["tensors_ratio"] == pytest.approx(1, abs=0.1)
    assert "foretold and measured" in done.stdout
