"""The fast path of generation: the same sums as `PlainModel`, without the library's overhead.

At a few tokens a pass the library spends most of its time between the operations, and reads a head of 150,000 rows for
a few logits. `FastModel` computes only the rows of the head that are asked for, and runs the layers operation by
operation where the modules are the library's own and have no hooks.

Shapes: R rows, W tokens of the widest row, N = R * W, D width, H heads, d head width, C columns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

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

from apiece.rollout.plain import AT_ONCE, PlainModel, RowCache, wide

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


class FastModel(PlainModel):
    """A model whose head is a plain product without hooks (`fits`)."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self._weight = model.lm_head.weight
        self._layers = LeanLayers(model) if is_plain(model) else None

    @staticmethod
    def fits(model: Any) -> bool:
        """Whether logits can be computed from the rows of the head's weight alone."""
        head = model.lm_head
        return type(head) is nn.Linear and head.bias is None and not head._forward_hooks and not head._forward_pre_hooks

    def read(self, ids_RW: NDArray[np.int64], positions_RW: NDArray[np.int64], cache: RowCache) -> Tensor:
        return (self._layers or super().read)(ids_RW, positions_RW, cache)

    def logits_between(self, hidden_ND: Tensor, first: int, end: int) -> Tensor:
        return wide(F.linear(hidden_ND, self._weight[first:end]))

    def logits_of(self, hidden_ND: Tensor, ids_K: Tensor) -> Tensor:
        return wide(F.linear(hidden_ND, self._weight.index_select(0, ids_K)))

    def norm_and_own(self, hidden_ND: Tensor, ids_N: Tensor) -> tuple[Tensor, Tensor]:
        # As many columns at a time as stay in the CPU's cache.
        most = AT_ONCE.get(hidden_ND.device.type, AT_ONCE["cuda"])
        columns = max(64, most // len(hidden_ND))
        own_N, sums = torch.zeros(len(ids_N), dtype=torch.float64, device=ids_N.device), []
        for start in range(0, len(self._weight), columns):
            part = self.logits_between(hidden_ND, start, start + columns)
            sums.append(part.logsumexp(-1).double())
            inside = (ids_N >= start) & (ids_N < start + columns)
            own = part.gather(1, (ids_N - start).clamp(0, part.shape[1] - 1)[:, None])[:, 0]
            own_N = torch.where(inside, own.double(), own_N)
        return torch.stack(sums).logsumexp(0), own_N


def is_plain(model: Any) -> bool:
    """Whether the language model is the library's own: no adapters, no shards, no hooks."""
    if type(model) is not Qwen3VLForConditionalGeneration:
        return False
    language = model.model.language_model
    parts = list(language.modules())
    acts = {type(layer.mlp.act_fn) for layer in language.layers}
    known = all(type(part) in (*_PLAIN, *acts) for part in parts)
    listened = any(part._forward_hooks or part._forward_pre_hooks for part in (model, model.model, *parts))
    return known and not listened and language.rotary_emb.rope_type == "default"


Product = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class _Layer:
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
    """The layers of `Qwen3VLForConditionalGeneration` for text, operation by operation."""

    def __init__(self, model: Any) -> None:
        """For a model that is `is_plain`."""
        language = model.model.language_model
        config, attention = language.config, language.layers[0].self_attn
        self._embedding, self._rotary = language.embed_tokens.weight, language.rotary_emb
        self._norm, self._scale = _norm(language.norm), attention.scaling
        self._heads, self._shared = config.num_attention_heads, config.num_key_value_heads
        self._width = attention.head_dim
        self._cos = self._sin = self._embedding.new_zeros(0, 1, self._width)
        self._layers = [
            _Layer(
                before_attention=_norm(layer.input_layernorm),
                query=_product(layer.self_attn.q_proj),
                key=_product(layer.self_attn.k_proj),
                value=_product(layer.self_attn.v_proj),
                head_norm=_head_norm(layer.self_attn, config),
                out=_product(layer.self_attn.o_proj),
                before_mlp=_norm(layer.post_attention_layernorm),
                gate=_product(layer.mlp.gate_proj),
                up=_product(layer.mlp.up_proj),
                down=_product(layer.mlp.down_proj),
                act=F.silu if config.hidden_act == "silu" else layer.mlp.act_fn,
            )
            for layer in language.layers
        ]

    def __call__(self, ids_RW: NDArray[np.int64], positions_RW: NDArray[np.int64], cache: RowCache) -> Tensor:
        """As `PlainModel.read`."""
        rows, width = ids_RW.shape
        mask = cache.begin(rows, width)
        group = self._heads // self._shared
        self._reserve(int(positions_RW.max()) + 1)
        at = torch.from_numpy(positions_RW.reshape(-1)).to(mask.device)
        cos, sin = self._cos.index_select(0, at), self._sin.index_select(0, at)
        x_ND = F.embedding(torch.from_numpy(ids_RW.reshape(-1)).to(mask.device), self._embedding)
        for number, layer in enumerate(self._layers):
            normed = layer.before_attention(x_ND)
            # Queries and keys together, as starting an operation costs more than its arithmetic.
            both = torch.cat([layer.query(normed), layer.key(normed)], 1).view(len(normed), -1, self._width)
            both = layer.head_norm(both)
            both = (both * cos).addcmul_(both.roll(self._width // 2, -1), sin)
            keys, values = cache.write(both[:, self._heads :].flatten(1), layer.value(normed), number)
            # Heads that share keys are placed one after the other, so that keys are never copied.
            packed = both[:, : self._heads].unflatten(1, (self._shared, group)).unflatten(0, (rows, width))
            packed = packed.permute(0, 2, 3, 1, 4).reshape(rows, self._shared, group * width, self._width)
            seen = F.scaled_dot_product_attention(packed, keys, values, attn_mask=mask, scale=self._scale)
            seen = seen.view(rows, self._shared, group, width, self._width).permute(0, 3, 1, 2, 4)
            x_ND = x_ND + layer.out(seen.reshape(rows * width, -1))
            normed = layer.before_mlp(x_ND)
            x_ND = x_ND + layer.down(layer.act(layer.gate(normed)) * layer.up(normed))
        return self._norm(x_ND)

    def _reserve(self, positions: int) -> None:
        """Angles are made once, as they are the same in every layer and pass."""
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
    """As in the library: the root mean square in float32, the weight in the model's own precision."""
    return partial(_normed, weight=module.weight, eps=module.variance_epsilon)


def _head_norm(attention: Any, config: Any) -> Product:
    """The norm of queries and keys, one after the other."""
    query, key = attention.q_norm, attention.k_norm
    assert query.variance_epsilon == key.variance_epsilon, "both are the model's"
    weight = torch.cat(
        [query.weight.expand(config.num_attention_heads, -1), key.weight.expand(config.num_key_value_heads, -1)]
    )
    return partial(_normed, weight=weight, eps=query.variance_epsilon)


def _normed(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return weight * F.rms_norm(x.float(), x.shape[-1:], None, eps).to(x.dtype)
