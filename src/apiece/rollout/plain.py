"""A few tokens of each row through `model(...)`, and the logits of its head: works for any model of the library.

Shapes: R rows, W new tokens of the widest row, N = R * W, D width, H key-value heads, d head width, C columns,
V vocabulary, K some ids of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface

ATTENTION = "apiece_rows"
AT_ONCE = {"cpu": 1 << 18, "cuda": 1 << 24}
"""Logits that are normalised together: on a CPU as many as stay in its cache, elsewhere a bound on memory."""
_GROW = 64  # columns are added in multiples of this


class PlainModel:
    """The language model after the prefix, and its head."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def read(self, ids_RW: NDArray[np.int64], positions_RW: NDArray[np.int64], cache: RowCache) -> Tensor:
        """Read tokens; returns `[N, D]`, what the head reads.

        Row r is in place r of the cache, which gets its new keys and values. A position holds on all three axes, as for
        all text.
        """
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

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """All logits `[N, V]`, in float32 or better."""
        return wide(self.model.lm_head(hidden_ND))

    def logits_between(self, hidden_ND: Tensor, first: int, end: int) -> Tensor:
        return self.logits(hidden_ND)[:, first:end]

    def logits_of(self, hidden_ND: Tensor, ids_K: Tensor) -> Tensor:
        return self.logits(hidden_ND).index_select(1, ids_K)

    def norm_and_own(self, hidden_ND: Tensor, ids_N: Tensor) -> tuple[Tensor, Tensor]:
        """Log of the sum of the exponentials of all logits, and the logit of one id each, `[N]` in float64."""
        logits_NV = self.logits(hidden_ND)
        return norm(logits_NV), logits_NV.gather(1, ids_N[:, None])[:, 0].double()


def wide(logits: Tensor) -> Tensor:
    """In float32 or better."""
    return logits if logits.dtype == torch.float64 else logits.float()


def norm(logits_NV: Tensor) -> Tensor:
    """Log of the sum of exponentials of each row, a few rows at a time: three times as fast as all at once."""
    rows = max(1, AT_ONCE.get(logits_NV.device.type, AT_ONCE["cuda"]) // logits_NV.shape[1])
    if rows >= len(logits_NV):
        return logits_NV.logsumexp(-1).double()
    return torch.cat([part.logsumexp(-1) for part in logits_NV.split(rows)]).double()


class RowCache:
    """Keys and values of rows of different lengths; it stands in for the library's cache while answers are written.

    New tokens of a row go right after its own last one, so there are no holes. Nothing is copied as rows grow, and a
    finished row gives its place to another. Tokens that were taken back are overwritten by the next ones.
    """

    def __init__(self, config: Any, rows: int) -> None:
        """An empty cache for at most `rows` rows; `config` is the language model's."""
        self.lengths = np.zeros(rows, dtype=np.int64)  # tokens of each row
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
        return self._keys[0].is_cuda

    def begin(self, rows: int, width: int) -> Tensor:
        """Prepare a forward pass of `width` tokens of the first `rows` rows.

        Returns the mask `[R, 1, heads per key-value head * W, C]` to add to attention scores.
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
            self._keys = [F.pad(k, more) for k in self._keys]
            self._values = [F.pad(v, more) for v in self._values]


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
    """Scaled dot-product attention; heads that share keys are packed together, so that keys are never copied."""
    rows, heads, width, size = query.shape
    packed = query.reshape(rows, key.shape[1], -1, size)
    out = F.scaled_dot_product_attention(packed, key, value, attn_mask=attention_mask, scale=scaling)
    return out.reshape(rows, heads, width, size).transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, _attend)


@contextmanager
def row_attention(model: Any) -> Iterator[None]:
    """The language model attends by row while the block runs; image and prompt are read as usual."""
    config = model.config.text_config
    before = config._attn_implementation
    config._attn_implementation = ATTENTION
    try:
        yield
    finally:
        config._attn_implementation = before


@contextmanager
def before_head(model: Any) -> Iterator[list[Tensor]]:
    """Collects the head's input, `[R, W, D]` a pass, and leaves the head nothing to do."""
    seen: list[Tensor] = []

    def keep(_: object, args: tuple[Tensor]) -> Tensor:
        seen.append(args[0])
        return args[0][:, :0]

    handle = model.lm_head.register_forward_pre_hook(keep)
    try:
        yield seen
    finally:
        handle.remove()
