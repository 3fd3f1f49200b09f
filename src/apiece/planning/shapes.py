"""The sizes of a Qwen3-VL or Qwen2.5-VL, from its config.json, and how many parameters each part has."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from apiece.codec.bins import NUM_BINS
from apiece.config.lora import Part
from apiece.errors import UserError


@dataclass(frozen=True, slots=True)
class VisionShape:
    """The vision tower and its mergers.

    Attributes:
        depth: Blocks.
        width: Of a patch's hidden state.
        inner: Of a block's MLP.
        heads: Of its attention.
        patch: Side of a patch, pixels.
        frames: Frames in a patch.
        channels: Of a pixel.
        merge: Patches along each side of an image token.
        out: Width of an image token.
        places: Learned position embeddings; 0: none.
        deepstack: Blocks whose output is handed to the language model as well.
        gated: Whether a block's MLP has a gate, and its norms no bias (Qwen2.5-VL).
        window: Side of the windows that most blocks attend in, in patches; 0: every block sees the whole image.
        whole: Blocks that see the whole image.
    """

    depth: int
    width: int
    inner: int
    heads: int
    patch: int
    frames: int
    channels: int
    merge: int
    out: int
    places: int
    deepstack: int
    gated: bool
    window: int
    whole: int

    @property
    def patch_values(self) -> int:
        """Numbers in a patch."""
        return self.channels * self.frames * self.patch**2

    @property
    def merged(self) -> int:
        """Width of the patches of an image token, side by side."""
        return self.width * self.merge**2

    @property
    def mergers(self) -> int:
        """Mergers: one behind the last block, one for each deep-stack output."""
        return 1 + self.deepstack

    @property
    def block_matrices(self) -> int:
        """Numbers in the weight matrices of one block."""
        return 4 * self.width**2 + self.products * self.width * self.inner

    @property
    def block_vectors(self) -> int:
        """Numbers in the norms of one block and in the biases of its products."""
        norms = (2 if self.gated else 4) * self.width
        return norms + 4 * self.width + (self.products - 1) * self.inner + self.width

    @property
    def products(self) -> int:
        """Products of a block's MLP."""
        return 3 if self.gated else 2

    @property
    def patch_numbers(self) -> int:
        """Parameters before the first block."""
        return self.patch_values * self.width + (0 if self.gated else self.width) + self.places * self.width

    @property
    def merger_matrices(self) -> int:
        """Numbers in the weight matrices of one merger."""
        return self.merged**2 + self.merged * self.out


@dataclass(frozen=True, slots=True)
class LanguageShape:
    """The language model.

    Attributes:
        layers: How many.
        width: Of a token's hidden state.
        inner: Of a layer's MLP.
        heads: Of queries.
        kv_heads: Of keys and values.
        head_dim: Width of a head.
        vocabulary: Rows of the embedding, unused ones included.
        tied: Whether the head is the embedding.
        biases: Numbers in the biases of a layer's attention.
        normed: Whether the queries and keys of each head have norms of their own.
        context: The most tokens that it takes.
    """

    layers: int
    width: int
    inner: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool
    biases: int
    normed: bool
    context: int

    @property
    def query_width(self) -> int:
        """Width of the queries of a token."""
        return self.heads * self.head_dim

    @property
    def key_width(self) -> int:
        """Width of the keys of a token, and of its values."""
        return self.kv_heads * self.head_dim

    @property
    def layer_matrices(self) -> int:
        """Numbers in the weight matrices of one layer."""
        return 2 * self.width * (self.query_width + self.key_width) + 3 * self.width * self.inner

    @property
    def layer_numbers(self) -> int:
        """Parameters of one layer."""
        return self.layer_matrices + 2 * self.width + 2 * self.head_dim * self.normed + self.biases

    @property
    def table(self) -> int:
        """Numbers in the embedding, and as many in a head of its own."""
        return self.vocabulary * self.width


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A whole model."""

    vision: VisionShape
    language: LanguageShape

    @classmethod
    def of(cls, config: Mapping[str, Any], where: str | Path = "config.json") -> ModelShape:
        """The sizes that a config.json gives.

        Raises:
            UserError: It is of no family that is planned for, or a size is missing or no whole number.
        """
        found = config.get("model_type")
        if found not in ("qwen3_vl", "qwen2_5_vl"):
            raise UserError(
                f"expected a model of type qwen3_vl or qwen2_5_vl, found {found!r}",
                where=where,
                fix="start from a checkpoint of Qwen3-VL or Qwen2.5-VL",
            )
        # Published configs of Qwen2.5-VL give the language model's sizes without a section.
        flat = found == "qwen2_5_vl" and "text_config" not in config
        text = _Sizes(config, found, where) if flat else _Sizes.of(config, "text_config", where)
        vision = _vision(_Sizes.of(config, "vision_config", where), other=found == "qwen2_5_vl")
        tied = bool(config.get("tie_word_embeddings", False))
        return cls(vision, _language(text, tied=tied, other=found == "qwen2_5_vl"))

    @classmethod
    def read(cls, folder: Path) -> ModelShape:
        """The sizes of the checkpoint in a folder; its weights may be missing."""
        path = folder / "config.json"
        return cls.of(json.loads(path.read_text(encoding="utf-8")), path)

    def with_rows(self, vocabulary: int) -> ModelShape:
        """The same with another number of rows in the embedding."""
        return replace(self, language=replace(self.language, vocabulary=vocabulary))

    def parameters(self) -> dict[Part, int]:
        """Parameters by part; a head that is the embedding is counted once."""
        v, t = self.vision, self.language
        merger = v.merger_matrices + v.merged + v.out
        return {
            Part.VISION: v.patch_numbers + v.depth * (v.block_matrices + v.block_vectors),
            # The merger behind the last block normalises patches, the others what lies side by side.
            Part.MERGER: v.mergers * merger + (1 if v.gated else 2) * v.width + v.deepstack * 2 * v.merged,
            Part.LANGUAGE: t.layers * t.layer_numbers + t.width,
            Part.COORD: t.table * (1 if t.tied else 2),
        }

    def coordinate_rows(self) -> int:
        """Parameters in the rows of the coordinate tokens, which are part of the table."""
        return NUM_BINS * self.language.width * (1 if self.language.tied else 2)

    def matrices(self) -> dict[Part, int]:
        """Numbers in the weight matrices of linear layers by part; the head's are the table's."""
        v, t = self.vision, self.language
        return {
            Part.VISION: v.depth * v.block_matrices,
            Part.MERGER: v.mergers * v.merger_matrices,
            Part.LANGUAGE: t.layers * t.layer_matrices,
            Part.COORD: t.table,
        }

    def linear_sides(self) -> dict[Part, int]:
        """Sums of inputs and outputs of linear layers by part: what an adapter has parameters for, for each rank."""
        v, t = self.vision, self.language
        block = (v.width + 3 * v.width) + 2 * v.width + v.products * (v.width + v.inner)
        merger = 2 * v.merged + v.merged + v.out
        layer = 2 * (t.width + t.query_width) + 2 * (t.width + t.key_width) + 3 * (t.width + t.inner)
        return {
            Part.VISION: v.depth * block,
            Part.MERGER: v.mergers * merger,
            Part.LANGUAGE: t.layers * layer,
        }

    def linear_outputs(self) -> dict[Part, int]:
        """Outputs of linear layers by part, added up."""
        v, t = self.vision, self.language
        layer = 2 * t.width + t.query_width + 2 * t.key_width + 2 * t.inner
        return {
            Part.VISION: v.depth * (5 * v.width + (v.products - 1) * v.inner),
            Part.MERGER: v.mergers * (v.merged + v.out),
            Part.LANGUAGE: t.layers * layer,
        }


@dataclass(frozen=True, slots=True)
class _Sizes:
    """One section of a config.json, read strictly."""

    values: Mapping[str, Any]
    section: str
    where: str | Path

    @classmethod
    def of(cls, config: Mapping[str, Any], section: str, where: str | Path) -> _Sizes:
        values = config.get(section)
        if not isinstance(values, Mapping):
            raise UserError(f"{section} is missing", where=where, fix="copy config.json from the original model again")
        return cls(values, section, where)

    def take(self, name: str, default: int | None = None) -> int:
        """A size; of a list, as some configs write the sides of a patch, its first number."""
        value = self.values.get(name)
        value = default if value is None else value
        value = value[0] if isinstance(value, list) and value else value
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UserError(
                f"{self.section}.{name}: expected a whole number from 1, found {value!r}",
                where=self.where,
                fix="copy config.json from the original model again",
            )
        return value

    def count(self, name: str, default: int) -> int:
        """How many are listed."""
        value = self.values.get(name)
        if value is None:
            return default
        if not isinstance(value, (list, tuple)):
            raise UserError(
                f"{self.section}.{name}: expected a list, found {value!r}",
                where=self.where,
                fix="copy config.json from the original model again",
            )
        return len(value)


def _vision(tower: _Sizes, *, other: bool) -> VisionShape:
    """Of the section; `other`: of Qwen2.5-VL."""
    depth, patch, merge = (tower.take(name) for name in ("depth", "patch_size", "spatial_merge_size"))
    # Windows are whole image tokens, as the library cuts them.
    window = tower.take("window_size", 112) // patch // merge * merge if other else 0
    return VisionShape(
        depth=depth,
        width=tower.take("hidden_size"),
        inner=tower.take("intermediate_size"),
        heads=tower.take("num_heads"),
        patch=patch,
        frames=tower.take("temporal_patch_size"),
        channels=tower.take("in_channels", 3),
        merge=merge,
        out=tower.take("out_hidden_size"),
        places=0 if other else tower.take("num_position_embeddings"),
        deepstack=tower.count("deepstack_visual_indexes", 0),
        gated=other,
        window=window,
        whole=tower.count("fullatt_block_indexes", 4) if window else depth,
    )


def _language(text: _Sizes, *, tied: bool, other: bool) -> LanguageShape:
    """Of the section; `other`: of Qwen2.5-VL, whose queries, keys and values have biases and no norms."""
    heads, width = text.take("num_attention_heads"), text.take("hidden_size")
    kv_heads = text.take("num_key_value_heads", heads)
    head_dim = width // heads if other else text.take("head_dim")
    projected = (heads + 2 * kv_heads) * head_dim
    return LanguageShape(
        layers=text.take("num_hidden_layers"),
        width=width,
        inner=text.take("intermediate_size"),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocabulary=text.take("vocab_size"),
        tied=tied,
        biases=projected if other else (projected + width) * bool(text.values.get("attention_bias", False)),
        normed=not other,
        context=text.take("max_position_embeddings"),
    )
