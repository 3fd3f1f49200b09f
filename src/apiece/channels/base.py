"""What the training step knows of a channel, and which of the two an optimizer step belongs to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Protocol

from torch import nn

from apiece.data.collate import Batch
from apiece.types import LossTerm


@dataclass(frozen=True, slots=True)
class Prepared:
    """A step's micro-batches, ready to be counted and run.

    Attributes:
        batches: With the targets of this step.
        tally: Counts of what the model wrote (`apiece.rollout.tally`); empty where it wrote nothing.
    """

    batches: tuple[Batch, ...]
    tally: Mapping[str, float] = field(default_factory=dict)


class Channel(Protocol):
    """How one optimizer step turns samples into loss terms."""

    def prepare(self, step: int, batches: Sequence[Batch]) -> Prepared:
        """Fix the targets of a step before anything is counted; no gradients, no updates.

        Args:
            step: Optimizer step, from 0; random choices are a function of it.
            batches: This process's micro-batches with their labels.
        """

    def __call__(self, batch: Batch) -> list[LossTerm]:
        """Loss terms of one prepared micro-batch, as sums."""


def is_b_step(step: int, ratio: float) -> bool:
    """Whether optimizer step `step`, from 0, is Channel-B's: of the first n steps, floor(n x ratio) are.

    The ratio is taken as it is written: 100 steps at 0.29 have 29, though the float 0.29 x 100 is below that.
    """
    share = Fraction(repr(ratio))
    return math.floor((step + 1) * share) > math.floor(step * share)


class TwoChannels(nn.Module):
    """Both channels of one model, as one module: distributed wrappers see every parameter once.

    A step is never mixed: all of its micro-batches, on every process, belong to one channel.
    """

    def __init__(self, model: Any, a: Channel, b: Channel | None = None, b_ratio: float = 0.0) -> None:
        super().__init__()
        assert b is not None or b_ratio == 0, "a step of Channel-B needs one"
        self.model = model
        self.a, self.b, self.b_ratio = a, b, b_ratio

    def letter(self, step: int) -> str:
        """`a` or `b`: the channel whose optimizer step, from 0, it is."""
        return "b" if self.b is not None and is_b_step(step, self.b_ratio) else "a"

    def prepare(self, step: int, batches: Sequence[Batch]) -> Prepared:
        """As the channel does whose step it is."""
        channel = self.b if self.b is not None and self.letter(step) == "b" else self.a
        return channel.prepare(step, batches)

    def forward(self, batch: Batch) -> list[LossTerm]:
        """Loss terms of the channel that the batch was prepared by."""
        if batch.redundant is None:
            return self.a(batch)
        assert self.b is not None, "only Channel-B makes such batches"
        return self.b(batch)
