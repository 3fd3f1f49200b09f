"""Write docs/dev/code.md: every file of the package with the first line of its docstring. `make docs` runs it."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "dev" / "code.md"
HEAD = """# Where is what?

<!-- Written by `make docs` from the modules' docstrings: edit those, not this file. -->

Which file does what: each with the first line of its docstring. Imports go down the layers that
`tests/test_architecture.py` lists. Where to start reading: the README has seven files in order.
"""


def first_line(file: Path) -> str:
    """Of a module's docstring, in one line."""
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return " ".join(text.split("\n\n")[0].split())


def folder_lines(folder: Path) -> list[str]:
    """A section for one folder with Python files."""
    files = sorted(f for f in folder.glob("*.py") if f.name not in ("__init__.py", "__main__.py"))
    if not files:
        return []
    init = folder / "__init__.py"
    about = first_line(init) if init.exists() else ""
    rows = [f"| `{file.name}` | {first_line(file).replace('|', chr(92) + '|')} |" for file in files]
    return [f"## {folder.relative_to(ROOT / 'src')}/", "", about, "", "| file | what it does |", "|---|---|", *rows, ""]


def page() -> str:
    """The whole page."""
    folders = sorted({f.parent for f in (ROOT / "src").rglob("*.py")}, key=lambda f: (len(f.parts) > 0, f))
    return HEAD + "\n" + "\n".join(line for folder in folders for line in folder_lines(folder))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
