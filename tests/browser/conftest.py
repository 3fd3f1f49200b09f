"""A headless Chromium for the tests of the page; they are skipped, with the reason, where there is none."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from apiece.report.page import build_report
from made_runs import Made, make_run

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
# As root, without a GPU, and without a word to any host outside.
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """The running browser."""
    path = next((found for found in map(shutil.which, NAMES) if found), None)
    if path is None:
        pytest.skip(f"no Chromium on this machine (looked for {', '.join(NAMES)}): apt-get install chromium")
    driver = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e '.[test]'")
    with driver.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of two runs; the model of the first wrote hostile names."""
    folder = tmp_path_factory.mktemp("browser")
    runs = [
        make_run(folder, Made("a_only", hostile=True, steps=(100, 200, 300))),
        make_run(folder, Made("a_only_anchor", skill=0.95, seed=1, steps=(100, 200, 300, 400))),
    ]
    comparison = {
        **{"a": "a_only", "b": "a_only_anchor", "runs": [{"name": "a_only", "arm": "a_only", "step": 300}]},
        "rows": [
            {
                **{"key": "f1/f1", "label": "F1", "a": 0.3, "b": 0.5, "difference": 0.2, "lo": 0.1, "hi": 0.3},
                **{"verdict": "better", "more_images": None, "higher_is_better": True},
            },
            {
                **{
                    "key": "rates/group",
                    "label": "group",
                    "a": 0.2,
                    "b": 0.1,
                    "difference": -0.1,
                    "lo": -0.3,
                    "hi": 0.1,
                },
                **{"verdict": "can't tell", "more_images": 31, "higher_is_better": False},
            },
        ],
        "changed": [{"id": "000001", "difference": 0.4}, {"id": "000002", "difference": -0.2}],
        **{"remarks": ["one run an arm"], "something_new": {"key": 1}},
    }
    return build_report(runs, folder / "report", comparison=comparison).page


@pytest.fixture
def open_page(chromium: Any) -> Iterator[Any]:
    """Opens a page from disk; at the end of the test nothing may have been written to the console."""
    said: list[str] = []
    with _contexts() as contexts:

        def call(
            page_file: Path, hash_: str = "", *, width: int = 1280, touch: bool = False, dark: bool = False
        ) -> Any:
            context = chromium.new_context(
                viewport={"width": width, "height": 844}, has_touch=touch, color_scheme="dark" if dark else "light"
            )
            contexts.append(context)
            page = context.new_page()
            page.set_default_timeout(30_000)  # a busy machine is slow, not wrong
            page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
            page.on("pageerror", lambda error: said.append(f"error: {error}"))
            page.on(
                "request", lambda r: None if r.url.startswith(("file:", "data:")) else said.append(f"asked {r.url}")
            )
            page.goto(page_file.as_uri() + hash_)
            page.wait_for_selector("main > :not(.empty)")
            return page

        yield call
    if sys.exc_info()[0] is None:
        assert said == []


@contextmanager
def _contexts() -> Iterator[list[Any]]:
    contexts: list[Any] = []
    try:
        yield contexts
    finally:
        for context in contexts:
            context.close()
