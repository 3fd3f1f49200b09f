"""Skipping what the format forces, guessing, refilling: same ids, same log-probabilities, fewer forward passes."""

from __future__ import annotations

import copy
import itertools
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from scripted import Scripted, questions

import toy
from apiece.codec import parse_ids
from apiece.config.schema import GenerateSection
from apiece.data.collate import collate_prefix
from apiece.errors import UserError
from apiece.model.encode import PromptTokens, SampleEncoder
from apiece.model.load import load_model, load_text_side
from apiece.model.prompt import PROMPTS
from apiece.rollout.generate import LocalEngine
from apiece.types import FinishReason, ParseStatus, Sample
from apiece_scenes.scene import generate_scene

RECORDS = [("person", (1, 2, 30, 40)), ("hot dog", (5, 6, 70, 80)), ("book", (0, 0, 999, 999))]
TOKEN_BY_TOKEN = {"skip": False, "guess": False, "refill": False}
WAYS = {
    "skip": {"guess": False, "refill": False},
    "skip and guess": {"refill": False},
    "skip and refill": {"guess": False},
    "all": {},
}
LABELS = ("person", "hot dog", "hot", "book")


@pytest.fixture(scope="module")
def trained():
    """The embedded checkpoint in float64, so that what differs is not rounding."""
    return load_model("tiny").double(), load_text_side("tiny")


def scenes(side, count: int, most: int = 10):
    """Questions about scenes of at most `most` objects."""
    images = {}

    def load(path: Path):
        return images[path.stem]

    encoder = SampleEncoder(side, PromptTokens.of(side, PROMPTS[side.card["prompt"]["name"]]), 8192, load=load)
    samples = []
    for index in itertools.count():
        scene = generate_scene(1, index)
        if len(scene.complete) > most:
            continue
        images[str(index)] = scene.image
        samples.append(Sample(str(index), Path(f"{index}.png"), scene.image.size))
        if len(samples) == count:
            break
    return [encoder.question(sample) for sample in samples]


def settings(**values) -> GenerateSection:
    return GenerateSection.model_validate({"max_objects": 60, "max_new_tokens": 700, "batch_size": 3} | values)


def assert_same(found, expected, atol: float) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.ids.tolist() == other.ids.tolist()
        assert (one.sample_id, one.finish_reason, one.text) == (other.sample_id, other.finish_reason, other.text)
        for name in ("logprobs", "logprobs_masked", "near_mass"):
            assert_allclose(getattr(one, name), getattr(other, name), atol=atol, err_msg=name)


@pytest.fixture(scope="module")
def token_by_token(trained):
    model, side = trained
    asked = scenes(side, 5)
    rollouts = LocalEngine(model, side, settings(), **TOKEN_BY_TOKEN).generate(asked)
    assert len({len(r.ids) for r in rollouts}) > 1
    return asked, rollouts


@pytest.mark.parametrize("way", WAYS)
def test_the_way_does_not_matter(trained, token_by_token, way) -> None:
    model, side = trained
    asked, expected = token_by_token
    assert_same(LocalEngine(model, side, settings(), **WAYS[way]).generate(asked), expected, atol=1e-6)


def test_in_single_precision_rounding_is_all_there_is(token_by_token) -> None:
    """Products of fewer than 16 tokens add up in another order on a CPU, which is why the rest is tested in float64."""
    asked, _ = token_by_token
    model, side = load_model("tiny"), load_text_side("tiny")
    expected = LocalEngine(model, side, settings(), **TOKEN_BY_TOKEN).generate(asked)
    assert_same(LocalEngine(model, side, settings()).generate(asked), expected, atol=5e-5)


@pytest.mark.slow
def test_the_way_does_not_matter_on_many_scenes(trained) -> None:
    model, side = trained
    asked = scenes(side, int(os.environ.get("APIECE_TEST_SCENES", "64")), most=60)  # 500 take three minutes
    expected = LocalEngine(model, side, settings(batch_size=32), **TOKEN_BY_TOKEN).generate(asked)
    assert_same(LocalEngine(model, side, settings(batch_size=32)).generate(asked), expected, atol=1e-6)


@pytest.mark.parametrize("options", [{"labels": LABELS}, {"temperature": 1.0}, {"grammar": False, "temperature": 1.0}])
def test_nor_does_it_for_an_untrained_model(tiny_model, tiny_side, options) -> None:
    """It writes what it likes: names, boxes and ends at random, so guesses are mostly wrong."""
    model, asked = copy.deepcopy(tiny_model).double(), [toy.encoder(tiny_side).question(s) for s in toy.ALL]
    chosen = settings(**options, max_new_tokens=60, max_objects=4)
    expected = LocalEngine(model, tiny_side, chosen, seed=3, **TOKEN_BY_TOKEN).generate(asked)
    for way in ("skip", "all"):
        assert_same(LocalEngine(model, tiny_side, chosen, seed=3, **WAYS[way]).generate(asked), expected, atol=1e-6)


def test_held_to_the_format_is_the_librarys_own_where_that_stays_in_it(trained, token_by_token) -> None:
    model, side = trained
    asked, expected = token_by_token
    prefix = collate_prefix(asked, side.tokenizer.pad_token_id, side.image_token_id)
    ids = model.generate(
        input_ids=prefix.ids,
        attention_mask=prefix.mask.long(),
        pixel_values=prefix.pixel_values.double(),
        image_grid_thw=prefix.grid_thw,
        mm_token_type_ids=prefix.image_mask.int(),
        max_new_tokens=700,
        do_sample=False,
    )[:, prefix.ids.shape[1] :].tolist()
    end, compared = side.tokenizer.eos_token_id, 0
    for row, rollout in zip(ids, expected, strict=True):
        own = row[: row.index(end) + 1] if end in row else row
        if not parse_ids(own, side.tokenizer, side.vocab).dropped and end in own:
            assert rollout.ids.tolist() == own
            compared += 1
    assert compared > 0


def test_several_answers_read_the_image_once(trained) -> None:
    model, side = trained
    asked = scenes(side, 2)
    reads = []
    handle = model.model.visual.register_forward_pre_hook(lambda *_: reads.append(1))
    try:
        engine = LocalEngine(model, side, settings(temperature=1.0, batch_size=4), seed=7)
        several = engine.generate_several(asked, 3)
    finally:
        handle.remove()
    assert len(reads) == 1
    assert [[r.sample_id for r in answers] for answers in several] == [[q.sample_id] * 3 for q in asked]
    assert len({tuple(r.ids.tolist()) for r in several[0]}) == 3
    alone = LocalEngine(model, side, settings(temperature=1.0, batch_size=1), seed=7)
    assert_same([answers[0] for answers in several], alone.generate(asked), atol=1e-6)
    assert_same(several[0], alone.generate_several(asked[:1], 3)[0], atol=1e-6)


def test_answers_are_held_to_names_and_order(tiny_model, tiny_side) -> None:
    asked = [toy.encoder(tiny_side).question(s) for s in toy.ALL]

    def parsed(**options):
        chosen = settings(labels=LABELS, temperature=1.0, max_objects=6, **options)
        several = LocalEngine(tiny_model, tiny_side, chosen).generate_several(asked, 12)
        rollouts = [rollout for answers in several for rollout in answers]
        results = [parse_ids(r.ids.tolist(), tiny_side.tokenizer, tiny_side.vocab, LABELS) for r in rollouts]
        dropped = {status for result in results for status in result.dropped} - {ParseStatus.TRUNCATED}
        return rollouts, results, dropped

    rollouts, results, dropped = parsed()
    assert not dropped
    assert sum(len(result.objects) for result in results) > 4
    for rollout in rollouts:
        assert (rollout.logprobs_masked >= rollout.logprobs - 1e-4).all()
        assert (rollout.logprobs_masked == 0).any()
    assert parsed(ordered_boxes=False)[2] == {ParseStatus.INVERTED_BOX}


def test_forced_tokens_may_go_without_logprobs(trained, token_by_token) -> None:
    model, side = trained
    asked, expected = token_by_token
    for one, other in zip(
        LocalEngine(model, side, settings(forced_logprobs=False)).generate(asked), expected, strict=True
    ):
        assert one.ids.tolist() == other.ids.tolist()
        known = ~np.isnan(one.logprobs)
        assert 0.4 < known.mean() < 0.8
        assert_allclose(one.logprobs[known], other.logprobs[known], atol=1e-6)
        assert_allclose(one.logprobs_masked, other.logprobs_masked, atol=1e-6)
        assert_allclose(one.near_mass, other.near_mass, atol=1e-6)


def test_in_half_precision(trained) -> None:
    """Other shapes round differently there, so answers may differ; they are answers all the same."""
    model, side = trained
    half = copy.deepcopy(model).to(torch.bfloat16)
    for rollout in LocalEngine(half, side, settings()).generate(scenes(side, 3)):
        assert rollout.finish_reason is FinishReason.EOS
        assert not parse_ids(rollout.ids.tolist(), side.tokenizer, side.vocab).dropped
        assert np.isfinite(rollout.logprobs).all()


# With scripted answers: how many passes, and how runaway answers end.


def play(side, config, *scripts, **options):
    ways = {name: options.pop(name) for name in list(options) if name in ("skip", "guess", "refill")}
    model = Scripted([[*script, *[7] * 60] for script in scripts], side, config)
    return LocalEngine(model, side, settings(**options), **ways).generate(questions(len(scripts))), model.batch_sizes


@pytest.mark.parametrize(
    ("options", "passes"),
    [
        ({"skip": False, "guess": False}, 10),
        ({"guess": False}, 7),
        ({"guess": False, "labels": ("book", "person")}, 6),
        ({}, 4),
        ({"grammar": False}, 4),
    ],
)
def test_passes_for_an_object(tiny_side, tiny_model, options, passes) -> None:
    """What one more object of the same name costs, at a name of one token."""
    sizes = []
    for count in (5, 6):
        records = [("book", (10 * i, 5, 10 * i + 8, 90)) for i in range(count)]
        ids = tiny_side.renderer.render(records).ids.tolist()
        (rollout,), steps = play(tiny_side, tiny_model.config, ids, **options)
        assert rollout.ids.tolist() == ids
        sizes.append(len(steps))
    assert sizes[1] - sizes[0] == passes


def test_places_are_refilled(tiny_side, tiny_model) -> None:
    boxes = [(10 * i, 5, 10 * i + 8, 90) for i in range(20)]
    scripts = [
        tiny_side.renderer.render([("book", box) for box in boxes[:n]]).ids.tolist() for n in (20, 1, 2, 1, 3, 2, 1, 0)
    ]
    for refill in (True, False):
        rollouts, sizes = play(tiny_side, tiny_model.config, *scripts, batch_size=2, refill=refill)
        assert [r.ids.tolist() for r in rollouts] == scripts
        assert max(sizes) == 2
        assert (sum(size == 2 for size in sizes) > 0.4 * len(sizes)) == refill


@pytest.mark.parametrize("options", [{}, {"grammar": False}, {"skip": False}])
def test_the_same_record_again_and_again(tiny_side, tiny_model, options) -> None:
    same, other = ("book", (1, 2, 30, 40)), ("book", (1, 2, 30, 41))
    script = tiny_side.renderer.render([other, same, other, same, same, other, same, same]).ids.tolist()
    for repeats in (2, 3, 4):
        (rollout,), _ = play(tiny_side, tiny_model.config, script, max_repeats=repeats, **options)
        assert rollout.finish_reason is FinishReason.REPETITION
        parsed = parse_ids(rollout.ids.tolist(), tiny_side.tokenizer, tiny_side.vocab)
        assert sum(o.bins_xyxy == same[1] for o in parsed.objects) == repeats
        assert parsed.objects[-1].bins_xyxy == same[1]
        assert rollout.ids.tolist() == script[: len(rollout.ids)]
    (rollout,), _ = play(tiny_side, tiny_model.config, script, max_repeats=None, **options)
    assert rollout.finish_reason is FinishReason.EOS
    # It may close after the last one allowed.
    (rollout,), _ = play(tiny_side, tiny_model.config, script, max_repeats=5, **options)
    assert rollout.finish_reason is FinishReason.EOS


def test_a_format_that_cannot_be_held_to(tiny_model, tiny_side) -> None:
    broken = replace(tiny_side, renderer=replace(tiny_side.renderer, _pieces={", ": (5,)}))
    tokenizer = copy.copy(tiny_side.tokenizer)  # nothing has been built for this one
    broken = replace(broken, tokenizer=tokenizer)
    asked = [toy.encoder(tiny_side).question(toy.ONE)]
    with pytest.raises(UserError, match="joins pieces of the answer format"):
        LocalEngine(tiny_model, broken, settings()).generate(asked)
    # Without the grammar there is nothing to guess from, and all goes on as it did.
    free = settings(grammar=False, max_new_tokens=10)
    (one,), (other,) = (LocalEngine(tiny_model, s, free).generate(asked) for s in (broken, tiny_side))
    assert one.ids.tolist() == other.ids.tolist()
