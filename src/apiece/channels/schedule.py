"""Which channel an optimizer step belongs to, and both channels as one module."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, cast

from torch import nn

from apiece.channels.a_soft_context import SoftContext
from apiece.channels.b_rollout import Prepared, RolloutChannel
from apiece.data.collate import Batch, Samples
from apiece.types import ChannelName, LossTerm


def is_b_step(step: int, ratio: float) -> bool:
    """Whether optimizer step `step`, from 0, is Channel-B's: of the first n steps, floor(n x ratio) are.

    The ratio is read as a decimal: 100 steps at 0.29 have 29, though the float 0.29 x 100 is below that.
    """
    share = Fraction(repr(ratio))
    return math.floor((step + 1) * share) > math.floor(step * share)


class TwoChannels(nn.Module):
    """Both channels of one model, as one module: distributed wrappers see every parameter once.

    A step is never mixed: all of its micro-batches, on every process, belong to one channel.
    """

    def __init__(self, model: Any, a: SoftContext, b: RolloutChannel | None = None, b_ratio: float = 0.0) -> None:
        super().__init__()
        assert b is not None or b_ratio == 0, "a step of Channel-B needs one"
        self.model = model
        self.a, self.b, self.b_ratio = a, b, b_ratio

    def channel_of(self, step: int) -> ChannelName:
        return ChannelName.B if self.b is not None and is_b_step(step, self.b_ratio) else ChannelName.A

    def prepare(self, step: int, micro: Sequence[Batch | Samples]) -> Prepared:
        """Fix the targets of a step before anything is counted; no gradients, no updates.

        `micro` are this process's micro-batches: collated with their labels in a step of Channel-A, else not yet.
        """
        if self.channel_of(step) is ChannelName.A:
            return Prepared(tuple(cast("Sequence[Batch]", micro)))  # the labels are the targets
        assert self.b is not None, "only a model with Channel-B has such steps"
        return self.b.prepare(step, cast("Sequence[Samples]", micro))

    def forward(self, batch: Batch) -> list[LossTerm]:
        """Loss terms of the channel that prepared the batch, as sums."""
        channel = self.a if batch.channel is ChannelName.A else self.b
        assert channel is not None, "only Channel-B makes such batches"
        terms: list[LossTerm] = channel(batch)
        return terms
