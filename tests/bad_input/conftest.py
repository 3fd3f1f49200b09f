"""Fixtures of the bad-input tables."""

from __future__ import annotations

from pathlib import Path

import pytest
from cases import CommandLine


@pytest.fixture
def apiece(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    """The command line in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("APIECE_DEBUG", "")
    monkeypatch.setenv("COLUMNS", "200")
    return CommandLine(tmp_path, capsys, monkeypatch)
