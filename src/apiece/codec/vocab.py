"""The coordinate tokens of a vocabulary, and the small view of a tokenizer that the codec needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from apiece.codec.bins import NUM_BINS
from apiece.errors import UserError


class Tokenizer(Protocol):
    """What the codec uses of a Hugging Face tokenizer."""

    @property
    def eos_token_id(self) -> int | None: ...
    def encode(self, text: str, *, add_special_tokens: bool = ...) -> list[int]: ...
    def decode(self, token_ids: Any, **kwargs: Any) -> Any: ...
    def get_vocab(self) -> dict[str, int]: ...


def coord_token(k: int) -> str:
    """The text of the token of bin k."""
    return f"<|coord_{k}|>"


@dataclass(frozen=True, slots=True)
class CoordVocab:
    """Where the coordinate tokens are in the vocabulary: one contiguous block, so that a slot's logits are a slice."""

    first_id: int  # of bin 0; bin k is `first_id + k`
    num_bins: int = NUM_BINS

    @classmethod
    def of(cls, tokenizer: Tokenizer, *, where: str = "tokenizer") -> CoordVocab:
        """Find the block in a tokenizer; a `UserError` if the tokens are missing or not contiguous."""
        vocabulary = tokenizer.get_vocab()
        ids = [vocabulary.get(coord_token(k)) for k in range(NUM_BINS)]
        found = sum(i is not None for i in ids)
        first = ids[0]
        if found < NUM_BINS or first is None:
            raise UserError(
                f"expected the {NUM_BINS} coordinate tokens {coord_token(0)} to {coord_token(NUM_BINS - 1)}, "
                f"found {found}",
                where=where,
                fix=f"add them: apiece model extend --from {where} --out NEW_DIR",
            )
        if ids != list(range(first, first + NUM_BINS)):
            raise UserError(
                "the coordinate tokens do not have consecutive ids",
                where=where,
                fix="start from the original checkpoint: apiece model extend --from ORIGINAL --out NEW_DIR",
            )
        return cls(first)

    @property
    def end_id(self) -> int:
        return self.first_id + self.num_bins

    def token_id(self, k: int) -> int:
        if not 0 <= k < self.num_bins:
            raise ValueError(f"bin must be in 0..{self.num_bins - 1}, got {k}")
        return self.first_id + k

    def bin_of(self, token_id: int) -> int | None:
        """The bin of a token, `None` if it is not a coordinate token."""
        return token_id - self.first_id if self.first_id <= token_id < self.end_id else None


def encode_plain(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of a text, with no token added around it."""
    return list(tokenizer.encode(text, add_special_tokens=False))


def decode_exact(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """Text of ids, special tokens kept, spaces untouched."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))
