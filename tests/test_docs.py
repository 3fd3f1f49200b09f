"""The documents: links lead somewhere, the map of the code is true, the README is short and its commands exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
LONGEST_README = 120


def test_links_lead_somewhere() -> None:
    broken = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in PAGES
        for target in re.findall(r'(?:\]\(|src=")(?!https?:|#)([^)"#]+)', page.read_text(encoding="utf-8"))
        if not (page.parent / target).exists()
    ]
    assert not broken


def test_the_map_of_the_code_is_true() -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'tools')!r}); import code_map; sys.stdout.write(code_map.page())"
    )
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert (ROOT / "docs" / "dev" / "code.md").read_text(encoding="utf-8") == made, "run `make docs`"


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= LONGEST_README


def test_every_page_opens_with_a_question() -> None:
    """In its first paragraph; a generated reference says what it lists."""
    without = [
        str(page.relative_to(ROOT))
        for page in PAGES[2:]
        if "?" not in "\n".join(page.read_text(encoding="utf-8").splitlines()[:9])
    ]
    assert not without


def test_commands_in_the_readme_exist() -> None:
    from typer.main import get_command

    from apiece.cli import app, commands  # noqa: F401  importing the commands registers them

    known = set(get_command(app).commands)  # type: ignore[attr-defined]
    named = set(re.findall(r"`?apiece ([a-z]+)", (ROOT / "README.md").read_text(encoding="utf-8")))
    assert {"train", "evaluate", "report"} <= named
    assert named - known - {"is"} == set()
