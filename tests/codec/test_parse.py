"""Parsing: every status by hand, every way to be cut off, and answers broken at random."""

from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise

import pytest
from answers import COCO_OBJECTS, OBJECTS, WORKED, WORKED_TEXT, many_objects
from hypothesis import given, settings
from hypothesis import strategies as st

from apiece.codec import parse, render_text
from apiece.codec.render import CLOSE, OBJECT_SEPARATOR, OPEN
from apiece.types import ParseResult, ParseStatus

A = '{"desc": "cat", "bbox_2d": [<|coord_1|>, <|coord_2|>, <|coord_30|>, <|coord_40|>]}'
B = A.replace("cat", "dog")
BOX = A[A.index("[") :]
T, M, N, W = ParseStatus.TRUNCATED, ParseStatus.MALFORMED, ParseStatus.NOT_A_COORD, ParseStatus.WRONG_ARITY


def box(*bins: object) -> str:
    """The record of a cat with these coordinates."""
    return '{"desc": "cat", "bbox_2d": [' + ", ".join(f"<|coord_{k}|>" for k in bins) + "]}"


def frame(*records: str) -> str:
    return OPEN + ", ".join(records) + CLOSE


def named(text: str) -> str:
    return '{"desc": "' + text + '", "bbox_2d": ' + BOX


def check_kept(text: str, result: ParseResult) -> None:
    """Every kept record stands in the text exactly as it would be rendered, in order, without overlap."""
    end = 0
    for item in result.objects:
        assert end <= item.span[0] < item.span[1] <= len(text)
        end = item.span[1]
        assert text[slice(*item.span)] == render_text([(item.desc, item.bins_xyxy)])[len(OPEN) : -len(CLOSE)]
    assert result.num_records == len(result.objects) + sum(result.dropped.values())
    assert all(count > 0 for count in result.dropped.values())
    assert ParseStatus.TRUNCATED not in result.dropped or not result.closed
    assert result.dropped.get(ParseStatus.TRUNCATED, 0) <= 1
    assert Counter(fault.status for fault in result.faults) == result.dropped
    # What was kept and what was dropped stand side by side, and nothing else but the canonical frames between them.
    spans = sorted([item.span for item in result.objects] + [fault.span for fault in result.faults])
    assert all(before[1] <= after[0] for before, after in pairwise(spans))
    frames = [text[before[1] : after[0]] for before, after in pairwise([(0, 0), *spans, (len(text), len(text))])]
    assert set(frames) <= {OPEN, OBJECT_SEPARATOR, CLOSE, OPEN + CLOSE, ""}


def perfect(text: str, result: ParseResult) -> bool:
    return result.closed and not result.dropped


def pairs(result: ParseResult) -> list[tuple[str, tuple[int, int, int, int]]]:
    return [(item.desc, item.bins_xyxy) for item in result.objects]


@pytest.mark.parametrize(
    ("text", "kept", "dropped", "closed"),
    [
        # Whole.
        ('{"objects": []}', "", {}, True),  # empty list
        (frame(A), "c", {}, True),  # one
        (frame(A, B), "cd", {}, True),  # two
        (frame(A, A, A), "ccc", {}, True),  # copies: not the parser's business
        (frame(box(0, 0, 999, 999)), "c", {}, True),  # whole image
        (frame(named("a, b: [c] {d} <e>]}]}")), "a", {}, True),  # syntax in the name
        (frame(named("]}, {'desc': '")), "]", {}, True),  # nearly a record in the name
        # Cut off.
        ("", "", {T: 1}, False),  # nothing
        ("{", "", {T: 1}, False),  # first character
        (OPEN, "", {T: 1}, False),  # no record begun
        (OPEN + "]", "", {T: 1}, False),  # in the close of an empty list
        (OPEN + '{"desc": "', "", {T: 1}, False),  # before a name
        (OPEN + '{"desc": "hot ', "", {T: 1}, False),  # in a name, at a space
        (OPEN + '{"desc": "a<', "", {T: 1}, False),  # in a name, at a bracket
        (OPEN + '{"desc": "cat]}]}', "", {T: 1}, False),  # in a name that looks like the end
        (OPEN + '{"desc": "cat", "bbo', "", {T: 1}, False),  # in the syntax
        (OPEN + '{"desc": "cat", "bbox_2d": [', "", {T: 1}, False),  # before a box
        (OPEN + '{"desc": "cat", "bbox_2d": [<|coord_9', "", {T: 1}, False),  # in a coordinate
        (OPEN + '{"desc": "cat", "bbox_2d": [<|coord_9|>, ', "", {T: 1}, False),  # after a coordinate
        (OPEN + A[:-1], "", {T: 1}, False),  # in the close of a record
        (OPEN + A, "c", {T: 1}, False),  # after a record
        (OPEN + A + ",", "c", {T: 1}, False),  # in a separator
        (OPEN + A + ", ", "c", {T: 1}, False),  # after a separator
        (OPEN + A + ', {"de', "c", {T: 1}, False),  # in the next record's start
        (OPEN + A + "]", "c", {T: 1}, False),  # in the outer close
        # Ended, and no text could mend it.
        ("no", "", {M: 1}, False),  # prose
        (" ", "", {M: 1}, False),  # space
        ("[]", "", {M: 1}, False),  # a bare list
        ('{"objects": [] }', "", {M: 1}, False),  # spaced
        ('{"objects":[]}', "", {M: 1}, False),  # unspaced
        ('{"objects": []}\n', "", {M: 1}, False),  # newline after
        ('{"objects": [ ', "", {M: 1}, False),  # space for a record
        (OPEN + '{"desc": " c', "", {M: 1}, False),  # name begins with a space
        (OPEN + '{"desc": "a<|', "", {M: 1}, False),  # special token in a name
        (OPEN + '{"desc": "a\n', "", {M: 1}, False),  # newline in a name
        (OPEN + '{"desc": "", "bb', "", {M: 1}, False),  # empty name, cut
        (OPEN + '{"desc": "cat", "box', "", {M: 1}, False),  # other key, cut
        (OPEN + '{"desc": "cat", "bbox_2d": [12', "", {M: 1}, False),  # digits, cut
        (OPEN + '{"desc": "cat", "bbox_2d": [<|coord_1000', "", {M: 1}, False),  # beyond the grid, cut
        (OPEN + '{"desc": "cat", "bbox_2d": [<|coord_01', "", {M: 1}, False),  # leading zero, cut
        (OPEN + box(1, 2, 3, 4)[:-2] + ", ", "", {M: 1}, False),  # a fifth coordinate to come
        (OPEN + box(1, 2, 3)[:-2] + "]", "", {M: 1}, False),  # three coordinates, cut
        (OPEN + A + "x", "c", {M: 1}, False),  # prose after a record
        (OPEN + A + ",{", "c", {M: 1}, False),  # unspaced separator
        (frame(A) + "]", "c", {M: 1}, False),  # a bracket too many
        (frame(A) + "\n", "c", {M: 1}, False),  # newline after
        (frame(A) + frame(B), "cd", {M: 1}, True),  # two answers
        # Frames around good records.
        (A, "c", {M: 1, T: 1}, False),  # no frame
        ("Here: " + frame(A), "c", {M: 1}, True),  # prose before
        ("[" + A + CLOSE, "c", {M: 1}, True),  # other frame
        (OPEN + A + " " + B + CLOSE, "cd", {M: 1}, True),  # no separator
        (OPEN + A + ",\n" + B + CLOSE, "cd", {M: 1}, True),  # newline
        (OPEN + A + B + A + CLOSE, "cdc", {M: 2}, True),  # each gap counts
        (OPEN + A + ', {"name": "x"}, ' + B + CLOSE, "cd", {M: 1}, True),  # a foreign record
        # Records that are not ours.
        (frame('{"desc": "cat"}', B), "d", {M: 1}, True),  # no box
        (frame('{"desc": "cat"}'), "", {M: 1}, True),  # no box, last
        (frame('{"desc": "cat", "bbox": ' + BOX, B), "d", {M: 1}, True),  # other key
        (frame('{"desc": "cat","bbox_2d": ' + BOX, B), "d", {M: 1}, True),  # unspaced
        (frame(A[:-2] + '], "score": 1}', B), "d", {M: 1}, True),  # a further key
        (frame(A[:-2] + '], "score": 1}'), "", {M: 1}, True),  # a further key, last
        (frame('{"desc": "cat", "bbox_2d": [' + BOX, B), "d", {N: 1}, True),  # nested list
        (frame('{"desc": "cat", "bbox_2d": [<|coord_1|>, ' + B), "d", {M: 1}, True),  # a record in a record
        (frame(A[:-1], B), "d", {M: 1}, True),  # not closed, in the middle
        (frame(named('a "b" c'), B), "d", {M: 1}, True),  # quotes in the name
        (frame(named('a \\"b\\" c'), B), "d", {M: 1}, True),  # escaped quotes
        (frame(named("a\\n"), B), "d", {M: 1}, True),  # backslash
        (frame(named("a\nb"), B), "d", {M: 1}, True),  # newline
        (frame(named(" cat"), B), "d", {M: 1}, True),  # space before
        (frame(named("cat "), B), "d", {M: 1}, True),  # space after
        (frame(named("<|coord_1|>"), B), "d", {M: 1}, True),  # coordinate as name
        (frame(named("cat<|im_end|>"), B), "d", {M: 1}, True),  # special token in name
        (frame(named(""), B), "d", {ParseStatus.EMPTY_DESC: 1}, True),  # empty
        (frame(named("  "), B), "d", {ParseStatus.EMPTY_DESC: 1}, True),  # blank
        (frame(named("")), "", {ParseStatus.EMPTY_DESC: 1}, True),  # empty, last
        (frame(box(), B), "d", {W: 1}, True),  # no coordinates
        (frame(box(1), B), "d", {W: 1}, True),  # one
        (frame(box(1, 2, 3), B), "d", {W: 1}, True),  # three
        (frame(box(1, 2, 3, 4, 5), B), "d", {W: 1}, True),  # five
        (frame(box(1, 2, 3)), "", {W: 1}, True),  # three, last
        (frame('{"desc": "cat", "bbox_2d": [1, 2, 30, 40]}', B), "d", {N: 1}, True),  # digits
        (frame(A.replace("<|coord_1|>", "1"), B), "d", {N: 1}, True),  # one in digits
        (frame(A.replace(", <|coord_2|>", ",<|coord_2|>"), B), "d", {N: 1}, True),  # unspaced
        (frame(A.replace("[", "[ "), B), "d", {N: 1}, True),  # spaced
        (frame(box(1, 2, 3, 1000), B), "d", {N: 1}, True),  # beyond the grid
        (frame(box(1, 2, 3, "04"), B), "d", {N: 1}, True),  # leading zero
        (frame(box(1, 2, 3, "-4"), B), "d", {N: 1}, True),  # negative
        (frame(box(1, 2, 3, "٤"), B), "d", {N: 1}, True),  # another script's digit
        (frame(box(1, 2, 3, ""), B), "d", {N: 1}, True),  # no number
        (frame(A.replace("_40|>", "_40|>, "), B), "d", {N: 1}, True),  # trailing comma
        (frame(box(1, "x"), B), "d", {N: 1}, True),  # two faults: the first in the list
        (frame(box(30, 2, 1, 40), B), "d", {ParseStatus.INVERTED_BOX: 1}, True),  # in x
        (frame(box(1, 40, 30, 2), B), "d", {ParseStatus.INVERTED_BOX: 1}, True),  # in y
        (frame(box(30, 2, 30, 1), B), "d", {ParseStatus.INVERTED_BOX: 1}, True),  # and without width
        (frame(box(1, 2, 1, 40), B), "d", {ParseStatus.ZERO_AREA: 1}, True),  # no width
        (frame(box(1, 2, 30, 2), B), "d", {ParseStatus.ZERO_AREA: 1}, True),  # no height
        (frame(box(1, 2, 1, 2)), "", {ParseStatus.ZERO_AREA: 1}, True),  # a point, last
        # Several.
        (frame(box(1), A, named(""), B, box(1)), "cd", {W: 2, ParseStatus.EMPTY_DESC: 1}, True),  # between good ones
        (OPEN + box(1) + " " + B + ", " + A[:20], "d", {W: 1, M: 1, T: 1}, False),  # bad record, bad gap, cut
    ],
)  # fmt: skip
def test_by_hand(text, kept, dropped, closed) -> None:
    result = parse(text)
    assert [item.desc[0] for item in result.objects] == list(kept)
    assert result.dropped == dropped
    assert result.closed is closed
    check_kept(text, result)


def test_names_can_be_limited() -> None:
    text = frame(A, B, box(5), A)
    result = parse(text, known_descs={"cat"})
    assert [item.desc for item in result.objects] == ["cat", "cat"]
    assert result.dropped == {ParseStatus.UNKNOWN_DESC: 1, W: 1}
    assert result.closed
    # An unknown name is told before its box, and an empty one is not called unknown.
    assert parse(frame(B.replace("<|coord_1|>", "1")), {"cat"}).dropped == {ParseStatus.UNKNOWN_DESC: 1}
    assert parse(frame(named("")), {"cat"}).dropped == {ParseStatus.EMPTY_DESC: 1}
    assert parse(frame(B), ()).dropped == {ParseStatus.UNKNOWN_DESC: 1}


def test_the_worked_answer() -> None:
    result = parse(WORKED_TEXT)
    assert pairs(result) == WORKED
    assert perfect(WORKED_TEXT, result)
    assert [WORKED_TEXT[slice(*item.span)][:13] for item in result.objects] == [
        '{"desc": "per',
        '{"desc": "hot',
        '{"desc": "per',
    ]
    assert all(item.coord_positions is None for item in result.objects)


@pytest.mark.parametrize("count", [60, 1000])
def test_crowds(count) -> None:
    objects = many_objects(count)
    result = parse(render_text(objects))
    assert pairs(result) == objects
    assert perfect(render_text(objects), result)


def test_cut_at_every_character() -> None:
    ends = [item.span[1] for item in parse(WORKED_TEXT).objects]
    for cut in range(len(WORKED_TEXT)):
        result = parse(WORKED_TEXT[:cut])
        assert pairs(result) == WORKED[: sum(end <= cut for end in ends)], WORKED_TEXT[:cut]
        assert (result.dropped, result.closed) == ({T: 1}, False), WORKED_TEXT[:cut]


@given(objects=OBJECTS)
def test_what_is_rendered_is_read(objects) -> None:
    result = parse(render_text(objects))
    assert pairs(result) == objects
    assert perfect(render_text(objects), result)
    check_kept(render_text(objects), result)


@given(objects=OBJECTS, data=st.data())
def test_a_cut_answer_keeps_its_whole_records(objects, data) -> None:
    text = render_text(objects)
    cut = data.draw(st.integers(0, len(text) - 1))
    result = parse(text[:cut])
    assert pairs(result) == objects[: len(result.objects)]
    assert len(result.objects) == sum(item.span[1] <= cut for item in parse(text).objects)
    assert (result.dropped, result.closed) == ({T: 1}, False)


# What may follow an answer that was cut: every end of a small one.
_SMALL = frame(*['{"desc": "xx", "bbox_2d": [<|coord_0|>, <|coord_0|>, <|coord_999|>, <|coord_999|>]}'] * 2)
_ENDINGS = ["]}", *(_SMALL[-i:] for i in range(1, len(_SMALL) + 1))]
_ONLY_THE_BOX = {ParseStatus.INVERTED_BOX, ParseStatus.ZERO_AREA}


@settings(max_examples=50)
@given(objects=COCO_OBJECTS, data=st.data(), junk=st.text(' ,x0"<|>[]{}\\\n', max_size=1))
def test_truncated_means_that_more_text_could_make_it_right(objects, data, junk) -> None:
    text = render_text(objects)
    text = text[: data.draw(st.integers(0, len(text)))] + junk
    can_be_mended = any(set(parse(text + ending).dropped) <= _ONLY_THE_BOX for ending in _ENDINGS)
    result = parse(text)
    if perfect(text, result):
        assert text == render_text(pairs(result))
    elif can_be_mended:
        assert result.dropped == {T: 1}
    else:
        assert T not in result.dropped
        assert result.dropped


ALPHABET = st.sampled_from(
    [*' ,"[]{}:<|>_0159ab\\\n', OPEN, '{"desc": "', '", "bbox_2d": [', "<|coord_", "|>", "<|coord_7|>", "]}", ", "]
)  # fmt: skip


@st.composite
def broken(draw: st.DrawFn) -> str:
    """A rendered answer with a few cuts, insertions and copies."""
    text = render_text(draw(OBJECTS))
    for _ in range(draw(st.integers(0, 4))):
        start, length = draw(st.integers(0, len(text))), draw(st.integers(0, 30))
        kind = draw(st.sampled_from(["cut", "insert", "replace", "copy"]))
        piece = "".join(draw(st.lists(ALPHABET, min_size=1, max_size=3)))
        if kind == "cut":
            text = text[:start] + text[start + length :]
        elif kind == "insert":
            text = text[:start] + piece + text[start:]
        elif kind == "replace":
            text = text[:start] + piece + text[start + len(piece) :]
        else:
            at = draw(st.integers(0, len(text)))
            text = text[:at] + text[start : start + length] + text[at:]
    return text


@settings(max_examples=300)
@given(text=st.one_of(broken(), st.lists(ALPHABET, max_size=40).map("".join), st.text(max_size=60)))
def test_broken_answers(text) -> None:
    result = parse(text)
    check_kept(text, result)
    # Everything that looks like a record is accounted for, kept or dropped.
    assert result.num_records >= len(re.findall('{"desc": "', text))
    # Nothing is repaired: an answer without a fault is a rendered one, and has the same kept records with less known.
    assert perfect(text, result) == (text == render_text(pairs(result)))
    assert pairs(parse(text, {"a"})) == [pair for pair in pairs(result) if pair[0] == "a"]
    # What stands before the last record does not depend on what comes after it.
    if result.objects:
        before = text[: result.objects[-1].span[1]]
        assert pairs(parse(before)) == pairs(result)
