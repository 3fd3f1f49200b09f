"""The shared prefix: image, prompt and everything before the first slot are computed once and serve every pass.

Attention is causal, so keys and values before the first replaced token are the same in every pass. They stay in the
autograd graph: gradients of all passes flow through them into one computation.

Shapes: B samples, P prefix tokens, T answer tokens, D width, V image tokens. Row t of an answer's hidden states
predicts answer token t: that shift is made in `first_pass` and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from apiece.data.collate import Batch, Prefix
from apiece.model.families import image_features, language_of, rope_positions

# Short stretches of answers run again with other tokens in place, all at once: each sees only what stood before it.
#
# What an object's own slots say depends on nothing after them, so for a change in one object only the tokens of its
# own box need to run again: for all objects of all samples of a batch in one pass, separated by the attention mask.
#
# Shapes: B samples, N windows, L tokens of a window, W tokens of all windows of a sample, M positions of the first
# pass.


def window_pass(model: Any, first: FirstPass, embeds_NLD: Tensor, sample_N: Tensor, start_N: Tensor) -> Tensor:
    """Run windows of the answers again.

    Args:
        model: In evaluation mode.
        first: The first pass over the same batch.
        embeds_NLD: Input embeddings of each window.
        sample_N: The sample that a window belongs to.
        start_N: Index of a window's first token in the answer.

    Returns:
        Hidden states `[N, L, D]` after the final norm: row i predicts the token after the window's token i.
    """
    (length, width), device = embeds_NLD.shape[1:], embeds_NLD.device
    samples, most = first.embeds_BTD.shape[0], int(torch.bincount(sample_N).max())
    place_N = _places(sample_N)
    embeds = embeds_NLD.new_zeros(samples, most, length, width)
    embeds[sample_N, place_N] = embeds_NLD
    begin = torch.zeros(samples, most, dtype=torch.int64, device=device)
    prefix = first.positions.shape[2] - (first.embeds_BTD.shape[1] - 1)
    begin[sample_N, place_N] = prefix + start_N
    total = first.positions.shape[2]
    within = (begin[..., None] + torch.arange(length, device=device)).view(samples, -1)
    positions = first.positions.gather(2, within.clamp_max(total - 1).expand(3, -1, -1))
    with _dense_attention(model):
        hidden = run_layers(
            model,
            embeds.view(samples, most * length, width),
            positions,
            _mask(first.key_mask, begin, length, total),
            ReadPrefix(first.kept, None),
        )
    hidden = language_of(model).norm(hidden).view(samples, most, length, width)
    return hidden[sample_N, place_N]


def _places(sample_N: Tensor) -> Tensor:
    """Number of each window among those of its sample, `[N]`, in order."""
    same = sample_N[:, None] == sample_N[None]
    return same.tril(-1).sum(1)


def _mask(key_mask: Tensor | None, begin: Tensor, length: int, total: int) -> Tensor:
    """`[B, 1, W, M + W]`: what stood before the window, and the window itself up to the token."""
    samples, most = begin.shape
    before = torch.arange(total, device=begin.device) < begin[..., None]
    if key_mask is not None:
        before = before & key_mask[:, None]
    before = before.repeat_interleave(length, dim=1)
    own = torch.eye(most, dtype=torch.bool, device=begin.device)
    causal = torch.ones(length, length, dtype=torch.bool, device=begin.device).tril()
    inside = (own[:, None, :, None] & causal[None, :, None, :]).reshape(most * length, most * length)
    return torch.cat([before, inside.expand(samples, -1, -1)], dim=2)[:, None]


@contextmanager
def _dense_attention(model: Any) -> Iterator[None]:
    """FlashAttention takes no mask of its own shape: windows run under the one that every build has."""
    config = model.config.text_config
    before = config._attn_implementation
    if before.startswith("flash"):
        config._attn_implementation = "sdpa"
    try:
        yield
    finally:
        config._attn_implementation = before


KeysValues = tuple[Tensor, Tensor]


class KeepPrefix:
    """Takes the place of a cache in the first pass: keeps the keys and values of every layer, in the graph.

    Later passes share those before `cut`. Gradient checkpointing runs a layer again in the backward pass; what was kept
    then stays as it is.
    """

    def __init__(self, cut: int) -> None:
        self.cut = cut
        self.layers: dict[int, KeysValues] = {}

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any) -> KeysValues:
        """Called by the attention of `layer` with `[B, heads, L, d]`; returns what to attend to."""
        if layer not in self.layers:
            self.layers[layer] = (keys, values)
        return keys, values


class ReadPrefix:
    """Takes the place of a cache in later passes: puts the kept keys and values before the new ones, stores nothing.

    Args:
        cut: How many positions of the first pass are read; `None` for all, for a caller whose mask says which.
    """

    def __init__(self, kept: KeepPrefix, cut: int | None) -> None:
        self.layers = kept.layers
        self.cut = cut

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any) -> KeysValues:
        """Called by the attention of `layer`; returns what to attend to."""
        prefix_keys, prefix_values = (kept[:, :, : self.cut] for kept in self.layers[layer])
        return torch.cat([prefix_keys, keys], dim=2), torch.cat([prefix_values, values], dim=2)


@dataclass(frozen=True, slots=True)
class FirstPass:
    """What later passes need of the first."""

    hidden_BTD: Tensor  # hidden states, after the final norm: row t predicts answer token t
    embeds_BTD: Tensor  # input embeddings of the answer's tokens
    positions: Tensor  # `[3, B, P + T - 1]` rotary positions
    key_mask: Tensor | None  # `[B, P + T - 1]` bool, false at padding on the left; `None` where there is none
    kept: KeepPrefix  # keys and values; those before the first slot are shared by all passes
    first_slot: int  # index of the earliest slot in the batch's answers; of the last token fed in, if that comes first


def allow_shared_prefix(model: Any) -> None:
    """Let checkpointed layers read and keep keys and values: the stand-ins above may be called twice."""
    for layer in language_of(model).layers:
        layer._can_checkpoint_with_cache = True


def first_pass(model: Any, batch: Batch) -> FirstPass:
    """The teacher-forced pass over image, prompt and answer; keeps what all passes share.

    The last token of an answer predicts nothing, so it is not fed in.
    """
    prefix, num_prefix, num_answer = batch.prefix, batch.prefix.ids.shape[1], batch.answer_ids.shape[1]
    # Later passes run one position at least, also where no slot is fed in: processes that share weights between them
    # must run the layers equally often.
    first_slot = max(num_answer - 2, 0)
    if len(batch.slots):
        first_slot = min(first_slot, int(batch.slots.position.min()))
    # One look-up for both: the gradient of each is as large as the whole table.
    embeds = model.get_input_embeddings()(torch.cat([prefix.ids, batch.answer_ids], dim=1))
    embeds_BTD = embeds[:, num_prefix:]
    prefix_embeds, deepstack = _image_embeds(model, prefix, embeds[:, :num_prefix])
    key_mask = None
    if not bool(prefix.mask.all()):
        key_mask = torch.nn.functional.pad(prefix.mask, (0, num_answer - 1), value=True)
    positions = rope_positions(model, prefix, num_answer - 1)
    kept = KeepPrefix(num_prefix + first_slot)
    hidden = run_layers(
        model,
        torch.cat([prefix_embeds, embeds_BTD[:, :-1]], dim=1),
        positions,
        attention_mask(model, key_mask, 0, positions.shape[2], hidden_device=embeds_BTD.device),
        kept,
        torch.nn.functional.pad(prefix.image_mask, (0, num_answer - 1)),
        deepstack,
    )
    hidden_BTD = language_of(model).norm(hidden[:, num_prefix - 1 :])
    return FirstPass(hidden_BTD, embeds_BTD, positions, key_mask, kept, first_slot)


def later_pass(model: Any, first: FirstPass, embeds_BTD: Tensor) -> Tensor:
    """A pass in which embeddings from the first slot on may differ from the first pass's.

    Args:
        embeds_BTD: Input embeddings of the whole answer.

    Returns:
        Hidden states `[B, T, D]`; rows up to the one that predicts the first slot are the first pass's own.
    """
    start, total = first.kept.cut, first.positions.shape[2]
    if start >= total:
        return first.hidden_BTD
    hidden = run_layers(
        model,
        embeds_BTD[:, first.first_slot : -1],
        first.positions[:, :, start:],
        attention_mask(model, first.key_mask, start, total, hidden_device=embeds_BTD.device),
        ReadPrefix(first.kept, start),
    )
    hidden = language_of(model).norm(hidden)
    return torch.cat([first.hidden_BTD[:, : first.first_slot + 1], hidden], dim=1)


def attention_mask(
    model: Any, key_mask: Tensor | None, start: int, total: int, *, hidden_device: torch.device
) -> Tensor | None:
    """The mask for queries `start` to `total - 1` over all `total` keys, as the attention implementation wants it.

    FlashAttention takes the padding alone and is causal from the last query back; the others take `[1 or B, 1, Q, K]`
    of bool, or `None` where plain causal attention is meant.
    """
    if model.config.text_config._attn_implementation.startswith("flash"):
        return key_mask
    if key_mask is None and start == 0:
        return None
    index = torch.arange(total, device=hidden_device)
    causal = index[None, :] <= index[start:, None]
    if key_mask is None:
        return causal[None, None]
    # A padded query may look at itself: a row without any key would give NaN, which spreads through products by zero.
    itself = index[None, :] == index[start:, None]
    return ((causal & key_mask[:, None, :]) | itself)[:, None]


def _image_embeds(model: Any, prefix: Prefix, embeds: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Prefix embeddings with the image's features in place, and the features for the first layers."""
    features = image_features(model, prefix)
    image = features.embeds_VD.to(embeds.dtype)
    return embeds.masked_scatter(prefix.image_mask[..., None], image), features.deepstack


def run_layers(
    model: Any,
    hidden: Tensor,
    positions: Tensor,
    mask: Tensor | None,
    cache: KeepPrefix | ReadPrefix,
    image_mask: Tensor | None = None,
    deepstack: tuple[Tensor, ...] = (),
) -> Tensor:
    """The language model's layers, without its final norm."""
    language = language_of(model)
    rotary = language.rotary_emb(hidden, positions)
    for index, layer in enumerate(language.layers):
        hidden = layer(hidden, attention_mask=mask, position_embeddings=rotary, past_key_values=cache)
        if index < len(deepstack):
            assert image_mask is not None, "deep-stack features come with the mask of their positions"
            hidden = hidden.clone()
            hidden[image_mask] = hidden[image_mask] + deepstack[index].to(hidden.dtype)
    return hidden
