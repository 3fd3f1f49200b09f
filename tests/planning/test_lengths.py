"""Tokens of samples: what the encoder of training makes of them, without opening an image or loading a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import text_files, without_weights, write_data
from PIL import Image

from apiece.config.schema import Config
from apiece.data.jsonl import read_jsonl
from apiece.errors import UserError
from apiece.model.encode import Augmentation, PromptTokens, SampleEncoder
from apiece.model.load import load_text_side
from apiece.model.prompt import PROMPTS, prompt_text
from apiece.planning.recipe import Length, Source, heaviest, micro_batches, work_of
from apiece.planning.shapes import TextShape, read_tokenizer
from apiece.train.batches import BatchPlan
from apiece.types import Role


def config_for(checkpoint: Path, data: Path, **settings: Any) -> Config:
    return Config.model_validate(
        {"model": {"checkpoint": str(checkpoint)}, "data": {"train": str(data), **settings}, "train": {"steps": 100}}
    )


@pytest.mark.parametrize("which", ["tiny_checkpoint", "narrow_checkpoint"])
def test_lengths_are_those_of_training(which: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    checkpoint: Path = request.getfixturevalue(which)
    data = write_data(tmp_path / "d.jsonl", [0, 1, 7, 3])
    for sample in (samples := read_jsonl(data)):
        Image.new("RGB", sample.size_wh).save(sample.image)
    config = config_for(checkpoint, data, max_pixels=8000)
    source = Source.of(config)
    side = load_text_side(str(checkpoint), config.data.max_pixels)
    encoder = SampleEncoder(side, PromptTokens.of(side, prompt_text("plain", None)), 10_000)
    for sample, length in zip(samples, source.lengths.each, strict=True):
        encoded = encoder.training(sample, Augmentation(), 0)
        answer = encoded.answer
        assert answer is not None
        assert length.grid == encoded.grid_thw
        assert length.image == int((encoded.prefix_ids == side.image_token_id).sum())
        assert length.prefix == len(encoded.prefix_ids)
        assert length.answer == len(answer.ids)
        assert length.names == int((answer.roles == Role.DESC).sum())
        assert 4 * length.objects == len(answer.slots)
        assert length.first_slot == (answer.slots.position[0] if len(answer.slots) else len(answer.ids) - 1)
    assert source.remarks == ()


def test_another_limit_of_pixels_is_as_if_read_again(tmp_path: Path, tiny_checkpoint: Path) -> None:
    data = write_data(tmp_path / "d.jsonl", [2, 0, 5], (160, 140))
    source = Source.of(config_for(tiny_checkpoint, data))
    assert source.under(4000) == Source.of(config_for(tiny_checkpoint, data, max_pixels=4000)).lengths
    assert source.under(4000) != source.lengths
    assert source.under(1 << 30) is source.lengths


@pytest.mark.parametrize("name", PROMPTS)
def test_prompts_are_those_of_the_library(name: str, tiny_checkpoint: Path, tiny_side: Any) -> None:
    text, real = TextShape.read(tiny_checkpoint), PromptTokens.of(tiny_side, PROMPTS[name])
    count = text.prompt_tokens(PROMPTS[name], tiny_side.image_token_id)
    assert count == len(real.before) + len(real.after)
    assert text.tokenizer.eos_token_id == tiny_side.tokenizer.eos_token_id
    with pytest.raises(UserError, match="expected the chat template to write one image placeholder, found 0"):
        text.prompt_tokens(PROMPTS[name], 10**6)


@pytest.mark.real_data
def test_qwen_tokens_without_coordinates(shared_data: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """As downloaded: an object costs what it costs once the coordinate tokens are there."""
    text_files(shared_data / "qwen3-tokenizer", tmp_path)
    (tmp_path / "chat_template.jinja").write_text((tiny_checkpoint / "chat_template.jinja").read_text())
    text = TextShape.read(tmp_path)
    assert (text.extended, text.size) == (False, 151_669 + 1000)
    one, two = (text.renderer.num_tokens(["book"] * count) for count in (1, 2))
    assert two - one == 24  # 25 with a name of two tokens
    text.renderer.check_desc("traffic light")


def test_missing_and_broken_files(tmp_path: Path, tiny_checkpoint: Path) -> None:
    folder = without_weights(tiny_checkpoint, tmp_path / "c")
    data = write_data(tmp_path / "d.jsonl", [1])
    (folder / "preprocessor_config.json").write_text('{"size": {}}')
    with pytest.raises(UserError, match=r"expected a limit of pixels at size\.longest_edge"):
        Source.of(config_for(folder, data))
    (folder / "preprocessor_config.json").unlink()
    assert "images are limited by data.max_pixels alone" in Source.of(config_for(folder, data)).remarks[0]
    (folder / "chat_template.jinja").write_text("{{ raise_exception('no') }}")
    with pytest.raises(UserError, match="the chat template cannot be applied"):
        Source.of(config_for(folder, data))
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match="has no chat template"):
        read_tokenizer(folder)
    for content, message in (("{bad", "broken JSON"), ("[]", "expected a JSON object"), ("{}", "found no `model`")):
        (folder / "tokenizer.json").write_text(content)
        with pytest.raises(UserError, match=message):
            read_tokenizer(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"tokenizer\.json is missing"):
        read_tokenizer(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "expected one image a line, found an empty file"),
        ('{"image": "a.png"}\n', "missing 'width'"),
        (json.dumps({"image": "a.png", "width": 64, "height": 64, "objects": []}) + "\n{\n", "not valid JSON"),
    ],
)
def test_data_that_cannot_be_planned(content: str, message: str, tmp_path: Path, tiny_checkpoint: Path) -> None:
    (tmp_path / "d.jsonl").write_text(content)
    with pytest.raises(UserError, match=message):
        Source.of(config_for(tiny_checkpoint, tmp_path / "d.jsonl"))


def test_crowds_are_left_out_and_long_samples_refused(tmp_path: Path, tiny_checkpoint: Path) -> None:
    data = write_data(tmp_path / "d.jsonl", [3, 1, 3])
    lengths = Source.of(config_for(tiny_checkpoint, data, max_objects=2)).lengths
    assert (lengths.lines, lengths.over, lengths.whole, len(lengths.each)) == (3, 2, True, 1)
    with pytest.raises(UserError, match="no image to train on: 2 read, 2 above"):
        Source.of(config_for(tiny_checkpoint, write_data(tmp_path / "e.jsonl", [3, 3]), max_objects=2))
    with pytest.raises(UserError, match=r"a sample needs \d+ tokens, the model takes 8192"):
        Source.of(config_for(tiny_checkpoint, write_data(tmp_path / "f.jsonl", [1000], (9999, 80)), max_objects=1000))


def test_only_the_first_lines_of_a_long_file_are_read(tmp_path: Path, tiny_checkpoint: Path) -> None:
    data = write_data(tmp_path / "d.jsonl", [1, 2, 3])
    measure = Source.of(config_for(tiny_checkpoint, data)).measure
    assert [(n.lines, n.whole) for n in (measure.read(data, 2), measure.read(data, 3))] == [(2, False), (3, True)]


def lengths_of(answers: list[int]) -> list[Length]:
    return [Length((1, 4, 4), 4, 2, answer, 1, 1, 3, (64, 64)) for answer in answers]


@pytest.mark.parametrize("ranks", [1, 2])
def test_micro_batches_are_those_of_training(ranks: int) -> None:
    answers = np.random.default_rng(0).integers(5, 200, 41).tolist()
    lengths, batch, micro = lengths_of(answers), 8, 4
    plan = BatchPlan([one.image + one.answer for one in lengths], batch, 2, seed=3)
    expected = []
    for rows in plan.epoch(0):
        for rank in range(ranks):
            own = rows[rank::ranks]
            expected += [sorted(answers[i] for i in own[k : k + micro]) for k in range(0, len(own), micro)]
    found = [sorted(one.answer for one in rows) for rows in micro_batches(lengths, batch, micro, 2, 3, ranks)]
    assert sorted(found) == sorted(expected)


def test_the_heaviest_micro_batch() -> None:
    lengths = lengths_of([5, 90, 30])
    assert [one.answer for one in heaviest(lengths, 2)] == [90, 30]
    assert [one.answer for one in heaviest(lengths, 5)] == [90, 30, 5, 90, 30]
    work = work_of(heaviest(lengths, 2), 1.5)
    assert (work.answer, work.prefix, work.slots, work.text_rows, work.padded) == (135, 6, 8, 112, False)
