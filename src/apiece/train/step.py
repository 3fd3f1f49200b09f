"""One optimizer step: counts, forward and backward over micro-batches, the non-finite stop, clipping, update."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from apiece.config.schema import OptimSection, Part, Precision
from apiece.data.collate import Batch
from apiece.losses.compose import Counts, Objective, mean, total_loss
from apiece.model.families import part_of
from apiece.model.lora import is_adapted, of_adapter
from apiece.train.distributed import World, is_sharded, sharded_like, whole
from apiece.train.stop import MORE_ROOM, NonFiniteError, UpdateBrokenError, first_line
from apiece.types import LossTerm, Per


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one step did, over all ranks; tensors, so that reading them can wait."""

    atoms: dict[str, Tensor]  # weight x mean of every term over the whole step; they add up to the total loss
    values: dict[str, Tensor]  # unweighted means
    per: dict[str, Per]  # what each value is a mean over
    grad_norm: Tensor  # global, before clipping
    counts: dict[Per, Tensor]  # items by kind
    num_tokens: Tensor  # prefix and answer, without padding
    num_places: Tensor  # the same with padding
    num_collapsed: Tensor  # objects left out because their box is thinner than a bin
    seconds: float  # on this process


def autocast_dtype(precision: Precision, device: torch.device) -> torch.dtype | None:
    """The dtype that matrix products run in, or `None` for plain float32.

    `auto` is bf16 on a GPU that multiplies bf16 natively. A CPU may, too, but was slower: see docs/dev/performance.md.
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
        UpdateBrokenError: The update began and could not be completed.
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
    except RuntimeError as error:  # out of memory, or a data worker died, which is raised wherever the process is
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
    """Terms summed over micro-batches and ranks."""
    by_term = [torch.stack([t.total for t in row]).sum() for row in zip(*collected, strict=True)]
    totals = world.sum(torch.stack(by_term))
    return [replace(t, total=total) for t, total in zip(collected[0], totals, strict=True)]


# Parameter groups, optimizers and the learning rate over time.


def part_rates(config: OptimSection) -> dict[Part, float]:
    """The peak learning rate of every part."""
    own = {Part.VISION: config.lr_vision, Part.MERGER: config.lr_merger, Part.COORD: config.lr_coord}
    return {part: config.lr if (rate := own.get(part)) is None else rate for part in Part}


def freeze_parts(model: nn.Module, config: OptimSection, frozen: Iterable[Part] = ()) -> None:
    """Freeze the parts named or with rate 0 and train the rest; of a model with adapters, only these and the coordinate
    rows."""
    rates, frozen, adapted = part_rates(config), set(frozen), is_adapted(model)
    for name, parameter in model.named_parameters():
        part = part_of(name)
        parameter.requires_grad_(rates[part] > 0 and part not in frozen and (not adapted or of_adapter(name)))


def build_optimizers(model: nn.Module, config: OptimSection) -> list[torch.optim.Optimizer]:
    """One or two optimizers over the trainable parameters of the bare (or sharded) model, as `freeze_parts` left them.

    Each group carries its `part`, and `peak_lr` for the schedule.
    """
    rates = part_rates(config)
    adamw: dict[tuple[Part, bool], list[Tensor]] = {}
    muon: list[Tensor] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        part = part_of(name)
        matrix = parameter.ndim == 2 and not any(x in name for x in ("embed", "lm_head"))
        if config.name == "muon" and matrix:
            muon.append(parameter)
        else:
            adamw.setdefault((part, matrix), []).append(parameter)
    groups: list[dict[str, Any]] = [
        {
            "params": params,
            "lr": rates[part],
            "peak_lr": rates[part],
            "part": str(part),
            "weight_decay": config.weight_decay if decays else 0.0,
        }
        for (part, decays), params in adamw.items()
    ]
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, betas=config.betas)]
    if muon:
        group = {"params": muon, "lr": config.lr_muon, "peak_lr": config.lr_muon, "part": "matrices"}
        # Scaled so that an update has AdamW's usual size (Liu et al. 2025, "Muon is scalable for LLM training").
        kind = WholeMuon if any(is_sharded(p) for p in muon) else torch.optim.Muon
        optimizers.append(kind([group], weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw"))
    return optimizers


class WholeMuon(torch.optim.Muon):
    """Muon for sharded matrices: each is gathered for its update, which is then exactly that of one process.

    The library's products of shards add up bf16 parts in another order, and wait for the other processes in each.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """All processes must call this."""
        for group in self.param_groups:
            for parameter in (p for p in group["params"] if p.grad is not None):
                entire = nn.Parameter(whole(parameter.detach()))
                entire.grad = whole(parameter.grad)
                alone = torch.optim.Muon([group | {"params": [entire]}])
                alone.state[entire] = {name: whole(value) for name, value in self.state[parameter].items()}
                alone.step()
                parameter.copy_(sharded_like(entire.detach(), parameter))
                self.state[parameter] = {n: sharded_like(v, parameter) for n, v in alone.state[entire].items()}


def lr_scale(step: int, steps: int, config: OptimSection) -> float:
    """Share of the peak rate at a step (from 0): linear warm-up, then a cosine to `min_lr_ratio`."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    return config.min_lr_ratio + (1 - config.min_lr_ratio) * 0.5 * (1 + math.cos(math.pi * done))


def set_lr(optimizers: Iterable[torch.optim.Optimizer], scale: float) -> dict[str, float]:
    """Set every group's rate to `scale` of its peak; returns the rates by part."""
    rates = {}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = scale * group["peak_lr"]
            rates[group["part"]] = group["lr"]
    return rates
