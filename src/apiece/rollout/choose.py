"""Decisions: which token comes next, with its log-probability under the model and among the tokens the format allows.

A decision reads only the logits that the format leaves open. A log-probability also needs the sum over the whole
vocabulary, which `Ledger` works out later for many tokens at once.

Shapes: N tokens, D width, V vocabulary, K tokens to choose from.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import pad

from apiece.codec.vocab import CoordVocab
from apiece.rollout.grammar import DecisionKind, Grammar
from apiece.rollout.plain import PlainModel, norm
from apiece.types import NEAR_BINS


@dataclass(frozen=True, slots=True)
class Ask:
    """One decision to make."""

    row: int  # of what the head reads
    state: int | None  # of the grammar; `None` where every token may come
    draw: float = 0.0  # uniform in [0, 1), for sampling
    low: int = 0  # the first bin that a coordinate may have
    high: int = 0  # the last one


@dataclass(frozen=True, slots=True)
class Chosen:
    """Decisions, as far as they are known."""

    ids: list[int]
    logprobs: list[float]  # under the model's full softmax at temperature 1; NaN where `Ledger` works it out
    masked: list[float]  # the same among the tokens that the format allowed
    # `Rollout.near_mass`; where the log-probability is NaN, log of the sum of the exponentials of those logits
    near: list[float]


_COORDS = -1  # a group of decisions, as states are
TOGETHER = 512  # tokens whose log-probabilities are worked out together
# Where results go: the list of log-probabilities, the list of masses, and an index of both. Until then the mass is the
# logarithm of an unnormalised sum (NaN if there is none).
Place = tuple[list[float], list[float], int]


class Chooser:
    """Makes the decisions of a pass: a few tensor operations for all decisions of a kind."""

    def __init__(
        self, grammar: Grammar | None, vocab: CoordVocab, temperature: float, text: PlainModel, device: torch.device
    ) -> None:
        self._grammar, self._vocab, self._temperature = grammar, vocab, temperature
        self._text, self._device = text, device
        self._allowed: dict[int, Tensor] = {}
        self._refused: dict[int, Tensor] = {}
        self._bins = torch.arange(vocab.num_bins, device=device)
        self._window = torch.arange(2 * NEAR_BINS + 1, device=device)

    def choose(self, hidden_ND: Tensor, asked: Sequence[Ask]) -> Chosen:
        groups: dict[int | None, list[int]] = {}
        for number, ask in enumerate(asked):
            groups.setdefault(self._group(ask.state), []).append(number)
        tables, order = [], []
        for group, numbers in groups.items():
            asks = [asked[n] for n in numbers]
            rows = torch.tensor([ask.row for ask in asks], device=self._device)
            some_ND = hidden_ND.index_select(0, rows)
            if group == _COORDS:
                columns = self._coordinates(some_ND, asks)
            elif group is not None and self._kind(group) is DecisionKind.CHOICE:
                columns = self._few(some_ND, group, asks)
            else:
                columns = self._any(some_ND, group, asks)
            tables.append(torch.stack([c.double() for c in columns]))
            order += numbers
        if not tables:
            return Chosen([], [], [], [])
        table = torch.cat(tables, 1) if len(tables) > 1 else tables[0]  # one transfer for all
        if len(tables) > 1:
            back = sorted(range(len(order)), key=order.__getitem__)
            table = table[:, torch.tensor(back, device=self._device)]
        ids, *known = table.tolist()
        return Chosen([int(token) for token in ids], *known)

    def _kind(self, state: int) -> DecisionKind:
        assert self._grammar is not None, "asked only where the format limits what may come"
        return self._grammar.states[state].kind

    def _group(self, state: int | None) -> int | None:
        """What is decided together: all coordinates; else one state, as nearly all rows are in a few."""
        if state is None or self._grammar is None:
            return None
        return _COORDS if self._kind(state) is DecisionKind.COORD else state

    def _coordinates(self, hidden_ND: Tensor, asks: Sequence[Ask]) -> tuple[Tensor, ...]:
        coords = self._text.logits_between(hidden_ND, self._vocab.first_id, self._vocab.end_id)
        scores = coords
        if any(ask.low > 0 or ask.high < self._vocab.num_bins - 1 for ask in asks):
            low_N1, high_N1 = torch.tensor([(ask.low, ask.high) for ask in asks], device=self._device).T[..., None]
            scores = coords.masked_fill((self._bins < low_N1) | (self._bins > high_N1), -torch.inf)
        bins = self._pick(scores, asks, None, self._vocab.first_id)
        around = pad(coords, (NEAR_BINS, NEAR_BINS), value=-torch.inf).gather(1, bins[:, None] + self._window)
        return bins + self._vocab.first_id, self._open(bins), _logprob(scores, bins), around.logsumexp(-1)

    def _few(self, hidden_ND: Tensor, state: int, asks: Sequence[Ask]) -> tuple[Tensor, ...]:
        ids = self._ids(state)
        scores = self._text.logits_of(hidden_ND, ids)
        at = self._pick(scores, asks, ids, 0)
        return ids[at], self._open(at), _logprob(scores, at), self._open(at)

    def _any(self, hidden_ND: Tensor, state: int | None, asks: Sequence[Ask]) -> tuple[Tensor, ...]:
        """From the whole vocabulary, or nearly all of it."""
        logits_NV = scores = self._text.logits(hidden_ND)
        if state is not None:
            scores = logits_NV.masked_fill(self._refuse(state, logits_NV.shape[1]), -torch.inf)
        ids = self._pick(scores, asks, None, 0)
        norm_N = norm(logits_NV)
        logprob_N = logits_NV.gather(1, ids[:, None])[:, 0] - norm_N
        if state is None:
            near_N = near_mass(ids, logits_NV - norm_N[:, None], self._vocab)
            return ids, logprob_N, logprob_N, near_N
        return ids, logprob_N, _logprob(scores, ids), self._open(ids)

    def _open(self, ids_N: Tensor) -> Tensor:
        return torch.full(ids_N.shape, torch.nan, device=self._device)

    def _ids(self, state: int) -> Tensor:
        """Tokens that the format allows in a state, ascending."""
        if state not in self._allowed:
            assert self._grammar is not None, "asked only where the format limits what may come"
            self._allowed[state] = torch.from_numpy(self._grammar.allowed(state)).to(self._device)
        return self._allowed[state]

    def _refuse(self, state: int, size: int) -> Tensor:
        """Which tokens of the vocabulary the format refuses in a state."""
        if state not in self._refused:
            refused = torch.ones(size, dtype=torch.bool, device=self._device)
            refused[self._ids(state)] = False
            self._refused[state] = refused
        return self._refused[state]

    def _pick(self, scores_NK: Tensor, asks: Sequence[Ask], ids_K: Tensor | None, first: int) -> Tensor:
        """The most likely column of each row, or the seeded draw; column k stands for `ids_K[k]` or `first + k`."""
        if self._temperature == 0:
            return scores_NK.argmax(-1)
        # Drawn by inverting the running sum on the CPU in float64, so that a draw is the same on every device.
        draws_N = torch.tensor([ask.draw for ask in asks], dtype=torch.float64)
        cdf_NK = (scores_NK.double() / self._temperature).softmax(-1).cumsum(-1).cpu()
        found = torch.searchsorted(cdf_NK, draws_N[:, None] * cdf_NK[:, -1:], right=True)[:, 0]
        return found.clamp_max(cdf_NK.shape[1] - 1).to(self._device)


def _logprob(scores_NK: Tensor, at_N: Tensor) -> Tensor:
    return scores_NK.gather(1, at_N[:, None])[:, 0] - norm(scores_NK)


def near_mass(ids_B: Tensor, logprob_BV: Tensor, vocab: CoordVocab) -> Tensor:
    """Probability `[B]` within `NEAR_BINS` bins of each coordinate token, itself included; NaN for other tokens."""
    bin_B = ids_B - vocab.first_id
    bin_BW = bin_B[:, None] + torch.arange(-NEAR_BINS, NEAR_BINS + 1, device=ids_B.device)
    inside_BW = (bin_BW >= 0) & (bin_BW < vocab.num_bins)
    near_BW = logprob_BV.gather(1, vocab.first_id + bin_BW.clamp(0, vocab.num_bins - 1)).exp()
    mass_B = near_BW.masked_fill(~inside_BW, 0).sum(1)
    return mass_B.masked_fill((bin_B < 0) | (bin_B >= vocab.num_bins), float("nan"))


@dataclass
class Ledger:
    """Written tokens whose log-probabilities have yet to be worked out."""

    text: PlainModel
    hidden: list[Tensor] = field(default_factory=list)  # `[N, D]`: what the head read where each token was decided
    tokens: list[int] = field(default_factory=list)
    places: list[Place] = field(default_factory=list)

    def add(self, hidden_ND: Tensor, at: Sequence[int], tokens: Sequence[int], places: Sequence[Place]) -> None:
        """Add some tokens of a pass: `tokens[i]` was decided at row `at[i]` of `hidden_ND`."""
        if list(at) == list(range(len(hidden_ND))):
            self.hidden.append(hidden_ND)
        elif at:
            self.hidden.append(hidden_ND[torch.tensor(at, device=hidden_ND.device)])
        self.tokens += tokens
        self.places += places
        if len(self.tokens) >= TOGETHER:
            self.settle()

    def settle(self) -> None:
        if not self.tokens:
            return
        hidden_ND = torch.cat(self.hidden)
        ids_N = torch.tensor(self.tokens, device=hidden_ND.device)
        norms, own = torch.stack(self.text.norm_and_own(hidden_ND, ids_N)).tolist()
        for (logprobs, masses, index), total, logit in zip(self.places, norms, own, strict=True):
            logprobs[index] = logit - total
            masses[index] = math.exp(masses[index] - total)
        self.hidden, self.tokens, self.places = [], [], []
