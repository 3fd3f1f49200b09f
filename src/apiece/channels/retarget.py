"""Which labelled instance each object of a self-generated context has committed to.

Teacher forcing asks for the labelled box of object i at slot i, whatever the context says. If the context has begun
another instance's box, that target teaches the model to finish one instance's box after starting another's. Retargeting
follows the context instead, and keeps account of which instances were emitted, so that none is taught twice.
"""

from __future__ import annotations

import torch
from torch import Tensor


def retarget(context_N4: Tensor, truth_N4: Tensor, group_N: Tensor) -> Tensor:
    """Targets that follow the context.

    Objects are walked in the order written. The target of a slot is the instance, of the same group and not yet
    emitted, that is nearest (L1, bins) in the coordinates the context has written so far in this object; ties go to the
    object's own instance, then to the earliest. Before anything is written it is the object's own instance, or, if that
    one was emitted already, the earliest of its group that was not. After its fourth coordinate an object has emitted
    the instance nearest to all four.

    Args:
        context_N4: Bins x1, y1, x2, y2 in the input of the pass, N objects of any number of samples.
        truth_N4: Labelled bins of the same objects.
        group_N: Objects compete for instances within one group: same sample, same name.

    Returns:
        `[N, 4]` target bins.
    """
    targets = truth_N4.clone()
    context, truth = context_N4.tolist(), truth_N4.tolist()
    remaining: dict[int, list[int]] = {}
    for index, group in enumerate(group_N.tolist()):
        remaining.setdefault(group, []).append(index)
    for index, group in enumerate(group_N.tolist()):
        left = remaining[group]
        chosen = index if index in left else left[0]
        row = []
        for slot in range(4):
            row.append(truth[chosen][slot])
            chosen = _nearest(left, index, truth, context[index], slot + 1)
        left.remove(chosen)
        targets[index] = torch.tensor(row, dtype=targets.dtype)
    return targets


def _nearest(left: list[int], own: int, truth: list[list[int]], context: list[int], written: int) -> int:
    """The instance of `left` nearest to the first `written` coordinates of the context."""

    def distance(instance: int) -> tuple[int, bool, int]:
        l1 = sum(abs(truth[instance][c] - context[c]) for c in range(written))
        return l1, instance != own, instance

    return min(left, key=distance)
