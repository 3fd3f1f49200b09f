"""Losses on boxes decoded from slots.

Shapes: S slots, K bins, N boxes (S = 4 N). Boxes are `xyxy` in shares of the image side, 0..1.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-12  # keeps areas off zero; far below the smallest area of a box, one square bin (1e-6)
MIN_SIDE = 1e-4  # shortest side (a tenth of a bin) in the aspect ratio, whose gradient goes like 1 / side


def decode_expectation(logits_SK: Tensor) -> Tensor:
    """`sum_k p_k k / (K - 1)`, `[S]`."""
    last = logits_SK.shape[-1] - 1
    bins = torch.arange(last + 1, device=logits_SK.device, dtype=logits_SK.dtype)
    # A product and a sum, not a matrix product: autocast would round that to bf16.
    return (logits_SK.softmax(-1) * bins).sum(-1) / last


def decode_straight_through(logits_SK: Tensor) -> Tensor:
    """The most likely bin's value with the expectation's gradient, `[S]` (Bengio et al. 2013)."""
    expectation = decode_expectation(logits_SK)
    hard = logits_SK.argmax(-1).to(expectation.dtype) / (logits_SK.shape[-1] - 1)
    return hard + (expectation - expectation.detach())


def order_corners(boxes_N4: Tensor) -> Tensor:
    """Boxes with the smaller x and y first."""
    low = torch.minimum(boxes_N4[:, :2], boxes_N4[:, 2:])
    high = torch.maximum(boxes_N4[:, :2], boxes_N4[:, 2:])
    return torch.cat([low, high], dim=1)


def smoothl1(boxes_N4: Tensor, truth_N4: Tensor, beta: float) -> Tensor:
    """Mean SmoothL1 over the four coordinates, `[N]` (Girshick 2015, with `beta` where square turns straight)."""
    return F.smooth_l1_loss(boxes_N4, truth_N4, reduction="none", beta=beta).mean(1)


def ciou(boxes_N4: Tensor, truth_N4: Tensor) -> Tensor:
    """Complete IoU, `[N]` (Zheng et al. 2020): IoU minus centre distance minus aspect difference.

    `alpha`, the weight of the aspect term, is a constant for the gradient, as published. Corners must be in order.
    """
    wh, truth_wh = (b[:, 2:] - b[:, :2] for b in (boxes_N4, truth_N4))
    overlap = (
        torch.minimum(boxes_N4[:, 2:], truth_N4[:, 2:]) - torch.maximum(boxes_N4[:, :2], truth_N4[:, :2])
    ).clamp_min(0)
    inter = overlap.prod(1)
    iou = inter / (wh.prod(1) + truth_wh.prod(1) - inter).clamp_min(EPS)
    hull = torch.maximum(boxes_N4[:, 2:], truth_N4[:, 2:]) - torch.minimum(boxes_N4[:, :2], truth_N4[:, :2])
    centres = (boxes_N4[:, :2] + boxes_N4[:, 2:] - truth_N4[:, :2] - truth_N4[:, 2:]) / 2
    distance = centres.pow(2).sum(1) / hull.pow(2).sum(1).clamp_min(EPS)
    angle, truth_angle = (torch.atan2(*x.clamp_min(MIN_SIDE).unbind(1)) for x in (wh, truth_wh))
    v = (4 / math.pi**2) * (truth_angle - angle).pow(2)
    with torch.no_grad():
        alpha = v / (1 - iou + v).clamp_min(EPS)
    return iou - distance - alpha * v
