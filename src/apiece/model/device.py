"""Where a model computes."""

from __future__ import annotations

import torch

from apiece.errors import UserError, nearest

DEVICES = ("auto", "cpu", "cuda")


def pick_device(name: str, *, cpu: str = "--device cpu") -> torch.device:
    """The device of a name: `auto` is a GPU where there is one.

    Args:
        name: `auto`, `cpu` or `cuda`.
        cpu: How to ask for the CPU instead.

    Raises:
        UserError: The name is unknown, or there is no such device here.
    """
    if name not in DEVICES:
        raise UserError(f"unknown device '{name}'{nearest(name, DEVICES)}; known: {', '.join(DEVICES)}", exit_code=2)
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError(
            f"no CUDA device found (torch {torch.__version__})",
            fix=f"{cpu}, or install a CUDA build",
            exit_code=2,
        )
    return torch.device("cuda" if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else "cpu")
