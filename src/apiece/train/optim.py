"""Parameter groups, optimizers and the learning rate over time."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from apiece.config.schema import OptimSection, Part
from apiece.model.families import part_of
from apiece.model.lora import is_adapted, of_adapter
from apiece.train.distributed import is_sharded, sharded_like, whole


def part_rates(config: OptimSection) -> dict[Part, float]:
    """The peak learning rate of every part."""
    own = {Part.VISION: config.lr_vision, Part.MERGER: config.lr_merger, Part.COORD: config.lr_coord}
    return {part: config.lr if (rate := own.get(part)) is None else rate for part in Part}


def freeze_parts(model: nn.Module, config: OptimSection, frozen: Iterable[Part] = ()) -> None:
    """Freeze the parameters of parts with rate 0 and of those named, and train all others.

    Of a model with adapters, only these and the coordinate rows are ever trained.
    """
    rates, frozen, adapted = part_rates(config), set(frozen), is_adapted(model)
    for name, parameter in model.named_parameters():
        part = part_of(name)
        parameter.requires_grad_(rates[part] > 0 and part not in frozen and (not adapted or of_adapter(name)))


def build_optimizers(model: nn.Module, config: OptimSection) -> list[torch.optim.Optimizer]:
    """One or two optimizers over the trainable parameters, which `freeze_parts` has marked.

    Each group carries `peak_lr` for the schedule and `part`.

    Args:
        model: The bare model, not a distributed wrapper; sharded already if it is to be.
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
        """Update every matrix; all processes must call this."""
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
