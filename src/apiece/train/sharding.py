"""Sharded training (FSDP2): every process keeps a part of each weight, and a layer is whole only while it runs.

The root is the module of the whole step, so what lies outside the layers, above all the embedding and head table that
the channel cuts its coordinate rows from, is whole for as long as a step's forward and backward pass. Outside a step
nothing is: weights are then read through `whole_state` or `whole_model`, in which all processes must take part.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from apiece.config.schema import ModelSection, Parallel
from apiece.model.families import family_of, language_of
from apiece.model.load import load_model
from apiece.model.lora import adapter_weights, add_adapters_like, from_peft_name, is_adapted
from apiece.train.distributed import World


def parallelize(channel: nn.Module, parallel: Parallel, world: World, dtype: torch.dtype | None) -> nn.Module:
    """The step as it is trained here: alone, replicated, or sharded.

    To be called after freezing and before the optimizers are made: sharding puts other parameters in place.

    Args:
        channel: The whole step, with the model as `model`; with `fsdp` it is changed in place.
        parallel: What several processes do; one alone does neither.
        world: The processes.
        dtype: Of autocast. Sharded layers are gathered in it, since their products run in it anyway; the table, norms
            and mergers outside the layers stay as they are, and gradients are added up as they are.
    """
    if parallel is Parallel.DDP or world.size == 1:
        return world.wrap(channel)
    mesh = init_device_mesh(world.device.type, (world.size,))
    reduce = None if dtype is None else torch.float32
    # Autocast casts where it must; casting a layer's input would round the residual stream as well.
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=reduce, cast_forward_inputs=False)
    model: Any = channel.get_submodule("model")
    for layer in [*family_of(model).vision_layers(model), *language_of(model).layers]:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(channel, mesh=mesh)
    return channel


def is_sharded(tensor: Tensor) -> bool:
    """Whether this process holds only a part of the tensor."""
    return isinstance(tensor, DTensor)


def whole(tensor: Tensor) -> Tensor:
    """A tensor with all of its entries; where it is sharded, all processes must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def sharded_like(tensor: Tensor, like: Tensor) -> Tensor:
    """What this process keeps of a whole tensor, if it is laid out as `like`; no process asks another."""
    tensor = tensor.to(like.device)
    if isinstance(like, DTensor):
        return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)
    return tensor


def whole_state(state: dict[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """Named tensors with all of their entries, gathered one by one; all processes must call this.

    Returns:
        Sharded tensors on the CPU, others as they are; nothing on a process that is not to `keep` them.
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
    """All weights by name; a head that is tied to the embedding is in it once, as the embedding.

    Of a model with adapters these alone: its base never changes.
    """
    if is_adapted(model):
        return adapter_weights(model)
    return {name: tensor for name, tensor in model.state_dict().items() if name not in _tied(model)}


def put_weights(model: Any, weights: Mapping[str, Tensor]) -> set[str]:
    """Put whole weights into a model, sharded or not; gives the names that were missing.

    Args:
        model: With or without adapters.
        weights: Under the names of `weights_of`, or those of an adapter's file.
    """
    own = weights_of(model)
    given = {from_peft_name(name): tensor for name, tensor in weights.items()}
    model.load_state_dict({n: sharded_like(given[n], own[n]) for n in own if n in given}, strict=False)
    return own.keys() - given.keys()


def _tied(model: Any) -> set[str]:
    return {"lm_head.weight"} if model.config.tie_word_embeddings else set()


@contextmanager
def whole_model(model: Any, config: ModelSection, world: World, *, everywhere: bool = False) -> Iterator[Any | None]:
    """A model that one process can use alone, outside a step; all processes must enter and leave together.

    A sharded model is gathered into a second one: a forward pass of the first would make all processes wait for it.

    Args:
        model: The one that is trained.
        config: Where it came from.
        world: The processes.
        everywhere: Each process gets one, not only the one that writes files.

    Yields:
        On the process that writes files the model, or its copy. Elsewhere `None`, unless everywhere.
    """
    keep = world.is_main or everywhere
    if any(is_sharded(p) for p in model.parameters()):
        state, entire = whole_state(weights_of(model), keep=keep), None
        if keep:
            entire = load_model(config.checkpoint, attention=config.attention)
            if is_adapted(model):
                add_adapters_like(entire, model)
            put_weights(entire, state)
            entire = entire.to(world.device)
        del state
        yield entire
    else:
        yield model if keep else None
    world.barrier()
