"""Targets of Channel-B: every token of a worked example, answers of every kind, and answers broken at random."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mutated import SIZE, broken, rollout, scene, seen

from apiece.codec import Bins, CoordVocab, Renderer, coord_token, objects_to_bins
from apiece.codec.parse import parse_ids
from apiece.codec.render import DescBins
from apiece.codec.vocab import decode_exact, encode_plain
from apiece.outcomes import Outcome
from apiece.rollout.targets import SUPERVISED, JudgedAnswer, Subset, Target, TargetBuilder
from apiece.types import Instance, ParseStatus, Role, Sample

BOOK, SECOND, CAR = ("book", (100, 100, 200, 300)), ("book", (200, 100, 300, 300)), ("car", (700, 100, 800, 200))
CROWD = Instance("person", (500.0, 500.0, 900.0, 900.0), iscrowd=True)
NEAR_BOOK = ("book", (101, 102, 199, 301))
DUPLICATE = ("book", (100, 104, 203, 300))
GROUP = ("book", (90, 90, 310, 310))
ZEBRA = ("zebra", (10, 10, 50, 50))
IN_CROWD = ("person", (600, 600, 700, 700))
WORKED = Path(__file__).with_name("worked_target.txt")


def image(*labels: DescBins, crowd: bool = False) -> Sample:
    """An image of 999 x 999: a pixel is a bin."""
    objects = [Instance(desc, tuple(map(float, box))) for desc, box in labels]  # type: ignore[arg-type]
    return Sample("s", Path("s.png"), (999, 999), (*objects, *([CROWD] if crowd else [])))


def answer(renderer: Renderer, *records: DescBins, cut: int | None = None) -> list[int]:
    """Ids of an answer, the first `cut` of them; a record whose box cannot be is written like any other."""
    ids = renderer.render([(desc, (0, 0, 1, 1)) for desc, _ in records]).ids
    coords = [i for i, token in enumerate(ids.tolist()) if renderer.vocab.bin_of(token) is not None]
    ids[coords] = [renderer.vocab.token_id(k) for _, box in records for k in box]
    return ids.tolist()[:cut]


def build(renderer: Renderer, ids: list[int], sample: Sample, **limits: int) -> JudgedAnswer:
    settings = {"max_objects": 60, "max_length": 4096} | limits
    return TargetBuilder(renderer, **settings).build(rollout(ids, renderer.tokenizer), sample, num_prefix=10)


def read(renderer: Renderer, target: Target) -> list[DescBins]:
    """The records of a target, which must be one whole answer."""
    back = parse_ids(target.answer.ids.tolist(), renderer.tokenizer, renderer.vocab)
    assert back.closed
    assert set(back.dropped) <= {ParseStatus.INVERTED_BOX, ParseStatus.ZERO_AREA}
    return [(o.desc, o.bins_xyxy) for o in back.objects]


def spans(target: Target) -> list[Subset]:
    """The subsets in order, each run once."""
    change = np.flatnonzero(np.diff(target.subset)) + 1
    return [Subset(target.subset[i]) for i in (0, *change)]


@pytest.fixture(scope="session")
def renderer(tiny_side: Any) -> Renderer:
    return tiny_side.renderer


def table(renderer: Renderer, target: Target) -> str:
    """Every token with its role, subset, and where each term reads it."""
    bins = dict(zip(target.answer.slots.position.tolist(), target.answer.slots.target_bin.tolist(), strict=True))
    rows = ["token                role    subset          token_ce  bbox_geo  coord_reg  redundancy"]
    for at, (token, role, subset) in enumerate(
        zip(target.answer.ids.tolist(), target.answer.roles.tolist(), target.subset.tolist(), strict=True)
    ):
        box = coord_token(bins[at])[8:-2] if at in bins else "."
        rows.append(
            f"{decode_exact(renderer.tokenizer, [token]):<21}{Role(role).name.lower():<8}"
            f"{Subset(subset).name.lower():<16}{'1' if target.supervised[at] else '.':<10}{box:<10}{box:<11}"
            f"{'1' if at in target.committing else '.'}"
        )
    return "\n".join(rows) + "\n"


def test_every_token_of_a_worked_example(renderer: Renderer) -> None:
    """A match, a box inside out, a duplicate, a group, something unknown; then the missed book and car."""
    inside_out = ("book", (300, 100, 200, 300))
    ids = answer(renderer, NEAR_BOOK, inside_out, DUPLICATE, GROUP, ZEBRA)
    judged = build(renderer, ids, image(BOOK, SECOND, CAR))
    assert table(renderer, judged.target) == WORKED.read_text()
    assert [Outcome(o) for o in judged.outcomes.of_prediction] == [
        Outcome.TP,
        Outcome.DUPLICATE,
        Outcome.GROUP,
        Outcome.BACKGROUND,
    ]


def test_what_has_a_loss_follows_from_role_and_subset(renderer: Renderer) -> None:
    target = build(renderer, answer(renderer, NEAR_BOOK, ZEBRA), image(BOOK, CAR)).target
    pairs = zip(target.answer.roles.tolist(), target.subset.tolist(), strict=True)
    has_loss = target.supervised.copy()
    has_loss[target.answer.slots.position] = True
    assert has_loss.tolist() == [Role(role) in SUPERVISED[Subset(subset)] for role, subset in pairs]


EMPTY: tuple[DescBins, ...] = ()


@pytest.mark.parametrize(
    ("said", "cut", "labels", "kept", "appended", "parts"),
    [
        (EMPTY, None, EMPTY, 0, 0, "OUTER EOS"),  # nothing to say, nothing said
        (EMPTY, None, (BOOK, CAR), 0, 2, "OUTER MISS OUTER EOS"),  # nothing said
        (EMPTY, 0, (BOOK,), 0, 1, "OUTER MISS OUTER EOS"),  # not one token
        ((ZEBRA,), None, EMPTY, 1, 0, "OUTER FALSE_POSITIVE OUTER EOS"),  # nothing there
        ((NEAR_BOOK,), None, (BOOK,), 1, 0, "OUTER MATCHED OUTER EOS"),  # all right
        ((NEAR_BOOK,), -1, (BOOK,), 1, 0, "OUTER MATCHED OUTER EOS"),  # no end token
        ((NEAR_BOOK, ZEBRA), 16, (BOOK,), 1, 0, "OUTER MATCHED OUTER EOS"),  # cut in the second record
        ((NEAR_BOOK,), 9, (BOOK,), 0, 1, "OUTER MISS OUTER EOS"),  # cut in the first box
        ((("book", (9, 9, 5, 20)),), None, (BOOK,), 0, 1, "OUTER MISS OUTER EOS"),  # only a box that cannot be
        ((NEAR_BOOK, ("car", (9, 9, 9, 20))), None, (BOOK,), 1, 0, "OUTER MATCHED OUTER EOS"),  # one at the end goes
        (
            (NEAR_BOOK, ("car", (9, 9, 9, 20)), ZEBRA),
            None,
            (BOOK,),
            2,
            0,
            "OUTER MATCHED DROPPED FALSE_POSITIVE OUTER EOS",
        ),  # one in the middle stays, without a loss
        (
            (NEAR_BOOK, ZEBRA),
            None,
            (SECOND, CAR, BOOK),
            2,
            2,
            "OUTER MATCHED FALSE_POSITIVE MISS OUTER EOS",
        ),  # misses as ordered
    ],
    ids=lambda value: value.replace(" ", "-").lower() if isinstance(value, str) else "",
)
def test_answers_of_every_kind(renderer, said, cut, labels, kept, appended, parts) -> None:
    ids = answer(renderer, *said, cut=cut)
    target = build(renderer, ids, image(*labels)).target
    assert (target.num_kept, target.num_appended) == (kept, appended)
    assert " ".join(s.name for s in spans(target)) == parts
    hit = [label for label in labels if label == BOOK and NEAR_BOOK in said and kept]
    records = [record for record in said if record[1][0] < record[1][2]][:kept]
    assert read(renderer, target) == records + [label for label in labels if label not in hit]


def test_false_positives_have_no_loss_at_all(renderer: Renderer) -> None:
    target = build(renderer, answer(renderer, ZEBRA, GROUP, DUPLICATE), image(BOOK, SECOND)).target
    inside = np.flatnonzero(target.subset == Subset.FALSE_POSITIVE)
    assert len(inside) > 15
    assert not target.supervised[inside].any()
    assert not set(inside) & set(target.answer.slots.position.tolist())


def test_an_object_inside_a_crowd_region_is_neither_taught_nor_charged(renderer: Renderer) -> None:
    judged = build(renderer, answer(renderer, IN_CROWD, IN_CROWD), image(BOOK, crowd=True))
    assert (len(judged.match.ignored), judged.target.num_appended, len(judged.target.committing)) == (2, 1, 0)


def test_a_label_thinner_than_a_bin_is_not_appended(renderer: Renderer) -> None:
    thin = Sample("s", Path("s.png"), (9990, 9990), (Instance("book", (10.0, 10.0, 12.0, 900.0)),))
    judged = build(renderer, answer(renderer), thin)
    assert read(renderer, judged.target) == []
    assert len(judged.match.misses) == 0


@pytest.mark.parametrize(
    ("break_it", "kept"),
    [
        (lambda ids, p: ids, 3),  # as written
        (lambda ids, p: [*p(" "), *ids], 0),  # prose before
        (lambda ids, p: [*ids[:-1], *p("\n"), ids[-1]], 3),  # a line behind the close
        (lambda ids, p: [*ids[:11], *p(']},{"desc": "'), *ids[12:]], 1),  # another frame: all are read, one is kept
        (lambda ids, p: [*ids[:11], *p(']}, {"name": 1}, {"desc": "'), *ids[12:]], 1),  # a foreign record
        (lambda ids, p: ids[:-1] + ids, 3),  # a second answer behind the first
    ],
    ids=["whole", "prose", "line", "frame", "foreign", "twice"],
)
def test_what_is_not_in_our_form_ends_the_kept_part(renderer, break_it, kept) -> None:
    ids = answer(renderer, NEAR_BOOK, ZEBRA, ("car", (701, 100, 800, 201)))
    assert decode_exact(renderer.tokenizer, ids[11:12]) == ']}, {"desc": "'
    broken_ids = break_it(ids, lambda text: encode_plain(renderer.tokenizer, text))
    judged = build(renderer, broken_ids, image(BOOK, CAR))
    assert judged.target.num_kept == kept
    assert len(read(renderer, judged.target)) == kept + judged.target.num_appended
    assert {"car", "book"} <= {desc for desc, _ in read(renderer, judged.target)}


def test_a_runaway_answer_is_cut(renderer: Renderer) -> None:
    ids = answer(renderer, *[DUPLICATE] * 80)
    judged = build(renderer, ids, image(BOOK, CAR), max_objects=20)
    assert (len(judged.parsed.objects), judged.target.num_kept, judged.target.num_appended) == (80, 20, 1)
    assert len(judged.target.committing) == 19


def test_what_does_not_fit_goes_from_the_end(renderer: Renderer) -> None:
    ids = answer(renderer, ZEBRA, ZEBRA, NEAR_BOOK)
    whole = build(renderer, ids, image(BOOK, CAR)).target
    target = build(renderer, ids, image(BOOK, CAR), max_length=10 + len(whole.answer.ids) - 1).target
    # The match went, so its label is appended: as long as before. One more had to go.
    assert read(renderer, target) == [ZEBRA, BOOK, CAR]
    none = build(renderer, ids, image(BOOK, CAR), max_length=1).target
    assert read(renderer, none) == [BOOK, CAR]


def test_kept_tokens_are_the_models_own(renderer: Renderer) -> None:
    """A name in other tokens than the tokenizer's, and syntax in other tokens, which then has no loss."""
    ids = answer(renderer, NEAR_BOOK, ZEBRA)
    at = ids.index(renderer.piece("book")[0])
    spelled = [t for c in "book" for t in encode_plain(renderer.tokenizer, c)]
    assert len(spelled) > 1
    ids = [*ids[:at], *spelled, *ids[at + len(renderer.piece("book")) :]]
    target = build(renderer, ids, image(BOOK)).target
    cut = target.answer.slots.position[3] + 1
    assert target.answer.ids[:cut].tolist() == ids[:cut]
    assert target.answer.roles[at : at + len(spelled)].tolist() == [Role.DESC] * len(spelled)
    tail = encode_plain(renderer.tokenizer, '"') + encode_plain(renderer.tokenizer, ', "bbox_2d": [')
    box = at + len(spelled)
    other = build(renderer, [*ids[:box], *tail, *ids[box + 1 :]], image(BOOK)).target
    assert (other.num_matched, other.supervised[box : box + len(tail)].any()) == (1, False)


@pytest.mark.real_data
def test_a_token_that_holds_the_comma_belongs_to_what_follows(qwen3_tokenizer: Any) -> None:
    """Qwen's `]},` goes on and `]}` ends: the choice between them is taught with what was chosen."""
    renderer = Renderer(qwen3_tokenizer, CoordVocab.of(qwen3_tokenizer))
    target = build(renderer, answer(renderer, NEAR_BOOK, ZEBRA), image(BOOK, CAR)).target
    of: dict[str, list[Subset]] = {}
    for token, subset in zip(target.answer.ids.tolist(), target.subset.tolist(), strict=True):
        of.setdefault(decode_exact(qwen3_tokenizer, [token]), []).append(Subset(subset))
    assert of["]},"] == [Subset.FALSE_POSITIVE, Subset.MISS]
    assert of["]}"] == [Subset.OUTER, Subset.OUTER]
    assert of['{"'] == [Subset.OUTER]


def check(renderer: Renderer, seed: int) -> None:
    """One answer broken at random, through parse and target."""
    rng = np.random.default_rng(seed)
    sample = scene(rng)
    ids = broken(renderer.render(seen(sample, rng)).ids.tolist(), renderer, rng)
    judged = build(renderer, ids, sample, max_objects=25, max_length=600)
    parsed, target, match = judged.parsed, judged.target, judged.match
    # Everything dropped is counted, and everything kept is judged.
    assert len(parsed.faults) == sum(parsed.dropped.values())
    assert len(match.pairs) + len(match.false_positives) + len(match.ignored) == len(parsed.objects)
    records = read(renderer, target)
    kept = [(o.desc, o.bins_xyxy) for o in parsed.objects[: target.num_kept]]
    assert records[: target.num_kept] == kept
    assert len(records) == target.num_kept + target.num_appended
    assert len(records) - len(kept) + target.num_matched == len(match.pairs) + len(match.misses)
    # What was appended are labels, in their order.
    objects = [o for o in sample.objects if not o.iscrowd]
    labels = iter(objects_to_bins([o.bbox_xyxy for o in objects], [o.desc for o in objects], SIZE, Bins()))
    assert all(record in labels for record in records[len(kept) :])
    # The kept part is the model's own, token for token.
    if kept:
        cut = parsed.objects[target.num_kept - 1].coord_positions[3] + 1  # type: ignore[index]
        assert target.answer.ids[:cut].tolist() == ids[:cut]
    assert 10 + len(target.answer.ids) <= 600 or target.num_kept == 0
    ours = np.isin(target.subset, (Subset.FALSE_POSITIVE, Subset.DROPPED))
    assert not (target.supervised & ours).any()
    assert not ours[target.answer.slots.position].any()
    assert (target.subset[target.committing] == Subset.FALSE_POSITIVE).all()
    assert len(target.answer.slots) == 4 * (target.num_matched + target.num_appended)
    assert (target.answer.roles[target.answer.slots.position] == Role.COORD).all()


def test_targets_of_broken_answers_parse_back(renderer: Renderer) -> None:
    for seed in range(400):
        check(renderer, seed)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(50))
def test_targets_of_many_broken_answers_parse_back(renderer: Renderer, part: int) -> None:
    for seed in range(1000 * (part + 1), 1000 * (part + 2)):
        check(renderer, seed)
