"""Batches: left-padded prefixes, right-padded answers, and slots that still point at their tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import toy
from apiece.data.collate import EncodedSample, collate, collate_prefix, collate_targets
from apiece.types import Encoded, Role, Slots

PAD, IMAGE = 0, 9


def encoded(name: str, prefix: list[int], objects: int, patches: int = 4) -> EncodedSample:
    """A sample whose answer is, by hand: 1, then four coordinates and 2 for each of its objects, then 3."""
    ids, roles, columns = [1], [Role.STRUCT], []
    for index in range(objects):
        for coordinate in range(4):
            columns.append((len(ids), coordinate, index, 100 * index + coordinate))
            ids.append(50 + coordinate)
            roles.append(Role.COORD)
        ids.append(2)
        roles.append(Role.DESC)
    slots = Slots(*np.array(columns, dtype=np.int64).reshape(-1, 4).T)
    answer = Encoded(np.array([*ids, 3]), np.array([*roles, Role.EOS], dtype=np.int8), slots)
    pixels = np.full((patches, 6), len(prefix), dtype=np.float32)
    return EncodedSample(name, np.array(prefix), pixels, (1, 2, patches // 2), answer, num_collapsed=objects)


A = encoded("a", [5, IMAGE, 6], objects=2)
B = encoded("b", [5, IMAGE, IMAGE, 6, 7], objects=0, patches=8)
C = encoded("c", [5, IMAGE, 6, 7], objects=1)


def test_prefixes_are_padded_on_the_left() -> None:
    prefix = collate_prefix([A, B, C], PAD, IMAGE)
    assert prefix.ids.tolist() == [[0, 0, 5, 9, 6], [5, 9, 9, 6, 7], [0, 5, 9, 6, 7]]
    assert prefix.mask.tolist() == [[False] * 2 + [True] * 3, [True] * 5, [False] + [True] * 4]
    assert prefix.image_mask.tolist() == (prefix.ids == 9).tolist()
    assert prefix.grid_thw.tolist() == [[1, 2, 2], [1, 2, 4], [1, 2, 2]]
    assert prefix.pixel_values[:, 0].tolist() == [3] * 4 + [5] * 8 + [4] * 4  # patches in the order of the samples
    assert (prefix.ids.dtype, prefix.pixel_values.dtype) == (torch.int64, torch.float32)


def test_padding_is_no_image_even_where_the_ids_are_equal() -> None:
    prefix = collate_prefix([A, B], IMAGE, IMAGE)
    assert prefix.image_mask.sum(1).tolist() == [1, 2]


def test_answers_are_padded_on_the_right() -> None:
    batch = collate([A, B, C], PAD, IMAGE)
    assert batch.sample_ids == ("a", "b", "c")
    assert batch.answer_ids.tolist() == [
        [1, 50, 51, 52, 53, 2, 50, 51, 52, 53, 2, 3],
        [1, 3, *[0] * 10],
        [1, 50, 51, 52, 53, 2, 3, *[0] * 5],
    ]
    assert batch.answer_mask.sum(1).tolist() == [12, 2, 7]
    assert batch.answer_mask[1].tolist() == [True] * 2 + [False] * 10
    assert batch.roles.dtype == torch.int8
    assert (batch.roles[~batch.answer_mask] == -1).all()
    assert batch.roles[2, :7].tolist() == [Role.STRUCT, *[Role.COORD] * 4, Role.DESC, Role.EOS]


def test_slots_point_at_their_tokens_and_objects_are_numbered_through() -> None:
    batch = collate([A, B, C], PAD, IMAGE)
    slots = batch.slots
    assert len(slots) == 12
    assert slots.sample.tolist() == [0] * 8 + [2] * 4
    assert slots.object.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert slots.coordinate.tolist() == [0, 1, 2, 3] * 3
    assert slots.position.tolist() == [1, 2, 3, 4, 6, 7, 8, 9, 1, 2, 3, 4]
    assert slots.target_bin.tolist() == [0, 1, 2, 3, 100, 101, 102, 103, 0, 1, 2, 3]
    assert (batch.answer_ids[slots.sample, slots.position] == 50 + slots.coordinate).all()
    assert (batch.roles == Role.COORD).sum() == 12


def test_collapsed_objects_are_counted() -> None:
    assert collate([A, B, C], PAD, IMAGE).num_collapsed == 3


def test_no_objects_at_all() -> None:
    batch = collate([B], PAD, IMAGE)
    assert len(batch.slots) == 0
    assert batch.slots.position.dtype == torch.int64
    assert batch.answer_ids.tolist() == [[1, 3]]


def test_an_answer_is_needed(tiny_side) -> None:
    with pytest.raises(AssertionError, match="sample one was encoded without its answer"):
        collate([toy.encoder(tiny_side).question(toy.ONE)], PAD, IMAGE)


def test_moving_keeps_everything() -> None:
    batch = collate([A, B, C], PAD, IMAGE)
    moved = batch.to(torch.device("meta"))
    for part, other in ((batch, moved), (batch.prefix, moved.prefix), (batch.slots, moved.slots)):
        for name in part.__dataclass_fields__:
            value = getattr(part, name)
            if isinstance(value, torch.Tensor):
                assert getattr(other, name).device.type == "meta", name
                assert getattr(other, name).shape == value.shape, name
    assert moved.sample_ids == batch.sample_ids
    assert moved.num_collapsed == batch.num_collapsed


def test_real_samples(tiny_side) -> None:
    batch = toy.batch(tiny_side, *toy.ALL)
    vocab = tiny_side.vocab
    assert torch.equal(
        batch.answer_ids[batch.slots.sample, batch.slots.position] - vocab.first_id, batch.slots.target_bin
    )
    merge = tiny_side.images.processor.merge_size
    assert batch.prefix.image_mask.sum() * merge**2 == len(batch.prefix.pixel_values)
    assert batch.prefix.grid_thw.prod(1).sum() == len(batch.prefix.pixel_values)


def test_all_text_has_a_loss_where_the_answers_are_the_labels() -> None:
    batch = collate([A, B, C], PAD, IMAGE)
    assert torch.equal(batch.supervised, batch.answer_mask & (batch.roles != Role.COORD))
    assert (batch.channel, batch.redundant) == ("a", None)


def test_answers_that_a_model_has_begun_take_the_place_of_the_labels() -> None:
    """The second of the first answer's two boxes has a loss, its last name too; the first box is charged."""
    batch = collate([A, B], PAD, IMAGE)
    assert A.answer is not None
    assert B.answer is not None
    slots = A.answer.slots
    own = Encoded(
        A.answer.ids,
        A.answer.roles,
        Slots(slots.position[4:], slots.coordinate[4:], slots.object[:4], slots.target_bin[4:]),
    )
    text = np.zeros(12, dtype=bool)
    text[10] = True
    none = np.zeros(0, dtype=np.int64)
    text_of_both, charged = [text, np.ones(2, dtype=bool)], [np.array([1]), none]
    made = collate_targets([A, B], [own, B.answer], text_of_both, charged, PAD, IMAGE)
    for name in batch.prefix.__dataclass_fields__:
        assert torch.equal(getattr(made.prefix, name), getattr(batch.prefix, name)), name
    assert (made.channel, made.sample_ids, made.num_collapsed) == ("b", batch.sample_ids, batch.num_collapsed)
    assert made.slots.position.tolist() == [6, 7, 8, 9]
    assert made.supervised.nonzero().tolist() == [[0, 10], [1, 0], [1, 1]]
    assert made.redundant is not None
    assert (made.redundant.sample.tolist(), made.redundant.position.tolist()) == ([0], [1])
    moved = made.to(torch.device("meta"))
    assert moved.redundant is not None
    assert {moved.supervised.device.type, moved.redundant.sample.device.type} == {"meta"}


def test_objects_are_grouped_by_their_own_names_beside_others(tiny_side) -> None:
    """A record without slots before an object does not lend it its name."""
    renderer = tiny_side.renderer
    boxes = (1, 2, 3, 4)
    whole = renderer.render([("book", boxes), ("person", boxes), ("book", boxes)])
    slots = whole.slots
    keep = slots.object != 1
    part = Encoded(
        whole.ids,
        whole.roles,
        Slots(slots.position[keep], slots.coordinate[keep], slots.object[keep] // 2, slots.target_bin[keep]),
    )
    sample = toy.encode(tiny_side, toy.ONE)[0]
    text, none = [np.zeros(len(part.ids), dtype=bool)], [np.zeros(0, dtype=np.int64)]
    made = collate_targets([sample], [part], text, none, PAD, tiny_side.image_token_id)
    assert made.object_group.tolist() == [0, 0]
