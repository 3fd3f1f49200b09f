"""Names of runs, settings and files that would be markup are text in the browser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from apiece.report.page import build_report
from made_runs import Made, hostile_run, make_run

pytestmark = pytest.mark.browser


def test_names_of_runs_settings_and_files_are_text(open_page: Any, tmp_path: Path) -> None:
    runs = [hostile_run(tmp_path), make_run(tmp_path / "other", Made("b", samples=2, steps=(100, 200)))]
    page_file = build_report(runs, tmp_path / "report").page
    shown = ""
    for view in ("#/overview", "#/panel", "#/compare"):
        page = open_page(page_file, view)
        assert page.locator("img").count() == 0
        assert "<img src=x onerror=" in page.title()
        shown += page.locator("body").inner_text()
    assert "<img src=x onerror=" in shown
