"""Generation in this process: batched, prefix computed once, forced tokens skipped, log-probabilities kept.

A forward pass feeds every row its last token, what the format forces after it, and a guess (`rows.py`); a row that has
ended gives its place to a waiting image. `text_model` chooses between `plain.py` and the fast path.

Shapes: R rows being written, W tokens fed to the widest one, P prefix tokens, N tokens fed, D width.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache

from apiece.config.schema import GenerateSection
from apiece.data.collate import EncodedSample, collate_prefix
from apiece.errors import UserError
from apiece.model.families import rope_positions
from apiece.model.load import TextSide
from apiece.rollout.choose import Ask, Chooser, Ledger, Place
from apiece.rollout.fast import FastModel
from apiece.rollout.grammar import Grammar, grammar_of
from apiece.rollout.plain import PlainModel, RowCache, before_head
from apiece.rollout.rows import AnswerRow, Cursor, Draft, Feed, Names
from apiece.types import Rollout

STEP_COST = {"cpu": 64, "cuda": 1024}
"""The fixed cost of a forward pass, in positions: how wide a step may be for the sake of few rows."""


class Engine(Protocol):
    """Writes answers, in this process or elsewhere."""

    def generate(self, questions: Sequence[EncodedSample]) -> list[Rollout]:
        """One rollout per question, in order."""


@runtime_checkable
class StreamingEngine(Engine, Protocol):
    """Writes answers one after the other, without waiting for the slowest of a batch."""

    def stream(self, questions: Iterable[EncodedSample]) -> Generator[Rollout, None, None]:
        """One rollout per question, in order; `questions` is read a bounded number ahead."""


@dataclass(frozen=True)
class LocalEngine:
    """The model in this process; `skip`, `guess` and `refill` change the speed and nothing else."""

    model: Any  # the caller puts it in evaluation mode
    side: TextSide
    settings: GenerateSection
    seed: int = 0  # a draw is a function of (seed, sample, which answer)
    skip: bool = True  # feed forced tokens together with the decision before them, not one at a time
    guess: bool = True  # feed guesses at the next decisions, too
    refill: bool = True  # give the place of a finished answer to a waiting image at once, not when all are done

    def generate(self, questions: Sequence[EncodedSample]) -> list[Rollout]:
        return [answers[0] for answers in self.generate_several(questions, 1)]

    @torch.no_grad()
    def generate_several(self, questions: Sequence[EncodedSample], answers: int) -> list[list[Rollout]]:
        """Several rollouts per question, in order; each image and prompt is read once.

        Answers are written `settings.batch_size` at a time, of any image; short prefixes first.
        """
        grammar, text = self._grammar(), self.text_model()
        order = sorted(range(len(questions)), key=lambda i: len(questions[i].prefix_ids))
        run = _Run(self, grammar, text, self.chooser(grammar, text), Ledger(text), questions, answers, deque(order))
        while run.waiting or run.ready or run.rows:
            if self.refill or not run.rows:
                run.fill()
            while run.rows and not (self.refill and run.can_fill):
                run.step()
        run.ledger.settle()
        return [[run.done[i * answers + k].draft.rollout() for k in range(answers)] for i in range(len(questions))]

    def decide(
        self, chooser: Chooser, ledger: Ledger, feeds: Sequence[Feed], starts: Sequence[int], hidden_ND: Tensor
    ) -> list[int]:
        """Let every row take its next tokens; returns how many of the tokens fed to each row stay.

        The tokens of a row begin at its number of `starts` in `hidden_ND`, which is what the head reads.
        """
        asked: list[Ask] = []
        firsts = []
        for feed, start in zip(feeds, starts, strict=True):
            firsts.append(len(asked))
            asked += feed.asks(start)
        chosen = chooser.choose(hidden_ND, asked)
        stay, at, tokens, places = list[int](), list[int](), list[int](), list[Place]()
        for feed, start, first in zip(feeds, starts, firsts, strict=True):
            draft = feed.row.draft
            before = len(draft.ids)
            accepted, open_positions = feed.take(chosen, first)
            stay.append(accepted)
            for position in open_positions:
                at.append(start + position)
                tokens.append(draft.ids[before + position])
                places.append((draft.logprobs, draft.near_mass, before + position))
        ledger.add(hidden_ND, at, tokens, places)
        return stay

    def text_model(self) -> PlainModel:
        """The language model after the prefix, and its head; the only place that chooses the fast path."""
        return FastModel(self.model) if FastModel.fits(self.model) else PlainModel(self.model)

    def chooser(self, grammar: Grammar | None, text: PlainModel) -> Chooser:
        device = next(self.model.parameters()).device
        return Chooser(grammar, self.side.vocab, self.settings.temperature, text, device)

    def _grammar(self) -> Grammar | None:
        """The format; it may be missing where it only helps to guess."""
        try:
            return grammar_of(self.side.tokenizer, self.side.renderer, self.settings.labels)
        except UserError:
            if self.settings.grammar:
                raise
            return None


# A row whose first tokens are decided; keys and values of its prefix, `[H, P, d]` a layer; how many of them count.
_Ready = tuple[AnswerRow, list[Tensor], list[Tensor], int]


@dataclass
class _Run:
    """One call: what waits, what is being written (row i is in place i of the cache), what is done."""

    engine: LocalEngine
    grammar: Grammar | None
    text: PlainModel
    chooser: Chooser
    ledger: Ledger
    questions: Sequence[EncodedSample]
    answers: int
    waiting: deque[int]
    ready: deque[_Ready] = field(default_factory=deque)
    rows: list[AnswerRow] = field(default_factory=list)
    done: dict[int, AnswerRow] = field(default_factory=dict)
    names: Names = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.most = self.engine.settings.batch_size
        places = min(self.most, max(1, len(self.questions) * self.answers))
        self.cache = RowCache(self.engine.model.config.text_config, places)

    @property
    def can_fill(self) -> bool:
        return len(self.rows) < self.most and bool(self.waiting or self.ready)

    def fill(self) -> None:
        """Give all free places to waiting rows; images are read several at a time, as reading few is slow."""
        while self.can_fill:
            if not self.ready:
                wanted = max(self.most - len(self.rows), self.most // 4)
                count = min(len(self.waiting), -(-wanted // self.answers))
                self._read([self.waiting.popleft() for _ in range(count)])
                continue
            row, keys, values, length = self.ready.popleft()
            self.cache.put(len(self.rows), keys, values, length)
            self.rows.append(row)

    def step(self) -> None:
        """One forward pass, with attention by row, and all that is decided from it."""
        rows = self.rows
        feeds = [row.feed() for row in rows]
        width = self._width(np.array([feed.num_fed for feed in feeds]))
        feeds = [feed.cut(width) for feed in feeds]
        ids = np.zeros((len(rows), width), dtype=np.int64)
        for i, feed in enumerate(feeds):
            ids[i, : feed.num_fed] = feed.line[: feed.num_fed]
        starts = self.cache.lengths[: len(rows)] + np.array([row.offset for row in rows])
        hidden = self.text.read(ids, starts[:, None] + np.arange(width), self.cache)
        stay = self.engine.decide(self.chooser, self.ledger, feeds, range(0, ids.size, width), hidden)
        self.cache.lengths[: len(rows)] += stay
        for place in reversed([i for i, row in enumerate(rows) if row.draft.finish is not None]):
            self.done[rows[place].index] = rows[place]
            last = rows.pop()
            if place < len(rows):
                rows[place] = last
                self.cache.move(len(rows), place)

    def _read(self, group: Sequence[int]) -> None:
        """Run images and prompts once, with the start of the answer; decide the first tokens of all their answers."""
        model, questions = self.engine.model, [self.questions[i] for i in group]
        device = next(model.parameters()).device
        side = self.engine.side
        prefix = collate_prefix(questions, side.tokenizer.pad_token_id, side.image_token_id).to(device)
        feeds = [self._row(i, k).feed() for i in group for k in range(self.answers)]
        more = feeds[0].num_fed - 1  # all begin alike: nothing has been decided yet
        start = torch.tensor(feeds[0].line[1 : more + 1], dtype=torch.int64, device=device).expand(len(group), -1)
        mask = pad(prefix.mask, (0, more), value=True)
        cache = DynamicCache(config=model.config.text_config)
        positions = rope_positions(model, prefix, more)
        with before_head(model) as hidden:
            model(
                input_ids=torch.cat([prefix.ids, start], dim=1),
                attention_mask=None if bool(mask.all()) else mask,
                position_ids=positions,
                pixel_values=prefix.pixel_values,
                image_grid_thw=prefix.grid_thw,
                mm_token_type_ids=pad(prefix.image_mask.int(), (0, more)),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1 + more,
            )
        places = [r // self.answers * (1 + more) for r in range(len(feeds))]
        stay = self.engine.decide(self.chooser, self.ledger, feeds, places, hidden[0].flatten(0, 1))
        offsets = (positions[0, :, prefix.ids.shape[1] - 1 :].amax(1) - more).tolist()
        for r, row in enumerate(feed.row for feed in feeds):
            image = r // self.answers
            length = len(questions[image].prefix_ids)
            left = prefix.ids.shape[1] - length
            row.offset = int(offsets[image]) + 1 - length
            if row.draft.finish is not None:
                self.done[row.index] = row
                continue
            keys, values = zip(
                *((x.keys[image, :, left:], x.values[image, :, left:]) for x in cache.layers), strict=True
            )
            self.ready.append((row, list(keys), list(values), length - 1 + stay[r]))

    def _row(self, question: int, answer: int) -> AnswerRow:
        asked = self.questions[question]
        rng = np.random.default_rng([self.engine.seed, zlib.crc32(asked.sample_id.encode()), answer])
        engine, index = self.engine, question * self.answers + answer
        draft, cursor = Draft(asked.sample_id, engine.side, engine.settings), Cursor(self.grammar, self.names)
        guess = engine.guess and engine.skip
        return AnswerRow(index, draft, cursor, rng, int(asked.prefix_ids[-1]), engine.skip, guess)

    def _width(self, lengths: NDArray[np.int64]) -> int:
        """The most tokens to feed a row: as many useful ones as possible for what the pass costs.

        A row that is cut off continues in the next pass. Where all rows are in step, nothing is cut.
        """
        if lengths.min() == lengths.max():
            return int(lengths[0])
        cost = STEP_COST["cuda" if self.cache.is_cuda else "cpu"]
        gain = {w: np.minimum(lengths, w).sum() / (cost + len(lengths) * w) for w in sorted(set(lengths.tolist()))}
        return max(gain, key=lambda w: (gain[w], w))
