"""GPUs by name: what their makers state, and how much of it a run is assumed to reach."""

from __future__ import annotations

import re
from dataclasses import dataclass

from apiece.errors import UserError, nearest

GIB, TERA = 1 << 30, 1e12
MOST = 512
"""GPUs that a plan is made for at most."""
RESERVED_GIB = 1.5
"""Assumed to be taken by driver, libraries and communication buffers."""
USABLE = 0.94
"""Share of the rest that can be filled: the allocator leaves holes."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One kind of GPU.

    Attributes:
        name: As it is asked for.
        title: In words.
        memory_gib: That programs see, GiB.
        half: Peak of dense bf16 products with float32 sums, FLOP/s.
        single: Peak of float32 products outside the tensor cores, FLOP/s: what PyTorch uses for float32 by default.
        moves: Peak of memory traffic, bytes/s.
        link: To the other GPUs of a node, bytes/s in one direction.
        reaches: Assumed share of `half` in training.
    """

    name: str
    title: str
    memory_gib: float
    half: float
    single: float
    moves: float
    link: float
    reaches: float

    @property
    def room(self) -> float:
        """Bytes that a run may use."""
        return (self.memory_gib - RESERVED_GIB) * GIB * USABLE


# Peaks and bandwidths are the makers' data sheets (NVIDIA: B200/HGX, H200, H100 SXM and PCIe, A100 SXM, L40S, L4, A10,
# and the GeForce whitepapers of Ada and Ampere for bf16 with float32 sums; AMD: Instinct MI300X), dense, not with
# sparsity. Memory is the GiB that the driver gives to programs. Links are NVLink or Infinity Fabric of one GPU in one
# direction, else PCIe x16 (4.0: 25 GB/s, 5.0: 50 GB/s in practice).
# `reaches` is an assumption, not a measurement: large language models in tuned code report .35 to .5 of the peak
# (model FLOPs; PaLM, Chowdhery et al. 2022; torchtitan, Liang et al. 2024); eager Hugging Face code at the widths of 2B
# to 8B models stays well below, and the faster the GPU is beside its memory the more so.
GPUS = {
    g.name: g
    for g in (
        Gpu("b200", "NVIDIA B200", 178.0, 2250e12, 75e12, 8.0e12, 900e9, 0.20),
        Gpu("h200", "NVIDIA H200 SXM", 139.8, 989e12, 67e12, 4.8e12, 450e9, 0.27),
        Gpu("h100", "NVIDIA H100 SXM", 79.1, 989e12, 67e12, 3.35e12, 450e9, 0.25),
        Gpu("h100-pcie", "NVIDIA H100 PCIe", 79.1, 756e12, 51e12, 2.0e12, 50e9, 0.25),
        Gpu("a100-80", "NVIDIA A100 SXM 80 GB", 79.1, 312e12, 19.5e12, 2.04e12, 300e9, 0.35),
        Gpu("a100-40", "NVIDIA A100 SXM 40 GB", 39.4, 312e12, 19.5e12, 1.555e12, 300e9, 0.35),
        Gpu("mi300x", "AMD Instinct MI300X", 191.7, 1307e12, 163e12, 5.3e12, 448e9, 0.20),
        Gpu("l40s", "NVIDIA L40S", 44.4, 362e12, 91.6e12, 0.864e12, 25e9, 0.25),
        Gpu("rtx4090", "NVIDIA GeForce RTX 4090", 23.5, 165e12, 82.6e12, 1.008e12, 25e9, 0.35),
        Gpu("rtx3090", "NVIDIA GeForce RTX 3090", 23.5, 71e12, 35.6e12, 0.936e12, 25e9, 0.40),
        Gpu("a10", "NVIDIA A10", 22.0, 125e12, 31.2e12, 0.6e12, 25e9, 0.25),
        Gpu("l4", "NVIDIA L4", 22.0, 121e12, 30.3e12, 0.3e12, 25e9, 0.20),
    )
}
_ALIASES = {"a100": "a100-80", "h100-sxm": "h100", "h200-sxm": "h200", "4090": "rtx4090", "3090": "rtx3090"}
NODE = 8
"""GPUs of a node, joined by `link`."""
NETWORK = 50e9
"""Assumed between nodes for each GPU, bytes/s in one direction: one 400 Gbit/s adapter."""
LINK_SHARE, MEMORY_SHARE, SINGLE_SHARE = 0.7, 0.7, 0.5
"""Assumed shares of the links', the memory's and the float32 peak that are reached."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What is planned for.

    Attributes:
        gpu: The kind.
        count: How many, one process each.
        reaches: Share of its peak that is assumed.
    """

    gpu: Gpu
    count: int
    reaches: float

    @property
    def bus(self) -> float:
        """Bytes/s that a GPU exchanges with the others in one direction: as fast as the slowest link in the ring."""
        return LINK_SHARE * (self.gpu.link if self.count <= NODE else min(NETWORK, self.gpu.link))


def machine_of(text: str, reaches: float | None = None) -> Machine:
    """`h100:8`, or `h100` for one.

    Raises:
        UserError: No such GPU, or no such number of them.
    """
    name, colon, number = text.strip().lower().partition(":")
    name = _ALIASES.get(name, name)
    if name not in GPUS:
        raise UserError(
            f"unknown GPU '{text.partition(':')[0]}'{nearest(name, [*GPUS, *_ALIASES])}",
            where="--gpu",
            fix=f"one of: {', '.join(GPUS)}; with a number: {name if name in GPUS else 'h100'}:8",
            exit_code=2,
        )
    if (colon and not re.fullmatch(r"\d{1,9}", number)) or (colon and not 1 <= int(number) <= MOST):
        raise UserError(
            f"expected a number of GPUs from 1 to {MOST}, found '{number}'",
            where="--gpu",
            fix=f"{name}:8, for example",
            exit_code=2,
        )
    gpu = GPUS[name]
    return Machine(gpu, int(number) if colon else 1, gpu.reaches if reaches is None else reaches)
