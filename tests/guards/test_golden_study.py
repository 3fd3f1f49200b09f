"""`apiece ladder --summary` on the study's results and `apiece compare` on small ones: byte for byte.

The whole of the study takes minutes: it is held where APIECE_WHOLE_STUDY=1 asks for it.
"""

from __future__ import annotations

import json
import os
import tarfile

import pytest
from guarding import GOLDEN, HERE, REPOSITORY, CommandLine, holds_text

STUDY = REPOSITORY / "docs" / "study"
COMPARED = {
    "evaluations": ("eval_a", "eval_b"),
    "seeds": ("--arm", "base=base_s0,base_s1", "--arm", "other=other_s0,other_s1"),
}
WHOLE = {
    "seed_section_5": ("--summary", STUDY / "seed_section_5"),
    "side_by_side": ("--summary", STUDY / "labels_u60", "--summary", STUDY / "labels_u40_g05"),
}


@pytest.mark.parametrize("name", COMPARED)
def test_compare(apiece: CommandLine, name: str) -> None:
    with tarfile.open(HERE / "compared.tar.xz") as archive:  # evaluations and runs of rows of books, made by hand
        archive.extractall(filter="data")
    said = apiece("compare", *COMPARED[name], "--draws", "200", "--json", "comparison.json")
    holds_text(GOLDEN / "compare" / f"{name}.txt", said)
    holds_text(GOLDEN / "compare" / f"{name}.json", (apiece.folder / "comparison.json").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_tables_of_a_ladder(apiece: CommandLine) -> None:
    results = STUDY / "bccd"
    apiece("ladder", "--summary", results, "--out", "tables.md", "--json", "tables.json")
    tables, figures = ((apiece.folder / name).read_text(encoding="utf-8") for name in ("tables.md", "tables.json"))
    holds_text(GOLDEN / "study" / "bccd.md.xz", tables)
    # The order of the file's keys has been that of a set, another one in every process.
    holds_text(GOLDEN / "study" / "bccd.json.xz", json.dumps(json.loads(figures), indent=1, sort_keys=True))


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("APIECE_WHOLE_STUDY"), reason="minutes; APIECE_WHOLE_STUDY=1 runs it")
@pytest.mark.parametrize("name", WHOLE)
def test_tables_of_the_whole_study(apiece: CommandLine, name: str) -> None:
    apiece("ladder", *WHOLE[name], "--out", "tables.md")
    holds_text(GOLDEN / "study" / f"{name}.md.xz", (apiece.folder / "tables.md").read_text(encoding="utf-8"))
