"""Exported weights are the source's, in the asked precision, and load like any checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from apiece.errors import UserError
from apiece.model.extend import export_checkpoint
from apiece.model.load import load_model, load_text_side


@pytest.mark.parametrize(("dtype", "bytes_each"), [("bfloat16", 2), ("float32", 4)])
def test_export(tmp_path: Path, tiny_checkpoint: Path, dtype: str, bytes_each: int) -> None:
    size = export_checkpoint(str(tiny_checkpoint), tmp_path / "out", dtype)
    before = load_model(str(tiny_checkpoint)).state_dict()
    after = load_model(str(tmp_path / "out"), dtype="auto").state_dict()
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert after[name].dtype == getattr(torch, dtype)
        assert torch.equal(after[name], tensor.to(after[name].dtype))
    count = sum(p.numel() for p in load_model(str(tiny_checkpoint)).parameters())
    assert bytes_each * count < size < bytes_each * count + 500_000
    assert load_text_side(str(tmp_path / "out")).vocab == load_text_side(str(tiny_checkpoint)).vocab


def test_refusals(tmp_path: Path, tiny_checkpoint: Path) -> None:
    with pytest.raises(UserError, match="expected --dtype float32 or bfloat16, found 'int4'"):
        export_checkpoint(str(tiny_checkpoint), tmp_path / "out", "int4")
    with pytest.raises(UserError, match="not overwritten"):
        export_checkpoint(str(tiny_checkpoint), tmp_path, "bfloat16")
