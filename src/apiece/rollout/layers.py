"""The language model behind the prefix: a few tokens of each row through all layers, in one of two ways.

`LibraryLayers` calls `model(...)` and works for whatever answers to that. `LeanLayers` does the same sums as
`Qwen3VLForConditionalGeneration` does for text, with nothing around them: at a few tokens a pass the library spends
most of its time between the operations. It is taken where the modules are the library's own and nobody listens to them.

Shapes: R rows, W tokens of the widest row, N = R * W, D width, H heads, K key-value heads, d head width, C columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Qwen3VLForConditionalGeneration
from transformers.models.qwen3_vl.modeling_qwen3_vl import (
    Qwen3VLTextAttention,
    Qwen3VLTextDecoderLayer,
    Qwen3VLTextMLP,
    Qwen3VLTextModel,
    Qwen3VLTextRMSNorm,
    Qwen3VLTextRotaryEmbedding,
)

from apiece.rollout.cache import RowCache, row_attention

_PLAIN = (
    nn.Embedding,
    nn.Linear,
    nn.ModuleList,
    Qwen3VLTextAttention,
    Qwen3VLTextDecoderLayer,
    Qwen3VLTextMLP,
    Qwen3VLTextModel,
    Qwen3VLTextRMSNorm,
    Qwen3VLTextRotaryEmbedding,
)
_FEWEST_POSITIONS = 1024


class Layers(Protocol):
    """Runs tokens through the language model."""

    def __call__(self, ids_RW: NDArray[np.int64], positions_RW: NDArray[np.int64], cache: RowCache) -> Tensor:
        """Read tokens.

        Args:
            ids_RW: Row r is in place r of the cache.
            positions_RW: The same on all three axes of the rotary positions, as for all text.
            cache: What was read before; gets the keys and values of these.

        Returns:
            `[N, D]` what the head reads.
        """


def layers_of(model: Any) -> Layers:
    """The fastest way that is sure to be the model's own."""
    return LeanLayers.of(model) if is_plain(model) else LibraryLayers(model)


def is_plain(model: Any) -> bool:
    """Whether the language model is the library's: no adapters, no shards, no hooks that expect to be called."""
    if type(model) is not Qwen3VLForConditionalGeneration:
        return False
    language = model.model.language_model
    parts = list(language.modules())
    acts = {type(layer.mlp.act_fn) for layer in language.layers}
    known = all(type(part) in (*_PLAIN, *acts) for part in parts)
    listened = any(part._forward_hooks or part._forward_pre_hooks for part in (model, model.model, *parts))
    return known and not listened and language.rotary_emb.rope_type == "default"


@dataclass(frozen=True)
class LibraryLayers:
    """Through `model(...)`, whose head is given nothing to do."""

    model: Any

    def __call__(self, ids_RW: NDArray[np.int64], positions_RW: NDArray[np.int64], cache: RowCache) -> Tensor:
        """As `Layers` says."""
        mask = cache.begin(*ids_RW.shape)
        positions = torch.from_numpy(positions_RW).to(mask.device)
        with row_attention(self.model), before_head(self.model) as hidden:
            self.model(
                input_ids=torch.from_numpy(ids_RW).to(mask.device),
                attention_mask=mask,
                position_ids=positions.expand(3, -1, -1),
                past_key_values=cache,
                use_cache=True,
            )
        return hidden[0].flatten(0, 1)


@contextmanager
def before_head(model: Any) -> Iterator[list[Tensor]]:
    """Collects what the head would read, `[R, W, D]` a pass, and has it read none of it."""
    seen: list[Tensor] = []

    def keep(_: object, args: tuple[Tensor]) -> Tensor:
        seen.append(args[0])
        return args[0][:, :0]

    handle = model.lm_head.register_forward_pre_hook(keep)
    try:
        yield seen
    finally:
        handle.remove()


Product = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class _Layer:
    """Weights of one layer."""

    before_attention: Product
    query: Product
    key: Product
    value: Product
    head_norm: Product
    out: Product
    before_mlp: Product
    gate: Product
    up: Product
    down: Product
    act: Product


class LeanLayers:
    """The same sums, operation by operation."""

    def __init__(self, language: Any, layers: Sequence[_Layer]) -> None:
        config = language.config
        self._embedding, self._rotary, self._layers = language.embed_tokens.weight, language.rotary_emb, layers
        self._norm = _norm(language.norm)
        self._heads, self._shared, self._width = (
            config.num_attention_heads,
            config.num_key_value_heads,
            language.layers[0].self_attn.head_dim,
        )
        self._scale = language.layers[0].self_attn.scaling
        self._cos = self._sin = self._embedding.new_zeros(0, 1, self._width)

    @classmethod
    def of(cls, model: Any) -> LeanLayers:
        """Of a model that is plain."""
        language = model.model.language_model
        layers = []
        for layer in language.layers:
            a, mlp = layer.self_attn, layer.mlp
            layers.append(
                _Layer(
                    before_attention=_norm(layer.input_layernorm),
                    query=_product(a.q_proj),
                    key=_product(a.k_proj),
                    value=_product(a.v_proj),
                    head_norm=_head_norm(a, language.config),
                    out=_product(a.o_proj),
                    before_mlp=_norm(layer.post_attention_layernorm),
                    gate=_product(mlp.gate_proj),
                    up=_product(mlp.up_proj),
                    down=_product(mlp.down_proj),
                    act=F.silu if language.config.hidden_act == "silu" else mlp.act_fn,
                )
            )
        return cls(language, layers)

    def __call__(self, ids_RW: NDArray[np.int64], positions_RW: NDArray[np.int64], cache: RowCache) -> Tensor:
        """As `Layers` says."""
        rows, width = ids_RW.shape
        mask = cache.begin(rows, width)
        group = self._heads // self._shared
        self._reserve(int(positions_RW.max()) + 1)
        at = torch.from_numpy(positions_RW.reshape(-1)).to(mask.device)
        cos, sin = self._cos.index_select(0, at), self._sin.index_select(0, at)
        x_ND = F.embedding(torch.from_numpy(ids_RW.reshape(-1)).to(mask.device), self._embedding)
        for number, layer in enumerate(self._layers):
            normed = layer.before_attention(x_ND)
            # Queries and keys together, as each operation costs more than what it does.
            both = torch.cat([layer.query(normed), layer.key(normed)], 1).view(len(normed), -1, self._width)
            both = layer.head_norm(both)
            both = (both * cos).addcmul_(both.roll(self._width // 2, -1), sin)
            keys, values = cache.write(both[:, self._heads :].flatten(1), layer.value(normed), number)
            # Heads that share keys are laid behind each other, so that keys are never copied.
            packed = both[:, : self._heads].unflatten(1, (self._shared, group)).unflatten(0, (rows, width))
            packed = packed.permute(0, 2, 3, 1, 4).reshape(rows, self._shared, group * width, self._width)
            seen = F.scaled_dot_product_attention(packed, keys, values, attn_mask=mask, scale=self._scale)
            seen = seen.view(rows, self._shared, group, width, self._width).permute(0, 3, 1, 2, 4)
            x_ND = x_ND + layer.out(seen.reshape(rows * width, -1))
            normed = layer.before_mlp(x_ND)
            x_ND = x_ND + layer.down(layer.act(layer.gate(normed)) * layer.up(normed))
        return self._norm(x_ND)

    def _reserve(self, positions: int) -> None:
        """Angles are the same in every layer and pass."""
        if positions <= len(self._cos):
            return
        count = max(_FEWEST_POSITIONS, 2 * positions)
        at = torch.arange(count, device=self._embedding.device).expand(3, 1, -1)
        cos, sin = self._rotary(self._embedding, at)
        half = self._width // 2
        # The sine has the sign with which the halves change places.
        self._cos, self._sin = cos[0, :, None], torch.cat([-sin[..., :half], sin[..., half:]], -1)[0, :, None]


def _product(module: nn.Linear) -> Product:
    return partial(F.linear, weight=module.weight, bias=module.bias)


def _norm(module: Any) -> Product:
    """As the library: the root mean square in float32, the weight in the model's own precision."""
    return partial(_normed, weight=module.weight, eps=module.variance_epsilon)


def _head_norm(attention: Any, config: Any) -> Product:
    """Of queries and keys laid behind each other."""
    query, key = attention.q_norm, attention.k_norm
    assert query.variance_epsilon == key.variance_epsilon, "both are the model's"
    weight = torch.cat(
        [query.weight.expand(config.num_attention_heads, -1), key.weight.expand(config.num_key_value_heads, -1)]
    )
    return partial(_normed, weight=weight, eps=query.variance_epsilon)


def _normed(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return weight * F.rms_norm(x.float(), x.shape[-1:], None, eps).to(x.dtype)
