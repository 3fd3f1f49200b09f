"""The answer format as a finite-state machine over token ids: what the format forces, and what it leaves open.

A state is a point at which the model decides: which name, which coordinate, go on or stop. Every decision leads over
forced tokens to the next state. Built for one tokenizer and checked against it: the ids are those that it gives for the
whole text of an answer.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import takewhile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apiece.codec.render import (
    BOX_OPEN,
    CLOSE,
    COORD_SEPARATOR,
    OPEN,
    RECORD_CLOSE,
    RECORD_OPEN,
    RECORD_SEPARATOR,
    Renderer,
    desc_problem,
    render_text,
)
from apiece.codec.vocab import decode_exact, encode_plain
from apiece.errors import UserError
from apiece.rollout.names import NO_NAME, NameTokens, Written

END = -1
"""Number of the state behind the end token."""


class Kind(IntEnum):
    """What is decided in a state."""

    COORD = 0
    CHOICE = 1
    NAME = 2


@dataclass(frozen=True, slots=True)
class Step:
    """What follows a decision.

    Attributes:
        forced: Ids that the format leaves no choice about.
        state: Number of the next state, or `END`.
    """

    forced: tuple[int, ...]
    state: int


@dataclass(slots=True)
class State:
    """A point at which the model decides.

    Attributes:
        kind: What about.
        steps: By token. For `COORD` empty (any coordinate: `then`), for `NAME` the tokens that end the name.
        in_name: Whether the decision is a part of a name.
        likely: What usually comes, where that can be said.
        coordinate: 0..3 for x1, y1, x2, y2.
        then: After a coordinate.
        written: The name so far.
    """

    kind: Kind
    steps: dict[int, Step] = field(default_factory=dict)
    in_name: bool = False
    likely: int | None = None
    coordinate: int = -1
    then: Step | None = None
    written: Written = NO_NAME


class Grammar:
    """The machine.

    Attributes:
        opening: Forced ids at the start of every answer, and the first state.
        states: By number. Free names add states as they come up.
    """

    def __init__(self, tokenizer: Any, renderer: Renderer, labels: Sequence[str] | None = None) -> None:
        """Build it.

        Args:
            tokenizer: Of Hugging Face.
            renderer: Of the same tokenizer.
            labels: The only names that may be written; any writable name if `None`.

        Raises:
            UserError: The tokenizer does not cut answers where their pieces meet, or a label cannot be written with it.
        """
        self.states: list[State] = []
        self._vocab, self._tokenizer = renderer.vocab, tokenizer
        self._number_of: dict[Written, int] = {}
        self._allowed: dict[int, NDArray[np.int64]] = {}
        _check_pieces(tokenizer, renderer)
        piece, end = renderer.piece, (renderer.eos_id,)
        first_coord, *_ = [self._add(State(Kind.COORD, coordinate=i)) for i in range(4)]
        self._names = NameTokens.of(tokenizer) if labels is None else None
        name = self._free_name() if labels is None else self._listed_names(labels, first_coord)
        done = Step((), END)
        go_on, stop = piece(RECORD_CLOSE + RECORD_SEPARATOR + RECORD_OPEN), piece(RECORD_CLOSE + CLOSE)
        after_box = self._branch({go_on: name, stop + end: done}, likely=go_on)
        for i in range(3):
            self.states[first_coord + i].then = Step(piece(COORD_SEPARATOR), first_coord + i + 1)
        self.states[first_coord + 3].then = after_box
        start = piece(OPEN + RECORD_OPEN)
        self.opening = self._branch({start: name, piece(OPEN + CLOSE) + end: done}, likely=start)

    def step(self, state: int, token: int) -> Step | None:
        """What follows a token in a state, `None` if the format does not allow it."""
        at = self.states[state]
        if at.kind is Kind.COORD:
            return at.then if self._vocab.bin_of(token) is not None else None
        found = at.steps.get(token)
        if found is None and self._names is not None and at.kind is Kind.NAME:
            written = self._names.after(at.written, token)
            return None if written is None else Step((), self._name_state(written))
        return found

    def allowed(self, state: int) -> NDArray[np.int64]:
        """Ids that may be written in a state, ascending."""
        at = self.states[state]
        if at.kind is Kind.COORD:
            return np.arange(self._vocab.first_id, self._vocab.end_id)
        if at.kind is Kind.NAME:
            assert self._names is not None, "only free names have states of this kind"
            if state not in self._allowed:
                self._allowed[state] = self._names.allowed(at.written)
            return self._allowed[state]
        return np.array(sorted(at.steps), dtype=np.int64)

    def _add(self, state: State) -> int:
        self.states.append(state)
        return len(self.states) - 1

    def _branch(
        self, ways: Mapping[tuple[int, ...], Step], *, in_name: bool = False, likely: tuple[int, ...] = ()
    ) -> Step:
        """Sequences of ids and what follows each: the start that they share is forced, then they part."""
        if len(ways) == 1:
            ((ids, step),) = ways.items()
            return Step((*ids, *step.forced), step.state)
        shared = tuple(column[0] for column in takewhile(lambda c: len(set(c)) == 1, zip(*ways, strict=False)))
        parts: dict[int, dict[tuple[int, ...], Step]] = {}
        for ids, step in ways.items():
            parts.setdefault(ids[len(shared)], {})[ids[len(shared) + 1 :]] = step
        number = self._add(State(Kind.CHOICE, in_name=in_name))
        self.states[number].steps = {token: self._branch(rest, in_name=in_name) for token, rest in parts.items()}
        self.states[number].likely = likely[len(shared)] if likely else None
        return Step(shared, number)

    def _free_name(self) -> Step:
        return Step((), self._name_state(NO_NAME))

    def _name_state(self, written: Written) -> int:
        """The state of a free name, made when it first comes up."""
        if written not in self._number_of:
            assert self._names is not None, "only free names have states of this kind"
            ending, closings = self._names.ending(written), self._names.closings
            steps = {token: Step(closings[token].rest, 0) for token in ending}
            plain = self._names.plain_close
            likely = plain if plain in steps else None
            self._number_of[written] = self._add(
                State(Kind.NAME, steps=steps, in_name=True, likely=likely, written=written)
            )
        return self._number_of[written]

    def _listed_names(self, labels: Sequence[str], first_coord: int) -> Step:
        if not labels:
            raise UserError("expected at least one name, found none", where="generate.labels", fix="leave it out")
        ways = {self._label_ids(label): Step((), first_coord) for label in dict.fromkeys(labels)}
        return self._branch(ways, in_name=True)

    def _label_ids(self, label: str) -> tuple[int, ...]:
        """Ids of a name and of what follows it, as the tokenizer writes them in an answer.

        A name that ends in punctuation may share a token with the quote behind it. One that shares a token with the
        quote before it is refused: what comes before a name is forced, whichever name it is.
        """
        where = "generate.labels"
        problem = desc_problem(label)
        if problem:
            raise UserError(f"the name {label!r} {problem}", where=where, fix="rename it, or leave it out")
        tails = set()
        for lead in (OPEN + RECORD_OPEN, RECORD_CLOSE + RECORD_SEPARATOR + RECORD_OPEN):
            before, whole = (encode_plain(self._tokenizer, lead + text) for text in ("", label + BOX_OPEN))
            if whole[: len(before)] != before:
                raise UserError(
                    f"the name {label!r} merges with the quote before it in this tokenizer",
                    where=where,
                    fix="rename it so that it starts with a letter or digit",
                )
            tails.add(tuple(whole[len(before) :]))
        assert len(tails) == 1, f"{label!r} is written in {len(tails)} ways"
        (tail,) = tails
        back = decode_exact(self._tokenizer, tail)
        if back != label + BOX_OPEN:
            raise UserError(
                f"the name {label!r} is read back as {back.removesuffix(BOX_OPEN)!r} by this tokenizer",
                where=where,
                fix="write it in the form that is read back (Unicode NFC, for most tokenizers)",
            )
        return tail


def _check_pieces(tokenizer: Any, renderer: Renderer) -> None:
    """Answers, encoded piece by piece, must have the ids that the tokenizer gives for the whole text."""
    box = (1, 20, 300, 999)
    for count in range(4):
        objects = [("a", box)] * count
        pieces, whole = renderer.render(objects).ids.tolist()[:-1], encode_plain(tokenizer, render_text(objects))
        if pieces != whole:
            at = next((i for i, (a, b) in enumerate(zip(pieces, whole, strict=False)) if a != b), len(pieces))
            expected, found = (decode_exact(tokenizer, ids[at : at + 1]) for ids in (pieces, whole))
            raise UserError(
                f"this tokenizer joins pieces of the answer format: expected {expected!r} at token {at} of an answer "
                f"with {count} objects, found {found!r}",
                fix="generate with generate.grammar: false",
            )


_BUILT: weakref.WeakKeyDictionary[Any, dict[tuple[str, ...] | None, Grammar]] = weakref.WeakKeyDictionary()


def grammar_of(tokenizer: Any, renderer: Renderer, labels: Sequence[str] | None = None) -> Grammar:
    """The grammar of a tokenizer; built once (half a second for 150,000 tokens and free names)."""
    key = None if labels is None else tuple(labels)
    built = _BUILT.setdefault(tokenizer, {})
    if key not in built:
        built[key] = Grammar(tokenizer, renderer, labels)
    return built[key]
