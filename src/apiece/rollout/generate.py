"""Generation in this process: batched, prefix computed once, forced tokens skipped, log-probabilities kept.

A forward pass feeds every row its last token, what the format forces behind it, and a guess (`rows.py`); a row that has
ended gives its place to a waiting image. Images and prompts go through `model(...)`, what follows through `layers.py`.

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
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache

from apiece.config.schema import GenerateSection
from apiece.data.collate import EncodedSample, collate_prefix
from apiece.errors import UserError
from apiece.model.families import rope_positions
from apiece.model.load import TextSide
from apiece.rollout.choose import Ask, Chooser
from apiece.rollout.fast import Head, Layers, Ledger, Place, RowCache, before_head, layers_of
from apiece.rollout.grammar import Grammar, grammar_of
from apiece.rollout.rows import Row, Rules
from apiece.types import Rollout

STEP_COST = {"cpu": 64, "cuda": 1024}
"""What a forward pass costs beside its positions, in positions: how wide a step may be for the sake of few rows."""


class Engine(Protocol):
    """Writes answers; how and where is its own affair."""

    def generate(self, questions: Sequence[EncodedSample]) -> list[Rollout]:
        """One rollout per question, in order."""


@runtime_checkable
class StreamingEngine(Engine, Protocol):
    """Writes answers one after the other, without waiting for the slowest of a batch."""

    def stream(self, questions: Iterable[EncodedSample]) -> Generator[Rollout, None, None]:
        """One rollout per question, in order; `questions` is read a bounded number ahead."""


@dataclass(frozen=True)
class LocalEngine:
    """The model in this process.

    Attributes:
        model: In evaluation mode for repeatable answers (the caller's business).
        side: Its tokenizer and vocabulary.
        settings: Batch size, caps, temperature, what answers are held to.
        seed: Of sampling; a draw is a function of (seed, sample, which answer).
        skip: Feed forced tokens together with the decision before them; without it one token at a time.
        guess: Feed guesses at the next decisions, too. Like `skip`, it changes the speed and nothing else.
        refill: Give the place of an answer that has ended to a waiting image at once, not when all have ended.
    """

    model: Any
    side: TextSide
    settings: GenerateSection
    seed: int = 0
    skip: bool = True
    guess: bool = True
    refill: bool = True

    def generate(self, questions: Sequence[EncodedSample]) -> list[Rollout]:
        """One rollout per question, in order."""
        return [answers[0] for answers in self.generate_several(questions, 1)]

    @torch.no_grad()
    def generate_several(self, questions: Sequence[EncodedSample], answers: int) -> list[list[Rollout]]:
        """Several rollouts per question, in order; each image and prompt is read once.

        Answers are written `settings.batch_size` at a time, whatever their image; short prefixes first.
        """
        grammar = self._grammar()
        rules = Rules(grammar, self.side, self.settings, self.skip, self.guess and self.skip)
        order = sorted(range(len(questions)), key=lambda i: len(questions[i].prefix_ids))
        head = self.head()
        run = _Run(
            self, rules, self.layers(), self.chooser(grammar, head), Ledger(head), questions, answers, deque(order)
        )
        while run.waiting or run.ready or run.rows:
            if self.refill or not run.rows:
                run.fill()
            while run.rows and not (self.refill and run.can_fill):
                run.step()
        run.ledger.settle()
        return [[run.done[i * answers + k].rollout() for k in range(answers)] for i in range(len(questions))]

    def decide(
        self, chooser: Chooser, ledger: Ledger, rows: Sequence[Row], starts: Sequence[int], hidden_ND: Tensor
    ) -> None:
        """Let every row take its next tokens.

        Args:
            chooser: Makes the decisions.
            ledger: Gets what is still to be worked out.
            rows: With a plan of what was fed.
            starts: Where each row's tokens begin in `hidden_ND`.
            hidden_ND: What the head reads.
        """
        asked: list[Ask] = []
        firsts = []
        for row, start in zip(rows, starts, strict=True):
            firsts.append(len(asked))
            asked += row.asks(start)
        chosen = chooser.choose(hidden_ND, asked)
        at: list[int] = []
        tokens: list[int] = []
        places: list[Place] = []
        for row, start, first in zip(rows, starts, firsts, strict=True):
            before = len(row.ids)
            for position in row.take(chosen, first):
                at.append(start + position)
                tokens.append(row.ids[before + position])
                places.append((row.logprobs, row.near_mass, before + position))
        ledger.add(hidden_ND, at, tokens, places)

    def layers(self) -> Layers:
        """The language model behind the prefix."""
        return layers_of(self.model)

    def chooser(self, grammar: Grammar | None, head: Head) -> Chooser:
        """What makes the decisions."""
        device = next(self.model.parameters()).device
        return Chooser(grammar, self.side.vocab, self.settings.temperature, head, device)

    def head(self) -> Head:
        """The model's head."""
        return Head(self.model.lm_head)

    def _grammar(self) -> Grammar | None:
        """The format; where it only helps to guess, its absence is no error."""
        try:
            return grammar_of(self.side.tokenizer, self.side.renderer, self.settings.labels)
        except UserError:
            if self.settings.grammar:
                raise
            return None


@dataclass(frozen=True)
class _Ready:
    """A row whose first tokens are decided, with the keys and values of its prefix: `[H, P, d]` a layer."""

    row: Row
    keys: list[Tensor]
    values: list[Tensor]
    length: int


@dataclass
class _Run:
    """One call: what waits, what is being written (row i is in place i of the cache), what is done."""

    engine: LocalEngine
    rules: Rules
    layers: Layers
    chooser: Chooser
    ledger: Ledger
    questions: Sequence[EncodedSample]
    answers: int
    waiting: deque[int]
    ready: deque[_Ready] = field(default_factory=deque)
    rows: list[Row] = field(default_factory=list)
    done: dict[int, Row] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.most = self.engine.settings.batch_size
        places = min(self.most, max(1, len(self.questions) * self.answers))
        self.cache = RowCache(self.engine.model.config.text_config, places)

    @property
    def can_fill(self) -> bool:
        """Whether there is a place, and somebody waiting for it."""
        return len(self.rows) < self.most and bool(self.waiting or self.ready)

    def fill(self) -> None:
        """Give all free places to rows that wait; images are read some at a time, as reading few is slow."""
        while self.can_fill:
            if not self.ready:
                wanted = max(self.most - len(self.rows), self.most // 4)
                count = min(len(self.waiting), -(-wanted // self.answers))
                self._read([self.waiting.popleft() for _ in range(count)])
                continue
            first = self.ready.popleft()
            self.cache.put(len(self.rows), first.keys, first.values, first.length)
            self.rows.append(first.row)

    def step(self) -> None:
        """One forward pass, with attention by row, and all that is decided from it."""
        rows = self.rows
        for row in rows:
            row.plan()
        width = self._width()
        ids = np.zeros((len(rows), width), dtype=np.int64)
        for i, row in enumerate(rows):
            row.cut(width)
            ids[i, : row.num_fed] = row.line[: row.num_fed]
        starts = self.cache.lengths[: len(rows)] + np.array([row.offset for row in rows])
        hidden = self.layers(ids, starts[:, None] + np.arange(width), self.cache)
        self.engine.decide(self.chooser, self.ledger, rows, range(0, ids.size, width), hidden)
        self.cache.lengths[: len(rows)] += [row.accepted for row in rows]
        for place in reversed([i for i, row in enumerate(rows) if row.finish is not None]):
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
        rows = [self._row(i, k) for i in group for k in range(self.answers)]
        for row in rows:
            row.plan()
        # All begin alike: nothing has been decided yet.
        more = rows[0].num_fed - 1
        start = torch.tensor(rows[0].line[1 : more + 1], dtype=torch.int64, device=device).expand(len(group), -1)
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
        places = [r // self.answers * (1 + more) for r in range(len(rows))]
        self.engine.decide(self.chooser, self.ledger, rows, places, hidden[0].flatten(0, 1))
        offsets = (positions[0, :, prefix.ids.shape[1] - 1 :].amax(1) - more).tolist()
        for r, row in enumerate(rows):
            image = r // self.answers
            length = len(questions[image].prefix_ids)
            left = prefix.ids.shape[1] - length
            row.offset = int(offsets[image]) + 1 - length
            if row.finish is not None:
                self.done[row.index] = row
                continue
            keys, values = zip(
                *((x.keys[image, :, left:], x.values[image, :, left:]) for x in cache.layers), strict=True
            )
            self.ready.append(_Ready(row, list(keys), list(values), length - 1 + row.accepted))

    def _row(self, question: int, answer: int) -> Row:
        asked = self.questions[question]
        rng = np.random.default_rng([self.engine.seed, zlib.crc32(asked.sample_id.encode()), answer])
        return Row(self.rules, asked.sample_id, question * self.answers + answer, rng, int(asked.prefix_ids[-1]))

    def _width(self) -> int:
        """How many tokens to feed a row at most: as many useful ones as possible for what the pass costs.

        A row that is cut off goes on in the next pass. Where all rows are in step, nothing is cut.
        """
        lengths = np.array([row.num_fed for row in self.rows])
        if lengths.min() == lengths.max():
            return int(lengths[0])
        cost = STEP_COST["cuda" if self.cache.is_cuda else "cpu"]
        gain = {w: np.minimum(lengths, w).sum() / (cost + len(lengths) * w) for w in sorted(set(lengths.tolist()))}
        return max(gain, key=lambda w: (gain[w], w))
