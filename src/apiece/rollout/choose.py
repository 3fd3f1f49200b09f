"""Decisions: which token comes next, with its log-probability under the model and under the model held to the format.

Shapes: N rows of logits, V vocabulary, K tokens to choose from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from apiece.codec.vocab import CoordVocab
from apiece.rollout.grammar import Grammar, Kind
from apiece.types import NEAR_BINS

AT_ONCE = {"cpu": 1 << 18, "cuda": 1 << 24}
"""Logits that are normalised together: on a CPU as many as stay in its cache, elsewhere a bound on memory."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One decision.

    Attributes:
        row: Of the logits.
        state: Of the grammar; `None` where every token may come.
        draw: Uniform in [0, 1): which token, in sampling.
        low, high: The bins that a coordinate may have.
    """

    row: int
    state: int | None
    draw: float = 0.0
    low: int = 0
    high: int = 0


@dataclass(frozen=True, slots=True)
class Chosen:
    """Tokens with what is known of them.

    Attributes:
        ids: `[N]`.
        logprobs: `[N]` under the model's full softmax at temperature 1.
        masked: `[N]` the same among the tokens that the format allowed; 0 for forced ones.
        near_mass: `[N]` as in `Rollout`.
    """

    ids: NDArray[np.int64]
    logprobs: NDArray[np.float64]
    masked: NDArray[np.float64]
    near_mass: NDArray[np.float64]

    @classmethod
    def unknown(cls, forced: Sequence[int]) -> Chosen:
        """Forced ids that the model was not asked about."""
        nan = np.full(len(forced), np.nan)
        return cls(np.array(forced, dtype=np.int64), nan, np.zeros(len(forced)), nan)

    def put(self, at: Sequence[int], others: Chosen) -> Chosen:
        """The same with others in some places."""
        columns = []
        for mine, theirs in zip(self._columns(), others._columns(), strict=True):
            column = mine.copy()
            column[list(at)] = theirs
            columns.append(column)
        return Chosen(*columns)

    def _columns(self) -> tuple[NDArray[Any], ...]:
        return self.ids, self.logprobs, self.masked, self.near_mass


class Chooser:
    """Makes the decisions of a batch: one tensor operation for all decisions of a kind."""

    def __init__(self, grammar: Grammar | None, vocab: CoordVocab, temperature: float, device: torch.device) -> None:
        self._grammar, self._vocab, self._temperature, self._device = grammar, vocab, temperature, device
        self._allowed: dict[int, Tensor] = {}
        self._bins = torch.arange(vocab.num_bins, device=device)

    def choose(self, logits_NV: Tensor, forced: Sequence[int], asked: Sequence[Ask]) -> Chosen:
        """Decide.

        Args:
            logits_NV: Of the model, in any precision.
            forced: The id that comes after each row; anything where one is asked for.
            asked: The rows where one is to be chosen.
        """
        logits_NV = logits_NV.float()
        norm_N = _norm(logits_NV)
        ids_N = torch.tensor(forced, device=self._device)
        masked_N = torch.zeros(len(ids_N), device=self._device)
        near_N = torch.full((len(ids_N),), torch.nan, device=self._device)
        kinds: dict[Kind | None, list[Ask]] = {}
        for ask in asked:
            kinds.setdefault(self._kind(ask.state), []).append(ask)
        for kind, asks in kinds.items():
            rows = torch.tensor([ask.row for ask in asks], device=self._device)
            draws = torch.tensor([ask.draw for ask in asks], dtype=torch.float64)
            if kind is None:
                ids = self._pick(logits_NV if len(rows) == len(logits_NV) else logits_NV[rows], draws)
                masked = logits_NV[rows, ids] - norm_N[rows]
                coords = logits_NV[rows, self._vocab.first_id : self._vocab.end_id]
                near_N[rows] = self._near(coords, norm_N[rows], ids - self._vocab.first_id)
            elif kind is Kind.COORD:
                ids, masked, near_N[rows] = self._coordinates(logits_NV, norm_N, rows, asks, draws)
            elif kind is Kind.CHOICE:
                ids, masked = self._few(logits_NV, rows, asks, draws)
            else:
                ids, masked = self._names(logits_NV, rows, asks, draws)
            ids_N[rows], masked_N[rows] = ids, masked
        logprob_N = logits_NV.gather(1, ids_N[:, None])[:, 0] - norm_N
        # One transfer for all.
        table = torch.stack([ids_N.double(), logprob_N.double(), masked_N.double(), near_N.double()]).cpu().numpy()
        return Chosen(table[0].astype(np.int64), *table[1:])

    def _kind(self, state: int | None) -> Kind | None:
        return None if state is None or self._grammar is None else self._grammar.states[state].kind

    def _coordinates(
        self, logits_NV: Tensor, norm_N: Tensor, rows: Tensor, asks: Sequence[Ask], draws: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        coords = logits_NV[rows, self._vocab.first_id : self._vocab.end_id]
        scores = coords
        if any(ask.low > 0 or ask.high < self._vocab.num_bins - 1 for ask in asks):
            low_N1, high_N1 = torch.tensor([(ask.low, ask.high) for ask in asks], device=self._device).T[..., None]
            scores = coords.masked_fill((self._bins < low_N1) | (self._bins > high_N1), -torch.inf)
        bins = self._pick(scores, draws)
        return bins + self._vocab.first_id, _logprob(scores, bins), self._near(coords, norm_N[rows], bins)

    def _few(self, logits_NV: Tensor, rows: Tensor, asks: Sequence[Ask], draws: Tensor) -> tuple[Tensor, Tensor]:
        choices = [self._ids(ask.state) for ask in asks]
        ids = torch.nn.utils.rnn.pad_sequence(choices, batch_first=True, padding_value=-1)
        scores = logits_NV[rows[:, None], ids.clamp_min(0)].masked_fill(ids < 0, -torch.inf)
        at = self._pick(scores, draws)
        return ids.gather(1, at[:, None])[:, 0], _logprob(scores, at)

    def _names(self, logits_NV: Tensor, rows: Tensor, asks: Sequence[Ask], draws: Tensor) -> tuple[Tensor, Tensor]:
        """A state at a time, as nearly all rows are in the same few."""
        ids, masked = torch.empty_like(rows), torch.empty(len(rows), device=self._device)
        states = [ask.state for ask in asks]
        for state in set(states):
            same = [i for i, other in enumerate(states) if other == state]
            allowed = self._ids(state)
            scores = logits_NV[rows[same]].index_select(1, allowed)
            at = self._pick(scores, draws[same])
            ids[same], masked[same] = allowed[at], _logprob(scores, at)
        return ids, masked

    def _ids(self, state: int | None) -> Tensor:
        """What may be written in a state, ascending."""
        assert state is not None and self._grammar is not None, "asked only where the format limits what may come"
        if state not in self._allowed:
            self._allowed[state] = torch.from_numpy(self._grammar.allowed(state)).to(self._device)
        return self._allowed[state]

    def _pick(self, scores_NK: Tensor, draws_N: Tensor) -> Tensor:
        """The most likely column of each row, or the seeded draw."""
        if self._temperature == 0:
            return scores_NK.argmax(-1)
        # Drawn by inverting the running sum on the CPU in float64, so that a draw is the same on every device.
        cdf_NK = (scores_NK.double() / self._temperature).softmax(-1).cumsum(-1).cpu()
        found = torch.searchsorted(cdf_NK, draws_N[:, None] * cdf_NK[:, -1:], right=True)[:, 0]
        return found.clamp_max(cdf_NK.shape[1] - 1).to(self._device)

    def _near(self, coords_NK: Tensor, norm_N: Tensor, bins_N: Tensor) -> Tensor:
        return near_mass(bins_N, coords_NK - norm_N[:, None], CoordVocab(0, self._vocab.num_bins))


def _norm(scores_NK: Tensor) -> Tensor:
    """Log of the sum of exponentials of each row, a few rows at a time: three times as fast as all at once."""
    rows = max(1, AT_ONCE.get(scores_NK.device.type, AT_ONCE["cuda"]) // scores_NK.shape[1])
    return torch.cat([part.logsumexp(-1) for part in scores_NK.split(rows)])


def _logprob(scores_NK: Tensor, at_N: Tensor) -> Tensor:
    return scores_NK.gather(1, at_N[:, None])[:, 0] - _norm(scores_NK)


def near_mass(ids_B: Tensor, logprob_BV: Tensor, vocab: CoordVocab) -> Tensor:
    """Probability `[B]` within `NEAR_BINS` bins of each coordinate token, itself included; NaN for other tokens."""
    bin_B = ids_B - vocab.first_id
    bin_BW = bin_B[:, None] + torch.arange(-NEAR_BINS, NEAR_BINS + 1, device=ids_B.device)
    inside_BW = (bin_BW >= 0) & (bin_BW < vocab.num_bins)
    near_BW = logprob_BV.gather(1, vocab.first_id + bin_BW.clamp(0, vocab.num_bins - 1)).exp()
    mass_B = near_BW.masked_fill(~inside_BW, 0).sum(1)
    return mass_B.masked_fill((bin_B < 0) | (bin_B >= vocab.num_bins), float("nan"))
