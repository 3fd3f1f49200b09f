"""Fixtures of the guards."""

from __future__ import annotations

from pathlib import Path

import pytest
from guarding import CommandLine


@pytest.fixture
def apiece(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    """The command line in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return CommandLine(tmp_path, capsys, monkeypatch)
