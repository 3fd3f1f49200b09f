"""Encoded samples to one batch: `[left-padded image + prompt][right-padded answer]`.

All samples share one cut between prompt and answer, so a prefix can be computed once for all.

Shapes: B samples, P prefix tokens, T answer tokens, S slots of the whole batch, V patches of the whole batch.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from apiece.types import Encoded, IntArray, Role


@dataclass(frozen=True, slots=True)
class EncodedSample:
    """One sample as tokens and patches.

    Attributes:
        sample_id: Of the sample.
        prefix_ids: `[P]` image and prompt, placeholders expanded.
        pixel_values: `[V, C]` float32 patches.
        grid_thw: Patches by time, rows and columns.
        answer: The target; `None` where an answer is to be generated.
        num_collapsed: Objects left out because their box is thinner than a bin.
    """

    sample_id: str
    prefix_ids: IntArray
    pixel_values: NDArray[np.float32]
    grid_thw: tuple[int, int, int]
    answer: Encoded | None = None
    num_collapsed: int = 0


@dataclass(frozen=True, slots=True)
class Prefix:
    """The image-and-prompt half of a batch, left-padded.

    Attributes:
        ids: `[B, P]`.
        mask: `[B, P]` bool, false at padding.
        image_mask: `[B, P]` bool, true at image placeholders.
        pixel_values: `[V, C]`.
        grid_thw: `[B, 3]`.
    """

    ids: Tensor
    mask: Tensor
    image_mask: Tensor
    pixel_values: Tensor
    grid_thw: Tensor

    def to(self, device: torch.device) -> Self:
        """The same on a device."""
        return replace(self, **{f.name: getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)})


@dataclass(frozen=True, slots=True)
class BatchSlots:
    """All slots of a batch.

    Attributes:
        sample: `[S]` row in the batch.
        position: `[S]` index in the answer.
        coordinate: `[S]` 0..3.
        object: `[S]` index of the object within the whole batch, ascending; four slots each.
        target_bin: `[S]`.
    """

    sample: Tensor
    position: Tensor
    coordinate: Tensor
    object: Tensor
    target_bin: Tensor

    def __len__(self) -> int:
        return int(self.sample.shape[0])

    def to(self, device: torch.device) -> Self:
        """The same on a device."""
        return replace(self, **{f.name: getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)})


@dataclass(frozen=True, slots=True)
class Batch:
    """What one forward pass of training reads.

    Attributes:
        sample_ids: B ids.
        prefix: Image and prompt.
        answer_ids: `[B, T]`, right-padded.
        answer_mask: `[B, T]` bool.
        roles: `[B, T]` int8 of `Role`; -1 at padding.
        slots: Coordinate tokens.
        object_group: `[N]` objects of one sample and name share a number.
        num_collapsed: Objects left out because their box is thinner than a bin.
    """

    sample_ids: tuple[str, ...]
    prefix: Prefix
    answer_ids: Tensor
    answer_mask: Tensor
    roles: Tensor
    slots: BatchSlots
    object_group: Tensor
    num_collapsed: int = 0

    @property
    def num_objects(self) -> int:
        """Objects written in the batch's answers."""
        return len(self.slots) // 4

    @property
    def padding_share(self) -> float:
        """Share of the batch's positions that are padding."""
        real = int(self.prefix.mask.sum()) + int(self.answer_mask.sum())
        return 1 - real / (self.prefix.mask.numel() + self.answer_mask.numel())

    def to(self, device: torch.device) -> Self:
        """The same on a device."""
        return replace(
            self,
            prefix=self.prefix.to(device),
            answer_ids=self.answer_ids.to(device, non_blocking=True),
            answer_mask=self.answer_mask.to(device, non_blocking=True),
            roles=self.roles.to(device, non_blocking=True),
            slots=self.slots.to(device),
            object_group=self.object_group.to(device, non_blocking=True),
        )


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
    """Join B encoded samples, answers included, into one batch."""
    answers = [_answer(s) for s in samples]
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
        num_collapsed=sum(s.num_collapsed for s in samples),
    )


def _object_groups(answers: Sequence[Encoded]) -> Tensor:
    """`[N]`: a number for each (sample, name) pair; names are told apart by their tokens."""
    numbers: dict[tuple[int, bytes], int] = {}
    groups = []
    for row, answer in enumerate(answers):
        s = answer.slots
        starts = [0, *(s.position[3::4] + 1).tolist()]
        for start, end in itertools.pairwise(starts):
            names = answer.ids[start:end][answer.roles[start:end] == Role.DESC]
            groups.append(numbers.setdefault((row, names.tobytes()), len(numbers)))
    return torch.tensor(groups, dtype=torch.int64)


def _answer(sample: EncodedSample) -> Encoded:
    assert sample.answer is not None, f"sample {sample.sample_id} was encoded without its answer"
    return sample.answer


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
