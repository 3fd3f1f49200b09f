"""Adding the coordinate tokens to a checkpoint, and writing checkpoints for others: merged, in another precision."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken
from torch import Tensor

from apiece.codec import NUM_BINS, CoordVocab, coord_token
from apiece.errors import UserError
from apiece.files import require_new
from apiece.model.find import resolve_checkpoint
from apiece.model.load import load_model, load_text_side, read_image_processor, read_tokenizer, save_pretrained
from apiece.model.lora import is_adapter

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def merge_checkpoint(source: str, out: Path, dtype: str, base: str | None = None) -> int:
    """Write an adapter, merged into its base, as an ordinary checkpoint; returns the new folder's size in bytes.

    `source` is a run that trained adapters, or an adapter's folder; `base` says where its base is now, if that has
    moved.
    """
    if not is_adapter(folder := resolve_checkpoint(source)):
        message = "holds no adapter: its weights are whole already"
        raise UserError(message, where=folder, fix="use it as it is, or export it")
    return export_checkpoint(source, out, dtype, base)


def export_checkpoint(source: str, out: Path, dtype: str, base: str | None = None) -> int:
    """Write a copy of a checkpoint, adapters merged, with its prompt and pixel budget; as `merge_checkpoint`."""
    if dtype not in DTYPES:
        raise UserError(f"expected --dtype {' or '.join(DTYPES)}, found {dtype!r}", exit_code=2)
    require_new(out)
    side = load_text_side(source)
    model = load_model(source, attention="sdpa", dtype=DTYPES[dtype], base=base)
    card = {key: value for key, value in side.card.items() if key != "base"}
    save_pretrained(model, side.tokenizer, side.images.processor, out, card)
    return sum(file.stat().st_size for file in out.rglob("*") if file.is_file())


PAD_MULTIPLE = 128
"""Rows of the embedding are padded to a multiple of this: matrix kernels like it, and shards split evenly."""


@dataclass(frozen=True, slots=True)
class Extended:
    """What was added to a checkpoint."""

    out: Path
    first_id: int  # of the coordinate token of bin 0
    rows_before: int  # of the embedding
    rows_after: int  # with padding
    tied: bool  # whether head and embedding are one table


def ordinal_rows(num_bins: int, width: int, *, scale: float, mean: Tensor | None = None) -> Tensor:
    """Sinusoidal features of the bin, `[num_bins, width]`, around `mean` `[width]` with standard deviation `scale`.

    Smooth in the bin, so that neighbours start close. Wavelengths run geometrically from four bins to four times the
    number of bins, so that rows say both the neighbourhood and the exact bin (Vaswani et al. 2017, section 3.5, with
    the wavelengths fitted to the grid). In a pretrained model, scale and mean are those of the existing rows.
    """
    half = (width + 1) // 2
    wavelengths = torch.logspace(math.log10(4.0), math.log10(4.0 * num_bins), half, dtype=torch.float64)
    phase = 2 * math.pi * torch.arange(num_bins, dtype=torch.float64)[:, None] / wavelengths
    rows = torch.stack([phase.sin(), phase.cos()], dim=-1).flatten(1)[:, :width] * math.sqrt(2) * scale
    if mean is not None:
        rows = rows + mean.double()
    return rows.float()


def add_coord_tokens(tokenizer: Any) -> None:
    """Add the coordinate tokens to a tokenizer that has none."""
    tokens = [AddedToken(coord_token(k), special=True, normalized=False) for k in range(NUM_BINS)]
    tokenizer.add_tokens(tokens, special_tokens=True)


def extend_checkpoint(source: str, out: Path) -> Extended:
    """Write a copy of a checkpoint that knows the coordinate tokens.

    The new rows start from smooth ordinal features around the mean of the existing rows. All other weights are
    bit-equal to the source's, in the source's dtype.
    """
    require_new(out)
    folder = resolve_checkpoint(source)
    model = load_model(source, attention="sdpa", dtype="auto")
    tokenizer = read_tokenizer(folder)
    if coord_token(0) in tokenizer.get_vocab():
        raise UserError("the checkpoint has coordinate tokens already", where=source, fix="use it as it is")
    rows_before = model.get_input_embeddings().weight.shape[0]
    used = len(tokenizer)
    add_coord_tokens(tokenizer)
    vocab = CoordVocab.of(tokenizer, where=source)
    # Published checkpoints are padded already: new tokens take the unused rows first.
    rows = max(rows_before, -(-len(tokenizer) // PAD_MULTIPLE) * PAD_MULTIPLE)
    if rows != rows_before:
        model.resize_token_embeddings(rows, mean_resizing=False)
        model.config.text_config.vocab_size = rows
    tied = bool(model.config.tie_word_embeddings)
    _write_rows(model.get_input_embeddings().weight, vocab, used)
    if not tied:
        _write_rows(model.get_output_embeddings().weight, vocab, used)
    save_pretrained(model, tokenizer, read_image_processor(folder), out)
    _verify(model, out, vocab)
    return Extended(out, vocab.first_id, rows_before, rows, tied)


def _write_rows(table: Tensor, vocab: CoordVocab, used: int) -> None:
    """Ordinal rows around the mean of the `used` rows, as spread out as those are around it."""
    with torch.no_grad():
        existing = table[:used].float()
        mean = existing.mean(0)
        rows = ordinal_rows(NUM_BINS, table.shape[1], scale=float((existing - mean).std()), mean=mean)
        table[vocab.first_id : vocab.end_id] = rows.to(table.dtype)


def _verify(model: Any, out: Path, vocab: CoordVocab) -> None:
    side = load_text_side(str(out))
    assert side.vocab == vocab, "the saved tokenizer gives other ids than the one in memory"
    again = load_model(str(out), attention="sdpa", dtype="auto")
    for (name, before), (_, after) in zip(model.state_dict().items(), again.state_dict().items(), strict=True):
        if not torch.equal(before, after):
            raise UserError(f"{name} changed on the way to the disk", where=out, fix="check the disk; try again")
