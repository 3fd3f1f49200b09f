"""Rendering: the exact text, and tokens that are the tokenizer's own, with roles and slots."""

from __future__ import annotations

import re

import numpy as np
import pytest
from answers import BINS, COCO_OBJECTS, WORKED, WORKED_TEXT, many_objects
from hypothesis import given, settings
from hypothesis import strategies as st

from apiece.codec import CoordVocab, Renderer, coord_token, render_text
from apiece.codec.vocab import decode_exact, encode_plain
from apiece.errors import UserError
from apiece.model.prompt import COCO_80
from apiece.types import Encoded, Role


def whole(renderer: Renderer, objects) -> list[int]:
    """The tokenizer's own ids of the whole answer."""
    return [*encode_plain(renderer.tokenizer, render_text(objects)), renderer.tokenizer.eos_token_id]


def text_of(renderer: Renderer, ids) -> str:
    return decode_exact(renderer.tokenizer, list(ids))


def check_roles_and_slots(renderer: Renderer, encoded: Encoded, objects) -> None:
    ids, roles, slots = encoded.ids, encoded.roles, encoded.slots
    assert roles.shape == ids.shape
    assert set(roles.tolist()) <= set(Role)
    # Roles say what the tokens are.
    is_coord = np.array([renderer.vocab.bin_of(i) is not None for i in ids.tolist()])
    assert np.array_equal(roles == Role.COORD, is_coord)
    assert np.flatnonzero(roles == Role.EOS).tolist() == [len(ids) - 1]
    runs = np.split(ids, np.flatnonzero(np.diff(roles)) + 1)
    kinds = [roles[0], *roles[1:][np.diff(roles) != 0]]
    names = [text_of(renderer, run) for run, kind in zip(runs, kinds, strict=True) if kind == Role.DESC]
    assert names == [desc for desc, _ in objects]
    struct = text_of(renderer, ids[roles == Role.STRUCT])
    assert struct == re.sub(r"@|<\|coord_\d+\|>", "", render_text([("@", bins) for _, bins in objects]))
    # Slots point at them.
    assert slots.position.tolist() == np.flatnonzero(is_coord).tolist()
    assert slots.coordinate.tolist() == [0, 1, 2, 3] * len(objects)
    assert slots.object.tolist() == np.repeat(np.arange(len(objects)), 4).tolist()
    assert slots.target_bin.tolist() == [k for _, bins in objects for k in bins]
    assert [text_of(renderer, [i]) for i in ids[slots.position]] == [coord_token(k) for k in slots.target_bin]


def test_text_by_hand() -> None:
    assert render_text(WORKED) == WORKED_TEXT
    assert render_text([]) == '{"objects": []}'


@pytest.mark.parametrize("count", range(4))
def test_the_rest_of_an_answer_joins_on_behind_a_coordinate(renderer, count) -> None:
    entire = renderer.render(WORKED)
    rest = renderer.render(WORKED[count:], after_object=count > 0)
    cut = 0 if count == 0 else entire.slots.position[4 * count - 1] + 1
    assert rest.ids.tolist() == entire.ids[cut:].tolist()
    assert rest.roles.tolist() == entire.roles[cut:].tolist()
    assert (rest.slots.position + cut).tolist() == entire.slots.position[4 * count :].tolist()


@pytest.mark.parametrize("objects", [[], WORKED[:1], WORKED, many_objects(60), many_objects(1000)], ids=len)
def test_ids_are_the_tokenizers_own(renderer, objects) -> None:
    encoded = renderer.render(objects)
    assert encoded.ids.tolist() == whole(renderer, objects)
    assert renderer.num_tokens([desc for desc, _ in objects]) == len(encoded.ids)
    check_roles_and_slots(renderer, encoded, objects)


@settings(max_examples=60)
@given(objects=COCO_OBJECTS)
def test_ids_are_the_tokenizers_own_for_drawn_answers(renderer, objects) -> None:
    encoded = renderer.render(objects)
    assert encoded.ids.tolist() == whole(renderer, objects)
    check_roles_and_slots(renderer, encoded, objects)


def test_all_coco_names_can_be_written(renderer) -> None:
    for desc in COCO_80:
        renderer.check_desc(desc)
    objects = [(desc, (1, 2, 3, 4)) for desc in COCO_80]
    assert renderer.render(objects).ids.tolist() == whole(renderer, objects)


def test_every_bin_is_one_token(renderer) -> None:
    ids = [encode_plain(renderer.tokenizer, coord_token(k)) for k in range(1000)]
    assert ids == [[renderer.vocab.token_id(k)] for k in range(1000)]


@pytest.mark.real_data
@pytest.mark.parametrize("desc", ["dog.", "cat)", "'quoted'", "tv!", "St."])
def test_names_that_merge_with_the_quotes_are_refused(qwen3_renderer, desc) -> None:
    with pytest.raises(UserError) as caught:
        qwen3_renderer.check_desc(desc)
    assert str(caught.value) == (
        f"the name {desc!r} merges with the quotes around it in this tokenizer\n"
        "  fix: rename it so that it starts and ends with a letter or digit"
    )


@pytest.mark.real_data
@settings(max_examples=200)
@given(desc=st.text("ab1 .,:;'()[]{}<|>-_/é", min_size=1, max_size=8), bins=BINS)
def test_a_name_that_is_not_refused_gives_the_tokenizers_own_ids(qwen3_renderer, desc, bins) -> None:
    try:
        qwen3_renderer.check_desc(desc)
    except UserError:
        return
    objects = [(desc, bins), (desc, bins)]
    assert qwen3_renderer.render(objects).ids.tolist() == whole(qwen3_renderer, objects)


@pytest.mark.real_data
def test_a_name_that_the_tokenizer_changes_is_refused(qwen3_renderer) -> None:
    # Qwen's tokenizer composes accents: the label could never be answered.
    qwen3_renderer.check_desc("caf\u00e9 table")
    with pytest.raises(UserError, match=r"(?s)is read back as 'caf\u00e9 table' by this tokenizer.*fix: .*Unicode NFC"):
        qwen3_renderer.check_desc("cafe\u0301 table")


@pytest.mark.parametrize(
    ("desc", "message"),
    [
        ("", "the name '' is empty or has spaces around it"),
        ("  ", "is empty or has spaces around it"),
        (" dog", "is empty or has spaces around it"),
        ("dog\n", "is empty or has spaces around it"),
        ('a "dog"', "holds a quote, a backslash, a line break or a control character"),
        ("a\\b", "holds a quote, a backslash, a line break or a control character"),
        ("a\nb", "holds a quote, a backslash, a line break or a control character"),
        ("a\x7fb", "holds a quote, a backslash, a line break or a control character"),
        ("a\x85b", "holds a quote, a backslash, a line break or a control character"),
        ("a\u2028b", "holds a quote, a backslash, a line break or a control character"),
        ("a\ud800b", "holds a quote, a backslash, a line break or a control character"),  # half a surrogate pair
        ("a<|coord_1|>", "holds '<|', which starts special tokens"),
    ],
)
def test_names_that_cannot_be_written(tiny_side, desc, message) -> None:
    renderer = tiny_side.renderer
    for write in (
        lambda: render_text([(desc, (1, 2, 3, 4))]),
        lambda: renderer.render([(desc, (1, 2, 3, 4))]),
        lambda: renderer.check_desc(desc),
    ):
        with pytest.raises(UserError) as caught:
            write()
        assert message in str(caught.value)
        assert "fix: rename the class, or clean the data: apiece data check --fix drop" in str(caught.value)


@pytest.mark.parametrize(
    "bins",
    [
        (5, 1, 4, 2),  # inverted in x
        (1, 5, 2, 4),  # inverted in y
        (1, 2, 1, 4),  # no width
        (1, 2, 3, 2),  # no height
        (-1, 2, 3, 4),  # below the grid
        (1, 2, 1000, 4),  # beyond the grid
    ],
)
def test_boxes_that_would_not_be_read_back_are_not_written(tiny_side, bins) -> None:
    message = r"bins of 'dog' must be x1 < x2, y1 < y2 in 0\.\.999, got \("
    with pytest.raises(ValueError, match=message):
        render_text([("dog", bins)])
    with pytest.raises(ValueError, match=message):
        tiny_side.renderer.render([("dog", bins)])


def test_the_vocabulary_must_hold_the_coordinate_tokens(tiny_side) -> None:
    class Fake:
        def __init__(self, vocabulary):
            self.vocabulary = vocabulary

        def get_vocab(self):
            return self.vocabulary

    whole = {coord_token(k): 50 + k for k in range(1000)}
    assert CoordVocab.of(Fake(whole)).first_id == 50
    with pytest.raises(
        UserError, match=r"model: expected the 1000 coordinate tokens .*, found 0\n.*apiece model extend --from"
    ):
        CoordVocab.of(Fake({"a": 0}), where="model")
    with pytest.raises(UserError, match=r"found 999"):
        CoordVocab.of(Fake({t: i for t, i in whole.items() if i != 50}), where="model")
    with pytest.raises(UserError, match=r"do not have consecutive ids"):
        CoordVocab.of(Fake(whole | {coord_token(7): 5000}), where="model")


def test_the_vocabulary_both_ways(tiny_side) -> None:
    vocab = tiny_side.vocab
    assert [vocab.bin_of(vocab.token_id(k)) for k in range(1000)] == list(range(1000))
    assert vocab.bin_of(vocab.first_id - 1) is None
    assert vocab.bin_of(vocab.end_id) is None
    for k in (-1, 1000):
        with pytest.raises(ValueError, match=rf"bin must be in 0\.\.999, got {k}"):
            vocab.token_id(k)
