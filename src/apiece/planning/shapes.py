"""The sizes of a Qwen3-VL, from its config.json, and how many parameters each part has."""

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
        places: Learned position embeddings.
        deepstack: Blocks whose output is handed to the language model as well.
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
        return 4 * self.width**2 + 2 * self.width * self.inner

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
        biased: Whether the attention's projections have biases.
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
    biased: bool
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
            UserError: It is not a Qwen3-VL's, or a size is missing or no whole number.
        """
        found = config.get("model_type")
        if found != "qwen3_vl":
            raise UserError(
                f"expected a model of type qwen3_vl, found {found!r}",
                where=where,
                fix="start from a Qwen3-VL checkpoint",
            )
        text, tower = _Sizes.of(config, "text_config", where), _Sizes.of(config, "vision_config", where)
        vision = VisionShape(
            depth=tower.take("depth"),
            width=tower.take("hidden_size"),
            inner=tower.take("intermediate_size"),
            heads=tower.take("num_heads"),
            patch=tower.take("patch_size"),
            frames=tower.take("temporal_patch_size"),
            channels=tower.take("in_channels", 3),
            merge=tower.take("spatial_merge_size"),
            out=tower.take("out_hidden_size"),
            places=tower.take("num_position_embeddings"),
            deepstack=len(tower.values.get("deepstack_visual_indexes") or ()),
        )
        heads = text.take("num_attention_heads")
        language = LanguageShape(
            layers=text.take("num_hidden_layers"),
            width=text.take("hidden_size"),
            inner=text.take("intermediate_size"),
            heads=heads,
            kv_heads=text.take("num_key_value_heads", heads),
            head_dim=text.take("head_dim"),
            vocabulary=text.take("vocab_size"),
            tied=bool(config.get("tie_word_embeddings", False)),
            biased=bool(text.values.get("attention_bias", False)),
            context=text.take("max_position_embeddings"),
        )
        return cls(vision, language)

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
        block = v.block_matrices + (4 + 4) * v.width + v.inner + v.width  # two norms; the biases of four products
        layer = t.layer_matrices + 2 * t.width + 2 * t.head_dim
        layer += (t.query_width + 2 * t.key_width + t.width) if t.biased else 0
        return {
            Part.VISION: v.patch_values * v.width + v.width + v.places * v.width + v.depth * block,
            # The merger behind the last block normalises patches, the others what lies side by side.
            Part.MERGER: v.mergers * merger + 2 * v.width + v.deepstack * 2 * v.merged,
            Part.LANGUAGE: t.layers * layer + t.width,
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
        block = (v.width + 3 * v.width) + 2 * v.width + 2 * (v.width + v.inner)
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
            Part.VISION: v.depth * (5 * v.width + v.inner),
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
