"""An answer being written: what is fed to the model next, what is decided where, and when it ends.

A row always holds one token that the model has not read yet, the last one. It is fed together with the tokens that the
format forces behind it, and with a *guess* at what the model will decide then (go on, the name of the record before,
close the name). Every decision is made from the model's own logits; where it is not the one guessed, what was fed
behind it is taken back. So guesses cost positions, never exactness.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import isnan, nan

import numpy as np

from apiece.codec.render import CLOSE, RECORD_CLOSE
from apiece.codec.vocab import decode_exact
from apiece.config.schema import GenerateSection
from apiece.model.load import TextSide
from apiece.rollout.choose import Ask, Chosen
from apiece.rollout.grammar import END, Grammar, Kind
from apiece.types import FinishReason, Rollout


@dataclass(frozen=True)
class Rules:
    """What all rows of a call share.

    Attributes:
        grammar: The format; `None` where the tokenizer has none, and answers are not held to it.
        side: Tokenizer and vocabulary.
        settings: Caps, what is held to the format.
        skip: Feed forced tokens with the decision before them, not one by one.
        guess: Feed guesses behind them.
        names: How names went on that begin with these decisions.
    """

    grammar: Grammar | None
    side: TextSide
    settings: GenerateSection
    skip: bool = True
    guess: bool = True
    names: dict[tuple[int, ...], tuple[int, ...]] = field(default_factory=dict)


@dataclass
class Row:
    """An answer being written.

    Attributes:
        rules: Shared by all.
        sample_id: Of the sample that is answered.
        index: Which of all answers of the call.
        rng: Of its draws.
        last: The token that the model has not read yet; at first the last one of the prompt.
        line: The last token and what follows it, forced or guessed; `num_fed` of these are fed.
        accepted: How many of those fed stay.
        offset: How much later text positions are than columns.
    """

    rules: Rules
    sample_id: str
    index: int
    rng: np.random.Generator
    last: int
    offset: int = 0
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    masked: list[float] = field(default_factory=list)
    near_mass: list[float] = field(default_factory=list)
    finish: FinishReason | None = None
    line: list[int] = field(default_factory=list)
    num_fed: int = 0
    accepted: int = 0
    _forced: tuple[int, ...] = ()
    _state: int | None = None
    _asked: dict[int, int | None] = field(default_factory=dict)
    _name: tuple[int, ...] = ()
    _last_name: tuple[int, ...] = ()
    _draws: list[float] = field(default_factory=list)
    _num_asked: int = 0
    _box: list[int] = field(default_factory=list)
    _num_boxes: int = 0
    _record_start: int = 0
    _records: Counter[tuple[int, ...]] = field(default_factory=Counter)
    _stop: FinishReason | None = None

    def __post_init__(self) -> None:
        if self.rules.grammar is not None:
            opening = self.rules.grammar.opening
            self._forced, self._state = opening.forced, opening.state

    def plan(self) -> None:
        """Decide what to feed: `line`, of which `num_fed` tokens."""
        held, forced = self.rules.settings.grammar, len(self._forced)
        self.line, self._asked = [self.last, *self._forced], {}
        if self._state is not None and self._state != END:
            if held:
                self._asked[forced] = self._state
            if self.rules.guess and self._stop is None:
                for token, step_forced, state in self._guesses(self._state):
                    self.line += [token, *step_forced]
                    if held and state != END:
                        self._asked[len(self.line) - 1] = state
        # The end token is never fed.
        self.num_fed = len(self.line) - (self.line[-1] == self.rules.side.renderer.eos_id) if self.rules.skip else 1
        if not held:
            self._asked = dict.fromkeys(range(self.num_fed))

    def cut(self, most: int) -> None:
        """Feed no more than that now."""
        self.num_fed = min(self.num_fed, most)

    def asks(self, start: int) -> Iterator[Ask]:
        """The decisions that follow tokens fed, in order; the first token fed is number `start` of the batch."""
        for count, (position, state) in enumerate(self._asked.items()):
            if position >= self.num_fed:
                break
            low, high = self._bounds(state)
            yield Ask(start + position, state, self._draw(self._num_asked + count), low, high)

    def take(self, chosen: Chosen, first: int) -> list[int]:
        """Write what was decided, as far as the guesses were right.

        Args:
            chosen: Decisions.
            first: Number of this row's first one among them.

        Returns:
            Which of the tokens fed were followed by one whose log-probability is to be worked out.
        """
        open_positions = []
        everything, at = self.rules.settings.forced_logprobs, first
        for position in range(self.num_fed):
            if position in self._asked:
                token, logprob = chosen.ids[at], chosen.logprobs[at]
                self._write(token, logprob, chosen.masked[at], chosen.near[at])
                at += 1
                wanted = isnan(logprob)
            else:
                token, wanted = self.line[position + 1], everything
                self._write(token, nan, 0.0, nan)
            if wanted:
                open_positions.append(position)
            self.accepted = position + 1
            if self.finish or position + 1 == self.num_fed or self.line[position + 1] != token:
                break
        self._num_asked += at - first
        if self.finish is None and self._state == END and not everything:
            self._write_rest()
        return open_positions

    def replay(self, ids: Sequence[int], logprobs: Sequence[float]) -> None:
        """Write an answer that was generated elsewhere, as far as the caps allow."""
        for token, logprob in zip(ids, logprobs, strict=True):
            self._write(token, logprob, nan, nan)
            if self.finish is not None:
                return

    def rollout(self) -> Rollout:
        """The answer, once it has ended."""
        assert self.finish is not None, "asked for only when it has ended"
        return Rollout(
            sample_id=self.sample_id,
            ids=np.array(self.ids, dtype=np.int64),
            logprobs=np.array(self.logprobs, dtype=np.float32),
            text=decode_exact(self.rules.side.tokenizer, self.ids),
            finish_reason=self.finish,
            near_mass=np.array(self.near_mass, dtype=np.float32),
            logprobs_masked=np.array(self.masked, dtype=np.float32),
        )

    @property
    def _grammar(self) -> Grammar:
        assert self.rules.grammar is not None, "asked for only while the answer is in a state of it"
        return self.rules.grammar

    def _guesses(self, state: int) -> Iterator[tuple[int, tuple[int, ...], int]]:
        """What will be decided, from a state on to the next coordinate: tokens, what they force, and the next state."""
        grammar, name = self._grammar, self._name
        while state != END and grammar.states[state].kind is not Kind.COORD:
            token = grammar.states[state].likely
            if grammar.states[state].in_name:
                known = self.rules.names.get(name, ()) if name else self._last_name
                token = known[len(name)] if len(known) > len(name) else token
                name = (*name, token) if token is not None else name
            step = None if token is None else grammar.step(state, token)
            if token is None or step is None:
                return
            yield token, step.forced, step.state
            state = step.state

    def _bounds(self, state: int | None) -> tuple[int, int]:
        """The bins that may be written in a state; far corners need room beside the near ones."""
        last = self.rules.side.vocab.num_bins - 1
        if state is None or not self.rules.settings.ordered_boxes:
            return 0, last
        coordinate = self._grammar.states[state].coordinate
        if coordinate < 0:
            return 0, last
        return (0, last - 1) if coordinate < 2 else (self._box[coordinate - 2] + 1, last)

    def _draw(self, number: int) -> float:
        if self.rules.settings.temperature == 0:
            return 0.0
        while len(self._draws) <= number:
            self._draws.append(self.rng.random())
        return self._draws[number]

    def _write(self, token: int, logprob: float, masked: float, near_mass: float) -> None:
        """Add a token, and end the answer if it is the last."""
        self.ids.append(token)
        self.logprobs.append(logprob)
        self.masked.append(masked)
        self.near_mass.append(near_mass)
        self.last = token
        self._follow(token)
        stop = self._stop  # before this token: a record may always close
        k = self.rules.side.vocab.bin_of(token)
        if k is not None:
            self._add_bin(k)
        if token == self.rules.side.renderer.eos_id:
            self.finish = FinishReason.EOS
        elif len(self.ids) >= self.rules.settings.max_new_tokens:
            self.finish = FinishReason.LENGTH
        elif stop is not None and (k is not None or self._goes_on()):
            self.finish = stop

    def _write_rest(self) -> None:
        """The end of the answer, all of it forced, without asking the model."""
        while self.finish is None:
            self._write(self._forced[0], nan, 0.0, nan)

    def _follow(self, token: int) -> None:
        """Keep account of where in the format the answer is; nowhere, once it has left it."""
        if self._state is None:
            return
        if self._forced:
            on = token == self._forced[0]
            self._forced, self._state = (self._forced[1:], self._state) if on else ((), None)
            return
        if self._state == END:
            self._state = None
            return
        at, step = self._grammar.states[self._state], self._grammar.step(self._state, token)
        if step is None:
            self._state = None
            return
        if at.in_name:
            self._name += (token,)
            if self._grammar.states[step.state].kind is Kind.COORD:
                self._keep_name()
        self._forced, self._state = step.forced, step.state

    def _keep_name(self) -> None:
        for length in range(1, len(self._name)):
            self.rules.names[self._name[:length]] = self._name
        self._last_name, self._name = self._name, ()

    def _add_bin(self, k: int) -> None:
        """A coordinate; four are a box, which ends a record."""
        if len(self._box) == 4:
            self._box = []
        self._box.append(k)
        if len(self._box) < 4:
            return
        self._num_boxes += 1
        record = tuple(self.ids[self._record_start :])
        self._record_start = len(self.ids)
        self._records[record] += 1
        settings = self.rules.settings
        if self._num_boxes >= settings.max_objects:
            self._stop = FinishReason.OBJECT_CAP
        elif settings.max_repeats is not None and self._records[record] >= settings.max_repeats:
            self._stop = FinishReason.REPETITION

    def _goes_on(self) -> bool:
        """Whether the answer goes on after its last allowed record, instead of closing."""
        tail = decode_exact(self.rules.side.tokenizer, self.ids[self._record_start :])
        return not (RECORD_CLOSE + CLOSE).startswith(tail)
