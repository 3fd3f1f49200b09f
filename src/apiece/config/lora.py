"""The settings of low-rank adapters, and the parts of a model that settings speak of."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from apiece.config.section import Count, Positive, Section


class Part(StrEnum):
    """Parts of the model that are frozen, adapted and given a learning rate on their own."""

    VISION = "vision"
    MERGER = "merger"
    LANGUAGE = "language"
    COORD = "coord"


class LoraSection(Section):
    """Low-rank adapters (extra `lora`): all weights stay as they are but the adapters and the coordinate rows."""

    rank: Count = 0
    """Rank of the adapters; 0: none, and all weights of the parts that are not frozen are trained."""
    alpha: Positive | None = None
    """What an adapter adds is scaled by alpha / rank; none: twice the rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of an adapter's inputs that is dropped in training (seeded by step and process)."""
    dora: bool = False
    """Train the length of every weight's columns as well (DoRA)."""
    targets: tuple[Part, ...] = (Part.MERGER, Part.LANGUAGE)
    """Parts whose linear layers get an adapter: `vision`, `merger`, `language`. Rates: `optim.lr_vision` and so on."""
