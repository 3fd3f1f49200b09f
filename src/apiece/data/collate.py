"""Encoded samples to one batch: `[left-padded image + prompt][right-padded answer]`.

All samples share one cut between prompt and answer, so a prefix can be computed once for all.

Shapes: B samples, P prefix tokens, T answer tokens, S slots of the whole batch, V patches of the whole batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from apiece.types import ChannelName, Encoded, IntArray, Role, Sample


@dataclass(frozen=True, slots=True)
class EncodedSample:
    """One sample as tokens and patches."""

    sample_id: str
    prefix_ids: IntArray  # `[P]` image and prompt, placeholders expanded
    pixel_values: NDArray[np.float32]  # `[V, C]` patches
    grid_thw: tuple[int, int, int]  # patches by time, rows and columns
    answer: Encoded | None = None  # the target; `None` where the model generates the answer
    num_collapsed: int = 0  # objects left out because their box is thinner than a bin
    shown: Sample | None = None
    """The sample as its image shows it, after augmentation: size, objects in the order in which an answer names them,
    crowd regions last. `None` where there are no labels."""


Samples = list[EncodedSample]
"""A micro-batch that is not collated yet: Channel-B does that itself, when the model has answered."""


class _Movable:
    """A dataclass of tensors, which move to a device together."""

    __slots__ = ()

    def to(self, device: torch.device) -> Self:
        form: Any = self
        values = {f.name: getattr(form, f.name) for f in fields(form)}
        tensors = {name: v.to(device, non_blocking=True) for name, v in values.items() if isinstance(v, Tensor)}
        forms = {name: v.to(device) for name, v in values.items() if isinstance(v, _Movable)}
        moved: Self = replace(form, **tensors, **forms)
        return moved


@dataclass(frozen=True, slots=True)
class Prefix(_Movable):
    """The image-and-prompt half of a batch, left-padded."""

    ids: Tensor  # `[B, P]` token ids
    mask: Tensor  # `[B, P]` bool, false at padding
    image_mask: Tensor  # `[B, P]` bool, true at image placeholders
    pixel_values: Tensor  # `[V, C]` patches of all images
    grid_thw: Tensor  # `[B, 3]` patches by time, rows and columns


@dataclass(frozen=True, slots=True)
class BatchSlots(_Movable):
    """All slots of a batch; every tensor is `[S]`."""

    sample: Tensor  # row in the batch
    position: Tensor  # index in the answer
    coordinate: Tensor  # 0..3
    object: Tensor  # index of the object within the whole batch, ascending; four slots each
    target_bin: Tensor

    def __len__(self) -> int:
        return int(self.sample.shape[0])


@dataclass(frozen=True, slots=True)
class Redundant(_Movable):
    """R boxes that the model wrote and that are wrong no matter what is labelled."""

    sample: Tensor  # `[R]` row in the batch
    position: Tensor  # `[R]` index in the answer of the box's first coordinate token


@dataclass(frozen=True, slots=True)
class Batch(_Movable):
    """What one forward pass of training reads; answers are right-padded."""

    sample_ids: tuple[str, ...]
    prefix: Prefix
    answer_ids: Tensor  # `[B, T]`
    answer_mask: Tensor  # `[B, T]` bool, false at padding
    roles: Tensor  # `[B, T]` int8 of `Role`; -1 at padding
    slots: BatchSlots  # coordinate tokens that have a loss: all except those of written objects that no label matches
    object_group: Tensor  # `[N]` objects of one sample and name share a number
    supervised: Tensor  # `[B, T]` bool, text tokens that have a loss: all except those of objects that the model wrote
    num_collapsed: int = 0  # objects left out because their box is thinner than a bin
    channel: ChannelName = ChannelName.A  # prepared it, and makes its loss terms
    redundant: Redundant | None = None  # boxes that Channel-B charges for


def collate_prefix(samples: Sequence[EncodedSample], pad_id: int, image_token_id: int) -> Prefix:
    """Left-pad the prefixes of B samples and join their patches."""
    ids, mask = _pad([s.prefix_ids for s in samples], pad_id, left=True)
    return Prefix(
        ids=ids,
        mask=mask,
        image_mask=(ids == image_token_id) & mask,
        pixel_values=torch.from_numpy(np.concatenate([s.pixel_values for s in samples])),
        grid_thw=torch.tensor([s.grid_thw for s in samples]),
    )


def collate(samples: Sequence[EncodedSample], pad_id: int, image_token_id: int) -> Batch:
    """One batch of B samples with their labels as answers: Channel-A's."""
    answers: list[Encoded] = []
    for sample in samples:
        assert sample.answer is not None, f"sample {sample.sample_id} was encoded without its answer"
        answers.append(sample.answer)
    return _batch(samples, answers, [a.roles != Role.COORD for a in answers], pad_id, image_token_id)


def collate_targets(
    samples: Sequence[EncodedSample],
    answers: Sequence[Encoded],
    supervised: Sequence[NDArray[np.bool_]],
    committing: Sequence[IntArray],
    pad_id: int,
    image_token_id: int,
) -> Batch:
    """One batch of B samples with answers that the model began: Channel-B's.

    Args:
        samples: Images and prompts; their labels are not read.
        answers: One for each sample; slots are those of the coordinates that have a loss.
        supervised: `[T]` text tokens of each answer that have a loss.
        committing: `[R]` positions in each answer for `Redundant`.
        pad_id: The tokenizer's padding token.
        image_token_id: The placeholder that image features replace.
    """
    rows = np.repeat(np.arange(len(answers)), [len(c) for c in committing])
    redundant = Redundant(torch.from_numpy(rows), torch.from_numpy(np.concatenate(committing).astype(np.int64)))
    batch = _batch(samples, answers, supervised, pad_id, image_token_id)
    return replace(batch, channel=ChannelName.B, redundant=redundant)


def _batch(
    samples: Sequence[EncodedSample],
    answers: Sequence[Encoded],
    supervised: Sequence[NDArray[np.bool_]],
    pad_id: int,
    image_token_id: int,
) -> Batch:
    answer_ids, answer_mask = _pad([a.ids for a in answers], pad_id, left=False)
    roles, _ = _pad([a.roles for a in answers], -1, left=False)
    columns: list[tuple[Any, ...]] = []
    objects = 0
    for row, answer in enumerate(answers):
        s = answer.slots
        columns.append((np.full(len(s), row), s.position, s.coordinate, s.object + objects, s.target_bin))
        objects += len(s) // 4
    slots = BatchSlots(*(torch.from_numpy(np.concatenate(c).astype(np.int64)) for c in zip(*columns, strict=True)))
    return Batch(
        sample_ids=tuple(s.sample_id for s in samples),
        prefix=collate_prefix(samples, pad_id, image_token_id),
        answer_ids=answer_ids,
        answer_mask=answer_mask,
        roles=roles.to(torch.int8),
        slots=slots,
        object_group=_object_groups(answers),
        supervised=_pad(supervised, 0, left=False)[0].bool(),
        num_collapsed=sum(s.num_collapsed for s in samples),
    )


def _object_groups(answers: Sequence[Encoded]) -> Tensor:
    """`[N]`: a number for each (sample, name) pair; names are compared by their tokens."""
    numbers: dict[tuple[int, bytes], int] = {}
    groups = []
    for row, answer in enumerate(answers):
        coords = np.flatnonzero(answer.roles == Role.COORD)
        for end in answer.slots.position[::4].tolist():
            before = coords[coords < end]
            start = before[-1] + 1 if len(before) else 0
            names = answer.ids[start:end][answer.roles[start:end] == Role.DESC]
            groups.append(numbers.setdefault((row, names.tobytes()), len(numbers)))
    return torch.tensor(groups, dtype=torch.int64)


def _pad(rows: Sequence[NDArray[Any]], value: int, *, left: bool) -> tuple[Tensor, Tensor]:
    """Rows `[B, L]` padded with `value`, and the mask of what is real."""
    length = max(len(r) for r in rows)
    out = torch.full((len(rows), length), value, dtype=torch.int64)
    mask = torch.zeros((len(rows), length), dtype=torch.bool)
    for i, row in enumerate(rows):
        where = slice(length - len(row), None) if left else slice(0, len(row))
        out[i, where] = torch.from_numpy(row.astype(np.int64))
        mask[i, where] = True
    return out, mask
