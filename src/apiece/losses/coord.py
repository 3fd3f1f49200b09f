"""Losses on the distribution over bins at each slot.

Shapes: S slots, K bins, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True)
class SoftTargets:
    """Truncated Gaussians around every bin."""

    q_KK: Tensor  # row t is the target distribution of bin t
    cdf_KK: Tensor  # its running sum
    entropy_K: Tensor  # its entropy, nats: the minimum of soft cross-entropy


@lru_cache(maxsize=8)
def soft_targets(
    num_bins: int, sigma: float, truncate: int, device: torch.device, dtype: torch.dtype = torch.float32
) -> SoftTargets:
    """`q_t(i) ~ exp(-(i - t)^2 / 2 sigma^2)`, zero beyond `truncate` bins and renormalised, for every t."""
    index = torch.arange(num_bins, dtype=torch.float64)
    distance = index[None, :] - index[:, None]
    q = torch.exp(-(distance**2) / (2 * sigma**2)) * (distance.abs() <= truncate)
    q = q / q.sum(1, keepdim=True)
    entropy = -(q * q.clamp_min(1e-300).log()).sum(1)
    parts = (x.to(device=device, dtype=dtype) for x in (q, q.cumsum(1), entropy))
    return SoftTargets(*parts)


def coord_ce(logits_SK: Tensor, target_S: Tensor) -> Tensor:
    """Hard cross-entropy to the true bin, nats, `[S]`."""
    return F.cross_entropy(logits_SK, target_S, reduction="none")


def soft_ce(logits_SK: Tensor, target_S: Tensor, targets: SoftTargets) -> Tensor:
    """Cross-entropy to the Gaussian target, nats, `[S]`. Its floor is `targets.entropy_K[target_S]`."""
    return -(targets.q_KK[target_S] * logits_SK.log_softmax(-1)).sum(-1)


def w1(logits_SK: Tensor, target_S: Tensor, targets: SoftTargets) -> Tensor:
    """Wasserstein-1 distance to the Gaussian target in units of the image side, `[S]`.

    On a line it is the area between the two running sums (Vallender 1974): `sum_i |CDF_p(i) - CDF_q(i)| / (K - 1)`.
    """
    cdf = logits_SK.softmax(-1).cumsum(-1)
    return (cdf - targets.cdf_KK[target_S]).abs().sum(-1) / (logits_SK.shape[-1] - 1)


def log_coord_mass(logits_RV: Tensor, first_id: int, num_bins: int) -> Tensor:
    """Log of the full softmax's probability of all coordinate tokens, `[R]`."""
    return logits_RV[:, first_id : first_id + num_bins].logsumexp(-1) - logits_RV.logsumexp(-1)


def log_text_mass(logits_RV: Tensor, first_id: int, num_bins: int) -> Tensor:
    """Log of the full softmax's probability of all other tokens, `[R]`."""
    rest = torch.cat([logits_RV[:, :first_id], logits_RV[:, first_id + num_bins :]], dim=-1)
    return rest.logsumexp(-1) - logits_RV.logsumexp(-1)
