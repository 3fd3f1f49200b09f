"""Arithmetic of one micro-batch of training, forward and backward, by part.

A product costs as much again for the gradient of its input, and again for that of its weights: each only where it is
needed. Attention has no weights: its backward pass is counted as twice the forward pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from apiece.planning.flops import ForwardFlops
from apiece.planning.shapes import ModelPart, ModelShape
from apiece.planning.work import Recipe, Work


@dataclass(frozen=True, slots=True)
class StepFlops:
    """FLOPs by part: `vision`, `language`, `head`.

    Attributes:
        forward: Of the forward pass.
        backward: Of the backward pass.
        again: Of what is computed a second time, under gradient checkpointing.
    """

    forward: Mapping[str, float]
    backward: Mapping[str, float]
    again: Mapping[str, float]

    @property
    def total(self) -> float:
        """All of it."""
        return sum(sum(part.values()) for part in (self.forward, self.backward, self.again))


def step_flops(shape: ModelShape, work: Work, recipe: Recipe, *, causal: bool = True) -> StepFlops:
    """FLOPs of one micro-batch; padding is computed, so it counts.

    Args:
        shape: Of the model.
        work: The micro-batch.
        recipe: What is done with it.
        causal: Whether attention leaves out pairs that causality masks, see `ForwardFlops`.
    """
    count = ForwardFlops(shape, causal)
    vision, language, head = _vision(count, work, recipe), _language(count, work, recipe), _head(count, work, recipe)
    rows = {"vision": vision, "language": language, "head": head}
    forward, backward, again = ({name: row[i] for name, row in rows.items()} for i in range(3))
    return StepFlops(forward, backward, again)


def _vision(count: ForwardFlops, work: Work, recipe: Recipe) -> tuple[float, float, float]:
    tower, trained = recipe.learns(ModelPart.VISION), recipe.trained[ModelPart.VISION]
    patches, blocks, mergers = (f(work.grids) for f in (count.patches, count.blocks, count.mergers))
    v, (products, merger_products) = count.shape.vision, _adapters(count, work, recipe)
    own = 2.0 * work.patches * v.depth * v.block_matrices
    backward = patches * trained + tower * (2 * blocks - own * (not trained)) + 2 * products
    # Gradients reach a merger's first product for the norm before it, its second one for what lies before that.
    merger = recipe.trained[ModelPart.MERGER]
    second = 2.0 * work.patches / v.merge**2 * v.mergers * v.merged * v.out
    backward += mergers * merger + (mergers - second) * (merger or tower)
    backward += second * (tower or recipe.learns(ModelPart.MERGER))
    backward += 2 * merger_products
    # Recomputing stops at the last thing that is kept: the input of the block's last product.
    last = 2 * work.patches * v.depth * v.width * v.inner
    forward = patches + blocks + mergers + products + merger_products
    return forward, backward, (blocks - last + products) * (tower and recipe.recompute)


def _adapters(count: ForwardFlops, work: Work, recipe: Recipe) -> tuple[float, float]:
    """Forward products of adapters in the tower and in the mergers."""
    sides, tokens = count.shape.linear_sides(), work.patches / count.shape.vision.merge**2
    parts = ((ModelPart.VISION, work.patches), (ModelPart.MERGER, tokens))
    tower, merger = (2.0 * recipe.rank * sides[part] * rows * (part in recipe.adapted) for part, rows in parts)
    return tower, merger


def _language(count: ForwardFlops, work: Work, recipe: Recipe) -> tuple[float, float, float]:
    trained, below = recipe.trained[ModelPart.LANGUAGE], recipe.input_gradients
    adapted = ModelPart.LANGUAGE in recipe.adapted
    learnt, t = trained or adapted or below, count.shape.language
    with_gradients = recipe.passes - 1 if recipe.unroll else min(recipe.passes - 1, 1)
    forward = backward = again = 0.0
    for tokens, before, times, learning in (
        (work.length, 0, 1, 1),
        (work.again, work.length - work.again, recipe.passes - 1, with_gradients),
    ):
        products, attention = (work.samples * one for one in (count.layers(tokens), count.attention(tokens, before)))
        sides = count.shape.linear_sides()[ModelPart.LANGUAGE]
        beside = 2.0 * recipe.rank * sides * work.samples * tokens * adapted
        forward += times * (products + attention + beside)
        backward += learning * learnt * (products * (1 + trained) + 2 * attention + 2 * beside)
        last = 2 * work.samples * tokens * t.layers * t.width * t.inner
        again += learning * learnt * recipe.recompute * (products + attention + beside - last)
    if not below and not trained:
        # Nothing below the first layer's products learns, not even its norm: they need no gradient of their input.
        backward -= learnt * 2 * work.samples * work.length * t.width * (t.query_width + 2 * t.key_width)
    return forward, backward, again


def _head(count: ForwardFlops, work: Work, recipe: Recipe) -> tuple[float, float, float]:
    """Logits of the rows that a loss reads, and the context embeddings between passes."""
    learnt = recipe.input_gradients or recipe.learns(ModelPart.LANGUAGE)
    each = recipe.trained[ModelPart.TABLE] + learnt
    slots = count.coordinates(work.slots)
    gated = count.head(work.slots) if recipe.gate else slots
    if recipe.passes == 1:
        forward = count.head(work.text_rows) + gated
        return forward, each * forward, 0.0
    full = count.head(work.text_rows) + count.head(work.text_rows - work.name_rows) + gated
    between = (recipe.passes - 1) * slots * (1 + recipe.soft)
    return full + slots + between, each * (full + slots * recipe.anchored + between * recipe.unroll), 0.0
