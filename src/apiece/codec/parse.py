"""The canonical answer back to objects: strict, with all dropped ones counted by reason.

An answer is read as `frame object frame object ... frame`, where an object starts at every `{"desc": "`. Nothing is
repaired: an object is kept only if it is exactly what `render` would have written for it. Every other object, and every
frame that is not `render`'s, counts once; reading continues at the next object. A bad end of the text is `truncated`,
also counted once, if more text could make it right, and `malformed` if none could.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from apiece.codec import render
from apiece.codec.bins import NUM_BINS
from apiece.codec.render import BOX_OPEN, COORD_SEPARATOR, OBJECT_CLOSE, OBJECT_OPEN, OBJECT_SEPARATOR, desc_problem
from apiece.codec.vocab import CoordVocab, Tokenizer, coord_token, decode_exact
from apiece.types import BinsXYXY, Fault, ParsedObject, ParseResult, ParseStatus

# What has the shape of an object; whether name and box are valid is decided later.
_OBJECT = re.compile(f'{re.escape(OBJECT_OPEN)}([^"]*){re.escape(BOX_OPEN)}([^]]*){re.escape(OBJECT_CLOSE)}')
_OBJECT_START = re.compile(re.escape(OBJECT_OPEN))
_COORD_START = re.compile(re.escape("<|"))
_BIN_OF = {coord_token(k): k for k in range(NUM_BINS)}
# What follows a name: one of each of these alternatives, in this order.
_BOX_STEPS = ((BOX_OPEN,), *((_BIN_OF, (COORD_SEPARATOR,)) * 3), _BIN_OF, (OBJECT_CLOSE,))


def parse(text: str, known_descs: Collection[str] | None = None) -> ParseResult:
    """Read an answer, given without its end token.

    With `known_descs`, an object with another name is dropped as `unknown_desc`.
    """
    starts = [m.start() for m in _OBJECT_START.finditer(text)]
    if not starts:
        return _without_objects(text)
    kept: list[ParsedObject] = []
    faults: list[Fault] = []
    if text[: starts[0]] != render.OPEN:
        faults.append(Fault(ParseStatus.MALFORMED, (0, starts[0])))
    for start, end in zip(starts, [*starts[1:], len(text)], strict=True):
        shape = _OBJECT.match(text, start, end)
        if shape is None:
            cut = end == len(text) and _is_cut_object(text[start:])
            faults.append(Fault(ParseStatus.TRUNCATED if cut else ParseStatus.MALFORMED, (start, end)))
            continue
        item = _read_object(shape, known_descs)
        if isinstance(item, ParsedObject):
            kept.append(item)
        else:
            faults.append(Fault(item, shape.span()))
        problem = _frame_problem(text[shape.end() : end], last=end == len(text))
        if problem:
            faults.append(Fault(problem, (shape.end(), end)))
    dropped = _counted(faults)
    closed = text.endswith(OBJECT_CLOSE[-1] + render.CLOSE) and ParseStatus.TRUNCATED not in dropped
    return ParseResult(tuple(kept), dropped, closed, tuple(faults))


def _counted(faults: Sequence[Fault]) -> dict[ParseStatus, int]:
    return dict(Counter(fault.status for fault in faults))


def _without_objects(text: str) -> ParseResult:
    if text == render.EMPTY:
        return ParseResult((), {}, closed=True)
    cut = _is_cut(text, render.EMPTY, render.START)
    fault = Fault(ParseStatus.TRUNCATED if cut else ParseStatus.MALFORMED, (0, len(text)))
    return ParseResult((), _counted([fault]), closed=False, faults=(fault,))


def _frame_problem(frame: str, *, last: bool) -> ParseStatus | None:
    """The fault in the text between an object and the next one, or between the last one and the end."""
    if frame == (render.CLOSE if last else OBJECT_SEPARATOR):
        return None
    cut = last and _is_cut(frame, render.CLOSE, OBJECT_SEPARATOR + OBJECT_OPEN)
    return ParseStatus.TRUNCATED if cut else ParseStatus.MALFORMED


def _is_cut(text: str, *wholes: str) -> bool:
    return any(whole.startswith(text) for whole in wholes)


def _is_cut_object(text: str) -> bool:
    """Whether a text, from `OBJECT_OPEN` on, is a proper prefix of some canonical object."""
    body = text[len(OBJECT_OPEN) :]
    desc, quote, _ = body.partition('"')
    if not quote:
        return desc_problem(desc + "x") is None  # could a letter make it a name?
    if desc_problem(desc):
        return False
    rest = body[len(desc) :]
    for alternatives in _BOX_STEPS:
        step = next((a for a in alternatives if rest.startswith(a)), None)
        if step is None:
            return _is_cut(rest, *alternatives)
        rest = rest[len(step) :]
    return False


def _read_object(shape: re.Match[str], known: Collection[str] | None) -> ParsedObject | ParseStatus:
    """The object, or why it is dropped."""
    desc, inside = shape.groups()
    if not desc.strip():
        return ParseStatus.EMPTY_DESC
    if desc_problem(desc):
        return ParseStatus.MALFORMED
    if known is not None and desc not in known:
        return ParseStatus.UNKNOWN_DESC
    box = _read_box(inside)
    return box if isinstance(box, ParseStatus) else ParsedObject(desc, box, shape.span())


def _read_box(inside: str) -> BinsXYXY | ParseStatus:
    bins = [_BIN_OF.get(item) for item in inside.split(COORD_SEPARATOR)] if inside else []
    if None in bins:
        return ParseStatus.NOT_A_COORD
    match bins:
        case [int(x1), int(y1), int(x2), int(y2)]:
            if x2 < x1 or y2 < y1:
                return ParseStatus.INVERTED_BOX
            return ParseStatus.ZERO_AREA if x2 == x1 or y2 == y1 else (x1, y1, x2, y2)
    return ParseStatus.WRONG_ARITY


def parse_ids(
    ids: Sequence[int], tokenizer: Tokenizer, vocab: CoordVocab, known_descs: Collection[str] | None = None
) -> ParseResult:
    """`parse` for token ids, with or without the end token; objects also get the positions of their coordinates.

    An object whose coordinates are spelled with other tokens is dropped as `not_a_coord`.
    """
    answer = list(ids)
    if answer and answer[-1] == tokenizer.eos_token_id:
        answer.pop()
    text, position_at = _decode_with_positions(answer, tokenizer, vocab)
    result = parse(text, known_descs)
    kept: list[ParsedObject] = []
    faults = [replace(f, coord_positions=_coords_in(text, f.span, position_at)) for f in result.faults]
    for item in result.objects:
        positions = _coords_in(text, item.span, position_at)
        match positions:
            case (p1, p2, p3, p4):
                kept.append(replace(item, coord_positions=(p1, p2, p3, p4)))
            case _:
                faults.append(Fault(ParseStatus.NOT_A_COORD, item.span, positions))
    faults.sort(key=lambda fault: fault.span)
    return ParseResult(tuple(kept), _counted(faults), result.closed, tuple(faults))


def _coords_in(text: str, span: tuple[int, int], position_at: Mapping[int, int]) -> tuple[int, ...]:
    """Positions of the coordinate tokens in a part of the text; coordinates spelled with other tokens have none."""
    starts = (m.start() for m in _COORD_START.finditer(text, *span))
    return tuple(position_at[start] for start in starts if start in position_at)


def _decode_with_positions(ids: Sequence[int], tokenizer: Tokenizer, vocab: CoordVocab) -> tuple[str, dict[int, int]]:
    """The text of an answer, and the position of each coordinate token by the offset at which it starts in the text."""
    text, position_at, done = "", {}, 0
    for position, token in enumerate(ids):
        if vocab.bin_of(token) is not None:
            text += decode_exact(tokenizer, ids[done:position])
            position_at[len(text)] = position
            done = position
    return text + decode_exact(tokenizer, ids[done:]), position_at


def desc_positions(
    ids: Sequence[int], objects: Sequence[ParsedObject], tokenizer: Tokenizer, vocab: CoordVocab
) -> list[tuple[int, ...]]:
    """Positions of the tokens with a part of each object's name, which a tokenizer may join to a quote.

    `objects` are those that `parse_ids` read in `ids`.
    """
    found: list[tuple[int, ...]] = []
    known: dict[tuple[tuple[int, ...], str], list[int]] = {}
    for item in objects:
        assert item.coord_positions is not None, "objects read from ids have positions"
        end = start = item.coord_positions[0]
        while start and vocab.bin_of(ids[start - 1]) is None:
            start -= 1
        key = tuple(ids[start:end]), item.desc  # most objects of an answer begin alike
        if key not in known:
            known[key] = _desc_tokens(*key, tokenizer)
        found.append(tuple(start + i for i in known[key]))
    return found


def _desc_tokens(ids: Sequence[int], desc: str, tokenizer: Tokenizer) -> list[int]:
    """Which of the ids up to the first coordinate token of an object hold a part of its name."""
    texts = [decode_exact(tokenizer, ids[:i]) for i in range(len(ids) + 1)]
    stop = len(texts[-1]) - len(BOX_OPEN)
    start = stop - len(desc)
    # Where a character is cut in two, the text so far ends with a replacement character: it is not complete yet.
    return [i for i in range(len(ids)) if len(texts[i].rstrip("\ufffd")) < stop and len(texts[i + 1]) > start]
