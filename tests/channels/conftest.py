"""The small models of the channel tests; read only."""

from __future__ import annotations

from typing import Any

import pytest
from small import small_model


@pytest.fixture(scope="session")
def small(tiny_side: Any) -> Any:
    """Two layers, tied embedding and head, as in the 2B model."""
    return small_model(tiny_side)


@pytest.fixture(scope="session")
def recomputing(tiny_side: Any) -> Any:
    """The same weights with gradient checkpointing."""
    model = small_model(tiny_side).train()
    model.activation_checkpointing_enable({"use_reentrant": False})
    return model
