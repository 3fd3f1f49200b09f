"""Two runs trained for a moment, dumped by the training itself, compared and looked at in a browser."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest

from apiece.cli import main
from apiece.config.resolve import load_config
from apiece_scenes.scene import SceneSettings
from apiece_scenes.write import write_scenes

pytestmark = [pytest.mark.browser, pytest.mark.slow]
SETTINGS = [
    *("model.checkpoint=tiny", "model.precision=fp32", "train.device=cpu", "data.workers=0"),
    *("train.steps=2", "train.batch_size=2", "train.log_every=1", "optim.warmup_steps=1", "optim.lr=3e-4"),
    *("monitor.every_steps=1", "monitor.panel.size=3", "generate.max_objects=8", "eval.samples=2"),
    "stage2_ab.n_softctx_iter=2",
]


@pytest.fixture
def real_report(chromium: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The page of a baseline and of a run with the A1 anchor; without a browser nothing is trained."""
    from apiece.train.loop import train

    write_scenes(tmp_path / "scenes", 6, SceneSettings(unlabelled=0.4), seed=9)
    observed, complete = (tmp_path / "scenes" / f"{name}.jsonl" for name in ("observed", "complete"))
    data = [
        f"data.train={observed}",
        f"data.eval={observed}",
        f"data.complete={complete}",
        f"run.dir={tmp_path / 'runs'}",
    ]
    arms = {"baseline": [], "anchor": ["objective.bbox_geo.config.a1_smoothl1_weight=0.2"]}
    runs = [train(load_config(None, [*SETTINGS, *data, *own]).config, name).run for name, own in arms.items()]
    monkeypatch.setattr(sys, "argv", ["apiece", "report", *map(str, runs), "--out", str(tmp_path / "report")])
    try:
        main()
    except SystemExit as caught:
        assert not caught.code
    return tmp_path / "report" / "index.html"


def test_real_runs_are_shown_compared_and_scrubbed(open_page: Any, real_report: Path) -> None:
    page = open_page(real_report)
    assert page.locator(".card").count() == 2
    assert page.locator(".gaps").count() == 0
    assert "a1_smoothl1_weight" in page.locator("details.section").first.inner_text()
    assert page.locator(".chart", has_text="F1, panel").locator(".plot path").count() == 2
    page.keyboard.press("i")
    page.wait_for_selector(".tile")
    assert page.locator(".tile").count() == 3
    page.locator(".tile").first.click()
    page.wait_for_selector(".scene")
    assert page.locator(".scene").count() == 2
    page.keyboard.press("Home")
    page.wait_for_url(re.compile("step=0"))
    # Before the first step both runs are the same model.
    first = [page.locator(".counts").nth(i).inner_text() for i in range(2)]
    assert first[0] == first[1]
    page.keyboard.press("a")
    page.locator(".scene").first.focus()
    page.keyboard.press("n")
    page.wait_for_selector(".detail .slot")
    assert page.locator(".detail .slot path").count() >= 4
    page.keyboard.press("End")
    page.wait_for_url(re.compile("step=2"))
    page.locator(".more summary", has_text="Beliefs").first.click()
    page.wait_for_selector(".more td.num")
    page.keyboard.press("c")
    page.wait_for_selector(".comparison tbody tr")
    assert page.locator(".comparison .verdict").count() > 5
