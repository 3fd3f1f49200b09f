"""The canonical answer back to objects: strict, with every dropped record counted by reason.

Nothing is repaired. A record is kept only if it is exactly what `render` would have written for it; after a bad record
reading goes on at the next record.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace

from apiece.codec.render import BOX_OPEN, CLOSE, COORD_SEPARATOR, OPEN, RECORD_CLOSE, RECORD_OPEN, RECORD_SEPARATOR, desc_problem
from apiece.codec.vocab import CoordVocab, Tokenizer, decode_exact
from apiece.types import BinsXYXY, ParsedObject, ParseResult, ParseStatus

_COORD = re.compile(r"<\|coord_(0|[1-9]\d{0,2})\|>")
_ANY_COORD = re.compile(r"<\|coord_\d+\|>")


def parse(text: str, known_descs: Collection[str] | None = None) -> ParseResult:
    """Read an answer (without its end token).

    Args:
        text: The answer.
        known_descs: If given, a record with another name is dropped as `unknown_desc`.

    Returns:
        Kept records in the order written, with character spans; dropped ones counted. Text outside records that is not
        the canonical frame counts as one `malformed` record.
    """
    kept: list[ParsedObject] = []
    dropped: Counter[ParseStatus] = Counter()
    if text == OPEN + CLOSE:
        return ParseResult((), {}, closed=True)
    starts = [m.start() for m in re.finditer(re.escape(RECORD_OPEN), text)]
    if not starts:
        status = ParseStatus.TRUNCATED if (OPEN + RECORD_OPEN).startswith(text) else ParseStatus.MALFORMED
        return ParseResult((), {status: 1}, closed=False)
    if text[: starts[0]] != OPEN:
        dropped[ParseStatus.MALFORMED] += 1
    closed = False
    for start, end in zip(starts, [*starts[1:], None], strict=True):
        chunk = text[start:end]
        item, tail = _read_record(chunk, known_descs)
        if isinstance(item, ParseStatus):
            dropped[item] += 1
            closed = closed or (end is None and item is not ParseStatus.TRUNCATED and tail == CLOSE)
            continue
        kept.append(replace(item, span=(start, start + len(chunk) - len(tail))))
        if end is None:
            closed = tail == CLOSE
            if not closed and not any(whole.startswith(tail) for whole in (CLOSE, RECORD_SEPARATOR + RECORD_OPEN)):
                dropped[ParseStatus.MALFORMED] += 1
            elif not closed and tail:
                dropped[ParseStatus.TRUNCATED] += 1
        elif tail != RECORD_SEPARATOR:
            dropped[ParseStatus.MALFORMED] += 1
    return ParseResult(tuple(kept), dict(dropped), closed)


def _read_record(chunk: str, known: Collection[str] | None) -> tuple[ParsedObject | ParseStatus, str]:
    """One record from `RECORD_OPEN` on: the object or why it is dropped, and the text left after it."""
    body = chunk[len(RECORD_OPEN) :]
    desc, quote, rest = body.partition(BOX_OPEN)
    if not quote:
        return (ParseStatus.TRUNCATED if _is_cut(body) else ParseStatus.MALFORMED), ""
    inside, close, tail = rest.partition(RECORD_CLOSE)
    if not close:
        return (ParseStatus.TRUNCATED if _ANY_COORD.sub("", inside).strip(", ]<|cord_0123456789>") == "" else ParseStatus.MALFORMED), ""
    if not desc.strip():
        return ParseStatus.EMPTY_DESC, tail
    if desc_problem(desc):
        return ParseStatus.MALFORMED, tail
    if known is not None and desc not in known:
        return ParseStatus.UNKNOWN_DESC, tail
    box = _read_box(inside)
    if isinstance(box, ParseStatus):
        return box, tail
    return ParsedObject(desc, box, (0, 0)), tail


def _is_cut(body: str) -> bool:
    """Whether a record without a box may simply have ended too early: a name, perhaps a part of what follows it."""
    name, quote, rest = body.partition('"')
    return desc_problem(name.strip() or "x") is None and BOX_OPEN.startswith(quote + rest)


def _read_box(inside: str) -> BinsXYXY | ParseStatus:
    items = inside.split(COORD_SEPARATOR) if inside else []
    matches = [_COORD.fullmatch(item) for item in items]
    if not all(matches):
        return ParseStatus.NOT_A_COORD
    if len(matches) != 4:
        return ParseStatus.WRONG_ARITY
    x1, y1, x2, y2 = (int(m[1]) for m in matches if m)
    if x2 < x1 or y2 < y1:
        return ParseStatus.INVERTED_BOX
    if x2 == x1 or y2 == y1:
        return ParseStatus.ZERO_AREA
    return (x1, y1, x2, y2)


def parse_ids(
    ids: Sequence[int], tokenizer: Tokenizer, vocab: CoordVocab, known_descs: Collection[str] | None = None
) -> ParseResult:
    """Read an answer from its token ids (the end token is left out if it is there).

    Returns:
        As `parse`, each object also with the positions of its four coordinate tokens in `ids`.
    """
    answer = list(ids)
    if answer and answer[-1] == tokenizer.eos_token_id:
        answer.pop()
    text = decode_exact(tokenizer, answer)
    result = parse(text, known_descs)
    positions = [p for p, i in enumerate(answer) if vocab.bin_of(i) is not None]
    offsets = [m.start() for m in _ANY_COORD.finditer(text)]
    if len(positions) != len(offsets):
        # Plain text that spells a coordinate token: only the ids can tell, and then no box is to be trusted.
        return ParseResult((), {ParseStatus.NOT_A_COORD: max(result.num_records, 1)}, result.closed)
    at = dict(zip(offsets, positions, strict=True))
    objects = []
    for item in result.objects:
        start, end = item.span
        p1, p2, p3, p4 = (at[o] for o in offsets if start <= o < end)
        objects.append(replace(item, coord_positions=(p1, p2, p3, p4)))
    return replace(result, objects=tuple(objects))
