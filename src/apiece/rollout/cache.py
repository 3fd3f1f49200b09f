"""Keys and values of rows that are at different places, and the attention that reads them.

Every row has its own length: new tokens go behind it, whatever the other rows do, so there are no holes. Nothing is
copied as rows grow; a row that is done gives its place to another. What was written of tokens that were taken back is
overwritten by the next ones.

Shapes: R rows, H key-value heads, C columns, W new tokens of the widest row, N = R * W, d head width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AttentionInterface

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
