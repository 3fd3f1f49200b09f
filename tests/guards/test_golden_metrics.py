"""`apiece evaluate --predictions` writes the `metrics.json` that it wrote, byte for byte."""

from __future__ import annotations

import pytest
from guarding import GOLDEN, HERE, CommandLine, holds_text

FIXTURES = {
    "crowd": ("crowd_results.json", "crowd_observed.json", "--complete", "crowd_complete.json"),
    "plain": ("plain_results.json", "plain_labels.json", "--min-score", "0.2"),  # iscrowd, a class without either
    "nothing": ("nothing_results.json", "plain_labels.json"),
}


@pytest.mark.parametrize("name", FIXTURES)
def test_metrics_of_a_split(apiece: CommandLine, name: str) -> None:
    apiece.monkeypatch.chdir(HERE / "detections")
    predictions, labels, *options = FIXTURES[name]
    out = apiece.folder / "out"
    apiece("evaluate", "--predictions", predictions, "--annotations", labels, *options, "--out", out)
    holds_text(GOLDEN / "metrics" / f"{name}.json", (out / "metrics.json").read_text(encoding="utf-8"))
