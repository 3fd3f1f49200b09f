"""One optimizer step: counts, forward and backward over micro-batches, the non-finite stop, clipping, update."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from apiece.config.schema import Precision
from apiece.data.collate import Batch
from apiece.errors import UserError
from apiece.losses.compose import Counts, Objective, mean, total_loss
from apiece.train.distributed import World
from apiece.train.sharding import whole
from apiece.types import LossTerm, Per


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one step did; tensors, so that reading them can wait.

    Attributes:
        atoms: Weight x mean of every term over the whole step; they add up to the total.
        values: Unweighted means.
        per: What each value is a mean over.
        grad_norm: Global norm before clipping.
        counts: Items by kind over all ranks.
        num_tokens: Real tokens, prefix and answer, over all ranks.
        num_places: Tokens and padding, over all ranks.
        num_collapsed: Objects left out because their box is thinner than a bin, over all ranks.
        seconds: What the step took on this process.
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

    `auto` is bf16 where the device multiplies bf16 natively.
    """
    if precision is Precision.FP32:
        return None
    if precision is Precision.BF16:
        return torch.bfloat16
    native = torch.cuda.is_bf16_supported(including_emulation=False) if device.type == "cuda" else _cpu_has_bf16()
    return torch.bfloat16 if native else None


def _cpu_has_bf16() -> bool:
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))


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
        UserError: A term or the gradient is not finite; the weights are untouched.
    """
    start = time.perf_counter()
    counts, (tokens, places, collapsed) = _global_counts(objective, batches, world)
    collected: list[list[LossTerm]] = []
    for batch in batches:
        with torch.autocast(world.device.type, dtype=dtype, enabled=dtype is not None):
            terms = channel(batch)
        _require_finite(terms, batch)
        # Distributed wrappers average gradients over ranks; the loss is a sum over them.
        (total_loss(terms, counts) * world.size).backward()
        collected.append([_detached(t) for t in terms])
    parameters = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    grad_norm = whole(torch.nn.utils.clip_grad_norm_(parameters, clip_norm))
    if not bool(torch.isfinite(grad_norm)):
        ids = ", ".join(i for b in batches for i in b.sample_ids)
        raise UserError(
            f"the gradient is not finite; the weights were not updated (samples {ids})", fix="lower the rate"
        )
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    terms = _summed(collected, world)
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


def _global_counts(objective: Objective, batches: Sequence[Batch], world: World) -> tuple[Counts, Sequence[Tensor]]:
    """Items of the whole step by kind; its real tokens, its tokens and padding, and its collapsed objects."""
    kinds, rows = list(Per), []
    for batch in batches:
        counts, masks = objective.counts(batch), (batch.prefix.mask, batch.answer_mask)
        real = masks[0].sum() + masks[1].sum()
        sizes = torch.tensor([masks[0].numel() + masks[1].numel(), batch.num_collapsed], device=real.device)
        rows.append(torch.cat([torch.stack([*(counts[k] for k in kinds), real.double()]), sizes.double()]))
    summed = world.sum(torch.stack(rows).sum(0))
    return dict(zip(kinds, summed, strict=False)), summed[len(kinds) :].unbind()


def _require_finite(terms: Sequence[LossTerm], batch: Batch) -> None:
    finite = torch.isfinite(torch.stack([t.total for t in terms]))
    if not bool(finite.all()):
        bad = [t.name for t, ok in zip(terms, finite.tolist(), strict=True) if not ok]
        raise UserError(
            f"{', '.join(bad)} is not finite; the weights were not updated (samples {', '.join(batch.sample_ids)})",
            fix="lower optim.lr, or look at those samples: apiece data check",
        )


def _detached(term: LossTerm) -> LossTerm:
    return LossTerm(term.name, term.weight, term.total.detach(), term.per)


def _summed(collected: Sequence[Sequence[LossTerm]], world: World) -> list[LossTerm]:
    """Terms added up over micro-batches and ranks."""
    by_term = [torch.stack([t.total for t in row]).sum() for row in zip(*collected, strict=True)]
    totals = world.sum(torch.stack(by_term))
    return [LossTerm(t.name, t.weight, total, t.per) for t, total in zip(collected[0], totals, strict=True)]
