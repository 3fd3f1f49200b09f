"""Tokens of samples: what the encoder of training makes of them, without opening an image or loading a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import text_files, without_weights, write_data
from PIL import Image

from apiece.config.schema import Config, Shuffle
from apiece.data.jsonl import read_jsonl
from apiece.errors import UserError
from apiece.model.encode import Augmentation, PromptTokens, SampleEncoder
from apiece.model.load import load_text_side
from apiece.model.prompt import prompt_text
from apiece.planning.lengths import Lengths, PlanInput
from apiece.train.batches import BatchPlan
from apiece.types import Role


def config_for(checkpoint: Path, data: Path, **settings: Any) -> Config:
    return Config.model_validate(
        {"model": {"checkpoint": str(checkpoint)}, "data": {"train": str(data), **settings}, "train": {"steps": 100}}
    )


def lengths_for(checkpoint: Path, data: Path, **settings: Any) -> Lengths:
    config = config_for(checkpoint, data, **settings)
    return PlanInput.of(config).lengths(config.data.max_pixels)


@pytest.mark.parametrize("which", ["tiny_checkpoint", "narrow_checkpoint"])
def test_lengths_are_those_of_training(which: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    checkpoint: Path = request.getfixturevalue(which)
    data = write_data(tmp_path / "d.jsonl", [0, 1, 7, 3, 0])
    for sample in (samples := read_jsonl(data)):
        Image.new("RGB", sample.size_wh).save(sample.image)
    config = config_for(checkpoint, data, max_pixels=8000)
    source = PlanInput.of(config)
    lengths = source.lengths(8000)
    side = load_text_side(str(checkpoint), config.data.max_pixels)
    encoder = SampleEncoder(side, PromptTokens.of(side, prompt_text("plain", None)), 10_000)
    for i, sample in enumerate(samples):
        encoded = encoder.training(sample, Augmentation(), 0)
        answer = encoded.answer
        assert answer is not None
        work = lengths.work(np.array([i]))
        assert work.grids == (encoded.grid_thw,)
        assert lengths.image[i] == int((encoded.prefix_ids == side.image_token_id).sum())
        assert work.prefix == len(encoded.prefix_ids)
        assert work.answer == len(answer.ids)
        assert work.name_rows == int((answer.roles == Role.DESC).sum())
        assert work.slots == len(answer.slots)
        assert work.text_rows == work.answer - work.slots
        assert work.first_slot == (answer.slots.position[0] if len(answer.slots) else len(answer.ids) - 1)
        assert lengths.total[i] == work.prefix + work.answer
    assert source.remarks == ()


def test_another_limit_of_pixels_is_as_if_read_again(tmp_path: Path, tiny_checkpoint: Path) -> None:
    data = write_data(tmp_path / "d.jsonl", [2, 0, 5], (160, 140))
    source = PlanInput.of(config_for(tiny_checkpoint, data))
    smaller, again = source.lengths(4000), lengths_for(tiny_checkpoint, data, max_pixels=4000)
    assert (smaller.grids == again.grids).all() and (smaller.image == again.image).all()
    assert (smaller.image < source.lengths(1 << 30).image).all()
    assert (smaller.answer == source.lengths(1 << 30).answer).all()


@pytest.mark.real_data
def test_qwen_tokens_without_coordinates(shared_data: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """As downloaded: an object costs what it costs once the coordinate tokens are there."""
    folder = without_weights(tiny_checkpoint, tmp_path / "c")
    text_files(shared_data / "qwen3-tokenizer", folder)
    one = (folder / "config.json").read_text()
    (folder / "config.json").write_text(one.replace('"image_token_id": ', '"image_token_id": 151655, "_": '))
    data = write_data(tmp_path / "d.jsonl", [1, 2])
    source = PlanInput.of(config_for(folder, data))
    assert source.shape.text.vocab_size == 152_704  # 151,669 and 1,000 tokens, padded
    assert "planned as after `apiece model extend`, with 152,704 rows" in source.remarks[0]
    first, second = source.lengths(1 << 30).answer
    assert second - first == 24  # the second name is one token


def test_missing_and_broken_files(tmp_path: Path, tiny_checkpoint: Path) -> None:
    folder = without_weights(tiny_checkpoint, tmp_path / "c")
    config = config_for(folder, write_data(tmp_path / "d.jsonl", [1]))
    (folder / "chat_template.jinja").write_text("{{ raise_exception('no') }}")
    with pytest.raises(UserError, match="the chat template cannot be applied"):
        PlanInput.of(config)
    for name in ("preprocessor_config.json", "tokenizer.json"):
        (folder / name).unlink()
        with pytest.raises(UserError, match=f"{name} is missing from the checkpoint"):
            PlanInput.of(config)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "expected one image a line, found an empty file"),
        ('{"image": "a.png"}\n', "missing 'width'"),
        ('{"image": "a.png", "width": 64, "height": 64, "objects": []}\n{\n', "not valid JSON"),
    ],
)
def test_data_that_cannot_be_planned(content: str, message: str, tmp_path: Path, tiny_checkpoint: Path) -> None:
    (tmp_path / "d.jsonl").write_text(content)
    with pytest.raises(UserError, match=message):
        PlanInput.of(config_for(tiny_checkpoint, tmp_path / "d.jsonl"))


def test_crowds_are_left_out_and_long_samples_refused(tmp_path: Path, tiny_checkpoint: Path) -> None:
    source = PlanInput.of(config_for(tiny_checkpoint, write_data(tmp_path / "d.jsonl", [3, 1, 3]), max_objects=2))
    assert (source.dropped, source.lengths(1 << 30).objects.tolist()) == (2, [1])
    with pytest.raises(UserError, match="no image to train on: 2 read, 2 above"):
        PlanInput.of(config_for(tiny_checkpoint, write_data(tmp_path / "e.jsonl", [3, 3]), max_objects=2))
    with pytest.raises(UserError, match=r"needs \d+ tokens, the model takes 8192"):
        data = write_data(tmp_path / "f.jsonl", [1000], (9999, 80))
        PlanInput.of(config_for(tiny_checkpoint, data, max_objects=1000))


def lengths_of(answers: list[int]) -> Lengths:
    one = np.ones(len(answers), dtype=np.int64)
    return Lengths(np.stack([4 * one, 4 * one], 1), 4 * one, 2, np.array(answers), one, one, 3 * one)


@pytest.mark.parametrize("ranks", [1, 2])
def test_micro_batches_are_those_of_training(ranks: int) -> None:
    answers = np.random.default_rng(0).integers(5, 200, 41).tolist()
    lengths, batch, micro = lengths_of(answers), 8, 4
    expected = []
    for rows in BatchPlan([4 + one for one in answers], batch, 2, seed=3).epoch(0):
        for rank in range(ranks):
            own = rows[rank::ranks]
            expected += [lengths.work(np.array(own[k : k + micro])) for k in range(0, len(own), micro)]
    found = lengths.sampled(batch, micro, ranks, 2, 3, Shuffle.FULL, 1)
    assert sorted(map(str, found)) == sorted(map(str, expected))


def test_the_heaviest_micro_batch() -> None:
    lengths = lengths_of([5, 90, 30])
    assert lengths.heaviest(2) == lengths.work(np.array([1, 2]))
    assert lengths.heaviest(5) == lengths.work(np.array([1, 2, 0, 1, 2]))
    work = lengths.heaviest(2).longer(1.5)
    assert (work.answer, work.prefix, work.slots, work.text_rows, work.padded) == (135, 6, 8, 112, False)
