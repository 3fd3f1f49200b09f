"""The processes of a run: one without torchrun, several with it."""

from __future__ import annotations

import atexit
import os
import sys
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from apiece.model.load import pick_device

# All wait while one process evaluates; a process that died is noticed by torchrun, not by this.
PATIENCE = timedelta(hours=2)

T = TypeVar("T")

_left: list[Any] = []
"""Groups that were closed: see `leave_world`."""


@dataclass(frozen=True, slots=True)
class World:
    """This process among all of the run.

    Attributes:
        rank: 0 is the one that writes files.
        size: Number of processes.
        device: Where this process computes.
    """

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes files."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes (in place where there are several)."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any process."""
        return flag if self.size == 1 else bool(self.sum(torch.tensor(float(flag), device=self.device)) > 0)

    def share(self, value: T) -> list[T]:
        """The values of all processes, in their order, on every one of them."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def gather(self, value: T) -> list[T] | None:
        """The values of all processes, in their order, on the one that writes files; `None` elsewhere."""
        if self.size == 1:
            return [value]
        values: list[Any] | None = [None] * self.size if self.is_main else None
        dist.gather_object(value, values)
        return values

    def barrier(self) -> None:
        """Wait for all."""
        if self.size > 1:
            dist.barrier()

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module as it is trained here: replicated with averaged gradients where there are several processes."""
        if self.size == 1:
            return module
        ids: Any = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(module, device_ids=ids)


def join_world(device: str) -> World:
    """Join the processes that torchrun started; alone without it.

    Args:
        device: `auto`, `cpu` or `cuda`.

    Raises:
        UserError: `cuda` is asked for, and there is none.
    """
    cuda = pick_device(device, cpu="train.device=cpu").type == "cuda"
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    where = torch.device("cuda", local) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(where)
    if size > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if cuda else "gloo", timeout=PATIENCE)
    return World(rank, size, where)


def leave_world(world: World) -> None:
    """Close what `join_world` opened.

    The group itself is kept to the end of the process. A replicated model holds on to it, and whoever drops it last
    waits, with Python's lock, for gloo's threads; one of those may be waiting for that lock, to give back the tensors
    of the last exchange, and neither ever ends (pytorch/pytorch#56297).
    """
    if world.size > 1:
        _left.append(dist.group.WORLD)
        dist.destroy_process_group()


def end_process(status: int) -> None:
    """End a process that was one of several, at once; one that was alone goes on to its ordinary end.

    The handlers that wait for the end run and what was printed is written, but Python is not taken apart. gloo's
    threads give back the tensors of an exchange a little after it, with Python's lock; whoever asks for that lock while
    Python is taken apart is ended (up to Python 3.13), and a thread of C++ that is ended so aborts the whole process.

    Args:
        status: The exit code.
    """
    if _left or (dist.is_available() and dist.is_initialized()):
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
