"""Training is tested on a model of two narrow layers: what is tested is the loop, and its steps take milliseconds."""

from __future__ import annotations

from pathlib import Path

import pytest
from mini import write_mini


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In place of the fixture of all tests: a smaller one. Read only."""
    return write_mini(tmp_path_factory.mktemp("mini") / "mini")
