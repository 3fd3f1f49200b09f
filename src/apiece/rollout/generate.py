"""Generation in this process: batched, prefix computed once, keys and values cached, log-probabilities kept.

Shapes: B rows still being written, P prefix tokens, V vocabulary.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from apiece.codec.render import CLOSE, RECORD_CLOSE
from apiece.codec.vocab import CoordVocab, decode_exact
from apiece.config.schema import GenerateSection
from apiece.data.collate import EncodedSample, Prefix, collate_prefix
from apiece.model.forward import rope_positions
from apiece.model.load import TextSide
from apiece.types import NEAR_BINS, FinishReason, Rollout


class Engine(Protocol):
    """Writes answers; how and where is its own affair."""

    def generate(self, questions: Sequence[EncodedSample]) -> list[Rollout]:
        """One rollout per question, in order."""


@dataclass
class _Row:
    """An answer being written."""

    index: int
    rng: np.random.Generator
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    near_mass: list[float] = field(default_factory=list)
    num_coords: int = 0
    finish: FinishReason | None = None


@dataclass(frozen=True)
class LocalEngine:
    """Token by token with the model in this process.

    Attributes:
        model: In evaluation mode for repeatable answers (the caller's business).
        side: Its tokenizer and vocabulary.
        settings: Batch size, caps, temperature.
        seed: Of sampling; a draw is a function of (seed, sample).
    """

    model: Any
    side: TextSide
    settings: GenerateSection
    seed: int = 0

    @torch.no_grad()
    def generate(self, questions: Sequence[EncodedSample]) -> list[Rollout]:
        """One rollout per question, in order; `settings.batch_size` at a time, longest prefixes together."""
        order = sorted(range(len(questions)), key=lambda i: len(questions[i].prefix_ids))
        size = self.settings.batch_size
        done: dict[int, Rollout] = {}
        for start in range(0, len(order), size):
            chosen = order[start : start + size]
            done |= zip(chosen, self._write([questions[i] for i in chosen]), strict=True)
        return [done[i] for i in range(len(questions))]

    def _write(self, questions: Sequence[EncodedSample]) -> list[Rollout]:
        device = next(self.model.parameters()).device
        prefix = collate_prefix(questions, self.side.tokenizer.pad_token_id, self.side.image_token_id).to(device)
        rows = [_Row(i, self._rng(q.sample_id)) for i, q in enumerate(questions)]
        active = list(rows)
        cache, hidden_BD, position_B = self._read_prefix(prefix)
        mask = prefix.mask
        while active:
            logprob_BV = self.model.lm_head(hidden_BD).float().log_softmax(-1)
            next_B = self._choose(logprob_BV, active)
            self._record(active, next_B, logprob_BV)
            going = [i for i, row in enumerate(active) if row.finish is None]
            if not going:
                break
            if len(going) < len(active):
                keep = torch.tensor(going, device=device)
                active = [active[i] for i in going]
                cache.batch_select_indices(keep)
                next_B, position_B, mask = next_B[keep], position_B[keep], mask[keep]
            mask = torch.nn.functional.pad(mask, (0, 1), value=True)
            hidden_BD = self._step(next_B, position_B, mask, cache)
            position_B = position_B + 1
        return [self._rollout(row, question) for row, question in zip(rows, questions, strict=True)]

    def _read_prefix(self, prefix: Prefix) -> tuple[DynamicCache, Tensor, Tensor]:
        """Run image and prompt once; returns the cache, the last hidden state and the next position."""
        cache = DynamicCache(config=self.model.config.text_config)
        positions = rope_positions(self.model, prefix, 0)
        out = self.model.model(
            input_ids=prefix.ids,
            attention_mask=None if bool(prefix.mask.all()) else prefix.mask,
            position_ids=positions,
            pixel_values=prefix.pixel_values,
            image_grid_thw=prefix.grid_thw,
            mm_token_type_ids=prefix.image_mask.int(),
            past_key_values=cache,
            use_cache=True,
        )
        return cache, out.last_hidden_state[:, -1], positions.amax(dim=(0, 2)) + 1

    def _step(self, ids_B: Tensor, position_B: Tensor, mask: Tensor, cache: DynamicCache) -> Tensor:
        out = self.model.model(
            input_ids=ids_B[:, None],
            attention_mask=None if bool(mask.all()) else mask,
            position_ids=position_B[None, :, None].expand(3, -1, -1),
            past_key_values=cache,
            use_cache=True,
        )
        hidden: Tensor = out.last_hidden_state[:, -1]
        return hidden

    def _rng(self, sample_id: str) -> np.random.Generator:
        return np.random.default_rng([self.seed, zlib.crc32(sample_id.encode())])

    def _choose(self, logprob_BV: Tensor, rows: Sequence[_Row]) -> Tensor:
        """The next id of every row: the most likely, or a seeded draw."""
        temperature = self.settings.temperature
        if temperature == 0:
            return logprob_BV.argmax(-1)
        # Drawn by inverting the running sum on the CPU in float64, so that a draw is the same on every device.
        cdf_BV = (logprob_BV.double() / temperature).softmax(-1).cumsum(-1).cpu()
        draws = torch.tensor([row.rng.random() for row in rows], dtype=torch.float64)[:, None] * cdf_BV[:, -1:]
        return torch.searchsorted(cdf_BV, draws, right=True)[:, 0].clamp_max(cdf_BV.shape[1] - 1).to(logprob_BV.device)

    def _record(self, rows: Sequence[_Row], next_B: Tensor, logprob_BV: Tensor) -> None:
        """Append the chosen ids and decide which rows have ended."""
        chosen = logprob_BV.gather(1, next_B[:, None])[:, 0].tolist()
        masses = near_mass(next_B, logprob_BV, self.side.vocab).tolist()
        for row, token, logprob, mass in zip(rows, next_B.tolist(), chosen, masses, strict=True):
            row.ids.append(token)
            row.logprobs.append(logprob)
            row.near_mass.append(mass)
            row.num_coords += self.side.vocab.bin_of(token) is not None
            row.finish = self._finish(row)

    def _finish(self, row: _Row) -> FinishReason | None:
        if row.ids[-1] == self.side.tokenizer.eos_token_id:
            return FinishReason.EOS
        if len(row.ids) >= self.settings.max_new_tokens:
            return FinishReason.LENGTH
        return FinishReason.OBJECT_CAP if self._is_over_cap(row) else None

    def _is_over_cap(self, row: _Row) -> bool:
        """Whether the answer goes on after its last allowed record, instead of closing."""
        cap = 4 * self.settings.max_objects
        if row.num_coords != cap:
            return row.num_coords > cap
        last = max(i for i, token in enumerate(row.ids) if self.side.vocab.bin_of(token) is not None)
        tail = decode_exact(self.side.tokenizer, row.ids[last + 1 :])
        return not (RECORD_CLOSE + CLOSE).startswith(tail)

    def _rollout(self, row: _Row, question: EncodedSample) -> Rollout:
        assert row.finish is not None, "rows leave the loop only when they have ended"
        return Rollout(
            sample_id=question.sample_id,
            ids=np.array(row.ids, dtype=np.int64),
            logprobs=np.array(row.logprobs, dtype=np.float32),
            text=decode_exact(self.side.tokenizer, row.ids),
            finish_reason=row.finish,
            near_mass=np.array(row.near_mass, dtype=np.float32),
        )


def near_mass(ids_B: Tensor, logprob_BV: Tensor, vocab: CoordVocab) -> Tensor:
    """Probability `[B]` within `NEAR_BINS` bins of each coordinate token, itself included; NaN for other tokens."""
    bin_B = ids_B - vocab.first_id
    bin_BW = bin_B[:, None] + torch.arange(-NEAR_BINS, NEAR_BINS + 1, device=ids_B.device)
    inside_BW = (bin_BW >= 0) & (bin_BW < vocab.num_bins)
    near_BW = logprob_BV.gather(1, vocab.first_id + bin_BW.clamp(0, vocab.num_bins - 1)).exp()
    mass_B = near_BW.masked_fill(~inside_BW, 0).sum(1)
    return mass_B.masked_fill((bin_B < 0) | (bin_B >= vocab.num_bins), float("nan"))
