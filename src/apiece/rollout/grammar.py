"""The answer format as a finite-state machine over token ids: what the format forces, and what it leaves open.

A state is a point at which the model decides: which name, which coordinate, continue or stop. Every decision leads over
forced tokens to the next state. Built for one tokenizer and checked with it: the ids are those that it gives for the
whole text of an answer.
"""

from __future__ import annotations

import codecs
import re
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
    COORD_SEPARATOR,
    EMPTY,
    FINISH,
    NEXT,
    START,
    Renderer,
    desc_problem,
    render_text,
)
from apiece.codec.vocab import decode_exact, encode_plain
from apiece.errors import UserError

# Names are free text, restricted to what an answer may contain: which tokens can continue one, and which end it.
#
# A name is read as UTF-8, byte by byte where tokens cut characters, so that every answer can be parsed. A token that
# ends a name may begin with its last characters (`.",` in Qwen's vocabulary).


_PLAIN = re.compile(rb"[A-Za-z0-9]+")


class End(IntEnum):
    """What a name ends with so far."""

    NOTHING = 0
    TEXT = 1
    SPACE = 2
    LESS = 3  # `<`: with a bar behind it, special tokens begin


@dataclass(frozen=True, slots=True)
class NameSoFar:
    """What matters of a name so far for what may follow."""

    end: End = End.NOTHING  # what its last complete character is
    partial: bytes = b""  # of a character that is not complete yet

    @property
    def can_end(self) -> bool:
        return self.end in (End.TEXT, End.LESS) and not self.partial

    def then(self, data: bytes) -> NameSoFar | None:
        """The name with more bytes, `None` if no answer may contain it."""
        decoder = codecs.getincrementaldecoder("utf-8")()
        try:
            text = decoder.decode(self.partial + data)
        except UnicodeDecodeError:
            return None
        partial = decoder.getstate()[0]
        if len(partial) > 1 and partial[0] == 0xED and partial[1] >= 0xA0:
            return None  # half of a surrogate pair, which Python's decoder only sees when it is complete
        if not text:
            return NameSoFar(self.end, partial)
        if (self.end is End.NOTHING and text[0].isspace()) or (self.end is End.LESS and text[0] == "|"):
            return None
        # Letters around it: only what is inside matters here.
        if desc_problem(f"a{text}a") is not None:
            return None
        end = End.SPACE if text[-1].isspace() else End.LESS if text[-1] == "<" else End.TEXT
        return NameSoFar(end, partial)


@dataclass(frozen=True, slots=True)
class NameEnd:
    """A token that ends a name."""

    before: bytes  # what it adds to the name
    rest: tuple[int, ...]  # ids that the format forces after it, up to the first coordinate


@dataclass(frozen=True)
class NameTokens:
    """What names need of a vocabulary."""

    text: dict[int, bytes]  # of each token by id; those that no name can contain are left out
    closings: dict[int, NameEnd]  # tokens that end a name, by id
    plain_close: int  # the one that adds nothing to the name
    _fresh: dict[int, NameSoFar] = field(repr=False)
    _inside: tuple[int, ...] = field(repr=False)

    @classmethod
    def of(cls, tokenizer: Any) -> NameTokens:
        """Read a vocabulary; a `UserError` if it is not byte-level."""
        data = _token_bytes(tokenizer)
        fresh, text = {}, {}
        after_letter = NameSoFar(End.TEXT)
        for token, value in data.items():
            written = NameSoFar(End.TEXT) if _PLAIN.fullmatch(value) else after_letter.then(value)
            if written is not None:
                fresh[token], text[token] = written, value
            elif value[0] & 0xC0 == 0x80:  # the rest of a character
                text[token] = value
        inside = tuple(token for token, value in text.items() if value[0] & 0xC0 == 0x80)
        closings = _closings(tokenizer, data)
        plain = [token for token, closing in closings.items() if not closing.before]
        assert len(plain) == 1, f"expected one token that only ends a name, got {plain}"
        return cls(text, closings, plain[0], fresh, inside)

    def after(self, written: NameSoFar, token: int) -> NameSoFar | None:
        """The name with one more token, `None` if that token cannot follow."""
        value = self.text.get(token)
        return None if value is None else written.then(value)

    def allowed(self, written: NameSoFar) -> NDArray[np.int64]:
        """Ids of all tokens that can continue a name or end it, ascending."""
        if written.partial:
            going = [t for t in self._inside if written.then(self.text[t]) is not None]
        elif written.end is End.NOTHING:
            starts = {t: self.text[t][0] for t in self._fresh}
            # Only spaces may not come first; in ASCII one byte shows it.
            going = [t for t, b in starts.items() if (b > 0x20 if b < 0x80 else written.then(self.text[t]) is not None)]
        else:
            going = [t for t in self._fresh if written.end is not End.LESS or not self.text[t].startswith(b"|")]
        return np.array(sorted([*going, *self.ending(written)]), dtype=np.int64)

    def ending(self, written: NameSoFar) -> list[int]:
        out = []
        for token, closing in self.closings.items():
            last = written.then(closing.before) if closing.before else written
            if last is not None and last.can_end:
                out.append(token)
        return out


NO_NAME = NameSoFar()


def _token_bytes(tokenizer: Any) -> dict[int, bytes]:
    """Bytes by id of all text tokens."""
    alphabet = _byte_alphabet()
    # Characters that stand for no byte go where Latin-1 does not reach.
    table = dict.fromkeys(range(0x100), 0x10000) | {ord(char): byte for byte, char in enumerate(alphabet)}
    added = set(tokenizer.get_added_vocab().values())
    out: dict[int, bytes] = {}
    for token, number in tokenizer.get_vocab().items():
        if number not in added and token:
            try:
                out[number] = token.translate(table).encode("latin-1")
            except UnicodeEncodeError:
                continue  # not a token of bytes
    probe = "a 1 é 中"
    if b"".join(out.get(i, b"") for i in encode_plain(tokenizer, probe)) != probe.encode():
        raise UserError(
            "free names need a byte-level vocabulary, such as Qwen's; this tokenizer has another",
            fix="give the names: generate.labels; or generate.grammar: false",
        )
    return out


def _byte_alphabet() -> list[str]:
    """The character that stands for each byte in a byte-level vocabulary (as in GPT-2)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) if byte in printable else chr(0x100 + others.index(byte)) for byte in range(256)]


def _closings(tokenizer: Any, data: dict[int, bytes]) -> dict[int, NameEnd]:
    """Tokens that contain the quote after a name as the tokenizer writes it, with what is before and after it."""
    box_open = BOX_OPEN.encode()
    out: dict[int, NameEnd] = {}
    for token, value in data.items():
        at = value.find(b'"')
        if at < 0 or not box_open.startswith(value[at:]):
            continue
        before, rest = value[:at], box_open[len(value) - at :].decode()
        try:
            ids = encode_plain(tokenizer, "a" + before.decode() + BOX_OPEN)
        except UnicodeDecodeError:
            continue  # begins within a character: the tokenizer never cuts text there
        if token not in ids:
            continue
        behind = ids[ids.index(token) + 1 :]
        if decode_exact(tokenizer, behind) == rest:
            out[token] = NameEnd(before, tuple(behind))
    return out


END = -1  # the state after the end token


class DecisionKind(IntEnum):
    """What is decided in a state."""

    COORD = 0
    CHOICE = 1
    NAME = 2


@dataclass(frozen=True, slots=True)
class Step:
    """What follows a decision: ids that the format forces, and the next state or `END`."""

    forced: tuple[int, ...]
    state: int


@dataclass(slots=True)
class FormatState:
    """A point at which the model decides."""

    kind: DecisionKind
    steps: dict[int, Step] = field(default_factory=dict)  # by token; for `NAME` those that end it, for `COORD` none
    in_name: bool = False  # whether the decision is part of a name
    likely: int | None = None  # the usual token, if there is one
    coordinate: int = -1  # 0..3 for x1, y1, x2, y2
    then: Step | None = None  # what follows any coordinate
    written: NameSoFar = NO_NAME


class Grammar:
    """The format as a machine; free names add states as they come up."""

    def __init__(self, tokenizer: Any, renderer: Renderer, labels: Sequence[str] | None = None) -> None:
        """Build it for a tokenizer and its renderer; if `labels` are given, only these may be written. Fails if the
        tokenizer merges pieces of the format, or cannot write a label."""
        self.states: list[FormatState] = []
        self._vocab, self._tokenizer = renderer.vocab, tokenizer
        self._number_of: dict[NameSoFar, int] = {}
        self._allowed: dict[int, NDArray[np.int64]] = {}
        _check_pieces(tokenizer, renderer)
        piece, end = renderer.piece, (renderer.eos_id,)
        first_coord, *_ = [self._add(FormatState(DecisionKind.COORD, coordinate=i)) for i in range(4)]
        self._names = NameTokens.of(tokenizer) if labels is None else None
        name = Step((), self._name_state(NO_NAME)) if labels is None else self._listed_names(labels, first_coord)
        done = Step((), END)
        after_box = self._branch({piece(NEXT): name, piece(FINISH) + end: done}, likely=piece(NEXT))
        for i in range(3):
            self.states[first_coord + i].then = Step(piece(COORD_SEPARATOR), first_coord + i + 1)
        self.states[first_coord + 3].then = after_box
        self.opening = self._branch({piece(START): name, piece(EMPTY) + end: done}, likely=piece(START))

    def step(self, state: int, token: int) -> Step | None:
        """What follows a token in a state, `None` if the format does not allow it."""
        at = self.states[state]
        if at.kind is DecisionKind.COORD:
            return at.then if self._vocab.bin_of(token) is not None else None
        found = at.steps.get(token)
        if found is None and self._names is not None and at.kind is DecisionKind.NAME:
            written = self._names.after(at.written, token)
            return None if written is None else Step((), self._name_state(written))
        return found

    def allowed(self, state: int) -> NDArray[np.int64]:
        """Ids that may be written in a state, ascending."""
        at = self.states[state]
        if at.kind is DecisionKind.COORD:
            return np.arange(self._vocab.first_id, self._vocab.end_id)
        if at.kind is DecisionKind.NAME:
            assert self._names is not None, "only free names have states of this kind"
            if state not in self._allowed:
                self._allowed[state] = self._names.allowed(at.written)
            return self._allowed[state]
        return np.array(sorted(at.steps), dtype=np.int64)

    def _add(self, state: FormatState) -> int:
        self.states.append(state)
        return len(self.states) - 1

    def _branch(
        self, ways: Mapping[tuple[int, ...], Step], *, in_name: bool = False, likely: tuple[int, ...] = ()
    ) -> Step:
        """Sequences of ids and what follows each: the start that they share is forced, then the model decides."""
        if len(ways) == 1:
            ((ids, step),) = ways.items()
            return Step((*ids, *step.forced), step.state)
        shared = tuple(column[0] for column in takewhile(lambda c: len(set(c)) == 1, zip(*ways, strict=False)))
        parts: dict[int, dict[tuple[int, ...], Step]] = {}
        for ids, step in ways.items():
            parts.setdefault(ids[len(shared)], {})[ids[len(shared) + 1 :]] = step
        number = self._add(FormatState(DecisionKind.CHOICE, in_name=in_name))
        self.states[number].steps = {token: self._branch(rest, in_name=in_name) for token, rest in parts.items()}
        self.states[number].likely = likely[len(shared)] if likely else None
        return Step(shared, number)

    def _name_state(self, written: NameSoFar) -> int:
        """The state of a free name, made when it first comes up."""
        if written not in self._number_of:
            assert self._names is not None, "only free names have states of this kind"
            ending, closings = self._names.ending(written), self._names.closings
            steps = {token: Step(closings[token].rest, 0) for token in ending}
            plain = self._names.plain_close
            likely = plain if plain in steps else None
            self._number_of[written] = self._add(FormatState(DecisionKind.NAME, steps, True, likely, written=written))
        return self._number_of[written]

    def _listed_names(self, labels: Sequence[str], first_coord: int) -> Step:
        if not labels:
            raise UserError("expected at least one name, found none", where="generate.labels", fix="leave it out")
        ways = {self._label_ids(label): Step((), first_coord) for label in dict.fromkeys(labels)}
        return self._branch(ways, in_name=True)

    def _label_ids(self, label: str) -> tuple[int, ...]:
        """Ids of a name and of what follows it, as the tokenizer writes them in an answer.

        A name that ends in punctuation may share a token with the quote after it. One that shares a token with the
        quote before it is refused: what comes before a name is forced for all names.
        """
        where = "generate.labels"
        if problem := desc_problem(label):
            raise UserError(f"the name {label!r} {problem}", where=where, fix="rename it, or leave it out")
        tails = set()
        for lead in (START, NEXT):
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
    """Answers encoded piece by piece must have the ids that the tokenizer gives for the whole text."""
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
