"""Which tokens can go on with a name, and which end it: names are free text, held to what an answer may contain.

A name is read as UTF-8, byte by byte where tokens cut characters, so that every answer can be parsed. A token that ends
a name may begin with its last characters (`.",` in Qwen's vocabulary).
"""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apiece.codec.render import BOX_OPEN, desc_problem
from apiece.codec.vocab import decode_exact, encode_plain
from apiece.errors import UserError

QUOTE = '"'
_PLAIN = re.compile(r"[A-Za-z0-9]+")


class End(IntEnum):
    """What a name ends with so far."""

    NOTHING = 0
    TEXT = 1
    SPACE = 2
    LESS = 3  # `<`: with a bar behind it, special tokens begin


@dataclass(frozen=True, slots=True)
class Written:
    """A name so far, as far as it matters for what may follow.

    Attributes:
        end: What its last complete character is.
        partial: Bytes of a character that is not complete yet.
    """

    end: End = End.NOTHING
    partial: bytes = b""

    @property
    def can_end(self) -> bool:
        """Whether this is a whole name."""
        return self.end in (End.TEXT, End.LESS) and not self.partial

    def then(self, data: bytes) -> Written | None:
        """The name with more bytes, `None` if no answer may contain that."""
        decoder = codecs.getincrementaldecoder("utf-8")()
        try:
            text = decoder.decode(self.partial + data)
        except UnicodeDecodeError:
            return None
        partial = decoder.getstate()[0]
        if len(partial) > 1 and partial[0] == 0xED and partial[1] >= 0xA0:
            return None  # half of a surrogate pair, which Python's decoder only sees when it is complete
        if not text:
            return Written(self.end, partial)
        if (self.end is End.NOTHING and text[0].isspace()) or (self.end is End.LESS and text[0] == "|"):
            return None
        # Letters around it: only what is inside matters here.
        if desc_problem(f"a{text}a") is not None:
            return None
        end = End.SPACE if text[-1].isspace() else End.LESS if text[-1] == "<" else End.TEXT
        return Written(end, partial)


@dataclass(frozen=True, slots=True)
class Closing:
    """A token that ends a name.

    Attributes:
        before: What it adds to the name, as bytes.
        rest: Ids that the format forces after it, up to the first coordinate.
    """

    before: bytes
    rest: tuple[int, ...]


@dataclass(frozen=True)
class NameTokens:
    """The vocabulary, as far as names are concerned.

    Attributes:
        text: Bytes of each token by id; those that can stand in no name are left out.
        closings: Tokens that end a name, by id.
        plain_close: The one that adds nothing to the name.
    """

    text: dict[int, bytes]
    closings: dict[int, Closing]
    plain_close: int
    _fresh: dict[int, Written] = field(repr=False)
    _inside: tuple[int, ...] = field(repr=False)

    @classmethod
    def of(cls, tokenizer: Any) -> NameTokens:
        """Read a vocabulary.

        Raises:
            UserError: It is not a byte-level one.
        """
        data = _token_bytes(tokenizer)
        fresh, text = {}, {}
        after_letter = Written(End.TEXT)
        for token, value in data.items():
            written = Written(End.TEXT) if _is_plain(value) else after_letter.then(value)
            if written is not None:
                fresh[token], text[token] = written, value
            elif value[0] & 0xC0 == 0x80:  # the rest of a character
                text[token] = value
        inside = tuple(token for token, value in text.items() if value[0] & 0xC0 == 0x80)
        closings = _closings(tokenizer, data)
        plain = [token for token, closing in closings.items() if not closing.before]
        assert len(plain) == 1, f"expected one token that only ends a name, got {plain}"
        return cls(text, closings, plain[0], fresh, inside)

    def after(self, written: Written, token: int) -> Written | None:
        """The name with one more token, `None` if that token cannot follow."""
        value = self.text.get(token)
        return None if value is None else written.then(value)

    def allowed(self, written: Written) -> NDArray[np.int64]:
        """Ids of all tokens that can go on with a name or end it, ascending."""
        if written.partial:
            going = [t for t in self._inside if written.then(self.text[t]) is not None]
        elif written.end is End.NOTHING:
            starts = {t: self.text[t][0] for t in self._fresh}
            # Only spaces may not come first, which one byte tells of ASCII.
            going = [t for t, b in starts.items() if (b > 0x20 if b < 0x80 else written.then(self.text[t]) is not None)]
        else:
            going = [t for t in self._fresh if written.end is not End.LESS or not self.text[t].startswith(b"|")]
        return np.array(sorted([*going, *self.ending(written)]), dtype=np.int64)

    def ending(self, written: Written) -> list[int]:
        """Ids of the tokens that can end a name."""
        out = []
        for token, closing in self.closings.items():
            last = written.then(closing.before) if closing.before else written
            if last is not None and last.can_end:
                out.append(token)
        return out


NO_NAME = Written()


def _is_plain(value: bytes) -> bool:
    return value.isascii() and _PLAIN.fullmatch(value.decode("ascii")) is not None


def _token_bytes(tokenizer: Any) -> dict[int, bytes]:
    """Bytes by id of all tokens that are text."""
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


def _closings(tokenizer: Any, data: dict[int, bytes]) -> dict[int, Closing]:
    """Tokens that hold the quote behind a name as the tokenizer writes it, with what is before and after it."""
    quote, box_open = QUOTE.encode(), BOX_OPEN.encode()
    out: dict[int, Closing] = {}
    for token, value in data.items():
        at = value.find(quote)
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
            out[token] = Closing(before, tuple(behind))
    return out
