"""Parsing from token ids: positions of coordinate tokens, cuts at every token, and tokens that spell each other."""

from __future__ import annotations

import numpy as np
import pytest
from answers import COCO_OBJECTS, WORKED, many_objects
from hypothesis import given, settings
from hypothesis import strategies as st

from apiece.codec import parse, parse_ids, render_text
from apiece.codec.parse import desc_positions
from apiece.codec.vocab import decode_exact, encode_plain
from apiece.types import ParseStatus, Role


def read(renderer, ids, **options):
    return parse_ids(ids, renderer.tokenizer, renderer.vocab, **options)


def check_positions(renderer, ids, result) -> None:
    for item in result.objects:
        assert [renderer.vocab.bin_of(ids[p]) for p in item.coord_positions] == list(item.bins_xyxy)
        assert list(item.coord_positions) == sorted(item.coord_positions)
    flat = [p for item in result.objects for p in item.coord_positions]
    assert flat == sorted(set(flat))


@pytest.mark.parametrize("objects", [[], WORKED[:1], WORKED, many_objects(60), many_objects(1000)], ids=len)
@pytest.mark.parametrize("with_eos", [True, False])
def test_what_is_rendered_is_read(renderer, objects, with_eos) -> None:
    encoded = renderer.render(objects)
    ids = encoded.ids.tolist() if with_eos else encoded.ids[:-1].tolist()
    result = read(renderer, ids)
    assert [(item.desc, item.bins_xyxy) for item in result.objects] == objects
    assert (result.dropped, result.closed) == ({}, True)
    positions = np.array([item.coord_positions for item in result.objects], dtype=np.int64).reshape(-1)
    assert positions.tolist() == encoded.slots.position.tolist()
    text = decode_exact(renderer.tokenizer, encoded.ids[:-1].tolist())
    assert text == render_text(objects)
    assert [item.span for item in result.objects] == [item.span for item in parse(text).objects]


@settings(max_examples=40)
@given(objects=COCO_OBJECTS)
def test_drawn_answers(renderer, objects) -> None:
    encoded = renderer.render(objects)
    result = read(renderer, encoded.ids.tolist())
    assert [(item.desc, item.bins_xyxy) for item in result.objects] == objects
    assert [p for item in result.objects for p in item.coord_positions] == encoded.slots.position.tolist()


def test_cut_at_every_token(renderer) -> None:
    encoded = renderer.render(WORKED)
    ids, whole = encoded.ids.tolist(), read(renderer, encoded.ids.tolist())
    for cut in range(len(ids) - 1):
        result = read(renderer, ids[:cut])
        text = decode_exact(renderer.tokenizer, ids[:cut])
        kept = sum(item.span[1] <= len(text) for item in whole.objects)
        assert result.objects == whole.objects[:kept], text
        assert (result.dropped, result.closed) == ({ParseStatus.TRUNCATED: 1}, False), text


def test_names_can_be_limited(renderer) -> None:
    result = read(renderer, renderer.render(WORKED).ids.tolist(), known_descs={"hot dog"})
    assert [item.desc for item in result.objects] == ["hot dog"]
    assert result.dropped == {ParseStatus.UNKNOWN_DESC: 2}
    check_positions(renderer, renderer.render(WORKED).ids.tolist(), result)


def spelled(renderer, k: int) -> list[int]:
    """Plain tokens whose text is that of a coordinate token."""
    ids = [
        *encode_plain(renderer.tokenizer, "<"),
        *encode_plain(renderer.tokenizer, f"|coord_{k}|"),
        *encode_plain(renderer.tokenizer, ">"),
    ]
    assert decode_exact(renderer.tokenizer, ids) == f"<|coord_{k}|>"
    return ids


@pytest.mark.parametrize("slot", range(4))
def test_a_coordinate_in_plain_tokens_is_none(renderer, slot) -> None:
    """Only the record that holds it is dropped: the positions of the others are still known."""
    encoded = renderer.render(WORKED)
    ids, at = encoded.ids.tolist(), int(encoded.slots.position[4 + slot])
    plain = spelled(renderer, int(encoded.slots.target_bin[4 + slot]))
    ids[at : at + 1] = plain
    result = read(renderer, ids)
    assert [(item.desc, item.bins_xyxy) for item in result.objects] == [WORKED[0], WORKED[2]]
    assert (result.dropped, result.closed) == ({ParseStatus.NOT_A_COORD: 1}, True)
    check_positions(renderer, ids, result)


def test_a_coordinate_in_a_name_does_not_shift_the_others(renderer) -> None:
    encoded = renderer.render(WORKED)
    ids, vocab = encoded.ids.tolist(), renderer.vocab
    for stray in ([vocab.token_id(7)], spelled(renderer, 7)):
        # In the name of the second record, just before its box.
        quote = len(renderer.piece('", "bbox_2d": ['))
        at = int(encoded.slots.position[4]) - quote
        broken = [*ids[:at], *stray, *ids[at:]]
        result = read(renderer, broken)
        assert [item.desc for item in result.objects] == ["person", "person"]
        assert result.dropped == {ParseStatus.MALFORMED: 1}
        check_positions(renderer, broken, result)


def test_an_end_token_inside_is_text(renderer) -> None:
    ids = renderer.render(WORKED[:1]).ids.tolist()
    result = read(renderer, [*ids, *ids])
    assert len(result.objects) == 2
    assert result.dropped == {ParseStatus.MALFORMED: 1}
    assert read(renderer, [renderer.eos_id]).dropped == {ParseStatus.TRUNCATED: 1}
    assert read(renderer, []).dropped == {ParseStatus.TRUNCATED: 1}


@settings(max_examples=150)
@given(objects=COCO_OBJECTS, data=st.data())
def test_ids_broken_at_random(renderer, objects, data) -> None:
    ids = renderer.render(objects).ids.tolist()
    size = renderer.vocab.end_id
    common = st.sampled_from([*ids, *range(renderer.vocab.first_id, renderer.vocab.first_id + 3)])
    for _ in range(data.draw(st.integers(1, 4))):
        start, stop = sorted(data.draw(st.tuples(st.integers(0, len(ids)), st.integers(0, len(ids)))))
        stop = min(stop, start + 3)
        ids[start:stop] = data.draw(st.lists(st.one_of(common, st.integers(0, size - 1)), max_size=3))
    result = read(renderer, ids)
    body = ids[:-1] if ids and ids[-1] == renderer.eos_id else ids
    text = decode_exact(renderer.tokenizer, body)
    plain = parse(text)
    # The same as from the text, but for records with spelled coordinates; spans are those of the text.
    assert result.num_records == plain.num_records
    assert result.closed == plain.closed
    known = {item.span: item for item in plain.objects}
    for item in result.objects:
        assert (known[item.span].desc, known[item.span].bins_xyxy) == (item.desc, item.bins_xyxy)
    check_positions(renderer, ids, result)


@pytest.mark.parametrize(
    "objects",
    [[], WORKED, [("Ärmel é", (1, 2, 3, 4)), ("🍎🍏", (1, 2, 3, 4))], many_objects(60)],
    ids=["none", "three", "characters of many bytes", "many"],
)
def test_tokens_of_the_names_are_those_rendered(renderer, objects) -> None:
    encoded = renderer.render(objects)
    ids = encoded.ids.tolist()
    found = desc_positions(ids, read(renderer, ids).objects, renderer.tokenizer, renderer.vocab)
    assert [p for row in found for p in row] == np.flatnonzero(encoded.roles == Role.DESC).tolist()
    for (desc, _), row in zip(objects, found, strict=True):
        assert decode_exact(renderer.tokenizer, [ids[p] for p in row]) == desc


def test_tokens_of_a_name_may_hold_more_than_it(renderer) -> None:
    """A name that the tokenizer joins to the quote after it, behind records that are dropped."""
    text = '{"objects": [{"desc": "cat", "bbox_2d": [<|coord_9|>]}, {"desc": "a b.", "bbox_2d": [%s]}]}'
    ids = encode_plain(renderer.tokenizer, text % ", ".join(f"<|coord_{k}|>" for k in (1, 2, 3, 4)))
    result = read(renderer, ids)
    assert [item.desc for item in result.objects] == ["a b."]
    (row,) = desc_positions(ids, result.objects, renderer.tokenizer, renderer.vocab)
    assert list(row) == list(range(row[0], row[-1] + 1))
    before, name = (decode_exact(renderer.tokenizer, part) for part in (ids[: row[0]], [ids[p] for p in row]))
    assert before.endswith('"desc": "')
    assert name.startswith("a b.")
    assert name.removeprefix("a b.") in ("", '"', '",')
