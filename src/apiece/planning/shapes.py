"""The sizes of a Qwen3-VL or Qwen2.5-VL, from its config.json, and how many parameters each part has."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jinja2.exceptions import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer as Library

from apiece.codec import Renderer, coord_token
from apiece.codec.bins import NUM_BINS
from apiece.codec.vocab import CoordVocab
from apiece.config.schema import Part
from apiece.errors import UserError
from apiece.model.prompt import chat_prompt

# A checkpoint's tokenizer and chat template without the library that loads models: counting tokens must be quick.


COPY = "copy it from the original model"


@dataclass(frozen=True)
class PlainTokenizer:
    """What the codec and the prompts use of a tokenizer.

    Attributes:
        library: Reads `tokenizer.json`.
        eos: Text of the end token, if there is one.
        template: The chat template.
        where: The checkpoint's folder.
    """

    library: Any
    eos: str | None
    template: str
    where: Path

    @property
    def eos_token_id(self) -> int | None:
        """Id of the token that ends an answer."""
        return None if self.eos is None else self.library.token_to_id(self.eos)

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        """Ids of a text."""
        return list(self.library.encode(text, add_special_tokens=add_special_tokens).ids)

    def decode(self, token_ids: Sequence[int], **_: Any) -> str:
        """Text of ids, special tokens kept."""
        return str(self.library.decode(list(token_ids), skip_special_tokens=False))

    def get_vocab(self) -> dict[str, int]:
        """Ids by token."""
        return dict(self.library.get_vocab(with_added_tokens=True))

    def apply_chat_template(self, messages: list[dict[str, Any]], **settings: Any) -> str:
        """The prompt of messages, as the model's template writes it; it runs in a sandbox."""
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        try:
            template = environment.from_string(self.template)
            return template.render(
                messages=messages, add_generation_prompt=settings.get("add_generation_prompt", False)
            )
        except TemplateError as error:
            raise UserError(
                f"the chat template cannot be applied: {error}",
                where=self.where,
                fix="use the model's own chat_template",
            ) from error


@dataclass(frozen=True)
class TextShape:
    """What the planner needs to know of a checkpoint's text side.

    Attributes:
        tokenizer: Its tokenizer.
        renderer: Counts the tokens of answers.
        size: Tokens that the tokenizer knows.
        extended: Whether the coordinate tokens are among them.
    """

    tokenizer: PlainTokenizer
    renderer: Renderer
    size: int
    extended: bool

    @classmethod
    def read(cls, folder: Path) -> TextShape:
        """From the files of a checkpoint's folder; one without coordinate tokens is taken as if they were added.

        Raises:
            UserError: A file is missing or broken.
        """
        tokenizer = read_tokenizer(folder)
        vocabulary = tokenizer.get_vocab()
        extended = coord_token(0) in vocabulary
        # Where they would come to lie does not matter here: each is one token wherever it is.
        vocab = CoordVocab.of(tokenizer, where=str(folder)) if extended else CoordVocab(len(vocabulary))
        return cls(tokenizer, Renderer(tokenizer, vocab), len(vocabulary) + (0 if extended else NUM_BINS), extended)

    def prompt_tokens(self, instruction: str, image_token: int) -> int:
        """Tokens of the prompt around the image."""
        ids = self.tokenizer.encode(chat_prompt(self.tokenizer, instruction))
        if ids.count(image_token) != 1:
            raise UserError(
                f"expected the chat template to write one image placeholder, found {ids.count(image_token)}",
                where=self.tokenizer.where,
                fix="use the model's own chat_template, and an instruction without special tokens",
            )
        return len(ids) - 1


def read_tokenizer(folder: Path) -> PlainTokenizer:
    """The tokenizer in a checkpoint's folder."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise UserError("tokenizer.json is missing from the checkpoint", where=folder, fix=COPY)
    if not isinstance(_read_json(file).get("model"), dict):  # the library's own error has no type to be caught by
        raise UserError("expected a tokenizer, found no `model` in it", where=file, fix=COPY)
    library = Library.from_file(str(file))
    settings = _read_json(folder / "tokenizer_config.json")
    eos = settings.get("eos_token")
    eos = eos.get("content") if isinstance(eos, dict) else eos
    return PlainTokenizer(library, eos, _template(folder, settings), folder)


def _template(folder: Path, settings: dict[str, Any]) -> str:
    """The chat template, from the file that holds it in this checkpoint."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    older = folder / "chat_template.json"
    found = settings.get("chat_template") or (_read_json(older).get("chat_template") if older.is_file() else None)
    if not isinstance(found, str):
        raise UserError("the checkpoint has no chat template", where=folder, fix=f"chat_template.jinja: {COPY}")
    return found


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; an empty one where there is no file."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"broken JSON: {error}", where=path, fix=COPY) from error
    if not isinstance(value, dict):
        raise UserError(f"expected a JSON object, found {type(value).__name__}", where=path, fix=COPY)
    return value


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
