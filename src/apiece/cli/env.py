"""`apiece env`: versions and devices, for a bug report or a first look at a new machine."""

from __future__ import annotations

import platform
import re
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import typer

import apiece
from apiece.cli import app

OPTIONAL = {
    "peft": "LoRA and DoRA (model.lora): pip install 'apiece[lora]'",
    "tensorboard": "train.trackers: pip install 'apiece[tensorboard]'",
    "flash-attn": "FlashAttention on NVIDIA GPUs (model.attention): pip install flash-attn --no-build-isolation",
}


@app.command(short_help="Versions and devices, and what is missing.")
def env() -> None:
    """Print the versions of apiece and of all packages that it uses, and the devices; please put it into a bug report.

    Exits with 1 if a package that apiece needs is missing or broken. `python -m torch.utils.collect_env` says more:
    drivers, CUDA, processors.

    Example: `apiece env > env.txt`
    """
    print(f"apiece {apiece.__version__}, Python {platform.python_version()}, {platform.platform()}")
    print(f"in {Path(apiece.__file__).parent}\n")
    listed = requires("apiece") if _version("apiece") else ()  # a source tree that is not installed lists nothing
    needed = [re.split(r"[<>=!~; ]", one)[0] for one in listed or () if "extra ==" not in one]
    missing = [name for name in needed if _version(name) is None]
    for name in needed:
        print(f"  {name:<14} {_version(name) or 'MISSING: reinstall apiece'}")
    for name, use in OPTIONAL.items():
        print(f"  {name:<14} {_version(name) or f'not installed; for {use}'}")
    try:
        import torch
    except (ImportError, OSError) as error:
        print(f"\ntorch cannot be loaded: {error}")
        raise typer.Exit(1) from error
    cards = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    print(f"\nCUDA of torch: {torch.version.cuda}; GPUs that it can use: {', '.join(cards) or 'none'}")
    if missing:
        raise typer.Exit(1)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
