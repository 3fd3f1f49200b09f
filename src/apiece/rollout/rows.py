"""An answer being written: the text so far, where it is in the format, and what the model reads next.

The last token of an answer is always one that the model has not read yet. It is fed together with the tokens that the
format forces after it, and with a *guess* at what the model will decide then (continue, the previous object's name,
close the name). Every decision is made from the model's own logits; where it differs from the guess, what was fed after
it is taken back. So guesses cost positions, never exactness.

One step of an answer: `row.feed()` says what to read, the chooser answers `feed.asks(...)`, and `feed.take(...)` writes
what was decided.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import isnan, nan

import numpy as np

from apiece.codec.render import FINISH
from apiece.codec.vocab import decode_exact
from apiece.config.schema import GenerateSection
from apiece.model.load import TextSide
from apiece.rollout.choose import Ask, Chosen
from apiece.rollout.grammar import END, DecisionKind, Grammar
from apiece.types import FinishReason, Rollout

Names = dict[tuple[int, ...], tuple[int, ...]]  # how names that began with these tokens continued, in any answer


@dataclass
class Draft:
    """The text of an answer, and why it ends: the end token, or one of the caps."""

    sample_id: str
    side: TextSide
    settings: GenerateSection
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    masked: list[float] = field(default_factory=list)
    near_mass: list[float] = field(default_factory=list)
    finish: FinishReason | None = None
    box: list[int] = field(default_factory=list)  # bins of the latest box so far
    stop: FinishReason | None = None  # set once no more objects may follow
    _object_start: int = 0
    _objects: Counter[tuple[int, ...]] = field(default_factory=Counter)

    def write(self, token: int, logprob: float, masked: float, near_mass: float) -> None:
        """Add a token, and end the answer if it is the last."""
        self.ids.append(token)
        self.logprobs.append(logprob)
        self.masked.append(masked)
        self.near_mass.append(near_mass)
        stop = self.stop  # before this token: an object may always be closed
        k = self.side.vocab.bin_of(token)
        if k is not None:
            self._add_bin(k)
        if token == self.side.renderer.eos_id:
            self.finish = FinishReason.EOS
        elif len(self.ids) >= self.settings.max_new_tokens:
            self.finish = FinishReason.LENGTH
        elif stop is not None and (k is not None or not self._closes()):
            self.finish = stop

    def _add_bin(self, k: int) -> None:
        """Four bins are a box, which ends an object."""
        if len(self.box) == 4:
            self.box = []
        self.box.append(k)
        if len(self.box) < 4:
            return
        written = tuple(self.ids[self._object_start :])
        self._object_start = len(self.ids)
        self._objects[written] += 1
        most = self.settings.max_repeats
        if self._objects.total() >= self.settings.max_objects:
            self.stop = FinishReason.OBJECT_CAP
        elif most is not None and self._objects[written] >= most:
            self.stop = FinishReason.REPETITION

    def _closes(self) -> bool:
        """Whether the text after the last box closes the answer, as far as it goes."""
        return FINISH.startswith(decode_exact(self.side.tokenizer, self.ids[self._object_start :]))

    def rollout(self) -> Rollout:
        assert self.finish is not None, "asked for only when it has ended"
        return Rollout(
            sample_id=self.sample_id,
            ids=np.array(self.ids, dtype=np.int64),
            logprobs=np.array(self.logprobs, dtype=np.float32),
            text=decode_exact(self.side.tokenizer, self.ids),
            finish_reason=self.finish,
            near_mass=np.array(self.near_mass, dtype=np.float32),
            logprobs_masked=np.array(self.masked, dtype=np.float32),
        )


@dataclass
class Cursor:
    """Where in the format an answer is."""

    grammar: Grammar | None  # `None` where the tokenizer has none
    names: Names  # shared by all answers of a call
    forced: tuple[int, ...] = ()  # ids that must come before the next decision
    state: int | None = None  # of that decision; `None` once the answer has left the format
    _name: tuple[int, ...] = ()
    _last_name: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.grammar is not None:
            self.forced, self.state = self.grammar.opening.forced, self.grammar.opening.state

    def follow(self, token: int) -> None:
        """Move past a token that was written."""
        if self.grammar is None or self.state is None:
            return
        if self.forced:
            if token == self.forced[0]:
                self.forced = self.forced[1:]
            else:
                self.forced, self.state = (), None
            return
        step = None if self.state == END else self.grammar.step(self.state, token)
        if step is None:
            self.state = None
            return
        if self.grammar.states[self.state].in_name:
            self._name += (token,)
            if self.grammar.states[step.state].kind is DecisionKind.COORD:
                for length in range(1, len(self._name)):
                    self.names[self._name[:length]] = self._name
                self._last_name, self._name = self._name, ()
        self.forced, self.state = step.forced, step.state

    def guesses(self) -> Iterator[tuple[int, tuple[int, ...], int]]:
        """What will be decided up to the next coordinate: tokens, what they force, and the next state."""
        grammar, state, name = self.grammar, self.state, self._name
        while grammar and state is not None and state != END and grammar.states[state].kind is not DecisionKind.COORD:
            token = grammar.states[state].likely
            if grammar.states[state].in_name:
                known = self.names.get(name, ()) if name else self._last_name
                token = known[len(name)] if len(known) > len(name) else token
                name = (*name, token) if token is not None else name
            step = None if token is None else grammar.step(state, token)
            if token is None or step is None:
                return
            yield token, step.forced, step.state
            state = step.state


@dataclass
class AnswerRow:
    """An answer being written, with what its next step needs."""

    index: int  # among all answers of the call
    draft: Draft
    cursor: Cursor
    rng: np.random.Generator
    last: int  # the token that the model has not read yet; at first the last one of the prompt
    skip: bool = True  # feed forced tokens with the decision before them, not one by one
    guess: bool = True  # feed guesses after them
    offset: int = 0  # text positions minus cache columns
    _draws: list[float] = field(default_factory=list)
    _num_asked: int = 0

    def feed(self) -> Feed:
        draft, cursor, held = self.draft, self.cursor, self.draft.settings.grammar
        line, asked = [self.last, *cursor.forced], dict[int, int | None]()
        if cursor.state is not None and cursor.state != END:
            if held:
                asked[len(cursor.forced)] = cursor.state
            if self.guess and draft.stop is None:
                for token, forced, state in cursor.guesses():
                    line += [token, *forced]
                    if held and state != END:
                        asked[len(line) - 1] = state
        # The end token is never fed.
        count = len(line) - (line[-1] == draft.side.renderer.eos_id) if self.skip else 1
        return Feed(self, line, asked if held else dict.fromkeys(range(count)), count)

    def ask(self, row: int, state: int | None, number: int) -> Ask:
        """A decision: of hidden state `row`, and the `number`th one since the last step."""
        draft, last = self.draft, self.draft.side.vocab.num_bins - 1
        low, high = 0, last
        if draft.settings.ordered_boxes and state is not None and self.cursor.grammar is not None:
            coordinate = self.cursor.grammar.states[state].coordinate
            if coordinate >= 2:  # a far corner lies beyond the near one
                low = draft.box[coordinate - 2] + 1
            elif coordinate >= 0:
                high = last - 1
        draw = 0.0
        if draft.settings.temperature:
            while len(self._draws) <= self._num_asked + number:
                self._draws.append(self.rng.random())
            draw = self._draws[self._num_asked + number]
        return Ask(row, state, draw, low, high)

    def write(self, token: int, logprob: float, masked: float, near_mass: float) -> None:
        self.last = token
        self.cursor.follow(token)
        self.draft.write(token, logprob, masked, near_mass)

    def took(self, decisions: int) -> None:
        """After a step: count its decisions, and write an end that is all forced without asking the model."""
        self._num_asked += decisions
        if self.cursor.state == END and not self.draft.settings.forced_logprobs:
            while self.draft.finish is None:
                self.write(self.cursor.forced[0], nan, 0.0, nan)


@dataclass(frozen=True)
class Feed:
    """What a forward pass reads of a row."""

    row: AnswerRow
    line: list[int]  # its last token and what follows, forced or guessed
    asked: Mapping[int, int | None]  # positions in `line` after which the model decides -> state; ascending
    num_fed: int  # how many tokens of `line` are fed

    def cut(self, most: int) -> Feed:
        return self if self.num_fed <= most else replace(self, num_fed=most)

    def asks(self, start: int) -> list[Ask]:
        """The decisions after the tokens fed, of which the first is number `start` of the batch."""
        asked = [(position, state) for position, state in self.asked.items() if position < self.num_fed]
        return [self.row.ask(start + position, state, i) for i, (position, state) in enumerate(asked)]

    def take(self, chosen: Chosen, first: int) -> tuple[int, list[int]]:
        """Write what was decided, as far as the guesses were right; this row's decisions begin at number `first`.

        Returns:
            How many of the tokens fed stay; and after which of them a token was written whose log-probability has to be
            worked out.
        """
        row, open_positions, at = self.row, list[int](), first
        everything, accepted = row.draft.settings.forced_logprobs, 0
        for position in range(self.num_fed):
            if position in self.asked:
                token, logprob = chosen.ids[at], chosen.logprobs[at]
                row.write(token, logprob, chosen.masked[at], chosen.near[at])
                at += 1
                wanted = isnan(logprob)
            else:
                token, wanted = self.line[position + 1], everything
                row.write(token, nan, 0.0, nan)
            if wanted:
                open_positions.append(position)
            accepted = position + 1
            if row.draft.finish or accepted == self.num_fed or self.line[accepted] != token:
                break
        row.took(at - first)
        return accepted, open_positions
