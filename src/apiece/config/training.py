"""The settings of the training loop: steps, batches, checkpoints, processes, and what it does when something fails."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from apiece.config.section import Count, Positive, PositiveCount, Section


class Parallel(StrEnum):
    """What several processes do with the model."""

    DDP = "ddp"
    FSDP = "fsdp"


class TrainSection(Section):
    """The loop."""

    steps: PositiveCount = 1000
    """Optimizer steps in all."""
    batch_size: PositiveCount = 8
    """Samples in one optimizer step, over all ranks and accumulation."""
    micro_batch_size: PositiveCount | None = None
    """Samples in one forward pass on one rank; none: as many as fit `batch_size` on this number of ranks."""
    length_window: PositiveCount = 8
    """Batches are cut from windows of this many batches sorted by length: less padding, still shuffled."""
    save_every: PositiveCount | None = None
    """Steps between checkpoints; none: only at the end and on interruption."""
    keep_last: PositiveCount = 2
    """How many of the newest checkpoints are kept."""
    keep_best: (
        Literal["coco/AP", "coco/AP50", "f1/f1", "f1/precision", "f1/recall", "f1/mean_iou", "f1/true"] | None
    ) = None
    """Also keep the checkpoint whose evaluation had the greatest value of this figure; none: only the newest ones."""
    sharded_checkpoints: bool = False
    """Every process writes the parts of weights and optimizer state that it holds, instead of one process gathering and
    writing all: for models that one process's memory is too small for. Read by everything that reads the others, on any
    number of processes; `apiece model export` makes one file of the weights."""
    grace_s: Positive = 30.0
    """Seconds that the run has between SIGTERM and its end; a step and a save that take longer are warned of."""
    skip_nonfinite: Count = 0
    """How many steps of a run may be left out because a loss or the gradient was not finite (`apiece replay` goes over
    them again); after that, as with 0, the run saves the step before and stops."""
    log_every: PositiveCount = 10
    """Steps between lines of metrics."""
    telemetry_window: Annotated[int, Field(ge=3)] = 100
    """Steps over which the running mean and variance of every term are taken."""
    trackers: tuple[Literal["tensorboard"], ...] = ()
    """Where figures go besides `metrics.jsonl`."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; `auto` takes a GPU where there is one."""
    parallel: Parallel = Parallel.DDP
    """Under torchrun, `ddp`: every process holds the model; `fsdp`: they share weights, gradients and optimizer state
    among them. Same results, same checkpoints. With one process there is nothing to share."""
