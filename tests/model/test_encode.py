"""Prompts and samples as tokens: what the model is asked, and what it is taught to answer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import toy
from apiece.codec import parse_ids
from apiece.codec.vocab import decode_exact, encode_plain
from apiece.config.schema import ObjectOrder
from apiece.errors import UserError
from apiece.model.encode import Augmentation, PromptTokens
from apiece.model.prompt import COCO_80, PROMPTS, chat_prompt, prompt_hash, prompt_text
from apiece.types import Instance


def test_the_prompt_as_the_model_reads_it(tiny_side) -> None:
    assert chat_prompt(tiny_side.tokenizer, "Detect.") == (
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Detect.<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("instruction", [*PROMPTS.values(), "Détecte tout !", "one\ntwo"])
def test_a_prompt_has_one_image_and_expands_it(tiny_side, instruction) -> None:
    prompt = PromptTokens.of(tiny_side, instruction)
    image = tiny_side.image_token_id
    whole = encode_plain(tiny_side.tokenizer, chat_prompt(tiny_side.tokenizer, instruction))
    assert [*prompt.before, image, *prompt.after] == whole
    ids = prompt.prefix_ids(5, image)
    assert ids.dtype == np.int64
    assert (ids == image).sum() == 5
    assert ids.tolist() == [*prompt.before, *[image] * 5, *prompt.after]


def test_the_hash_tells_prompts_apart(tiny_side) -> None:
    hashes = {name: PromptTokens.of(tiny_side, text).hash for name, text in PROMPTS.items()}
    assert len(set(hashes.values())) == len(PROMPTS)
    assert hashes["plain"] == PromptTokens.of(tiny_side, PROMPTS["plain"]).hash
    assert hashes["plain"] != PromptTokens.of(tiny_side, PROMPTS["plain"] + " ").hash
    assert prompt_hash("a") == "ca978112ca1b"  # kept with checkpoints: it must not change


def test_named_prompts() -> None:
    assert all(desc in PROMPTS["coco_80"] for desc in COCO_80)
    assert len(set(COCO_80)) == 80
    assert prompt_text("plain", None) == PROMPTS["plain"]
    assert prompt_text("text", "Find cells.") == "Find cells."


@pytest.mark.parametrize("instruction", ["<|image_pad|>", "Compare <|vision_start|><|image_pad|><|vision_end|>"])
def test_a_second_image_in_the_prompt_is_refused(tiny_side, instruction) -> None:
    with pytest.raises(UserError) as caught:
        PromptTokens.of(tiny_side, instruction)
    assert str(caught.value) == (
        f"{tiny_side.path}: expected the chat template to write one image placeholder, found 2\n"
        "  fix: use the model's own chat_template, and an instruction without special tokens"
    )


def test_a_sample_as_tokens(tiny_side) -> None:
    encoded = toy.encoder(tiny_side).training(toy.TWO, toy.PLAIN, 0)
    question = toy.encoder(tiny_side).question(toy.TWO)
    assert question.answer is None
    assert_array_equal(encoded.prefix_ids, question.prefix_ids)
    assert_array_equal(encoded.pixel_values, question.pixel_values)
    assert encoded.sample_id == "two"
    pixels, grid = tiny_side.images.encode(toy.noise(toy.TWO.image))
    assert_array_equal(encoded.pixel_values, pixels)
    assert encoded.grid_thw == grid
    assert (encoded.prefix_ids == tiny_side.image_token_id).sum() == tiny_side.images.num_tokens((96, 72))
    text = decode_exact(tiny_side.tokenizer, encoded.answer.ids.tolist())
    assert text == (
        '{"objects": [{"desc": "zebra", "bbox_2d": [<|coord_16|>, <|coord_14|>, <|coord_312|>, <|coord_985|>]}, '
        '{"desc": "car", "bbox_2d": [<|coord_104|>, <|coord_291|>, <|coord_937|>, <|coord_846|>]}]}<|im_end|>'
    )


def answer(side, encoded) -> list[tuple[str, tuple[int, int, int, int]]]:
    return [(o.desc, o.bins_xyxy) for o in parse_ids(encoded.answer.ids.tolist(), side.tokenizer, side.vocab).objects]


def test_labels_may_come_in_any_order(tiny_side) -> None:
    shuffled = replace(toy.THREE, objects=toy.THREE.objects[::-1])
    encoder = toy.encoder(tiny_side)
    assert_array_equal(
        encoder.training(shuffled, toy.PLAIN, 0).answer.ids, encoder.training(toy.THREE, toy.PLAIN, 0).answer.ids
    )


def test_crowd_regions_are_not_taught_and_thin_boxes_are_counted(tiny_side) -> None:
    extra = (Instance("person", (0, 0, 70, 40), iscrowd=True), Instance("person", (5, 5, 5.001, 20)))
    encoded = toy.encoder(tiny_side).training(replace(toy.ONE, objects=(*extra, *toy.ONE.objects)), toy.PLAIN, 0)
    plain = toy.encoder(tiny_side).training(toy.ONE, toy.PLAIN, 0)
    assert_array_equal(encoded.answer.ids, plain.answer.ids)
    assert (encoded.num_collapsed, plain.num_collapsed) == (1, 0)


def test_a_random_order_is_a_function_of_seed_sample_and_epoch(tiny_side) -> None:
    many = toy.sample("many", (48, 48), *[("book", (4 * i, 0, 4 * i + 3, 40)) for i in range(12)])
    encoder = toy.encoder(tiny_side)

    def written(epoch: int, seed: int = 0, sample=many):
        return answer(tiny_side, encoder.training(sample, Augmentation(order=ObjectOrder.RANDOM, seed=seed), epoch))

    first = written(0)
    assert first == written(0)
    assert first != written(1)
    assert first != written(0, seed=1)
    assert first != written(0, sample=replace(many, id="other"))
    assert sorted(first) == sorted(written(1)) == answer(tiny_side, encoder.training(many, toy.PLAIN, 0))


def test_augmentation_is_a_function_of_seed_sample_and_epoch(tiny_side) -> None:
    encoder = toy.encoder(tiny_side)
    augment = Augmentation(flip=True, scale_jitter=0.3, seed=3)
    epochs = [encoder.training(toy.TWO, augment, epoch) for epoch in range(8)]
    again = [encoder.training(toy.TWO, augment, epoch) for epoch in range(8)]
    for one, other in zip(epochs, again, strict=True):
        assert_array_equal(one.answer.ids, other.answer.ids)
        assert_array_equal(one.pixel_values, other.pixel_values)
    assert len({tuple(e.answer.ids) for e in epochs}) > 4


def test_coordinates_to_read_are_moved_and_those_to_write_are_not(tiny_side) -> None:
    encoder = toy.encoder(tiny_side)
    inside = toy.sample("inside", (96, 72), ("car", (30, 31, 61, 41)), ("zebra", (40.5, 30, 60, 45)))
    plain = encoder.training(inside, toy.PLAIN, 0).answer
    slots, first = plain.slots, tiny_side.vocab.first_id
    box_N4 = slots.target_bin.reshape(-1, 4)
    side_S = np.tile(box_N4[:, 2:] - box_N4[:, :2], 2).reshape(-1)
    shares = []
    for epoch in range(200):
        moved = encoder.training(inside, Augmentation(context_jitter=0.3), epoch).answer
        assert_array_equal(moved.slots.target_bin, slots.target_bin)
        assert_array_equal(moved.roles, plain.roles)
        kept = np.delete(np.arange(len(plain.ids)), slots.position)
        assert_array_equal(moved.ids[kept], plain.ids[kept])
        read_S = moved.ids[slots.position] - first
        assert ((read_S >= 0) & (read_S < 1000)).all()
        shares.append((read_S - slots.target_bin) / side_S)
    # The deviation of one draw is uniform up to .3: sqrt(.3^2 / 3) over all of them.
    assert np.std(shares) == pytest.approx(0.173, rel=0.1)
    assert abs(np.mean(shares)) < 0.02


def test_half_of_the_images_are_mirrored_with_their_boxes(tiny_side) -> None:
    encoder, augment = toy.encoder(tiny_side), Augmentation(flip=True)
    plain = encoder.training(toy.ONE, toy.PLAIN, 0)
    seen = [encoder.training(toy.ONE, augment, epoch) for epoch in range(40)]
    as_is = [np.array_equal(e.pixel_values, plain.pixel_values) for e in seen]
    assert 10 <= sum(as_is) <= 30
    ((_, (x1, y1, x2, y2)),) = answer(tiny_side, plain)
    for encoded, same in zip(seen, as_is, strict=True):
        expected = (x1, y1, x2, y2) if same else (999 - x2, y1, 999 - x1, y2)
        assert answer(tiny_side, encoded) == [("person", expected)]


def test_an_answer_that_does_not_fit_is_refused(tiny_side) -> None:
    encoder = replace(toy.encoder(tiny_side), max_length=30)
    with pytest.raises(UserError) as caught:
        encoder.training(toy.THREE, toy.PLAIN, 0)
    needed = len(toy.encode(tiny_side, toy.THREE)[0].prefix_ids) + len(toy.encode(tiny_side, toy.THREE)[0].answer.ids)
    assert str(caught.value) == (
        f"three_48x48.png: sample three needs {needed} tokens, the model takes 30\n"
        "  fix: lower data.max_objects or data.max_pixels"
    )


def test_the_labels_go_with_the_image_as_it_is_shown(tiny_side) -> None:
    """Mirrored with it, in the order of the answer, crowd regions last."""
    crowd = Instance("book", (0.0, 0.0, 10.0, 48.0), iscrowd=True)
    sample = replace(toy.THREE, objects=(crowd, *toy.THREE.objects[::-1]))
    shown = [toy.encoder(tiny_side).training(sample, Augmentation(flip=True), epoch).shown for epoch in range(8)]
    boxes = {tuple(o.bbox_xyxy for o in s.objects) for s in shown if s is not None}
    assert boxes == {
        ((0, 0, 12, 48), (13, 0, 24, 48), (30, 5, 48, 20), (0, 0, 10, 48)),
        ((24, 0, 35, 48), (36, 0, 48, 48), (0, 5, 18, 20), (38, 0, 48, 48)),
    }
    assert all(s is not None and s.objects[-1].iscrowd and s.size_wh == (48, 48) for s in shown)
