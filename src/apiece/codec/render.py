"""Objects to the canonical answer: their order, its text, and its tokens with roles and slots.

Shapes: T tokens, S slots, N objects.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from apiece.codec.bins import NUM_BINS, Bins
from apiece.codec.vocab import CoordVocab, Tokenizer, coord_token, decode_exact, encode_plain
from apiece.config.schema import ObjectOrder
from apiece.errors import UserError
from apiece.types import BinsXYXY, Encoded, IntArray, Role, Slots

# The text around names and coordinates. `parse.py` reads the same pieces.
OPEN = '{"objects": ['
OBJECT_OPEN = '{"desc": "'
BOX_OPEN = '", "bbox_2d": ['
COORD_SEPARATOR = ", "
OBJECT_CLOSE = "]}"
OBJECT_SEPARATOR = ", "
CLOSE = "]}"
# Neighbouring syntax is encoded as one run, as the tokenizer sees it.
START = OPEN + OBJECT_OPEN
NEXT = OBJECT_CLOSE + OBJECT_SEPARATOR + OBJECT_OPEN
FINISH = OBJECT_CLOSE + CLOSE
EMPTY = OPEN + CLOSE

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
    """The canonical answer as text, without the end token; objects are written in the order given."""
    return OPEN + OBJECT_SEPARATOR.join(_object_text(desc, bins) for desc, bins in objects) + CLOSE


def _object_text(desc: str, bins: BinsXYXY) -> str:
    _check_object(desc, bins)
    return OBJECT_OPEN + desc + BOX_OPEN + COORD_SEPARATOR.join(coord_token(k) for k in bins) + OBJECT_CLOSE


def _check_object(desc: str, bins: BinsXYXY) -> None:
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
    """Boxes in pixels to bins; a box that collapses to zero bins on a side is left out.

    Such a box (under half a bin, a pixel in a 2000-pixel image) would be parsed as `zero_area`.
    """
    rows = bins.to_bins(list(boxes_xyxy), size_wh).tolist()
    return [(desc, (x1, y1, x2, y2)) for desc, (x1, y1, x2, y2) in zip(descs, rows, strict=True) if x2 > x1 and y2 > y1]


@dataclass(frozen=True)
class Renderer:
    """Renders answers as tokens for one tokenizer.

    The text is encoded piece by piece, so that every token has one role. `check_desc` makes sure that the ids are those
    of the whole text.
    """

    tokenizer: Tokenizer
    vocab: CoordVocab
    _pieces: dict[str, tuple[int, ...]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def eos_id(self) -> int:
        eos = self.tokenizer.eos_token_id
        if eos is None:
            raise UserError("the tokenizer has no end token", fix="set eos_token in tokenizer_config.json")
        return eos

    def piece(self, text: str) -> tuple[int, ...]:
        if text not in self._pieces:
            self._pieces[text] = tuple(encode_plain(self.tokenizer, text))
        return self._pieces[text]

    def check_desc(self, desc: str) -> None:
        """Refuse a name that the tokenizer cannot write.

        Either it joins the name with a quote (mostly names that end in punctuation), so training on pieces would teach
        ids that it never produces; or it changes the name (decomposed accents), so no answer could match the label.
        """
        _check_desc(desc)
        pieces = [*self.piece(START), *self.piece(desc), *self.piece(BOX_OPEN)]
        if pieces != encode_plain(self.tokenizer, START + desc + BOX_OPEN):
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
        """`num_tokens` of many answers, from the number of objects `[N]` and the tokens of all their names `[N]`."""
        box = len(self.piece(BOX_OPEN)) + 4 + 3 * len(self.piece(COORD_SEPARATOR))
        between = len(self.piece(NEXT))
        ends = len(self.piece(START)) + len(self.piece(FINISH)) + 1
        some = name_tokens + num_objects * box + (num_objects - 1) * between + ends
        return np.where(num_objects > 0, some, len(self.piece(EMPTY)) + 1)

    def render(self, objects: Sequence[DescBins], *, after_object: bool = False) -> Encoded:
        """The canonical answer as tokens, the end token included; objects are written in the order given.

        With `after_object`, the rest of an answer from after the last coordinate token of an object.
        """
        ids: list[int] = []
        roles: list[int] = []
        slots: list[tuple[int, int, int, int]] = []

        def put(piece: Sequence[int], role: Role) -> None:
            ids.extend(piece)
            roles.extend([role] * len(piece))

        lead = NEXT if after_object else START
        for index, (desc, bins) in enumerate(objects):
            _check_object(desc, bins)
            put(self.piece(lead), Role.STRUCT)
            put(self.piece(desc), Role.DESC)
            put(self.piece(BOX_OPEN), Role.STRUCT)
            for coordinate, k in enumerate(bins):
                if coordinate:
                    put(self.piece(COORD_SEPARATOR), Role.STRUCT)
                slots.append((len(ids), coordinate, index, k))
                put([self.vocab.token_id(k)], Role.COORD)
            lead = NEXT
        put(self.piece(FINISH if objects or after_object else EMPTY), Role.STRUCT)
        put([self.eos_id], Role.EOS)
        columns = np.array(slots, dtype=np.int64).reshape(-1, 4).T
        return Encoded(np.array(ids, dtype=np.int64), np.array(roles, dtype=np.int8), Slots(*columns))


SAME_ROW = 0.5  # two objects are in one row if their heights overlap by at least this share of the smaller one


def answer_order(
    boxes_xyxy: Sequence[Sequence[float]], descs: Sequence[str], order: ObjectOrder = ObjectOrder.SORTED
) -> list[int]:
    """Indices `[N]` in the order in which an answer names its objects; it never depends on the order of the labels.

    `sorted` is by (y1, x1), `left_to_right` by (x1, y1), `reading` row by row and in a row by (x1, y1). All with ties
    by the far corner, then by the name.
    """
    if order is ObjectOrder.RANDOM:
        raise ValueError("a random order is drawn by the caller, who has the generator")
    rows = _rows(np.asarray(boxes_xyxy, dtype=np.float64)) if order is ObjectOrder.READING and len(descs) else None
    by = (1, 0, 3, 2) if order is ObjectOrder.SORTED else (0, 1, 2, 3)
    return sorted(
        range(len(descs)), key=lambda i: (0 if rows is None else rows[i], *(boxes_xyxy[i][j] for j in by), descs[i])
    )


def _rows(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """The vertical centre of each box's row, `[N]`.

    The tallest box begins a row and boxes that overlap its height join it; then the tallest of the rest. All are
    compared with the first of the row, not with each other, so that a slope does not become one row. The centre of the
    row is that of its tallest box.
    """
    top, bottom = boxes[:, 1], boxes[:, 3]
    height, centre = bottom - top, (top + bottom) / 2
    first = np.full(len(boxes), -1)
    for seed in np.lexsort((boxes[:, 2], boxes[:, 0], top, -height)):
        if first[seed] >= 0:
            continue
        shared = np.minimum(bottom, bottom[seed]) - np.maximum(top, top[seed])
        joins = (first < 0) & (shared >= SAME_ROW * np.minimum(height, height[seed]))
        first[joins] = seed
    return centre[first]
