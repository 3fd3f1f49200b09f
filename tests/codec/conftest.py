"""The renderer of both tokenizers: the embedded one and the real one of Qwen3."""

from __future__ import annotations

from typing import Any

import pytest

from apiece.codec import CoordVocab, Renderer


@pytest.fixture(scope="session")
def qwen3_renderer(qwen3_tokenizer: Any) -> Renderer:
    return Renderer(qwen3_tokenizer, CoordVocab.of(qwen3_tokenizer))


@pytest.fixture(scope="session", params=["tiny", pytest.param("qwen3", marks=pytest.mark.real_data)])
def renderer(request: pytest.FixtureRequest) -> Renderer:
    if request.param == "tiny":
        side: Any = request.getfixturevalue("tiny_side")
        return Renderer(side.tokenizer, side.vocab)
    return request.getfixturevalue("qwen3_renderer")
