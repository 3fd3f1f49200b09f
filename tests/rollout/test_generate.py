"""Generation: the ids of the library's own `generate`, honest log-probabilities, and every way to end.

What answers are held to, and that it is exact, is in `test_skipping.py`.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from scripted import Scripted, questions
from torch import nn

import toy
from apiece.codec import CoordVocab, Renderer, parse_ids, render_text
from apiece.codec.vocab import encode_plain
from apiece.config.schema import GenerateSection
from apiece.data.collate import collate, collate_prefix
from apiece.rollout.choose import near_mass
from apiece.rollout.generate import LocalEngine
from apiece.types import Encoded, FinishReason, ParseStatus, Role, Slots

STEPS = 12
RECORDS = [("person", (1, 2, 30, 40)), ("hot dog", (5, 6, 70, 80)), ("book", (0, 0, 999, 999))]
EMPTY = Slots(*[np.zeros(0, dtype=np.int64)] * 4)


def settings(**values) -> GenerateSection:
    return GenerateSection.model_validate({"max_new_tokens": STEPS, "grammar": False} | values)


def ask(side, *samples):
    return [toy.encoder(side).question(s) for s in samples]


def with_early_ends(model, side):
    """A copy whose end token is just likely enough that some of the toy answers end early, at different steps."""
    prefix = collate_prefix(ask(side, *toy.ALL), side.tokenizer.pad_token_id, side.image_token_id)
    out = library_generate(model, prefix, output_logits=True, return_dict_in_generate=True)
    logits = torch.stack(out.logits, dim=1)
    eos = side.tokenizer.eos_token_id
    gap = (logits.amax(-1) - logits[..., eos]).amin(1)  # by row: how far the end token is from being written
    return biased(model, eos, float(gap.sort().values[1:3].mean()))


def biased(model, token: int, bias: float):
    class Biased(nn.Module):
        def __init__(self, head):
            super().__init__()
            self.head = head

        def forward(self, hidden):
            logits = self.head(hidden)
            return logits + bias * nn.functional.one_hot(torch.tensor(token), logits.shape[-1])

    out = copy.deepcopy(model)
    out.lm_head = Biased(out.lm_head)
    return out


def library_generate(model, prefix, **options):
    return model.generate(
        input_ids=prefix.ids,
        attention_mask=prefix.mask.long(),
        pixel_values=prefix.pixel_values,
        image_grid_thw=prefix.grid_thw,
        mm_token_type_ids=prefix.image_mask.int(),
        max_new_tokens=STEPS,
        do_sample=False,
        **options,
    )


@pytest.fixture(scope="module")
def ending(model_and_side):
    """A model some of whose toy answers end early, and its text side."""
    model, side = model_and_side
    return with_early_ends(model, side), side


@pytest.fixture(scope="module")
def rollouts(ending):
    model, side = ending
    return LocalEngine(model, side, settings()).generate(ask(side, *toy.ALL))


def test_greedy_is_the_librarys_own(ending, rollouts) -> None:
    """A ragged batch, left-padded, with rows that end at different steps."""
    model, side = ending
    prefix = collate_prefix(ask(side, *toy.ALL), side.tokenizer.pad_token_id, side.image_token_id)
    assert not bool(prefix.mask.all())
    ids = library_generate(model, prefix)[:, prefix.ids.shape[1] :].tolist()
    eos = side.tokenizer.eos_token_id
    expected = [row[: row.index(eos) + 1] if eos in row else row for row in ids]
    assert len({len(row) for row in expected}) > 1
    assert [r.ids.tolist() for r in rollouts] == expected
    assert [r.sample_id for r in rollouts] == [s.id for s in toy.ALL]
    reasons = [FinishReason.EOS if row[-1] == eos else FinishReason.LENGTH for row in expected]
    assert [r.finish_reason for r in rollouts] == reasons
    assert set(reasons) == {FinishReason.EOS, FinishReason.LENGTH}
    for rollout in rollouts:
        assert rollout.text == side.tokenizer.decode(rollout.ids, skip_special_tokens=False)


def test_logprobs_are_those_of_a_teacher_forced_pass(ending, rollouts) -> None:
    model, side = ending
    encoded = []
    for question, rollout in zip(ask(side, *toy.ALL), rollouts, strict=True):
        roles = np.full(len(rollout.ids), Role.STRUCT, dtype=np.int8)
        encoded.append(replace(question, answer=Encoded(rollout.ids, roles, EMPTY)))
    batch = collate(encoded, side.tokenizer.pad_token_id, side.image_token_id)
    with torch.no_grad():
        logprobs = model.lm_head(toy.answer_hidden(model, batch)).log_softmax(-1)
    chosen = logprobs.gather(2, batch.answer_ids[..., None])[..., 0]
    for row, rollout in enumerate(rollouts):
        assert rollout.logprobs.dtype == np.float32
        assert len(rollout.logprobs) == len(rollout.ids)
        assert_allclose(rollout.logprobs, chosen[row, : len(rollout.ids)], atol=1e-4)


def test_mass_near_a_coordinate_token_is_that_of_five_bins() -> None:
    vocab = CoordVocab(first_id=10, num_bins=8)
    probability = torch.arange(1, 21) / 210  # id i has (i + 1) / 210: two more ids after the last bin
    ids = [9, 10, 11, 13, 16, 17, 18]
    found = near_mass(torch.tensor(ids), probability.log().expand(len(ids), -1), vocab)
    # Bins beyond the first and the last are not there: text tokens beside them do not count.
    expected = [
        np.nan,
        11 + 12 + 13,
        11 + 12 + 13 + 14,
        12 + 13 + 14 + 15 + 16,
        15 + 16 + 17 + 18,
        16 + 17 + 18,
        np.nan,
    ]
    assert_allclose(found.numpy() * 210, expected, rtol=1e-5)


def test_masses_belong_to_coordinate_tokens_and_are_at_least_the_tokens_own(ending, rollouts) -> None:
    _, side = ending
    coords = 0
    for rollout in rollouts:
        is_coord = np.array([side.vocab.bin_of(token) is not None for token in rollout.ids.tolist()])
        assert rollout.near_mass is not None
        assert rollout.near_mass.dtype == np.float32
        assert (np.isnan(rollout.near_mass) == ~is_coord).all()
        own = np.exp(rollout.logprobs[is_coord])
        assert (rollout.near_mass[is_coord] >= own * (1 - 1e-5)).all()
        assert (rollout.near_mass[is_coord] <= 1 + 1e-5).all()
        coords += int(is_coord.sum())
    assert coords > 0


@pytest.mark.parametrize("temperature", [0.0, 1.0], ids=["greedy", "sampled"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_answers_do_not_depend_on_the_batch(ending, batch_size, temperature) -> None:
    model, side = ending
    samples = [*toy.ALL[::-1], toy.sample("four", (48, 72))]
    whole = LocalEngine(model, side, settings(batch_size=16, temperature=temperature), seed=5)
    small = LocalEngine(model, side, settings(batch_size=batch_size, temperature=temperature), seed=5)
    expected = {r.sample_id: r for r in whole.generate(ask(side, *samples))}
    assert list(expected) == [s.id for s in samples]  # in the order asked
    for rollout in small.generate(ask(side, *samples[1:])):
        other = expected[rollout.sample_id]
        assert rollout.ids.tolist() == other.ids.tolist()
        assert rollout.finish_reason is other.finish_reason
        assert_allclose(rollout.logprobs, other.logprobs, atol=1e-4)
        assert_allclose(rollout.near_mass, other.near_mass, atol=1e-4)


def test_sampling_is_seeded_by_run_and_sample(tiny_model, tiny_side) -> None:
    def ids(seed: int, sample) -> list[int]:
        engine = LocalEngine(tiny_model, tiny_side, settings(temperature=1.0), seed=seed)
        return engine.generate(ask(tiny_side, sample))[0].ids.tolist()

    assert ids(0, toy.ONE) == ids(0, toy.ONE)
    assert ids(0, toy.ONE) != ids(1, toy.ONE)
    renamed = replace(toy.ONE, id="renamed")  # the same picture
    assert ids(0, toy.ONE) != ids(0, renamed)


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_samples_follow_the_distribution(tiny_model, tiny_side, temperature) -> None:
    """Every step has the same known distribution; its log-probabilities are told at temperature 1."""
    weights = torch.tensor([0.5, 0.3, 0.15, 0.05])
    logits = torch.full((tiny_side.vocab.end_id,), -1e4)
    logits[300:304] = weights.log()

    class Constant(nn.Module):
        def forward(self, hidden):
            return logits.expand(*hidden.shape[:-1], -1)

    model = Scripted([[300] * 400] * 4, tiny_side, tiny_model.config)
    model.lm_head, model.check = Constant(), False
    engine = LocalEngine(model, tiny_side, settings(temperature=temperature, max_new_tokens=400, max_repeats=None))
    rollouts = engine.generate(questions(4))
    ids = np.concatenate([r.ids for r in rollouts])
    expected = weights ** (1 / temperature) / (weights ** (1 / temperature)).sum()
    shares = [(ids == 300 + i).mean() for i in range(4)]
    assert_allclose(shares, expected, atol=0.05)
    assert_allclose(np.concatenate([r.logprobs for r in rollouts]), weights.log().numpy()[ids - 300], atol=1e-5)


# How answers end: with scripted answers, on both tokenizers.


@pytest.fixture(scope="module", params=["tiny", pytest.param("qwen3", marks=pytest.mark.real_data)])
def side(request, tiny_side):
    """A text side: the tiny one, or one with the real tokenizer of Qwen3, where brackets are tokens of their own."""
    if request.param == "tiny":
        return tiny_side
    tokenizer = request.getfixturevalue("qwen3_tokenizer")
    vocab = CoordVocab.of(tokenizer)
    return replace(tiny_side, tokenizer=tokenizer, vocab=vocab, renderer=Renderer(tokenizer, vocab))


@pytest.fixture(params=["free", "held", "token by token"])
def ways(request):
    """Ways to write that must not matter: held to the format or not, and every token by itself."""
    return {"grammar": request.param == "held", "skip": request.param != "token by token"}


def play(side, config, *scripts: list[int], lengths=None, skip=True, **options):
    model = Scripted([[*script, *[7] * 60] for script in scripts], side, config)
    engine = LocalEngine(model, side, settings(**({"max_new_tokens": 300} | options)), skip=skip)
    return engine.generate(questions(len(scripts), lengths)), model.batch_sizes


def script(side, text: str) -> list[int]:
    return encode_plain(side.tokenizer, text)


def read(side, rollout):
    return parse_ids(rollout.ids.tolist(), side.tokenizer, side.vocab)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_an_answer_that_ends_by_itself(side, tiny_model, ways, count) -> None:
    ids = side.renderer.render(RECORDS[:count]).ids.tolist()
    (rollout,), _ = play(side, tiny_model.config, ids, **ways, max_new_tokens=300, max_objects=3)
    assert rollout.finish_reason is FinishReason.EOS
    assert rollout.ids.tolist() == ids
    assert rollout.text == render_text(RECORDS[:count]) + side.tokenizer.eos_token
    assert_allclose(rollout.logprobs, 0, atol=1e-5)
    assert read(side, rollout).closed


def test_an_answer_that_is_too_long(side, tiny_model, ways) -> None:
    ids = side.renderer.render(RECORDS).ids.tolist()
    for limit in (1, len(ids) - 1):
        (rollout,), _ = play(side, tiny_model.config, ids, **ways, max_new_tokens=limit)
        assert rollout.finish_reason is FinishReason.LENGTH
        assert rollout.ids.tolist() == ids[:limit]
    # With room for exactly all of it, it has ended by itself.
    (rollout,), _ = play(side, tiny_model.config, ids, **ways, max_new_tokens=len(ids))
    assert rollout.finish_reason is FinishReason.EOS


@pytest.mark.parametrize("cap", [1, 2])
def test_an_answer_with_too_many_objects(side, tiny_model, ways, cap) -> None:
    ids = side.renderer.render(RECORDS).ids.tolist()
    (rollout,), _ = play(side, tiny_model.config, ids, **ways, max_new_tokens=300, max_objects=cap)
    assert rollout.finish_reason is FinishReason.OBJECT_CAP
    assert rollout.ids.tolist() == ids[: len(rollout.ids)]
    parsed = read(side, rollout)
    assert [(o.desc, o.bins_xyxy) for o in parsed.objects] == RECORDS[:cap]
    # It is ended by the first token that goes on to another record.
    assert parsed.dropped == {ParseStatus.TRUNCATED: 1}
    end = render_text(RECORDS[:cap])[: -len("]}")]
    assert rollout.text.startswith(end)
    assert ', {"desc": "'.startswith(rollout.text[len(end) :])


def test_an_answer_at_the_cap_may_still_close(side, tiny_model) -> None:
    ids = side.renderer.render(RECORDS).ids.tolist()
    (rollout,), _ = play(side, tiny_model.config, ids, max_new_tokens=300, max_objects=3)
    assert rollout.finish_reason is FinishReason.EOS
    # But not go on after it.
    (rollout,), _ = play(side, tiny_model.config, [*ids[:-1], 7, 7], max_new_tokens=300, max_objects=3)
    assert rollout.finish_reason is FinishReason.OBJECT_CAP
    assert rollout.ids.tolist() == [*ids[:-1], 7]


def test_endless_coordinates_are_capped(side, tiny_model) -> None:
    ids = [side.vocab.token_id(k) for k in range(60)]
    (rollout,), _ = play(side, tiny_model.config, ids, max_new_tokens=50, max_objects=2)
    assert rollout.finish_reason is FinishReason.OBJECT_CAP
    assert rollout.ids.tolist() == ids[:9]


def test_rows_that_have_ended_cost_nothing_more(side, tiny_model) -> None:
    """Rows of one batch end one by one, in any order: the others go on undisturbed, in a smaller batch."""
    scripts = [side.renderer.render(RECORDS[:n]).ids.tolist() for n in (2, 0, 3, 1)]
    rollouts, sizes = play(side, tiny_model.config, *scripts, max_new_tokens=300)
    assert [r.ids.tolist() for r in rollouts] == scripts
    assert [r.finish_reason for r in rollouts] == [FinishReason.EOS] * 4
    assert sizes == sorted(sizes, reverse=True)
    rollouts, sizes = play(side, tiny_model.config, *scripts, max_new_tokens=300, skip=False)
    assert [r.ids.tolist() for r in rollouts] == scripts
    lengths = [len(s) for s in scripts]
    assert sizes == [sum(n > step for n in lengths) for step in range(1, max(lengths))]


def test_batches_are_of_like_length_and_answers_in_order(side, tiny_model) -> None:
    scripts = [side.renderer.render(RECORDS[:n]).ids.tolist() for n in (3, 1, 0, 2, 1)]
    rollouts, sizes = play(side, tiny_model.config, *scripts, lengths=[9, 2, 7, 3, 8], max_new_tokens=300, batch_size=2)
    assert [r.ids.tolist() for r in rollouts] == scripts
    assert [r.sample_id for r in rollouts] == [f"q{i}" for i in range(5)]
    assert max(sizes) == 2


def test_no_questions(tiny_model, tiny_side) -> None:
    assert LocalEngine(tiny_model, tiny_side, settings()).generate([]) == []
