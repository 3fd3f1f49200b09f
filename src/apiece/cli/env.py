"""`apiece env`: what apiece runs on here, for a bug report or a first look at a new machine."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import typer

import apiece
from apiece.cli import app
from apiece.train.run import package_version

REQUIRED = (
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "numpy",
    "scipy",
    "hotcoco",
    "httpx2",
    "pillow",
    "pydantic",
    "msgspec",
    "pyyaml",
    "jinja2",
    "rich",
    "typer",
)
"""What apiece needs, as in pyproject.toml, the most telling first."""

GB = 1 << 30


@dataclass(frozen=True, slots=True)
class Extra:
    """A package that apiece uses where it is installed.

    Attributes:
        name: As pip knows it.
        use: What it is for.
        install: The command.
    """

    name: str
    use: str
    install: str


EXTRAS = (
    Extra(
        "flash-attn",
        "FlashAttention on NVIDIA GPUs (model.attention)",
        "pip install flash-attn --no-build-isolation",
    ),
    Extra("peft", "adapters: LoRA and DoRA (model.lora)", "pip install -c constraints.txt -e '.[lora]'"),
    Extra("pycocotools", "the reference that the tests compare AP with", "pip install -e '.[test]'"),
    Extra("pytest", "`make test`", "pip install -e '.[test]'"),
    Extra("fastapi", "`transformers serve`, which a test asks", "pip install -c constraints.txt -e '.[test-server]'"),
)


@dataclass(frozen=True, slots=True)
class Device:
    """Something that a model can run on.

    Attributes:
        id: As `train.device` and torch name it.
        name: Of the product.
        memory_gb: In units of 2**30 bytes, to a tenth.
        bf16: Whether `model.precision=auto` is bf16 there.
        cores: CPU cores open to this process; `None` for a GPU.
    """

    id: str
    name: str
    memory_gb: float
    bf16: bool
    cores: int | None = None


@dataclass(frozen=True, slots=True)
class Environment:
    """What `apiece env` tells; `--json` writes it as it stands here.

    Attributes:
        apiece: Version.
        location: Folder of the package.
        python: Version.
        system: Operating system and processor type.
        cuda: CUDA version that torch was built for; `None` without.
        versions: Of the packages that apiece needs; `None` is missing.
        optional: Of the packages that it can use; `None` is missing.
        devices: The CPU first.
        problems: What does not work, in words.
    """

    apiece: str
    location: str
    python: str
    system: str
    cuda: str | None
    versions: dict[str, str | None]
    optional: dict[str, str | None]
    devices: list[Device] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


@app.command(short_help="Versions, devices, and what is optional and missing.")
def env(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print versions, devices, and which optional packages are missing and what each is for.

    Exits with 1 if it finds a problem: a package that apiece needs is missing or broken, a GPU that torch cannot use.
    Please put the output into a bug report.

    Example: `apiece env --json`
    """
    found = read_environment()
    print(json.dumps(asdict(found), indent=1, ensure_ascii=False) if as_json else describe(found))
    if found.problems:
        raise typer.Exit(1)


def read_environment() -> Environment:
    """Look at this machine."""
    versions = {name: package_version(name) for name in REQUIRED}
    problems = [f"{name} is missing: reinstall apiece" for name, version in versions.items() if version is None]
    cuda: str | None = None
    devices: list[Device] = []
    try:
        cuda, devices = _devices()
    except (ImportError, OSError) as error:
        problems.append(f"torch cannot be loaded: {error}")
    if len(devices) == 1 and _sees_nvidia():
        unusable = f"torch (CUDA {cuda}) cannot use it: check its driver"
        why = "this torch is built without CUDA" if cuda is None else unusable
        problems.append(f"an NVIDIA GPU is here, but {why}")
    return Environment(
        apiece=apiece.__version__,
        location=str(Path(apiece.__file__).parent),
        python=platform.python_version(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        cuda=cuda,
        versions=versions,
        optional={package.name: package_version(package.name) for package in EXTRAS},
        devices=devices,
        problems=problems,
    )


def describe(found: Environment) -> str:
    """The same for a person."""
    lines = [f"apiece {found.apiece}, Python {found.python}, {found.system}", f"in {found.location}", "", "Needed"]
    lines += [f"  {name:<14} {version or 'MISSING'}" for name, version in found.versions.items()]
    lines += ["", "Devices"]
    for device in found.devices:
        cores = "" if device.cores is None else f"{device.cores} cores, "
        precision = "bf16" if device.bf16 else "float32"
        lines.append(f"  {device.id:<14} {device.name}, {cores}{device.memory_gb:.0f} GB, {precision}")
    if len(found.devices) < 2:
        lines.append("  no GPU")
    lines += ["", "Optional"]
    for package in EXTRAS:
        version = found.optional[package.name]
        lines.append(f"  {package.name:<14} {version or 'missing':<10} {package.use}")
        if version is None:
            lines.append(f"  {'':<14} {'':<10} {package.install}")
    if found.problems:
        lines += ["", "Problems", *(f"  {problem}" for problem in found.problems)]
    return "\n".join(lines)


def _devices() -> tuple[str | None, list[Device]]:
    """The CUDA version that torch was built for, and the devices it can use."""
    import torch

    from apiece.config.schema import Precision
    from apiece.train.step import autocast_dtype

    def bf16(device: str) -> bool:
        return autocast_dtype(Precision.AUTO, torch.device(device)) is torch.bfloat16

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    devices = [Device("cpu", _processor(), round(memory / GB, 1), bf16("cpu"), cores)]
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        devices.append(Device(f"cuda:{index}", card.name, round(card.total_memory / GB, 1), bf16(f"cuda:{index}")))
    return torch.version.cuda, devices


def _sees_nvidia() -> bool:
    """Whether an NVIDIA GPU is here and not hidden on purpose."""
    return Path("/dev/nvidia0").exists() and os.environ.get("CUDA_VISIBLE_DEVICES") not in ("", "-1")


def _processor() -> str:
    """The CPU's name."""
    table = Path("/proc/cpuinfo")
    lines = table.read_text(encoding="utf-8", errors="replace").splitlines() if table.is_file() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
