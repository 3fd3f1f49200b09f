"""A checkpoint on its own: weights in the precision that is to be shipped, adapters merged, no optimizer state."""

from __future__ import annotations

from pathlib import Path

import torch

from apiece.errors import UserError
from apiece.files import require_new
from apiece.model.find import resolve_checkpoint
from apiece.model.load import load_model, load_text_side, save_pretrained
from apiece.model.lora import is_adapter

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def merge_checkpoint(source: str, out: Path, dtype: str, base: str | None = None) -> int:
    """Write an adapter, merged into its base, as an ordinary checkpoint; coordinate rows are the adapter's.

    Args:
        source: A run that trained adapters, or the folder of one.
        out: New folder.
        dtype: `float32` or `bfloat16`.
        base: Its base, where that is not where it was.

    Returns:
        Size of the new folder in bytes.

    Raises:
        UserError: Not an adapter, no base, `out` exists or the dtype is unknown.
    """
    if not is_adapter(folder := resolve_checkpoint(source)):
        raise UserError(
            "holds no adapter: its weights are whole already",
            where=folder,
            fix="use it as it is, or export it",
        )
    return export_checkpoint(source, out, dtype, base)


def export_checkpoint(source: str, out: Path, dtype: str, base: str | None = None) -> int:
    """Write a copy of a checkpoint in `float32` or `bfloat16`; its prompt and pixel budget go with it.

    Returns:
        Size of the new folder in bytes.

    Raises:
        UserError: `out` exists or the dtype is unknown.
    """
    if dtype not in DTYPES:
        raise UserError(f"expected --dtype {' or '.join(DTYPES)}, found {dtype!r}", exit_code=2)
    require_new(out)
    side = load_text_side(source)
    model = load_model(source, attention="sdpa", dtype=DTYPES[dtype], base=base)
    card = {key: value for key, value in side.card.items() if key != "base"}
    save_pretrained(model, side.tokenizer, side.images.processor, out, card)
    return sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
