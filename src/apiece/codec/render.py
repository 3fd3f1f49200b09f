"""Objects to the canonical answer: its text, and its tokens with roles and slots.

Shapes: T tokens, S slots, N objects.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from apiece.codec.bins import NUM_BINS, Bins
from apiece.codec.vocab import CoordVocab, Tokenizer, coord_token, decode_exact, encode_plain
from apiece.errors import UserError
from apiece.types import BinsXYXY, Encoded, IntArray, Role, Slots

# The text around names and coordinates. `parse.py` reads the same pieces.
OPEN = '{"objects": ['
RECORD_OPEN = '{"desc": "'
BOX_OPEN = '", "bbox_2d": ['
COORD_SEPARATOR = ", "
RECORD_CLOSE = "]}"
RECORD_SEPARATOR = ", "
CLOSE = "]}"

# Quote and backslash, control characters, line and paragraph separators, halves of surrogate pairs.
_UNWRITABLE = re.compile(r'["\\\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]')

DescBins = tuple[str, BinsXYXY]


def desc_problem(desc: str) -> str | None:
    """Why a name cannot stand in an answer, or `None` if it can."""
    if not desc or desc != desc.strip():
        return "is empty or has spaces around it"
    if _UNWRITABLE.search(desc):
        return "holds a quote, a backslash, a line break or a control character"
    if "<|" in desc:
        return "holds '<|', which starts special tokens"
    return None


def render_text(objects: Sequence[DescBins]) -> str:
    """The canonical answer as text, without the end token.

    Args:
        objects: `(desc, bins_xyxy)` in the order to be written.
    """
    return OPEN + RECORD_SEPARATOR.join(_record(desc, bins) for desc, bins in objects) + CLOSE


def _record(desc: str, bins: BinsXYXY) -> str:
    _check_record(desc, bins)
    return RECORD_OPEN + desc + BOX_OPEN + COORD_SEPARATOR.join(coord_token(k) for k in bins) + RECORD_CLOSE


def _check_record(desc: str, bins: BinsXYXY) -> None:
    _check_desc(desc)
    x1, y1, x2, y2 = bins
    if not (0 <= x1 < x2 < NUM_BINS and 0 <= y1 < y2 < NUM_BINS):
        raise ValueError(f"bins of {desc!r} must be x1 < x2, y1 < y2 in 0..{NUM_BINS - 1}, got {tuple(bins)}")


def _check_desc(desc: str) -> None:
    problem = desc_problem(desc)
    if problem:
        raise UserError(
            f"the name {desc!r} {problem}", fix="rename the class, or clean the data: apiece data check --fix drop"
        )


def objects_to_bins(
    boxes_xyxy: Sequence[Sequence[float]], descs: Sequence[str], size_wh: tuple[int, int], bins: Bins
) -> list[DescBins]:
    """Boxes in pixels to records in bins; a box that collapses to zero bins on a side is left out.

    Such a box (under half a bin, a pixel in a 2000-pixel image) has no canonical record: it would be parsed as
    `zero_area`. The caller can count them by the difference in length.
    """
    rows = bins.to_bins(list(boxes_xyxy), size_wh).tolist()
    return [(desc, (x1, y1, x2, y2)) for desc, (x1, y1, x2, y2) in zip(descs, rows, strict=True) if x2 > x1 and y2 > y1]


@dataclass(frozen=True)
class Renderer:
    """Renders answers as tokens for one tokenizer.

    The text is encoded piece by piece, so that every token has one role. `check_desc` makes sure that this gives the
    ids that the tokenizer gives for the whole text.
    """

    tokenizer: Tokenizer
    vocab: CoordVocab
    _pieces: dict[str, tuple[int, ...]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def eos_id(self) -> int:
        """Id of the end token."""
        eos = self.tokenizer.eos_token_id
        if eos is None:
            raise UserError("the tokenizer has no end token", fix="set eos_token in tokenizer_config.json")
        return eos

    def piece(self, text: str) -> tuple[int, ...]:
        """Ids of one piece of syntax or of one name."""
        if text not in self._pieces:
            self._pieces[text] = tuple(encode_plain(self.tokenizer, text))
        return self._pieces[text]

    def check_desc(self, desc: str) -> None:
        """Refuse a name that its tokens do not give back, or whose tokens merge with the syntax around it.

        Raises:
            UserError: The name cannot be written, or the tokenizer joins it with a quote (names that end in
                punctuation, mostly): training on pieces would then teach ids that the tokenizer never produces. Or the
                tokenizer changes it (decomposed accents): no answer could ever match the label.
        """
        _check_desc(desc)
        start, mid = OPEN + RECORD_OPEN, BOX_OPEN
        pieces = [*self.piece(start), *self.piece(desc), *self.piece(mid)]
        if pieces != encode_plain(self.tokenizer, start + desc + mid):
            raise UserError(
                f"the name {desc!r} merges with the quotes around it in this tokenizer",
                fix="rename it so that it starts and ends with a letter or digit",
            )
        back = decode_exact(self.tokenizer, self.piece(desc))
        if back != desc:
            raise UserError(
                f"the name {desc!r} is read back as {back!r} by this tokenizer",
                fix="write it in the form that is read back (Unicode NFC, for most tokenizers)",
            )

    def num_tokens(self, descs: Sequence[str]) -> int:
        """Tokens of an answer with these names, the end token included."""
        names = sum(len(self.piece(desc)) for desc in descs)
        return int(self.lengths(np.array([len(descs)]), np.array([names]))[0])

    def lengths(self, num_objects: IntArray, name_tokens: IntArray) -> IntArray:
        """Tokens of many answers, the end token included.

        Args:
            num_objects: `[N]` objects of each answer.
            name_tokens: `[N]` tokens of all its names together.
        """
        box = len(self.piece(BOX_OPEN)) + 4 + 3 * len(self.piece(COORD_SEPARATOR))
        between = len(self.piece(RECORD_CLOSE + RECORD_SEPARATOR + RECORD_OPEN))
        ends = len(self.piece(OPEN + RECORD_OPEN)) + len(self.piece(RECORD_CLOSE + CLOSE)) + 1
        some = name_tokens + num_objects * box + (num_objects - 1) * between + ends
        return np.where(num_objects > 0, some, len(self.piece(OPEN + CLOSE)) + 1)

    def render(self, objects: Sequence[DescBins], *, after_record: bool = False) -> Encoded:
        """The canonical answer as tokens, the end token included.

        Args:
            objects: `(desc, bins_xyxy)` in the order to be written.
            after_record: The rest of an answer instead, from behind the last coordinate token of a record before.
        """
        ids: list[int] = []
        roles: list[int] = []
        slots: list[tuple[int, int, int, int]] = []

        def put(piece: Sequence[int], role: Role) -> None:
            ids.extend(piece)
            roles.extend([role] * len(piece))

        # Neighbouring syntax is encoded as one run, as the tokenizer sees it.
        lead = RECORD_CLOSE + RECORD_SEPARATOR + RECORD_OPEN if after_record else OPEN + RECORD_OPEN
        for index, (desc, bins) in enumerate(objects):
            _check_record(desc, bins)
            put(self.piece(lead), Role.STRUCT)
            put(self.piece(desc), Role.DESC)
            put(self.piece(BOX_OPEN), Role.STRUCT)
            for coordinate, k in enumerate(bins):
                if coordinate:
                    put(self.piece(COORD_SEPARATOR), Role.STRUCT)
                slots.append((len(ids), coordinate, index, k))
                put([self.vocab.token_id(k)], Role.COORD)
            lead = RECORD_CLOSE + RECORD_SEPARATOR + RECORD_OPEN
        put(self.piece(RECORD_CLOSE + CLOSE if objects or after_record else OPEN + CLOSE), Role.STRUCT)
        put([self.eos_id], Role.EOS)
        columns = np.array(slots, dtype=np.int64).reshape(-1, 4).T
        return Encoded(np.array(ids, dtype=np.int64), np.array(roles, dtype=np.int8), Slots(*columns))
