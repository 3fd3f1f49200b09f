"""The answer format as a machine: it writes what `render` writes, and nothing that `parse` would not read."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from apiece.codec import CoordVocab, Renderer, parse, parse_ids
from apiece.codec.render import desc_problem
from apiece.codec.vocab import decode_exact, encode_plain
from apiece.errors import UserError
from apiece.rollout.grammar import END, NO_NAME, DecisionKind, End, Grammar, NameSoFar, NameTokens, grammar_of

RECORDS = [("person", (1, 2, 30, 40)), ("hot dog", (5, 6, 70, 80)), ("café", (0, 0, 999, 999))]
LABELS = ("person", "hot dog", "hot", "café", "TV")


@pytest.fixture(scope="module", params=["tiny", pytest.param("qwen3", marks=pytest.mark.real_data)])
def side(request, tiny_side):
    if request.param == "tiny":
        return tiny_side
    tokenizer = request.getfixturevalue("qwen3_tokenizer")
    vocab = CoordVocab.of(tokenizer)
    return replace(tiny_side, tokenizer=tokenizer, vocab=vocab, renderer=Renderer(tokenizer, vocab))


def is_qwen(side) -> bool:
    return len(side.tokenizer) > 100_000


def walk(grammar: Grammar, ids: list[int]) -> tuple[int, int]:
    """Follow ids to the end; returns how many of them were decided, and the last state."""
    forced, state, decisions = list(grammar.opening.forced), grammar.opening.state, 0
    for token in ids:
        if forced:
            assert token == forced.pop(0)
            continue
        assert token in grammar.allowed(state).tolist()
        step = grammar.step(state, token)
        assert step is not None
        forced, state, decisions = list(step.forced), step.state, decisions + 1
    assert not forced
    return decisions, state


@pytest.mark.parametrize("labels", [None, LABELS], ids=["free", "listed"])
@pytest.mark.parametrize("count", [0, 1, 3])
def test_rendered_answers_are_in_the_format(side, labels, count) -> None:
    grammar = Grammar(side.tokenizer, side.renderer, labels)
    ids = side.renderer.render(RECORDS[:count]).ids.tolist()
    decisions, state = walk(grammar, ids)
    assert state == END
    names = sum(len(side.renderer.piece(desc)) for desc, _ in RECORDS[:count])
    if labels is None:  # every token of a name, its end, four coordinates, and going on or not
        assert decisions == names + (1 + 4 + 1) * count + 1
    else:  # of a listed name only what tells it from others
        assert decisions <= names + (1 + 4 + 1) * count + 1


def test_a_name_of_one_token_costs_six_decisions(side) -> None:
    grammar = Grammar(side.tokenizer, side.renderer, ("person", "dog"))
    box = (1, 2, 3, 4)
    one, two = (walk(grammar, side.renderer.render([("dog", box)] * n).ids.tolist())[0] for n in (1, 2))
    assert two - one == 6


@pytest.mark.parametrize("labels", [None, LABELS], ids=["free", "listed"])
def test_whatever_is_written_can_be_parsed(side, labels) -> None:
    """Random walks, names ended early so that they end at all."""
    grammar, rng = Grammar(side.tokenizer, side.renderer, labels), np.random.default_rng(0)
    for _ in range(30):
        ids, forced, state = [], list(grammar.opening.forced), grammar.opening.state
        boxes = 0
        while forced or state != END:
            if forced:
                ids.append(forced.pop(0))
                continue
            at = grammar.states[state]
            allowed = grammar.allowed(state)
            if at.kind is DecisionKind.COORD:
                boxes += at.coordinate == 3
                token = side.vocab.token_id(int(rng.integers(500)) + 500 * (at.coordinate > 1))
            elif at.kind is DecisionKind.NAME and at.steps and rng.random() < 0.4:
                token = int(rng.choice(list(at.steps)))
            elif boxes >= 3 and at.likely is not None and not at.in_name:
                token = int(next(t for t in allowed if t != at.likely))
            else:
                token = int(rng.choice(allowed))
            ids.append(token)
            step = grammar.step(state, token)
            assert step is not None
            forced, state = list(step.forced), step.state
        parsed = parse_ids(ids, side.tokenizer, side.vocab)
        assert not parsed.dropped
        assert parsed.closed
        assert len(parsed.objects) == boxes
        if labels is not None:
            assert {o.desc for o in parsed.objects} <= set(labels)


def test_labels_may_merge_with_the_quote_behind_them(side) -> None:
    grammar = Grammar(side.tokenizer, side.renderer, ("dog.", "cat"))
    text = '{"objects": [{"desc": "dog.", "bbox_2d": [<|coord_1|>, <|coord_2|>, <|coord_3|>, <|coord_4|>]}]}'
    ids = encode_plain(side.tokenizer, text)
    merged = len(encode_plain(side.tokenizer, 'dog.", "bbox_2d": [')) < len(
        [*side.renderer.piece("dog."), *side.renderer.piece('", "bbox_2d": [')]
    )
    assert merged == is_qwen(side)
    assert walk(grammar, [*ids, side.renderer.eos_id])[1] == END
    assert parse(text).objects[0].desc == "dog."


def test_labels_that_cannot_be_written_are_named(side) -> None:
    with pytest.raises(UserError, match="the name 'a\"b' holds a quote"):
        Grammar(side.tokenizer, side.renderer, ("dog", 'a"b'))
    with pytest.raises(UserError, match="expected at least one name"):
        Grammar(side.tokenizer, side.renderer, ())
    if is_qwen(side):
        with pytest.raises(UserError, match=r"the name '\.net' merges with the quote before it"):
            Grammar(side.tokenizer, side.renderer, ("dog", ".net"))
        with pytest.raises(UserError, match="is read back as"):
            Grammar(side.tokenizer, side.renderer, ("cafe\u0301",))


def test_a_tokenizer_that_joins_pieces_is_refused(side) -> None:
    class Joins:
        def __init__(self, inner):
            self.inner = inner

        def __getattr__(self, name):
            return getattr(self.inner, name)

        def encode(self, text, **kwargs):
            ids = self.inner.encode(text, **kwargs)
            return ids[:-1] if text.endswith("]}") and len(text) > 40 else ids

    with pytest.raises(UserError, match="joins pieces of the answer format"):
        Grammar(Joins(side.tokenizer), side.renderer)


def test_it_is_built_once(tiny_side) -> None:
    first = grammar_of(tiny_side.tokenizer, tiny_side.renderer)
    assert grammar_of(tiny_side.tokenizer, tiny_side.renderer) is first
    assert grammar_of(tiny_side.tokenizer, tiny_side.renderer, ("dog",)) is not first


@pytest.mark.parametrize(
    ("start", "data", "expected"),
    [
        (NO_NAME, b"a", NameSoFar(End.TEXT)),
        (NO_NAME, b" a", None),
        (NO_NAME, b"", NO_NAME),
        (NO_NAME, "\u00a0a".encode(), None),  # a space as `str.strip` sees it
        (NameSoFar(End.TEXT), b" ", NameSoFar(End.SPACE)),
        (NameSoFar(End.SPACE), b" b", NameSoFar(End.TEXT)),
        (NameSoFar(End.TEXT), b'"', None),
        (NameSoFar(End.TEXT), b"\\", None),
        (NameSoFar(End.TEXT), b"\n", None),
        (NameSoFar(End.TEXT), "\u2028".encode(), None),
        (NameSoFar(End.TEXT), b"a<", NameSoFar(End.LESS)),
        (NameSoFar(End.LESS), b"|x", None),
        (NameSoFar(End.TEXT), b"|x", NameSoFar(End.TEXT)),
        (NameSoFar(End.TEXT), b"<|", None),
        (NameSoFar(End.TEXT), b"\xe2", NameSoFar(End.TEXT, b"\xe2")),
        (NameSoFar(End.TEXT, b"\xe2"), b"\x80", NameSoFar(End.TEXT, b"\xe2\x80")),
        (NameSoFar(End.TEXT, b"\xe2\x80"), b"\xa8", None),  # the same separator, cut into bytes
        (NameSoFar(End.TEXT, b"\xe2\x80"), b"\x93", NameSoFar(End.TEXT)),
        (NameSoFar(End.TEXT, b"\xe2"), b"a", None),
        (NO_NAME, b"\xc2", NameSoFar(End.NOTHING, b"\xc2")),
        (NameSoFar(End.NOTHING, b"\xc2"), b"\xa0", None),
        (NameSoFar(End.TEXT), b"\xed\xa0", None),  # half of a surrogate pair
        (NameSoFar(End.TEXT), b"\x80", None),
    ],
)
def test_names_byte_by_byte(start, data, expected) -> None:
    assert start.then(data) == expected


def test_what_may_follow_a_name_is_what_the_bytes_say(side) -> None:
    """The fast tables against the slow rule, for a spread of tokens."""
    tokens, rng = NameTokens.of(side.tokenizer), np.random.default_rng(0)
    some = rng.choice(sorted(tokens.text), 300)
    for written in (
        NO_NAME,
        *(NameSoFar(end) for end in End if end),
        NameSoFar(End.TEXT, b"\xe2\x80"),
        NameSoFar(End.LESS),
    ):
        allowed = set(tokens.allowed(written).tolist())
        assert allowed.isdisjoint(side.tokenizer.all_special_ids)
        for token in some.tolist():
            text = tokens.text[token]
            assert (token in allowed) == (written.then(text) is not None or token in tokens.ending(written))
        assert (tokens.plain_close in allowed) == written.can_end


def test_every_word_can_be_written_as_the_tokenizer_cuts_it(side) -> None:
    tokens = NameTokens.of(side.tokenizer)
    for name in ("dog", "hot dog", "naïve café", "犬", "🐕 dog", "a<b", "T-shirt (red)", "x" * 40):
        assert desc_problem(name) is None
        written: NameSoFar | None = NO_NAME
        for token in side.renderer.piece(name):
            assert written is not None
            assert token in tokens.allowed(written)
            written = tokens.after(written, token)
        assert written is not None
        assert written.can_end
        assert decode_exact(side.tokenizer, side.renderer.piece(name)) == name


def test_a_vocabulary_that_is_not_of_bytes(tiny_side) -> None:
    class Words:
        def __getattr__(self, name):
            return getattr(tiny_side.tokenizer, name)

        def get_vocab(self):
            return {f"▁{token}": number for token, number in tiny_side.tokenizer.get_vocab().items()}

    with pytest.raises(UserError, match="free names need a byte-level vocabulary"):
        NameTokens.of(Words())
