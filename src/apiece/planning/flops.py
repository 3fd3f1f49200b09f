"""Arithmetic of a training step by count: what runs, how often, and what of it gradients need.

A multiplication and an addition are two FLOPs. Norms, activations and rotations are left out: they are small.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

from apiece.codec.bins import NUM_BINS
from apiece.config.rules import trained_parts
from apiece.config.schema import Config, Part, SoftContextGrad
from apiece.planning.shapes import ModelShape

Grid = tuple[int, int, int]  # patches of an image by time, rows and columns


@dataclass(frozen=True, slots=True)
class Work:
    """One forward pass of training: a micro-batch of B samples."""

    grids: tuple[Grid, ...]  # patches of each image by time, rows and columns
    prefix: int  # P, prefix tokens of a row, padding included
    answer: int  # T, answer tokens of a row, padding included
    text_rows: int  # text tokens with a loss, over all samples
    name_rows: int  # those of class names among them
    slots: int  # S, over all samples
    first_slot: int  # index of the earliest slot in an answer
    padded: bool  # whether some prefix is shorter than P: attention then needs a mask

    @property
    def samples(self) -> int:
        return len(self.grids)

    @property
    def patches(self) -> int:
        return sum(t * h * w for t, h, w in self.grids)

    @property
    def length(self) -> int:
        """Tokens of a row that go through the language model: the last one of an answer predicts nothing."""
        return self.prefix + self.answer - 1

    @property
    def again(self) -> int:
        """Tokens of a row that every later pass computes again: from the first slot on."""
        return max(self.answer - 1 - self.first_slot, 1)

    def longer(self, factor: float) -> Work:
        """The same with answers `factor` times as long."""
        return replace(self, answer=round(factor * self.answer))


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a step does with a micro-batch."""

    passes: int = 1  # of Channel-A; Channel-B's pass over its targets is one
    unroll: bool = True  # gradients flow through the context into earlier passes
    soft: bool = True  # a context is a mean of embeddings, not one of them
    gate: bool = True  # the last pass reads full-vocabulary logits at slots
    text_gate: bool = False  # the mass of text tokens is in the loss
    anchored: bool = False  # A1 of several passes has losses on its slots
    # parts whose weights get gradients
    trained: Mapping[Part, bool] = field(default_factory=lambda: dict.fromkeys(Part, True))
    recompute: bool = False  # gradient checkpointing
    half: bool = True  # bf16 autocast
    flash: bool = False  # FlashAttention: no masks, and keys are never repeated
    cuda: bool = True  # on a GPU, where the update takes the root of all second moments at once
    muon: bool = False  # matrices of layers have one moment instead of two
    shards: int = 1  # processes that share weights, gradients and optimizer state (FSDP); 1: nothing is shared
    rank: int = 0  # of low-rank adapters; 0: none
    adapted: frozenset[Part] = frozenset()  # parts whose linear layers have adapters
    rows: bool = False  # the coordinate rows are trained as well as adapters
    dora: bool = False  # adapters learn the length of every column as well

    @classmethod
    def of(cls, config: Config, *, half: bool, shards: int = 1) -> Self:
        """The recipe of a config; `half`: whether the device computes in bf16 under its `model.precision`."""
        stage2, reg, geo = config.stage2_ab, config.objective.coord_reg, config.objective.bbox_geo
        learning, lora = trained_parts(config), config.model.lora
        anchors = reg.weight * (reg.config.a1_soft_ce_weight + reg.config.a1_w1_weight)
        anchors += geo.weight * (geo.config.a1_smoothl1_weight + geo.config.a1_ciou_weight)
        return cls(
            passes=stage2.n_softctx_iter,
            unroll=stage2.softctx_grad_mode is SoftContextGrad.UNROLL,
            soft=stage2.coord_ctx_embed_mode != "hard",
            gate=reg.weight * reg.config.coord_gate_weight > 0,
            text_gate=reg.weight * reg.config.text_gate_weight > 0,
            anchored=anchors > 0,
            trained={part: part in learning and not lora.rank for part in Part},
            recompute=config.model.gradient_checkpointing,
            half=half,
            flash=config.model.attention == "flash_attention_2",
            muon=config.optim.name == "muon",
            shards=shards,
            rank=lora.rank,
            adapted=frozenset(lora.targets) if lora.rank else frozenset(),
            rows=lora.rank > 0 and Part.COORD in learning,
            dora=lora.dora,
        )

    @property
    def image_gradients(self) -> bool:
        return self.learns(Part.MERGER) or self.learns(Part.VISION)

    @property
    def input_gradients(self) -> bool:
        """Whether gradients reach the input of the language model."""
        return self.image_gradients or self.trained[Part.COORD] or self.rows

    @property
    def later_gradients(self) -> int:
        """Passes after the first that gradients flow through."""
        return self.passes - 1 if self.unroll else min(self.passes - 1, 1)

    @property
    def compute_bytes(self) -> int:
        """Bytes of a number in matrix products."""
        return 2 if self.half else 4

    def learns(self, part: Part) -> bool:
        """Whether a part's weights are trained, or adapters of it."""
        return self.trained[part] or part in self.adapted

    def added(self, shape: ModelShape) -> dict[Part, int]:
        """Parameters of adapters by part; with them the coordinate rows are parameters of their own."""
        if not self.rank:
            return {}
        own = {part: self.rank * shape.sides[part] + shape.outputs[part] * self.dora for part in self.adapted}
        return own | {Part.COORD: shape.coordinate_rows}

    def held(self, shape: ModelShape) -> dict[Part, int]:
        """Parameters in memory by part, adapters included."""
        return {part: count + self.added(shape).get(part, 0) for part, count in shape.parameters.items()}

    def learnt(self, shape: ModelShape) -> dict[Part, int]:
        if self.rank:
            added = self.added(shape)
            return {part: added.get(part, 0) * (part is not Part.COORD or self.rows) for part in Part}
        return {part: count * self.trained[part] for part, count in shape.parameters.items()}

    def muon_matrices(self, shape: ModelShape) -> int:
        """Numbers in the matrices that Muon trains."""
        return sum(n for part, n in shape.matrices.items() if self.trained[part] and part is not Part.COORD)


@dataclass(frozen=True, slots=True)
class ForwardFlops:
    """FLOPs of a forward pass through parts of one model.

    `causal`: attention in the language model leaves out what a query does not see. Kernels that take a mask, and the
    counter of torch, work on all pairs.
    """

    shape: ModelShape
    causal: bool = True

    def patches(self, grids_thw: Sequence[Grid]) -> float:
        return 2.0 * _count(grids_thw) * self.shape.patch_values * self.shape.vision.hidden_size

    def blocks(self, grids_thw: Sequence[Grid]) -> float:
        """The blocks of the tower; every image attends to itself, in some models within windows."""
        v, (window, whole) = self.shape.vision, self.shape.windows
        pairs = whole * sum((t * h * w) ** 2 for t, h, w in grids_thw)
        if window:
            windows = sum(t * _squares(h, window) * _squares(w, window) for t, h, w in grids_thw)
            pairs += (v.depth - whole) * windows
        return 2.0 * _count(grids_thw) * self.shape.matrices[Part.VISION] + 4.0 * v.hidden_size * pairs

    def mergers(self, grids_thw: Sequence[Grid]) -> float:
        merge = self.shape.vision.spatial_merge_size
        return 2.0 * _count(grids_thw) / merge**2 * self.shape.matrices[Part.MERGER]

    def vision(self, grids_thw: Sequence[Grid]) -> float:
        return self.patches(grids_thw) + self.blocks(grids_thw) + self.mergers(grids_thw)

    def layers(self, queries: int) -> float:
        """The weight matrices of the language model's layers, for `queries` tokens."""
        return 2.0 * queries * self.shape.matrices[Part.LANGUAGE]

    def attention(self, queries: int, before: int) -> float:
        """The language model's attention, for `queries` tokens behind `before` tokens that were computed already."""
        pairs = queries * before + (queries * (queries + 1) / 2 if self.causal else queries**2)
        return 4.0 * self.shape.query_width * self.shape.text.num_hidden_layers * pairs

    def language(self, queries: int, before: int) -> float:
        return self.layers(queries) + self.attention(queries, before)

    def head(self, rows: float) -> float:
        """Logits of `rows` hidden states over the whole vocabulary."""
        return 2.0 * rows * self.shape.table

    def coordinates(self, rows: float) -> float:
        """Logits of `rows` hidden states over the coordinate tokens, or as many means of their embeddings."""
        return 2.0 * rows * NUM_BINS * self.shape.text.hidden_size


def _count(grids_thw: Sequence[Grid]) -> int:
    return sum(t * h * w for t, h, w in grids_thw)


def _squares(side: int, window: int) -> int:
    """The sum of the squares of the pieces that a side is cut into."""
    return side // window * window**2 + (side % window) ** 2


@dataclass(frozen=True, slots=True)
class StepFlops:
    """FLOPs of one micro-batch by part (`vision`, `language`, `head`); `again`: what checkpointing computes twice."""

    forward: Mapping[str, float]
    backward: Mapping[str, float]
    again: Mapping[str, float]

    @property
    def total(self) -> float:
        return sum(sum(part.values()) for part in (self.forward, self.backward, self.again))


def step_flops(shape: ModelShape, work: Work, recipe: Recipe, *, causal: bool = True) -> StepFlops:
    """FLOPs of one micro-batch; padding is computed, so it counts.

    A product costs as much again for the gradient of its input, and again for that of its weights: each only where it
    is needed. Attention has no weights: its backward pass is counted as twice the forward pass.
    """
    count = ForwardFlops(shape, causal)
    vision, language, head = _vision(count, work, recipe), _language(count, work, recipe), _head(count, work, recipe)
    parts = {"vision": vision, "language": language, "head": head}
    return StepFlops(*({name: figures[i] for name, figures in parts.items()} for i in range(3)))


def _vision(count: ForwardFlops, work: Work, recipe: Recipe) -> tuple[float, float, float]:
    """Forward, backward and computed again."""
    shape, v = count.shape, count.shape.vision
    tower, trained, merger = recipe.learns(Part.VISION), recipe.trained[Part.VISION], recipe.trained[Part.MERGER]
    patches, blocks, mergers = (f(work.grids) for f in (count.patches, count.blocks, count.mergers))
    tokens = work.patches / v.spatial_merge_size**2
    # Products of adapters in the tower and in the mergers.
    in_tower = 2.0 * recipe.rank * shape.sides[Part.VISION] * work.patches * (Part.VISION in recipe.adapted)
    in_mergers = 2.0 * recipe.rank * shape.sides[Part.MERGER] * tokens * (Part.MERGER in recipe.adapted)
    own = 2.0 * work.patches * shape.matrices[Part.VISION]
    backward = patches * trained + tower * (2 * blocks - own * (not trained)) + 2 * in_tower
    # Gradients reach a merger's first product for the norm before it, its second one for what lies before that.
    second = 2.0 * tokens * shape.mergers * shape.merged * v.out_hidden_size
    backward += mergers * merger + (mergers - second) * (merger or tower)
    backward += second * (tower or recipe.learns(Part.MERGER))
    backward += 2 * in_mergers
    # Nor do the first adapters need a gradient of their input where nothing before them learns.
    if not tower:
        backward -= 2.0 * tokens * shape.mergers * shape.merged * recipe.rank * (in_mergers > 0)
    elif not trained:
        backward -= 2.0 * work.patches * v.hidden_size * (3 * v.hidden_size + recipe.rank)
    # Recomputing stops at the last thing that is kept: the input of the block's last product, or of its adapter's.
    last = 2 * work.patches * v.depth * v.hidden_size * (v.intermediate_size if trained else recipe.rank)
    forward = patches + blocks + mergers + in_tower + in_mergers
    return forward, backward, (blocks - last + in_tower) * (tower and recipe.recompute)


def _language(count: ForwardFlops, work: Work, recipe: Recipe) -> tuple[float, float, float]:
    """Forward, backward and computed again."""
    trained, below, adapted = recipe.trained[Part.LANGUAGE], recipe.input_gradients, Part.LANGUAGE in recipe.adapted
    learnt, shape, t = trained or adapted or below, count.shape, count.shape.text
    forward = backward = again = 0.0
    for tokens, before, times, learning in (
        (work.length, 0, 1, 1),
        (work.again, work.length - work.again, recipe.passes - 1, recipe.later_gradients),
    ):
        products, attention = (work.samples * one for one in (count.layers(tokens), count.attention(tokens, before)))
        beside = 2.0 * recipe.rank * shape.sides[Part.LANGUAGE] * work.samples * tokens * adapted
        forward += times * (products + attention + beside)
        backward += learning * learnt * (products * (1 + trained) + 2 * attention + 2 * beside)
        inner = recipe.rank if adapted else t.intermediate_size
        last = 2 * work.samples * tokens * t.num_hidden_layers * t.hidden_size * inner
        again += learning * learnt * recipe.recompute * (products + attention + beside - last)
    if not below and not trained:
        # Nothing below the first layer's products learns, not even its norm: they need no gradient of their input.
        outputs = shape.query_width + 2 * shape.key_width + 3 * recipe.rank * adapted
        backward -= learnt * 2 * work.samples * work.length * t.hidden_size * outputs
    return forward, backward, again


def _head(count: ForwardFlops, work: Work, recipe: Recipe) -> tuple[float, float, float]:
    """Logits of the rows that a loss reads, and the context embeddings between passes."""
    learnt = recipe.input_gradients or recipe.learns(Part.LANGUAGE)
    table, rows = recipe.trained[Part.COORD] + learnt, (recipe.trained[Part.COORD] or recipe.rows) + learnt
    slots = count.coordinates(work.slots)
    read = float(work.text_rows + work.slots * recipe.gate)
    # In bf16 coordinate logits are made once more, in float32: beliefs must not tie (`channels/answer.py`).
    narrow = 0.0 if recipe.gate and not recipe.half else slots
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
