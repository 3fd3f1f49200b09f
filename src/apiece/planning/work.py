"""What an optimizer step computes: the sizes of its batches, and the settings that decide what is kept and how often.

Shapes: B samples, P prefix tokens, T answer tokens, S slots.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

from apiece.config.lora import Part
from apiece.config.schema import Config, SoftContextGrad
from apiece.config.trainable import trained_parts
from apiece.planning.flops import Grid
from apiece.planning.shapes import ModelShape


@dataclass(frozen=True, slots=True)
class Work:
    """One forward pass of training: a micro-batch.

    Attributes:
        grids: Patches of each image.
        prefix: P, padding included.
        answer: T, padding included.
        text_rows: Text tokens with a loss, over all samples.
        name_rows: Those of names among them.
        slots: S, over all samples.
        first_slot: Index of the earliest slot in an answer.
        padded: Whether some prefix is shorter than P: attention then needs a mask.
    """

    grids: tuple[Grid, ...]
    prefix: int
    answer: int
    text_rows: int
    name_rows: int
    slots: int
    first_slot: int
    padded: bool

    @property
    def samples(self) -> int:
        """B."""
        return len(self.grids)

    @property
    def patches(self) -> int:
        """Patches of all images."""
        return sum(t * h * w for t, h, w in self.grids)

    @property
    def length(self) -> int:
        """Tokens of a row that go through the language model: the last one of an answer predicts nothing."""
        return self.prefix + self.answer - 1

    @property
    def again(self) -> int:
        """Tokens of a row that every later pass computes again: from the first slot on."""
        return max(self.answer - 1 - self.first_slot, 1)


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a step does with a micro-batch.

    Attributes:
        passes: Of Channel-A; Channel-B's pass over its targets is one.
        unroll: Whether gradients flow through the context into earlier passes.
        soft: Whether a context is a mean of embeddings, not one of them.
        gate: Whether the last pass reads full-vocabulary logits at slots.
        text_gate: Whether the mass of text tokens is in the loss.
        anchored: Whether A1 of several passes has losses on its slots.
        trained: Parts whose weights get gradients.
        recompute: Gradient checkpointing.
        half: bf16 autocast.
        flash: FlashAttention: no masks, and keys are never repeated.
        cuda: On a GPU, where autocast computes norms of the tower in float32.
        muon: Matrices of layers have one moment instead of two.
        shards: Processes that share weights, gradients and optimizer state (FSDP); 1: nothing is shared.
        rank: Of low-rank adapters; 0: none.
        adapted: Parts whose linear layers have adapters.
        rows: Whether the coordinate rows are trained beside adapters.
        dora: Whether adapters learn the length of every column as well.
    """

    passes: int = 1
    unroll: bool = True
    soft: bool = True
    gate: bool = True
    text_gate: bool = False
    anchored: bool = False
    trained: Mapping[Part, bool] = field(default_factory=lambda: dict.fromkeys(Part, True))
    recompute: bool = False
    half: bool = True
    flash: bool = False
    cuda: bool = True
    muon: bool = False
    shards: int = 1
    rank: int = 0
    adapted: frozenset[Part] = frozenset()
    rows: bool = False
    dora: bool = False

    @classmethod
    def of(cls, config: Config, *, half: bool, cuda: bool = True) -> Self:
        """What a config asks for.

        Args:
            config: Of the run.
            half: Whether the device computes in bf16 under its `model.precision`.
            cuda: Whether it is a GPU.
        """
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
            cuda=cuda,
            muon=config.optim.name == "muon",
            rank=lora.rank,
            adapted=frozenset(lora.targets) if lora.rank else frozenset(),
            rows=lora.rank > 0 and Part.COORD in learning,
            dora=lora.dora,
        )

    @property
    def image_gradients(self) -> bool:
        """Whether gradients reach the image tokens."""
        return self.learns(Part.MERGER) or self.learns(Part.VISION)

    @property
    def input_gradients(self) -> bool:
        """Whether gradients reach the input of the language model."""
        return self.image_gradients or self.trained[Part.COORD] or self.rows

    @property
    def shared(self) -> bool:
        """Whether processes share the model."""
        return self.shards > 1

    def learns(self, part: Part) -> bool:
        """Whether anything of a part is trained: its weights, or adapters beside them."""
        return self.trained[part] or part in self.adapted

    def added(self, shape: ModelShape) -> dict[Part, int]:
        """Parameters of adapters by part; with them the coordinate rows are parameters of their own."""
        if not self.rank:
            return {}
        sides, outputs = shape.linear_sides(), shape.linear_outputs()
        own = {part: self.rank * sides[part] + outputs[part] * self.dora for part in self.adapted}
        return own | {Part.COORD: shape.coordinate_rows()}

    def held(self, shape: ModelShape) -> dict[Part, int]:
        """Parameters in memory by part, adapters included."""
        return {part: count + self.added(shape).get(part, 0) for part, count in shape.parameters().items()}

    def learnt(self, shape: ModelShape) -> dict[Part, int]:
        """Trained parameters by part."""
        if self.rank:
            added = self.added(shape)
            return {part: added.get(part, 0) * (part is not Part.COORD or self.rows) for part in Part}
        return {part: count * self.trained[part] for part, count in shape.parameters().items()}

    def muon_matrices(self, shape: ModelShape) -> int:
        """Numbers in the matrices that Muon trains."""
        return sum(n for part, n in shape.matrices().items() if self.trained[part] and part is not Part.COORD)

    @property
    def compute_bytes(self) -> int:
        """Bytes of a number in matrix products."""
        return 2 if self.half else 4
