"""The exchange forms: what one part of the package hands to another.

All frozen and checked when made. Data flows one way: JSONL -> `Sample` -> render -> `Encoded` with `Slots` -> model ->
slot logits -> `LossTerm`s; generation -> `Rollout` -> parse -> `ParseResult` -> `Detection` -> metrics and pictures.

Shapes: T tokens of an answer, S slots (coordinate tokens), N objects. Boxes are `xyxy` in pixels of the original image
unless the name says `bins`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

BoxXYXY = tuple[float, float, float, float]
BinsXYXY = tuple[int, int, int, int]
IntArray = NDArray[np.int64]

NEAR_BINS = 2  # probability at most this far from the bin that was written still speaks for it (`Rollout.near_mass`)


@dataclass(frozen=True, slots=True)
class Instance:
    """One labelled object."""

    desc: str  # as the model must write it
    bbox_xyxy: BoxXYXY
    iscrowd: bool = False  # COCO's crowd region: not one object, ignored in matching and never trained on
    area: float | None = None  # COCO's annotation area (of the mask) in square pixels; `None` means the box's own
    id: int | None = None  # annotation id, for the way back to COCO


@dataclass(frozen=True, slots=True)
class Sample:
    """One image with its labels."""

    id: str  # unique in its file, and stable: panels and runs are joined on it
    image: Path  # absolute, or relative to the current folder
    size_wh: tuple[int, int]  # pixels, after EXIF rotation
    objects: tuple[Instance, ...] = ()

    def __post_init__(self) -> None:
        if min(self.size_wh) < 1:
            raise ValueError(f"sample {self.id}: size must be at least 1 x 1, got {self.size_wh}")


class Role(IntEnum):
    """What a token of the answer is for; every token has exactly one role."""

    STRUCT = 0
    DESC = 1
    COORD = 2
    EOS = 3


@dataclass(frozen=True, slots=True)
class Slots:
    """The coordinate tokens of one answer, in order."""

    position: IntArray  # `[S]` index in the answer's ids. The slot's logits are the row before it.
    coordinate: IntArray  # `[S]` 0..3 for x1, y1, x2, y2
    object: IntArray  # `[S]` index of the object in the order written
    target_bin: IntArray  # `[S]` 0..num_bins-1

    def __post_init__(self) -> None:
        lengths = {len(self.position), len(self.coordinate), len(self.object), len(self.target_bin)}
        if len(lengths) != 1:
            raise ValueError(f"slot arrays must have one length, got {sorted(lengths)}")

    def __len__(self) -> int:
        return len(self.position)


@dataclass(frozen=True, slots=True)
class Encoded:
    """An answer as tokens."""

    ids: IntArray  # `[T]` token ids, the end token included
    roles: NDArray[np.int8]  # `[T]` of `Role`
    slots: Slots

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.roles):
            raise ValueError(f"ids and roles must have one length, got {len(self.ids)} and {len(self.roles)}")


class ParseStatus(StrEnum):
    """Why an object of an answer was dropped."""

    TRUNCATED = "truncated"
    MALFORMED = "malformed"
    WRONG_ARITY = "wrong_arity"
    NOT_A_COORD = "not_a_coord"
    EMPTY_DESC = "empty_desc"
    UNKNOWN_DESC = "unknown_desc"
    INVERTED_BOX = "inverted_box"
    ZERO_AREA = "zero_area"


class FinishReason(StrEnum):
    """Why generation of an answer ended."""

    EOS = "eos"
    LENGTH = "length"
    OBJECT_CAP = "object_cap"
    REPETITION = "repetition"


@dataclass(frozen=True, slots=True)
class ParsedObject:
    """One complete object of an answer."""

    desc: str
    bins_xyxy: BinsXYXY
    span: tuple[int, int]  # `(start, end)` offsets of the object in the text of the answer
    coord_positions: tuple[int, int, int, int] | None = None  # in the ids; `None` when text was parsed


@dataclass(frozen=True, slots=True)
class Fault:
    """An object, or text between two objects, that was dropped."""

    status: ParseStatus
    span: tuple[int, int]  # `(start, end)` offsets in the text of the answer
    coord_positions: tuple[int, ...] = ()  # in the ids; empty when text was parsed


@dataclass(frozen=True, slots=True)
class ParseResult:
    """What an answer says: the objects that were kept, and how many were dropped for each reason."""

    objects: tuple[ParsedObject, ...]
    dropped: Mapping[ParseStatus, int] = field(default_factory=dict)
    closed: bool = True  # the outermost object; false for an answer that was cut off
    faults: tuple[Fault, ...] = ()  # in the order written

    @property
    def num_records(self) -> int:
        """Objects seen, kept or dropped."""
        return len(self.objects) + sum(self.dropped.values())


@dataclass(frozen=True, slots=True)
class Rollout:
    """One generated answer."""

    sample_id: str
    ids: IntArray  # `[T]` generated ids, the end token included where one was written
    logprobs: NDArray[np.float32]  # `[T]` under the full softmax at temperature 1; NaN where the engine does not know
    text: str  # the ids decoded, special tokens kept
    finish_reason: FinishReason
    # `[T]` probability within `NEAR_BINS` bins of a coordinate token, same softmax; NaN for other tokens; `None` from
    # an engine that does not see the distribution
    near_mass: NDArray[np.float32] | None = None
    # `[T]` log-probability of each id among those that the grammar allowed at its place, 0 for forced ones; equal to
    # `logprobs` without a grammar; `None` where not known
    logprobs_masked: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        known = [self.logprobs, *(v for v in (self.near_mass, self.logprobs_masked) if v is not None)]
        lengths = {len(self.ids), *map(len, known)}
        if len(lengths) != 1:
            raise ValueError(f"ids, log-probabilities and masses must have one length, got {sorted(lengths)}")


@dataclass(frozen=True, slots=True)
class Detection:
    """One predicted box with its score, in [0, 1] under a named policy."""

    desc: str
    bbox_xyxy: BoxXYXY
    score: float


@dataclass(frozen=True, slots=True)
class Match:
    """A one-to-one assignment between N predictions and M truths."""

    pairs: IntArray  # `[K, 2]` indices of (prediction, truth)
    iou: NDArray[np.float64]  # `[K]` IoU of each pair
    unmatched_predictions: IntArray
    unmatched_truths: IntArray  # misses


class Per(StrEnum):
    """What a loss term is a mean over: the denominator is counted over the whole optimizer step and all ranks."""

    TOKENS = "tokens"
    OBJECTS = "objects"
    SLOTS = "slots"


class ChannelName(StrEnum):
    """The channels: how one optimizer step turns samples into loss terms."""

    A = "a"  # teacher forcing, then passes on the model's own coordinate beliefs
    B = "b"  # the model answers, and is taught on its own answer


@dataclass(frozen=True, slots=True)
class LossTerm:
    """One part of the loss, as a sum over its items."""

    name: str  # such as `a1/bbox_geo/smoothl1`
    weight: float  # in the total loss; 0 for a figure that is only logged
    total: torch.Tensor  # scalar float32: the unweighted sum over the items of this forward pass
    per: Per  # which count the sum is divided by
