"""Fixtures of the bad-input tables."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from cases import PINNING, CommandLine, Said, write_said


@pytest.fixture
def apiece(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    """The command line in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("APIECE_DEBUG", "")
    monkeypatch.setenv("COLUMNS", "200")
    return CommandLine(tmp_path, capsys, monkeypatch)


@pytest.fixture(scope="session")
def pins() -> Iterator[dict[str, dict[str, Said]]]:
    """What was said, by area and word; pinned at the end where that is asked for."""
    found: dict[str, dict[str, Said]] = defaultdict(dict)
    yield found
    if PINNING:
        for area, said in found.items():
            write_said(area, said)
