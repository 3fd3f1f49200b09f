"""Arithmetic of one micro-batch of training, forward and backward, by part.

A product costs as much again for the gradient of its input, and again for that of its weights: each only where it is
needed. Attention has no weights: its backward pass is counted as twice the forward pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from apiece.config.lora import Part
from apiece.planning.flops import ForwardFlops
from apiece.planning.shapes import ModelShape
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
    tower, trained = recipe.learns(Part.VISION), recipe.trained[Part.VISION]
    patches, blocks, mergers = (f(work.grids) for f in (count.patches, count.blocks, count.mergers))
    v, (products, merger_products) = count.shape.vision, _adapters(count, work, recipe)
    own = 2.0 * work.patches * v.depth * v.block_matrices
    backward = patches * trained + tower * (2 * blocks - own * (not trained)) + 2 * products
    # Gradients reach a merger's first product for the norm before it, its second one for what lies before that.
    merger = recipe.trained[Part.MERGER]
    second = 2.0 * work.patches / v.merge**2 * v.mergers * v.merged * v.out
    backward += mergers * merger + (mergers - second) * (merger or tower)
    backward += second * (tower or recipe.learns(Part.MERGER))
    backward += 2 * merger_products
    # Nor do the first adapters need a gradient of their input where nothing before them learns.
    if not tower:
        backward -= 2.0 * work.patches / v.merge**2 * v.mergers * v.merged * recipe.rank * (merger_products > 0)
    elif not trained:
        backward -= 2.0 * work.patches * v.width * (3 * v.width + recipe.rank)
    # Recomputing stops at the last thing that is kept: the input of the block's last product, or of its adapter's.
    last = 2 * work.patches * v.depth * v.width * (v.inner if trained else recipe.rank)
    forward = patches + blocks + mergers + products + merger_products
    return forward, backward, (blocks - last + products) * (tower and recipe.recompute)


def _adapters(count: ForwardFlops, work: Work, recipe: Recipe) -> tuple[float, float]:
    """Forward products of adapters in the tower and in the mergers."""
    sides, tokens = count.shape.linear_sides(), work.patches / count.shape.vision.merge**2
    parts = ((Part.VISION, work.patches), (Part.MERGER, tokens))
    tower, merger = (2.0 * recipe.rank * sides[part] * rows * (part in recipe.adapted) for part, rows in parts)
    return tower, merger


def _language(count: ForwardFlops, work: Work, recipe: Recipe) -> tuple[float, float, float]:
    trained, below = recipe.trained[Part.LANGUAGE], recipe.input_gradients
    adapted = Part.LANGUAGE in recipe.adapted
    learnt, t = trained or adapted or below, count.shape.language
    with_gradients = recipe.passes - 1 if recipe.unroll else min(recipe.passes - 1, 1)
    forward = backward = again = 0.0
    for tokens, before, times, learning in (
        (work.length, 0, 1, 1),
        (work.again, work.length - work.again, recipe.passes - 1, with_gradients),
    ):
        products, attention = (work.samples * one for one in (count.layers(tokens), count.attention(tokens, before)))
        sides = count.shape.linear_sides()[Part.LANGUAGE]
        beside = 2.0 * recipe.rank * sides * work.samples * tokens * adapted
        forward += times * (products + attention + beside)
        backward += learning * learnt * (products * (1 + trained) + 2 * attention + 2 * beside)
        last = 2 * work.samples * tokens * t.layers * t.width * (recipe.rank if adapted else t.inner)
        again += learning * learnt * recipe.recompute * (products + attention + beside - last)
    if not below and not trained:
        # Nothing below the first layer's products learns, not even its norm: they need no gradient of their input.
        outputs = t.query_width + 2 * t.key_width + 3 * recipe.rank * adapted
        backward -= learnt * 2 * work.samples * work.length * t.width * outputs
    return forward, backward, again


def _head(count: ForwardFlops, work: Work, recipe: Recipe) -> tuple[float, float, float]:
    """Logits of the rows that a loss reads, and the context embeddings between passes."""
    learnt = recipe.input_gradients or recipe.learns(Part.LANGUAGE)
    table, rows = recipe.trained[Part.COORD] + learnt, (recipe.trained[Part.COORD] or recipe.rows) + learnt
    slots = count.coordinates(work.slots)
    read = float(work.text_rows + work.slots * recipe.gate)
    narrow = 0.0 if recipe.gate else slots
    between = 0.0
    if recipe.passes > 1:
        read += work.text_rows - work.name_rows
        between = (recipe.passes - 1) * slots * (1 + recipe.soft)
    anchors = slots * (recipe.passes > 1)
    # Beside adapters, logits of the coordinate tokens are made once more, from rows of their own.
    again = count.coordinates(read) * (recipe.rank > 0)
    forward = count.head(read) + again + narrow + anchors + between
    backward = table * count.head(read)
    backward += rows * (again + narrow + anchors * recipe.anchored + between * recipe.unroll)
    return forward, backward, 0.0
