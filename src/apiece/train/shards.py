"""Tensors in a file for each process, by torch.distributed.checkpoint: as safetensors, so that nothing is pickled.

Each file's header says where in the whole tensor its parts lie, so any number of processes can read what any other
number has written, each its own parts; `apiece.model.shards` reads all of them without processes.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from apiece.train.distributed import World

PREFIX = "shard-"


def has_shards(folder: Path) -> bool:
    """Whether a folder holds such files."""
    return any(folder.glob(f"{PREFIX}*.safetensors"))


def own_files(folder: Path, world: World) -> list[Path]:
    """Those that this process has written."""
    return sorted(folder.glob(f"{PREFIX}{world.rank + 1:05d}-*.safetensors"))


def write_shards(folder: Path, tensors: Mapping[str, Tensor], world: World) -> None:
    """Write this process's parts of named tensors; all processes must call this.

    Raises:
        OSError: One of the processes could not.
    """
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    try:
        with _alone_is_meant():
            save(dict(tensors), storage_writer=writer, no_dist=world.size == 1)
    except CheckpointException as error:
        raise OSError(_why(error)) from error


def read_shards_into(folder: Path, tensors: Mapping[str, Tensor], world: World) -> None:
    """Fill this process's parts of named tensors; all processes must call this.

    Raises:
        OSError: One of the processes could not.
    """
    try:
        reader = HuggingFaceStorageReader(str(folder))
        with _alone_is_meant():
            load(dict(tensors), storage_reader=reader, no_dist=world.size == 1)
    except CheckpointException as error:
        raise OSError(_why(error)) from error


def stored(folder: Path) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Shape and dtype of every whole tensor."""
    found: Any = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    return {name: (about.size, about.properties.dtype) for name, about in found.items()}


@contextmanager
def _alone_is_meant() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
        yield


def _why(error: CheckpointException) -> str:
    rank, (cause, _) = next(iter(error.failures.items()))
    return f"process {rank}: {cause}"
