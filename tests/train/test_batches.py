"""Batches: every sample once an epoch, of like length, no further from its place than asked; a function of the step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import small_config, small_scenes

from apiece.config.schema import Shuffle
from apiece.data.index import open_data
from apiece.data.jsonl import read_jsonl
from apiece.errors import UserError
from apiece.model.encode import Augmentation, PromptTokens, SampleEncoder
from apiece.train.batches import BatchPlan, sample_lengths
from apiece.train.setup import training_samples

LENGTHS = [5, 1, 4, 2, 3, 9, 7, 8, 6, 0, 11, 13, 12]
EVERY = [(Shuffle.FULL, 1), (Shuffle.BUFFER, 8), (Shuffle.BUFFER, 4), (Shuffle.BUFFER, 100), (Shuffle.NONE, 1)]


def plan(shuffle: Shuffle, buffer_size: int = 1, lengths: Any = LENGTHS, seed: int = 1) -> BatchPlan:
    return BatchPlan(lengths, 4, 2, seed, shuffle, buffer_size)


@pytest.mark.parametrize(("shuffle", "size"), EVERY)
@pytest.mark.parametrize(("start", "stop"), [(0, 7), (3, 7), (5, 21), (8, 8), (4, 5), (40, 43)])
def test_batches_are_a_function_of_the_step(shuffle: Shuffle, size: int, start: int, stop: int) -> None:
    everything = list(plan(shuffle, size).steps(0, 50))
    assert list(plan(shuffle, size).steps(start, stop)) == everything[start:stop]


@pytest.mark.parametrize(("shuffle", "size"), EVERY)
@pytest.mark.parametrize("count", [1, 3, 4, 5, 12, 13])
def test_an_epoch_draws_every_sample_and_fills_up_with_others(shuffle: Shuffle, size: int, count: int) -> None:
    made = plan(shuffle, size, LENGTHS[:count])
    for epoch in (0, 1):
        batches = list(made.epoch(epoch))
        assert len(batches) == made.batches_per_epoch and {len(batch) for batch in batches} == {4}
        drawn = np.bincount([i for batch in batches for i in batch], minlength=count)
        assert drawn.min() >= 1 and drawn.sum() == 4 * made.batches_per_epoch
        assert drawn.max() <= -(-4 // count) + 1


def test_a_full_shuffle_is_what_it_always_was() -> None:
    """Runs that were begun before there were others must resume."""
    rng = np.random.default_rng([1, 3])
    order = np.resize(rng.permutation(13), 16)
    windows = [window[np.argsort(np.array(LENGTHS)[window], kind="stable")] for window in (order[:8], order[8:])]
    batches = [window[i : i + 4].tolist() for window in windows for i in (0, 4)]
    assert list(plan(Shuffle.FULL).epoch(3)) == [batches[i] for i in rng.permutation(4)]


def test_without_shuffling_the_file_is_read_in_order() -> None:
    assert list(plan(Shuffle.NONE).epoch(5)) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 0, 1, 2]]


def test_a_block_holds_records_that_follow_each_other_and_every_epoch_cuts_others() -> None:
    made = BatchPlan([7] * 1000, 4, 2, 0, Shuffle.BUFFER, 80)
    fronts = set()
    for epoch in range(4):
        drawn = [i for batch in made.epoch(epoch) for i in batch]
        for block in (drawn[k : k + 80] for k in range(0, 960, 80)):
            assert len(set(block)) == 80
            assert len({(i + 1) % 1000 for i in block} - set(block)) == 1, "no gap but the end"
            assert block != sorted(block)
        fronts.add(min(drawn[:80]))
    assert len(fronts) == 4


def test_windows_of_a_block_are_sorted_by_length() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, 10_000, 4000)
    made = BatchPlan(lengths, 8, 50, 0, Shuffle.BUFFER, 800)
    spread = np.mean([np.ptp(lengths[batch]) for batch in made.epoch(0)])
    assert spread < 10_000 / 20


def test_the_seed_decides() -> None:
    for shuffle in (Shuffle.FULL, Shuffle.BUFFER):
        assert list(plan(shuffle, 8, seed=1).epoch(0)) == list(plan(shuffle, 8, seed=1).epoch(0))
        assert list(plan(shuffle, 8, seed=1).epoch(0)) != list(plan(shuffle, 8, seed=2).epoch(0))


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_scenes(tmp_path_factory.mktemp("scenes") / "s")


def encoder(side: Any, max_length: int = 4096) -> SampleEncoder:
    return SampleEncoder(side, PromptTokens.of(side, "Detect."), max_length)


def test_lengths_from_the_index_are_those_of_the_samples(scenes: Path, tiny_side: Any) -> None:
    made = encoder(tiny_side)
    samples = read_jsonl(scenes)
    encoded = [made.training(sample, Augmentation(), 0) for sample in samples]
    prompt = len(made.prompt.before) + len(made.prompt.after)
    expected = [len(e.prefix_ids) - prompt + len(e.answer.ids) for e in encoded]
    assert len(set(expected)) > 3
    records = open_data(scenes)
    assert sample_lengths(records, made).tolist() == expected
    chosen = np.array([5, 2, 7])
    assert sample_lengths(records.select(chosen), made).tolist() == [expected[i] for i in chosen]


def test_a_sample_that_does_not_fit_is_named(scenes: Path, tiny_side: Any) -> None:
    made = encoder(tiny_side)
    records = open_data(scenes)
    longest = int(np.argmax(made.lengths(records)))
    prompt = len(made.prompt.before) + len(made.prompt.after)
    limit = int(np.sort(made.lengths(records))[-2]) + prompt
    with pytest.raises(UserError, match=f"sample {records[longest].id} needs .* tokens, the model takes {limit}"):
        sample_lengths(records, encoder(tiny_side, limit))


def test_crowded_images_are_counted_from_the_index(tmp_path: Path, scenes: Path, tiny_side: Any) -> None:
    counts = [sum(not o.iscrowd for o in sample.objects) for sample in read_jsonl(scenes)]
    limit = sorted(counts)[len(counts) // 2]
    config = small_config(tmp_path, Path("tiny"), scenes, data__max_objects=limit)
    records, dropped = training_samples(config, tiny_side)
    assert dropped == sum(count > limit for count in counts) > 0
    assert [s.id for s in records] == [
        s.id for s, count in zip(read_jsonl(scenes), counts, strict=True) if count <= limit
    ]
