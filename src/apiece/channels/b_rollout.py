"""Channel-B: the model answers, and is taught on its own answer: what matched, what it missed, and when to end.

Answers are written with the weights of their own step, by the engine and settings of evaluation. Then one
teacher-forced pass over the targets (`rollout/targets.py`) gives the losses.

Shapes: B samples, T answer tokens, R redundant boxes, D width, V vocabulary.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from apiece.channels.answer import CoordRows, answer_terms
from apiece.data.collate import Batch, Samples, collate_targets
from apiece.losses.compose import Objective, refusal, teacher_forced_weights
from apiece.model.load import TextSide
from apiece.model.prefix import allow_shared_prefix, first_pass
from apiece.rollout.generate import Engine
from apiece.rollout.targets import JudgedAnswer, Target, TargetBuilder, tally
from apiece.types import LossTerm, Per


@dataclass(frozen=True, slots=True)
class Prepared:
    """A step's micro-batches, ready to be counted and run."""

    batches: tuple[Batch, ...]
    # what the model wrote (`apiece.rollout.targets.tally`); empty in a step of Channel-A
    tally: Mapping[str, float] = field(default_factory=dict)


class RolloutChannel(nn.Module):
    """The whole step as one module's `forward`, after `prepare` has let the model answer."""

    def __init__(
        self,
        model: Any,
        objective: Objective,
        builder: TargetBuilder,
        engine_at: Callable[[int], AbstractContextManager[Engine]],
        side: TextSide,
        redundancy_weight: float = 0.0,
    ) -> None:
        """Set up the channel.

        Args:
            model: The one that is trained, not wrapped.
            objective: The weighted terms.
            builder: Makes targets from answers.
            engine_at: The engine that writes the answers of an optimizer step, with this model's weights in evaluation
                mode; on every process.
            side: The model's tokenizer.
            redundancy_weight: Of the charge on duplicate and group boxes.
        """
        super().__init__()
        self.model = model
        self.objective = objective
        self.builder = builder
        self.engine_at = engine_at
        self.side = side
        self.redundancy_weight = redundancy_weight
        allow_shared_prefix(model)

    def prepare(self, step: int, micro: Sequence[Samples]) -> Prepared:
        """Let the model answer all samples of a step at once, and collate them with the targets made from its answers.

        Optimizer steps count from 0, and draws depend only on the step. `micro` are this process's micro-batches.
        """
        samples = [sample for part in micro for sample in part]
        start = time.perf_counter()
        with self.engine_at(step) as engine:
            rollouts = engine.generate([replace(sample, answer=None) for sample in samples])
        seconds = time.perf_counter() - start
        judged: list[JudgedAnswer] = []
        for sample, rollout in zip(samples, rollouts, strict=True):
            assert sample.shown is not None, "training samples come with their labels"
            judged.append(self.builder.build(rollout, sample.shown, len(sample.prefix_ids)))
        targets = iter(one.target for one in judged)
        batches = tuple(self._collated(part, list(itertools.islice(targets, len(part)))) for part in micro)
        return Prepared(batches, tally(judged, seconds))

    def _collated(self, samples: Samples, targets: Sequence[Target]) -> Batch:
        return collate_targets(
            samples,
            [t.answer for t in targets],
            [t.supervised for t in targets],
            [t.committing for t in targets],
            self.side.tokenizer.pad_token_id,
            self.side.image_token_id,
        )

    def forward(self, batch: Batch) -> list[LossTerm]:
        """Loss terms of one batch of targets, as sums; named `b/...`."""
        hidden_BTD = first_pass(self.model, batch).hidden_BTD
        rows = CoordRows.of(self.model, self.objective.first_id, self.objective.num_bins)
        weights = teacher_forced_weights(self.objective.config)
        target_S = batch.slots.target_bin
        terms = answer_terms(self.model, self.objective, "b", weights, hidden_BTD, batch, rows, target_S)
        return [*terms, self._redundancy(hidden_BTD, batch)]

    def _redundancy(self, hidden_BTD: Tensor, batch: Batch) -> LossTerm:
        """The cost of starting boxes that are wrong no matter what is labelled, per labelled object.

        A mean over such boxes alone would push as hard on the last one as on a hundred.
        """
        weight, redundant = self.redundancy_weight, batch.redundant
        assert redundant is not None, "the batch was prepared by this channel"
        with torch.set_grad_enabled(torch.is_grad_enabled() and weight > 0):
            logits_RV = self.model.lm_head(hidden_BTD[redundant.sample, redundant.position])
            with torch.autocast(logits_RV.device.type, enabled=False):
                cost = refusal(logits_RV, batch.answer_ids[redundant.sample, redundant.position]).sum()
        return LossTerm("b/redundancy", weight, cost, Per.OBJECTS)


@contextmanager
def answering(model: nn.Module) -> Iterator[None]:
    """Evaluation mode while the block runs, then the earlier mode."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
