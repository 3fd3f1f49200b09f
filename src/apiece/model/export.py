"""A checkpoint on its own: the weights of a run in the precision that is to be shipped, without optimizer state."""

from __future__ import annotations

from pathlib import Path

import torch

from apiece.errors import UserError
from apiece.model.load import load_model, load_text_side, save_pretrained

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def export_checkpoint(source: str, out: Path, dtype: str) -> int:
    """Write a copy of a checkpoint in `float32` or `bfloat16`; its prompt and pixel budget go with it.

    Returns:
        Size of the new folder in bytes.

    Raises:
        UserError: `out` exists or the dtype is unknown.
    """
    if out.exists():
        raise UserError("the output exists already and is not overwritten", where=out, fix="choose a new folder")
    if dtype not in DTYPES:
        raise UserError(f"expected --dtype {' or '.join(DTYPES)}, found {dtype!r}", exit_code=2)
    side = load_text_side(source)
    model = load_model(source, attention="sdpa", dtype=DTYPES[dtype])
    save_pretrained(model, side.tokenizer, side.images.processor, out, side.card)
    return sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
