"""The head, where only some of its answers are wanted.

A decision reads the logits that the format leaves open, now; what a log-probability needs beside them, the sum over the
whole vocabulary, is worked out for many tokens at once, later.

Shapes: N tokens, D width, V vocabulary, K some ids of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

AT_ONCE = {"cpu": 1 << 18, "cuda": 1 << 24}
"""Logits that are normalised together: on a CPU as many as stay in its cache, elsewhere a bound on memory."""

TOGETHER = 512
"""Tokens whose log-probabilities are worked out together."""

Place = tuple[list[float], list[float], int]


class Head:
    """What is read of a model's head, in float32 or better."""

    def __init__(self, module: Any) -> None:
        """Of the model; parts of it only where it is a plain product that nobody listens to."""
        self._module = module
        listened = isinstance(module, nn.Module) and (module._forward_hooks or module._forward_pre_hooks)
        self._weight = module.weight if type(module) is nn.Linear and module.bias is None and not listened else None

    def full(self, hidden_ND: Tensor) -> Tensor:
        """All logits `[N, V]`."""
        return _wide(self._module(hidden_ND))

    def between(self, hidden_ND: Tensor, first: int, end: int) -> Tensor:
        """Logits of the ids from `first` to before `end`."""
        if self._weight is None:
            return self.full(hidden_ND)[:, first:end]
        return _wide(F.linear(hidden_ND, self._weight[first:end]))

    def some(self, hidden_ND: Tensor, ids_K: Tensor) -> Tensor:
        """Logits of some ids."""
        if self._weight is None:
            return self.full(hidden_ND).index_select(1, ids_K)
        return _wide(F.linear(hidden_ND, self._weight.index_select(0, ids_K)))

    def norm_and_own(self, hidden_ND: Tensor, ids_N: Tensor) -> tuple[Tensor, Tensor]:
        """Log of the sum of the exponentials of all logits, and the logit of one id each, `[N]` in float64."""
        if self._weight is None:
            logits_NV = self.full(hidden_ND)
            return norm(logits_NV), logits_NV.gather(1, ids_N[:, None])[:, 0].double()
        most = AT_ONCE.get(hidden_ND.device.type, AT_ONCE["cuda"])
        columns = max(64, most // len(hidden_ND))
        own_N, sums = torch.zeros(len(ids_N), dtype=torch.float64, device=ids_N.device), []
        for start in range(0, len(self._weight), columns):
            part = _wide(F.linear(hidden_ND, self._weight[start : start + columns]))
            sums.append(part.logsumexp(-1).double())
            inside = (ids_N >= start) & (ids_N < start + columns)
            own = part.gather(1, (ids_N - start).clamp(0, part.shape[1] - 1)[:, None])[:, 0]
            own_N = torch.where(inside, own.double(), own_N)
        return torch.stack(sums).logsumexp(0), own_N


def norm(logits_NV: Tensor) -> Tensor:
    """Log of the sum of exponentials of each row, a few rows at a time: three times as fast as all at once."""
    rows = max(1, AT_ONCE.get(logits_NV.device.type, AT_ONCE["cuda"]) // logits_NV.shape[1])
    if rows >= len(logits_NV):
        return logits_NV.logsumexp(-1).double()
    return torch.cat([part.logsumexp(-1) for part in logits_NV.split(rows)]).double()


def _wide(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


@dataclass
class Ledger:
    """Tokens that were written and whose log-probabilities are still to be worked out.

    Attributes:
        head: Of the model.
        hidden: `[N, D]` pieces: what the head reads where each token was decided.
        tokens: Their ids.
        places: Where the results go: two lists of numbers, and which of them. In the second stands the logarithm of
            an unnormalised sum (NaN if there is none), which becomes a probability.
    """

    head: Head
    hidden: list[Tensor] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    places: list[Place] = field(default_factory=list)

    def add(self, hidden_ND: Tensor, at: Sequence[int], tokens: Sequence[int], places: Sequence[Place]) -> None:
        """Some of the tokens of a pass."""
        if list(at) == list(range(len(hidden_ND))):
            self.hidden.append(hidden_ND)
        elif at:
            self.hidden.append(hidden_ND[torch.tensor(at, device=hidden_ND.device)])
        self.tokens += tokens
        self.places += places
        if len(self.tokens) >= TOGETHER:
            self.settle()

    def settle(self) -> None:
        """Work out all that are open."""
        if not self.tokens:
            return
        hidden_ND = torch.cat(self.hidden)
        ids_N = torch.tensor(self.tokens, device=hidden_ND.device)
        norms, own = torch.stack(self.head.norm_and_own(hidden_ND, ids_N)).tolist()
        for (logprobs, masses, index), total, logit in zip(self.places, norms, own, strict=True):
            logprobs[index] = logit - total
            masses[index] = math.exp(masses[index] - total)
        self.hidden, self.tokens, self.places = [], [], []
