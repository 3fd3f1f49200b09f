"""Fixtures that all tests share."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# No deadlines: on a busy machine they fail for no reason of ours.
settings.register_profile("apiece", deadline=None)
settings.load_profile("apiece")

SECONDS_TO_END = 60


def pytest_unconfigure(config: pytest.Config) -> None:
    """See to it that the process ends: whatever still runs a minute after the last test is shown, and left behind."""
    status = int(getattr(config, "apiece_status", 1))

    def end() -> None:
        faulthandler.dump_traceback(file=sys.__stderr__, all_threads=True)
        os._exit(status)

    timer = threading.Timer(SECONDS_TO_END, end)
    timer.daemon = True
    timer.start()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    session.config.apiece_status = exitstatus  # type: ignore[attr-defined]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the repository; tests that ask for it carry the mark `real_data`."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}")
    return folder


# The model side is imported inside the fixtures: tests that need neither torch nor transformers start fast.


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A freshly built tiny checkpoint with random weights. Read only."""
    from apiece.model.tiny import build_tiny

    folder = tmp_path_factory.mktemp("tiny") / "checkpoint"
    build_tiny(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_side(tiny_checkpoint: Path) -> Any:
    """Its tokenizer, images and renderer."""
    from apiece.model.load import load_text_side

    return load_text_side(str(tiny_checkpoint))


@pytest.fixture(scope="session")
def tiny_model(tiny_checkpoint: Path) -> Any:
    """Its weights, in float32 and evaluation mode. A test that changes them works on a copy."""
    from apiece.model.load import load_model

    return load_model(str(tiny_checkpoint), attention="sdpa")


@pytest.fixture(scope="session")
def qwen3_tokenizer(shared_data: Path) -> Any:
    """The real Qwen3 tokenizer with the coordinate tokens added."""
    from tokenizers import AddedToken
    from transformers import AutoTokenizer

    from apiece.codec import NUM_BINS, coord_token

    tokenizer = AutoTokenizer.from_pretrained(shared_data / "qwen3-tokenizer")
    coords = [AddedToken(coord_token(k), special=True, normalized=False) for k in range(NUM_BINS)]
    tokenizer.add_tokens(coords, special_tokens=True)
    return tokenizer


@pytest.fixture(scope="session")
def narrow_checkpoint(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model in the shape of a published Qwen3-VL, extended by coordinate tokens. Read only."""
    from apiece.model.extend import extend_checkpoint
    from narrow import without_coords, write_narrow

    folder = tmp_path_factory.mktemp("narrow")
    tokenizer = without_coords(tiny_checkpoint, folder)
    write_narrow(tokenizer, len(tokenizer), False, folder / "source")
    extend_checkpoint(str(folder / "source"), folder / "checkpoint")
    return folder / "checkpoint"


@pytest.fixture(scope="session", params=["tiny", "narrow"])
def model_and_side(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """Model and text side of both: the embedded shape, and that of published checkpoints."""
    from apiece.model.load import load_model, load_text_side

    if request.param == "tiny":
        return request.getfixturevalue("tiny_model"), request.getfixturevalue("tiny_side")
    checkpoint = str(request.getfixturevalue("narrow_checkpoint"))
    return load_model(checkpoint, attention="sdpa"), load_text_side(checkpoint)
