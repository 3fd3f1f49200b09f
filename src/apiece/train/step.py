"""One optimizer step: counts, forward and backward over micro-batches, the non-finite stop, clipping, update."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from apiece.config.schema import Precision
from apiece.data.collate import Batch
from apiece.losses.compose import Counts, Objective, mean, total_loss
from apiece.train.distributed import World, whole
from apiece.train.stop import MORE_ROOM, NonFiniteError, UpdateBrokenError, first_line
from apiece.types import LossTerm, Per


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one step did; tensors, so that reading them can wait.

    Attributes:
        atoms: Weight x mean of every term over the whole step; they add up to the total loss.
        values: Unweighted means.
        per: What each value is a mean over.
        grad_norm: Global norm before clipping.
        counts: Items by kind over all ranks.
        num_tokens: Real tokens, prefix and answer, over all ranks.
        num_places: Tokens and padding, over all ranks.
        num_collapsed: Objects left out because their box is thinner than a bin, over all ranks.
        seconds: Duration of the step on this process.
    """

    atoms: dict[str, Tensor]
    values: dict[str, Tensor]
    per: dict[str, Per]
    grad_norm: Tensor
    counts: dict[Per, Tensor]
    num_tokens: Tensor
    num_places: Tensor
    num_collapsed: Tensor
    seconds: float


def autocast_dtype(precision: Precision, device: torch.device) -> torch.dtype | None:
    """The dtype that matrix products run in, or `None` for plain float32.

    `auto` is bf16 on a GPU that multiplies bf16 natively. A CPU may, too, and was slower: see docs/performance.md.
    """
    if precision is Precision.FP32:
        return None
    if precision is Precision.BF16:
        return torch.bfloat16
    native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if native else None


def train_step(
    channel: nn.Module,
    objective: Objective,
    optimizers: Sequence[torch.optim.Optimizer],
    batches: Sequence[Batch],
    world: World,
    *,
    clip_norm: float,
    dtype: torch.dtype | None,
) -> StepResult:
    """Update the weights on the micro-batches of one step.

    The loss is a mean over the items of all micro-batches and ranks, so the gradient does not depend on how the step
    was split.

    Raises:
        NonFiniteError: A term or the gradient is not finite, on every process; the weights are untouched.
        UpdateBrokenError: The update was begun and could not be ended.
    """
    start = time.perf_counter()
    counts, (tokens, places, collapsed) = global_counts(objective, batches, world)
    collected: list[list[LossTerm]] = []
    for batch in batches:
        with torch.autocast(world.device.type, dtype=dtype, enabled=dtype is not None):
            terms = channel(batch)
        # Distributed wrappers average gradients over ranks; the loss is a sum over them.
        (total_loss(terms, counts) * world.size).backward()
        collected.append([replace(t, total=t.total.detach()) for t in terms])
    parameters = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    grad_norm = whole(torch.nn.utils.clip_grad_norm_(parameters, clip_norm))
    terms = _summed(collected, world)
    # Both are the same on every process: all of them stop, or none.
    if not bool(torch.isfinite(torch.stack([*(t.total for t in terms), grad_norm.to(terms[0].total)])).all()):
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        raise _not_finite(collected, batches, terms, grad_norm, world)
    try:
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    except RuntimeError as error:  # memory ran out, or a data worker died: that is raised wherever the process is
        raise UpdateBrokenError(f"the update was broken off: {first_line(error)}", fix=MORE_ROOM) from error
    return StepResult(
        atoms={t.name: t.weight * mean(t, counts) for t in terms if t.weight},
        values={t.name: mean(t, counts) for t in terms},
        per={t.name: t.per for t in terms},
        grad_norm=grad_norm,
        counts=dict(counts),
        num_tokens=tokens,
        num_places=places,
        num_collapsed=collapsed,
        seconds=time.perf_counter() - start,
    )


def global_counts(objective: Objective, batches: Sequence[Batch], world: World) -> tuple[Counts, Sequence[Tensor]]:
    """Items of the whole step by kind; its real tokens, its tokens and padding, and its collapsed objects."""
    kinds, rows = list(Per), []
    for batch in batches:
        counts, masks = objective.counts(batch), (batch.prefix.mask, batch.answer_mask)
        real = masks[0].sum() + masks[1].sum()
        sizes = torch.tensor([masks[0].numel() + masks[1].numel(), batch.num_collapsed], device=real.device)
        rows.append(torch.cat([torch.stack([*(counts[k] for k in kinds), real.double()]), sizes.double()]))
    summed = world.sum(torch.stack(rows).sum(0))
    return dict(zip(kinds, summed, strict=False)), summed[len(kinds) :].unbind()


def _not_finite(
    collected: Sequence[Sequence[LossTerm]],
    batches: Sequence[Batch],
    summed: Sequence[LossTerm],
    grad_norm: Tensor,
    world: World,
) -> NonFiniteError:
    """What was not finite and where, from all processes."""
    own: list[dict[str, Any]] = [
        {"rank": world.rank, "samples": list(batch.sample_ids), "term": t.name, "value": str(float(t.total))}
        for batch, terms in zip(batches, collected, strict=True)
        for t in terms
        if not bool(torch.isfinite(t.total))
    ]
    found = [row for rows in world.share(own) for row in rows]
    everyone = [i for ids in world.share([i for b in batches for i in b.sample_ids]) for i in ids]
    samples = list(dict.fromkeys(i for row in found for i in row["samples"])) or everyone
    names = list(dict.fromkeys(row["term"] for row in found)) or ["the gradient"]
    values = {t.name: str(float(t.total)) for t in summed}
    return NonFiniteError(
        f"{', '.join(names)} is not finite; the weights were not updated (samples {', '.join(samples)})",
        found={"found": found, "samples": everyone, "totals": values, "grad_norm": str(float(grad_norm))},
    )


def _summed(collected: Sequence[Sequence[LossTerm]], world: World) -> list[LossTerm]:
    """Terms added up over micro-batches and ranks."""
    by_term = [torch.stack([t.total for t in row]).sum() for row in zip(*collected, strict=True)]
    totals = world.sum(torch.stack(by_term))
    return [replace(t, total=total) for t, total in zip(collected[0], totals, strict=True)]
