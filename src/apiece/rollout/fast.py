"""The language model behind the prefix: a few tokens of each row through all layers, in one of two ways.

`LibraryLayers` calls `model(...)` and works for whatever answers to that. `LeanLayers` does the same sums as
`Qwen3VLForConditionalGeneration` does for text, with nothing around them: at a few tokens a pass the library spends
most of its time between the operations. It is taken where the modules are the library's own and nobody listens to them.

Shapes: R rows, W tokens of the widest row, N = R * W, D width, H heads, K key-value heads, d head width, C columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, Qwen3VLForConditionalGeneration
from transformers.models.qwen3_vl.modeling_qwen3_vl import (
    Qwen3VLTextAttention,
    Qwen3VLTextDecoderLayer,
    Qwen3VLTextMLP,
    Qwen3VLTextModel,
    Qwen3VLTextRMSNorm,
    Qwen3VLTextRotaryEmbedding,
)

# Keys and values of rows that are at different places, and the attention that reads them.
#
# Every row has its own length: new tokens go behind it, whatever the other rows do, so there are no holes. Nothing is
# copied as rows grow; a row that is done gives its place to another. What was written of tokens that were taken back is
# overwritten by the next ones.
#
# Shapes: R rows, H key-value heads, C columns, W new tokens of the widest row, N = R * W, d head width.


ATTENTION = "apiece_rows"
_GROW = 64
"""Columns are added in multiples of this."""


class RowCache:
    """Stands in for the library's cache while answers are written.

    Attributes:
        lengths: `[R]` tokens of each row that are in.
    """

    def __init__(self, config: Any, rows: int) -> None:
        """An empty cache.

        Args:
            config: Of the language model.
            rows: The most that are written at once.
        """
        self.lengths = np.zeros(rows, dtype=np.int64)
        self._group = config.num_attention_heads // config.num_key_value_heads
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        self._rows = self._columns = self._heads = 0
        self._places = torch.zeros(0, dtype=torch.int64)

    def put(self, row: int, keys: Sequence[Tensor], values: Sequence[Tensor], length: int) -> None:
        """Start a row with the first `length` keys and values of each layer, `[H, C, d]`."""
        if not self._keys:
            self._heads, _, width = keys[0].shape
            shape = (len(self.lengths), 0, self._heads * width)
            self._keys = [k.new_zeros(shape) for k in keys]
            self._values = [v.new_zeros(shape) for v in values]
        self._reserve(length)
        for kept, new in zip([*self._keys, *self._values], [*keys, *values], strict=True):
            kept[row, :length].view(length, self._heads, -1).copy_(new[:, :length].transpose(0, 1))
        self.lengths[row] = length

    def move(self, source: int, target: int) -> None:
        """Put a row in the place of another."""
        length = int(self.lengths[source])
        for kept in (*self._keys, *self._values):
            kept[target, :length] = kept[source, :length]
        self.lengths[target] = length

    @property
    def is_cuda(self) -> bool:
        """Whether it is on a GPU."""
        return self._keys[0].is_cuda

    def begin(self, rows: int, width: int) -> Tensor:
        """Make ready for a forward pass of `width` tokens of the first `rows` rows.

        Returns:
            The mask `[R, 1, heads per key-value head * W, C]` to be added to attention scores.
        """
        lengths = self.lengths[:rows]
        self._rows, self._columns = rows, int(lengths.max()) + width
        self._reserve(self._columns)
        device, capacity = self._keys[0].device, self._keys[0].shape[1]
        columns = lengths[:, None] + np.arange(width)
        places = np.arange(rows)[:, None] * capacity + columns
        self._places = torch.from_numpy(places.reshape(-1)).to(device)
        hidden = np.arange(self._columns) > columns[:, :, None]
        mask = torch.zeros(hidden.shape, dtype=self._keys[0].dtype, device=device)
        mask.masked_fill_(torch.from_numpy(hidden).to(device), -torch.inf)
        return mask.repeat(1, self._group, 1)[:, None]

    def write(self, keys_NK: Tensor, values_NK: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Keep what is new in `layer`, `[N, H * d]`; returns what to attend to, `[R, H, C, d]`."""
        out = []
        for kept, new in ((self._keys[layer], keys_NK), (self._values[layer], values_NK)):
            kept.view(-1, kept.shape[2]).index_copy_(0, self._places, new)
            seen = kept[: self._rows, : self._columns]
            out.append(seen.view(self._rows, self._columns, self._heads, -1).transpose(1, 2))
        return out[0], out[1]

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Called by the library's attention of `layer` with `[R, H, W, d]`; returns what to attend to."""
        keys_NK, values_NK = (new.transpose(1, 2).flatten(2).flatten(0, 1) for new in (keys, values))
        return self.write(keys_NK, values_NK, layer)

    def get_seq_length(self, layer: int = 0) -> int:
        """Columns in use, as the library asks for them."""
        return self._columns

    def _reserve(self, columns: int) -> None:
        have = self._keys[0].shape[1]
        if columns > have:
            wanted = max(columns, have + have // 2)
            more = (0, 0, 0, -(-wanted // _GROW) * _GROW - have)
            self._keys = [torch.nn.functional.pad(k, more) for k in self._keys]
            self._values = [torch.nn.functional.pad(v, more) for v in self._values]


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Scaled dot-product attention; heads that share keys are laid behind each other, so that keys are never copied."""
    rows, heads, width, size = query.shape
    packed = query.reshape(rows, key.shape[1], -1, size)
    out = torch.nn.functional.scaled_dot_product_attention(packed, key, value, attn_mask=attention_mask, scale=scaling)
    return out.reshape(rows, heads, width, size).transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, _attend)


@contextmanager
def row_attention(model: Any) -> Iterator[None]:
    """The language model attends by row while the block runs; image and prompt are read as they always are."""
    config = model.config.text_config
    before = config._attn_implementation
    config._attn_implementation = ATTENTION
    try:
        yield
    finally:
        config._attn_implementation = before


# The head, where only some of its answers are wanted.
#
# A decision reads the logits that the format leaves open, now; what a log-probability needs beside them, the sum over
# the whole vocabulary, is worked out for many tokens at once, later.
#
# Shapes: N tokens, D width, V vocabulary, K some ids of it.


AT_ONCE = {"cpu": 1 << 18, "cuda": 1 << 24}
"""Logits that are normalised together: on a CPU as many as stay in its cache, elsewhere a bound on memory."""

TOGETHER = 512
"""Tokens whose log-probabilities are worked out together."""

Place = tuple[list[float], list[float], int]


class Head:
    """What is read of a model's head, in float32 or better."""

    def __init__(self, module: Any) -> None:
        """Of the model; parts of it only where it is a plain product that nobody listens to."""
        self._module = module
        listened = isinstance(module, nn.Module) and (module._forward_hooks or module._forward_pre_hooks)
        self._weight = module.weight if type(module) is nn.Linear and module.bias is None and not listened else None

    def full(self, hidden_ND: Tensor) -> Tensor:
        """All logits `[N, V]`."""
        return _wide(self._module(hidden_ND))

    def between(self, hidden_ND: Tensor, first: int, end: int) -> Tensor:
        """Logits of the ids from `first` to before `end`."""
        if self._weight is None:
            return self.full(hidden_ND)[:, first:end]
        return _wide(F.linear(hidden_ND, self._weight[first:end]))

    def some(self, hidden_ND: Tensor, ids_K: Tensor) -> Tensor:
        """Logits of some ids."""
        if self._weight is None:
            return self.full(hidden_ND).index_select(1, ids_K)
        return _wide(F.linear(hidden_ND, self._weight.index_select(0, ids_K)))

    def norm_and_own(self, hidden_ND: Tensor, ids_N: Tensor) -> tuple[Tensor, Tensor]:
        """Log of the sum of the exponentials of all logits, and the logit of one id each, `[N]` in float64."""
        if self._weight is None:
            logits_NV = self.full(hidden_ND)
            return norm(logits_NV), logits_NV.gather(1, ids_N[:, None])[:, 0].double()
        most = AT_ONCE.get(hidden_ND.device.type, AT_ONCE["cuda"])
        columns = max(64, most // len(hidden_ND))
        own_N, sums = torch.zeros(len(ids_N), dtype=torch.float64, device=ids_N.device), []
        for start in range(0, len(self._weight), columns):
            part = _wide(F.linear(hidden_ND, self._weight[start : start + columns]))
            sums.append(part.logsumexp(-1).double())
            inside = (ids_N >= start) & (ids_N < start + columns)
            own = part.gather(1, (ids_N - start).clamp(0, part.shape[1] - 1)[:, None])[:, 0]
            own_N = torch.where(inside, own.double(), own_N)
        return torch.stack(sums).logsumexp(0), own_N


def norm(logits_NV: Tensor) -> Tensor:
    """Log of the sum of exponentials of each row, a few rows at a time: three times as fast as all at once."""
    rows = max(1, AT_ONCE.get(logits_NV.device.type, AT_ONCE["cuda"]) // logits_NV.shape[1])
    if rows >= len(logits_NV):
        return logits_NV.logsumexp(-1).double()
    return torch.cat([part.logsumexp(-1) for part in logits_NV.split(rows)]).double()


def _wide(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


@dataclass
class Ledger:
    """Tokens that were written and whose log-probabilities are still to be worked out.

    Attributes:
        head: Of the model.
        hidden: `[N, D]` pieces: what the head reads where each token was decided.
        tokens: Their ids.
        places: Where the results go: two lists of numbers, and which of them. In the second stands the logarithm of
            an unnormalised sum (NaN if there is none), which becomes a probability.
    """

    head: Head
    hidden: list[Tensor] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    places: list[Place] = field(default_factory=list)

    def add(self, hidden_ND: Tensor, at: Sequence[int], tokens: Sequence[int], places: Sequence[Place]) -> None:
        """Some of the tokens of a pass."""
        if list(at) == list(range(len(hidden_ND))):
            self.hidden.append(hidden_ND)
        elif at:
            self.hidden.append(hidden_ND[torch.tensor(at, device=hidden_ND.device)])
        self.tokens += tokens
        self.places += places
        if len(self.tokens) >= TOGETHER:
            self.settle()

    def settle(self) -> None:
        """Work out all that are open."""
        if not self.tokens:
            return
        hidden_ND = torch.cat(self.hidden)
        ids_N = torch.tensor(self.tokens, device=hidden_ND.device)
        norms, own = torch.stack(self.head.norm_and_own(hidden_ND, ids_N)).tolist()
        for (logprobs, masses, index), total, logit in zip(self.places, norms, own, strict=True):
            logprobs[index] = logit - total
            masses[index] = math.exp(masses[index] - total)
        self.hidden, self.tokens, self.places = [], [], []


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
