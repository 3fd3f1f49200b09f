"""The channels of a run: which there are, and how Channel-B's answers are written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from apiece.channels.a_soft_context import SoftContext
from apiece.channels.b_rollout import RolloutChannel, answering
from apiece.channels.base import TwoChannels
from apiece.config.schema import Config
from apiece.losses.compose import Objective
from apiece.model.encode import SampleEncoder
from apiece.rollout.generate import Engine, LocalEngine
from apiece.rollout.targets import TargetBuilder
from apiece.train.distributed import World
from apiece.train.sharding import whole_model


def build_channels(
    model: Any, objective: Objective, encoder: SampleEncoder, config: Config, world: World
) -> TwoChannels:
    """Both channels of a run; Channel-B only where the config has steps for it."""
    settings, side = config.stage2_ab, encoder.side
    a = SoftContext(model, objective, settings)
    if not settings.b_ratio:
        return TwoChannels(model, a)

    @contextmanager
    def engine_at(step: int) -> Iterator[Engine]:
        with whole_model(model, config.model, world, everywhere=True) as whole:
            assert whole is not None, "every process answers its own samples"
            with answering(whole):
                yield LocalEngine(whole, side, config.generate, rollout_seed(config.seed, step))

    b = RolloutChannel(
        model,
        objective,
        TargetBuilder(side.renderer, config.data.max_objects, encoder.max_length),
        engine_at,
        side.tokenizer.pad_token_id,
        settings.b_redundancy_weight,
    )
    return TwoChannels(model, a, b, settings.b_ratio)


def rollout_seed(seed: int, step: int) -> int:
    """The engine's seed at an optimizer step: with it, a drawn answer is a function of (seed, step, sample)."""
    return int(np.random.SeedSequence([seed, 0xB, step]).generate_state(1)[0])
