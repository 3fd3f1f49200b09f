"""Memory of one GPU in a run: what is always there, and the highest point of each kind of step.

Sizes are in bytes. Several processes either hold everything each (`ddp`) or share weights, gradients and optimizer
state (`fsdp`), as `train/sharding.py` does it: a layer is whole while it runs, and what lies outside the layers for as
long as the step.
"""

from __future__ import annotations

from dataclasses import dataclass

from apiece.config.lora import Part
from apiece.planning.memory import WEIGHT, Peak, peak_of, timeline
from apiece.planning.shapes import ModelShape
from apiece.planning.work import Recipe, Work

GROWTH = 1.5
"""Keys and values of answers are kept in tables that grow by half when they are full."""
FED, LOGIT_COPIES = 4, 3
"""Tokens that a row is fed at once while answers are written, at most, and tables of their logits at that moment."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """The highest point of a kind of step.

    Attributes:
        weights: All of them, or this GPU's share.
        optimizer: Moments.
        gradients: At that point.
        activations: Layers' tensors, inputs, keys and values of answers.
        logits: Logits and what losses make of them.
        exchange: Buckets of gradients, gathered layers, a gathered model, working memory of the update.
        where: Which part of the step it is.
    """

    weights: float
    optimizer: float
    gradients: float
    activations: float
    logits: float
    exchange: float
    where: str

    @property
    def total(self) -> float:
        """All of it."""
        return self.weights + self.optimizer + self.gradients + self.activations + self.logits + self.exchange

    def parts(self) -> dict[str, float]:
        """By name."""
        names = ("weights", "optimizer", "gradients", "activations", "logits", "exchange")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, slots=True)
class Resident:
    """What a GPU holds through the whole run.

    Attributes:
        weights: Bytes.
        optimizer: Bytes.
        learnt: Bytes of all gradients at rest.
        exchange: Bytes of DDP's buckets.
        share: Which part of what is shared is this GPU's.
    """

    weights: float
    optimizer: float
    learnt: float
    exchange: float
    share: float

    @classmethod
    def of(cls, shape: ModelShape, recipe: Recipe, processes: int) -> Resident:
        """Of a model and a recipe on one of several processes."""
        share = 1 / processes if recipe.shared else 1.0
        parameters, learnt = sum(recipe.held(shape).values()), sum(recipe.learnt(shape).values())
        moments = 2 * learnt - (recipe.muon_matrices(shape) if recipe.muon else 0)
        return cls(
            weights=WEIGHT * parameters * share,
            optimizer=WEIGHT * moments * share,
            learnt=WEIGHT * learnt * share,
            # DDP copies gradients into buckets of its own, which it keeps.
            exchange=WEIGHT * learnt if processes > 1 and not recipe.shared else 0.0,
            share=share,
        )

    def with_peak(self, peak: Peak, exchange: float, where: str) -> Footprint:
        """The footprint at a peak."""
        return Footprint(
            self.weights, self.optimizer, peak.gradients, peak.activations, peak.logits, self.exchange + exchange, where
        )


def training_footprint(
    shape: ModelShape, work: Work, recipe: Recipe, processes: int, *, accumulates: bool
) -> Footprint:
    """The highest point of forward and backward pass and of the update.

    Args:
        shape: Of the model.
        work: The heaviest micro-batch.
        recipe: What is done with it.
        processes: GPUs, one process each.
        accumulates: Whether a step has several micro-batches on a GPU.
    """
    rest = Resident.of(shape, recipe, processes)
    peak = peak_of(timeline(shape, work, recipe), gradients=rest.learnt if accumulates else 0.0)
    passes = rest.with_peak(peak, _gathered(shape, recipe), peak.where)
    return max(passes, _update(shape, recipe, rest), key=lambda one: one.total)


def _update(shape: ModelShape, recipe: Recipe, rest: Resident) -> Footprint:
    """The optimizer's step: on a GPU it takes the root of all second moments at once, elsewhere one by one."""
    if recipe.cuda:
        working = rest.learnt - (WEIGHT * recipe.muon_matrices(shape) * rest.share if recipe.muon else 0.0)
    else:
        table = shape.language.table if recipe.trained[Part.COORD] else shape.language.layer_matrices // 8
        working = 2.0 * WEIGHT * table
    return rest.with_peak(Peak(0.0, 0.0, rest.learnt, "update"), working, "update")


def _gathered(shape: ModelShape, recipe: Recipe) -> float:
    """What is whole beyond this GPU's share, under FSDP: two layers (one runs, the next is fetched) and the rest."""
    if not recipe.shared:
        return 0.0
    e, t, parts = recipe.compute_bytes, shape.language, shape.parameters()
    layer = t.layer_matrices
    inside = t.layers * layer + shape.vision.depth * shape.vision.block_matrices
    outside = sum(parts.values()) - inside
    # Gradients of a layer: whole as computed, then in float32 on their way to the others.
    on_the_way = layer * (e + WEIGHT) if recipe.trained[Part.LANGUAGE] else 0
    return 2.0 * layer * e + on_the_way + WEIGHT * outside


def rollout_footprint(
    shape: ModelShape, work: Work, recipe: Recipe, processes: int, rows: int, new_tokens: int
) -> Footprint:
    """While Channel-B's answers are written: float32, no gradients; a shared model is gathered whole on every GPU.

    Args:
        shape: Of the model.
        work: The heaviest micro-batch; its longest prefix is taken for every row.
        recipe: Of the run.
        processes: GPUs.
        rows: Answers written at once.
        new_tokens: Of the longest answer.
    """
    rest, t = Resident.of(shape, recipe, processes), shape.language
    copy = WEIGHT * float(sum(shape.parameters().values())) if recipe.shared else 0.0
    columns = GROWTH * (work.prefix + new_tokens)
    kept = 2.0 * 4 * rows * columns * t.key_width * t.layers
    reading = _reading(shape, work, recipe, rows)
    logits = LOGIT_COPIES * 4.0 * rows * FED * t.vocabulary
    peak = Peak(kept + reading, logits, 0.0, "rollout")
    return rest.with_peak(peak, copy, "rollout")


def _reading(shape: ModelShape, work: Work, recipe: Recipe, rows: int) -> float:
    """Working memory of reading images and prompts of `rows` answers at once: one block or layer at a time."""
    v, t = shape.vision, shape.language
    patches = rows * max(t_ * h * w for t_, h, w in work.grids)
    tower = 4.0 * patches * (v.patch_values + 6 * v.width + 2 * v.inner)
    layer = 4.0 * rows * work.prefix * (4 * t.width + 3 * t.query_width + 2 * t.inner)
    return max(tower, layer)
