"""The README's tree names every module, and nothing that is not there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_the_tree_is_true() -> None:
    tree = (ROOT / "README.md").read_text(encoding="utf-8").split("```\nsrc/apiece/\n")[1].split("\nconfigs/\n")[0]
    named, folder = set(), Path()
    for line in tree.splitlines():
        name = line.split()[0]
        if name.endswith("/"):
            folder = Path(name)
        else:
            named.add((folder if line.startswith("    ") else Path()) / name)
    package = ROOT / "src" / "apiece"
    private = {"__init__.py", "__main__.py"}
    assert named == {p.relative_to(package) for p in package.rglob("*.py") if p.name not in private}


def test_links_lead_somewhere() -> None:
    for document in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r'(?:\]\(|src=")(?!https?:|#)([^)"#]+)', document.read_text(encoding="utf-8")):
            assert (document.parent / target).exists(), f"{document.name}: {target}"
