"""The processes of a run, one without torchrun, several with it; and what each of them holds of the model.

Sharded training (FSDP2): every process keeps a part of each weight, and a layer is whole only while it runs. The root
is the module of the whole step, so what lies outside the layers, above all the embedding and head table that the
channel cuts its coordinate rows from, is whole throughout a step's forward and backward pass. Outside a step nothing
is: weights are then read through `whole_state` or `whole_model`, in which all processes must take part.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from apiece.config.schema import ModelSection, Parallel
from apiece.model.families import language_of, vision_layers
from apiece.model.load import load_model, pick_device
from apiece.model.lora import adapter_weights, add_adapters_like, is_adapted

# All wait while one process evaluates; a process that died is noticed by torchrun, not by this.
PATIENCE = timedelta(hours=2)

T = TypeVar("T")

_left: list[Any] = []  # closed groups: see `leave_world`


@dataclass(frozen=True, slots=True)
class World:
    """This process among all of the run; rank 0 is the main one, which writes files."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes (in place where there are several)."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def any(self, flag: bool) -> bool:
        return flag if self.size == 1 else bool(self.sum(torch.tensor(float(flag), device=self.device)) > 0)

    def share(self, value: T) -> list[T]:
        """The values of all processes, in rank order, on every one of them."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def gather(self, value: T) -> list[T] | None:
        """The values of all processes, in rank order, on the main one; `None` elsewhere."""
        if self.size == 1:
            return [value]
        values: list[Any] | None = [None] * self.size if self.is_main else None
        dist.gather_object(value, values)
        return values

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()


def join_world(device: str) -> World:
    """Join the processes that torchrun started, if it did; `device` is `auto`, `cpu` or `cuda`."""
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

    The group itself is kept to the end of the process. A replicated model refers to it, and whoever drops it last
    waits, holding Python's lock, for gloo's threads; one of those may be waiting for that lock, to release the tensors
    of the last exchange, and neither ever ends (pytorch/pytorch#56297).
    """
    if world.size > 1:
        _left.append(dist.group.WORLD)
        dist.destroy_process_group()


def end_process(status: int) -> None:
    """End a process that was one of several, at once; a lone process continues to its ordinary end.

    Exit handlers run and output is flushed, but the interpreter is not finalized. gloo's threads release the tensors of
    an exchange a little after it, under Python's lock; a thread that asks for that lock during finalization is ended
    (up to Python 3.13), and ending a C++ thread in this way aborts the whole process.
    """
    if _left or (dist.is_available() and dist.is_initialized()):
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


# What each process holds of the model.


def parallelize(channel: nn.Module, parallel: Parallel, world: World, dtype: torch.dtype | None) -> nn.Module:
    """The step as it is trained here: alone, replicated with averaged gradients, or sharded.

    Call it after freezing and before making the optimizers: sharding replaces the parameters.

    Args:
        channel: The whole step, with the model as `model`; with `fsdp` it is changed in place.
        dtype: Autocast's. Sharded layers are gathered in it, since their products run in it anyway; the table, norms
            and mergers outside the layers stay as they are, and gradients are added up as they are.
    """
    if world.size == 1:
        return channel
    if parallel is Parallel.DDP:
        ids: Any = [world.device.index] if world.device.type == "cuda" else None
        return DistributedDataParallel(channel, device_ids=ids)
    mesh = init_device_mesh(world.device.type, (world.size,))
    reduce = None if dtype is None else torch.float32
    # Autocast casts where it must; casting a layer's input would round the residual stream as well.
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=reduce, cast_forward_inputs=False)
    model: Any = channel.get_submodule("model")
    for layer in [*vision_layers(model), *language_of(model).layers]:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(channel, mesh=mesh)
    return channel


def is_sharded(tensor: Tensor) -> bool:
    """Whether this process holds only a part of the tensor."""
    return isinstance(tensor, DTensor)


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor; where it is sharded, all processes must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def sharded_like(tensor: Tensor, like: Tensor) -> Tensor:
    """What this process keeps of a whole tensor laid out as `like`; nothing is exchanged."""
    tensor = tensor.to(like.device)
    if isinstance(like, DTensor):
        return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)
    return tensor


def whole_state(state: dict[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """Whole named tensors, gathered one by one; all processes must call this.

    Sharded tensors come back on the CPU, others as they are; nothing comes back on a process that does not `keep` them.
    """
    out = {}
    for name, tensor in state.items():
        if isinstance(tensor, DTensor):
            entire = tensor.full_tensor()
            if keep:
                out[name] = entire.cpu()
        elif keep:
            out[name] = tensor
    return out


def weights_of(model: Any) -> dict[str, Tensor]:
    """All weights by name, or only the adapters where there are some; a head tied to the embedding appears once, as the
    embedding."""
    if is_adapted(model):
        return adapter_weights(model)
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    return {name: tensor for name, tensor in model.state_dict().items() if name not in tied}


@contextmanager
def whole_model(model: Any, config: ModelSection, world: World, *, everywhere: bool = False) -> Iterator[Any | None]:
    """A model that one process can use alone, outside a step; all processes must enter and leave together.

    A sharded model is gathered into a second one (a forward pass of the first would make all processes wait), loaded
    from the checkpoint that `config` names. The main process gets the model or its copy; the others `None`, unless
    `everywhere`.
    """
    keep = world.is_main or everywhere
    if any(is_sharded(p) for p in model.parameters()):
        state, entire = whole_state(weights_of(model), keep=keep), None
        if keep:
            entire = load_model(config.checkpoint, attention=config.attention)
            if is_adapted(model):
                add_adapters_like(entire, model)
            entire.load_state_dict(state, strict=False)  # what is not in it is tied, or the base's
            entire = entire.to(world.device)
        del state
        yield entire
    else:
        yield model if keep else None
    world.barrier()
