"""Weights in a file for each process that trained them, put together: safetensors are read, no processes are needed."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from apiece.errors import UserError

PATTERN = "shard-*.safetensors"
# Where torch.distributed.checkpoint keeps the place of each part, in the header of the file.
_PLACES, _OFFSETS = "DCP_SHARDING_INFO", "saved_offsets"


def read_shards(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder, whole.

    Raises:
        UserError: A file is damaged, or one is missing.
    """
    parts: dict[str, list[tuple[tuple[int, ...], Tensor]]] = {}
    for file in sorted(folder.glob(PATTERN)):
        try:
            with safe_open(file, framework="pt") as opened:
                places = json.loads((opened.metadata() or {}).get(_PLACES, "{}"))
                for name in opened.keys():  # noqa: SIM118  not a mapping
                    offsets = tuple(places[name][_OFFSETS])
                    parts.setdefault(name, []).append((offsets, opened.get_tensor(name)))
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"cut short or damaged weights: {error}", where=file, fix="name an older checkpoint of the run"
            ) from error
    return {name: _put_together(name, parts.pop(name), folder) for name in sorted(parts)}


def _put_together(name: str, parts: list[tuple[tuple[int, ...], Tensor]], folder: Path) -> Tensor:
    ends = [[at + size for at, size in zip(offsets, part.shape, strict=True)] for offsets, part in parts]
    size = [max(column) for column in zip(*ends, strict=True)]
    whole = torch.empty(size, dtype=parts[0][1].dtype)
    if sum(part.numel() for _, part in parts) != whole.numel():
        raise UserError(
            f"a file of weights is missing: there is only a part of {name}", where=folder, fix="restore the folder"
        )
    for offsets, part in parts:
        whole[tuple(slice(at, at + n) for at, n in zip(offsets, part.shape, strict=True))] = part
    return whole
