"""Channel-B's targets: what the model wrote, token for token, then the labels that it missed, then the end.

The kept part of an answer runs to its last complete object before the first thing that is not in the format. An object
in the format with an impossible box (`inverted_box`, `zero_area`) stays if a kept object follows: the model conditions
on it, but it has no loss. Kept tokens are never decoded and encoded again. They end with the last coordinate token: the
tokens of the brackets after it depend on what follows them, and are those of the renderer.

The syntax between two boxes closes one object and opens the next, often in one token (`]},`). The tokens that are the
same whether the answer continues or ends belong to the object before; the rest, comma included, to what follows. So the
decision to write an object is part of that object, and the decision to end is part of the outermost close.

Shapes: T tokens, N objects.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from apiece.codec.bins import Bins
from apiece.codec.parse import parse_ids
from apiece.codec.render import BOX_OPEN, COORD_SEPARATOR, EMPTY, FINISH, NEXT, START, DescBins, Renderer
from apiece.match import number_names
from apiece.outcomes import Columns, Outcome, Outcomes, SplitMatch, label_outcomes, match_labels
from apiece.types import (
    Encoded,
    Fault,
    FinishReason,
    Instance,
    IntArray,
    ParsedObject,
    ParseResult,
    ParseStatus,
    Role,
    Rollout,
    Sample,
    Slots,
)


class Subset(IntEnum):
    """Which part of a target a token belongs to."""

    OUTER = 0  # the opening that every answer has, and the outermost close
    MATCHED = 1  # a predicted object that matches a label
    FALSE_POSITIVE = 2  # a predicted object that matches none
    DROPPED = 3  # a predicted object with an impossible box (inverted or empty)
    MISS = 4  # a label that the model missed, appended
    EOS = 5  # the end token


SUPERVISED: Mapping[Subset, frozenset[Role]] = {
    Subset.OUTER: frozenset({Role.STRUCT}),
    Subset.MATCHED: frozenset({Role.STRUCT, Role.COORD}),
    Subset.FALSE_POSITIVE: frozenset(),
    Subset.DROPPED: frozenset(),
    Subset.MISS: frozenset({Role.STRUCT, Role.DESC, Role.COORD}),
    Subset.EOS: frozenset({Role.EOS}),
}
"""Tokens with a loss: cross-entropy on text, geometry and `coord_reg` on coordinates."""
REDUNDANT = (Outcome.DUPLICATE, Outcome.GROUP)
"""Wrong whether or not their object is labelled; `b_redundancy_weight` penalises them."""
_STAYS = (ParseStatus.INVERTED_BOX, ParseStatus.ZERO_AREA)
_Item = ParsedObject | Fault


@dataclass(frozen=True, slots=True)
class Target:
    """The training target made of one answer of the model."""

    answer: Encoded  # all tokens; slots of the coordinates that have a loss, with the labels' bins
    subset: NDArray[np.int8]  # `[T]` of `Subset`
    supervised: NDArray[np.bool_]  # `[T]` text tokens with cross-entropy
    committing: IntArray  # `[R]` positions of the x1 token of every duplicate and group
    num_kept: int  # predicted objects
    num_matched: int  # how many of them match a label
    num_appended: int  # labels


@dataclass(frozen=True, slots=True, eq=False)
class JudgedAnswer:
    """An answer compared with the labels, and the target made of it."""

    rollout: Rollout
    parsed: ParseResult
    match: SplitMatch  # valid objects (rows) to the labels that can be written, then the crowd regions
    outcomes: Outcomes  # what each of these objects and labels is
    target: Target


# The labels of an image that can be written, in the order written; the same as instances, and then the crowd regions.
_Labels = tuple[list[DescBins], list[Instance]]


def _labels_of(sample: Sample, bins: Bins) -> _Labels:
    objects = [o for o in sample.objects if not o.iscrowd]
    written: list[DescBins] = []
    instances = []
    boxes = bins.to_bins([o.bbox_xyxy for o in objects], sample.size_wh)
    for o, (x1, y1, x2, y2) in zip(objects, boxes.tolist(), strict=True):
        if x2 > x1 and y2 > y1:
            written.append((o.desc, (x1, y1, x2, y2)))
            instances.append(o)
    return written, [*instances, *(o for o in sample.objects if o.iscrowd)]


@dataclass(frozen=True)
class TargetBuilder:
    """Makes targets for one tokenizer."""

    renderer: Renderer
    max_objects: int  # predicted ones in a target: the rest of a runaway answer is cut off
    max_length: int  # of prefix plus target: predicted objects are removed from the end until it fits

    def build(self, rollout: Rollout, sample: Sample, num_prefix: int) -> JudgedAnswer:
        """Parse an answer, match it to the labels and make its target.

        The sample has the labels after augmentation, in the order in which an answer names them; `num_prefix` counts
        the tokens of image and prompt.
        """
        ids = rollout.ids.tolist()
        bins = Bins(self.renderer.vocab.num_bins)
        labels = _labels_of(sample, bins)
        parsed = parse_ids(ids, self.renderer.tokenizer, self.renderer.vocab)
        whole = _judge(parsed.objects, labels, sample.size_wh, bins)
        kept = _kept_part(parsed, self.max_objects)
        while True:
            objects = [item for item in kept if isinstance(item, ParsedObject)]
            all_kept = len(objects) == len(parsed.objects)
            match, outcomes = whole if all_kept else _judge(objects, labels, sample.size_wh, bins)
            target = self._write(ids, kept, match, outcomes, labels[0])
            if not kept or num_prefix + len(target.answer.ids) <= self.max_length:
                return JudgedAnswer(rollout, parsed, *whole, target)
            kept = _ending_complete(kept[:-1])

    def _write(
        self, ids: list[int], kept: Sequence[_Item], match: SplitMatch, outcomes: Outcomes, labels: list[DescBins]
    ) -> Target:
        label_of, charged = dict(match.pairs.tolist()), set(np.flatnonzero(np.isin(outcomes.of_prediction, REDUNDANT)))
        pen = _Pen(self.renderer)
        row = 0
        for item in kept:
            subset = Subset.DROPPED
            if isinstance(item, ParsedObject):
                subset = Subset.MATCHED if row in label_of else Subset.FALSE_POSITIVE
            pen.copy(ids, item, subset)
            if subset is Subset.MATCHED:
                pen.aim(labels[label_of[row]][1])
            elif row in charged and subset is Subset.FALSE_POSITIVE:
                pen.committing.append(pen.coords[0])
            row += isinstance(item, ParsedObject)
        missed = [labels[i] for i in match.misses.tolist()]
        pen.append(missed, after_object=bool(kept))
        return pen.target(num_kept=row, num_matched=len(label_of), num_appended=len(missed))


class _Pen:
    def __init__(self, renderer: Renderer) -> None:
        self.renderer = renderer
        self.ids: list[int] = []
        self.roles: list[Role] = []
        self.subset: list[Subset] = []
        self.slots: list[tuple[int, int, int, int]] = []
        self.committing: list[int] = []
        self.coords: tuple[int, ...] = ()  # positions of the last object's
        self._leads = [renderer.piece(START), renderer.piece(NEXT)]
        # How many of the tokens before an object would be there without it, too.
        self._shared = [
            _num_alike(self._leads[0], renderer.piece(EMPTY)),
            _num_alike(self._leads[1], renderer.piece(FINISH)),
        ]

    def copy(self, ids: list[int], item: _Item, subset: Subset) -> None:
        """Copy an object as the model wrote it, from after the coordinates of the one before."""
        coords = item.coord_positions
        assert coords is not None and len(coords) == 4, "objects are kept only with four coordinate tokens"
        start, (x1, *_, y2) = len(self.ids), coords
        roles = self._text_roles(ids[start:x1], bool(start))
        for before, after in pairwise(coords):
            between = ids[before + 1 : after]
            known = tuple(between) == self.renderer.piece(COORD_SEPARATOR)
            roles += [Role.COORD, *[Role.STRUCT if known else Role.DESC] * len(between)]
        self._put(ids[start : y2 + 1], [*roles, Role.COORD], subset)
        self.coords = coords

    def _text_roles(self, text: list[int], after_object: bool) -> list[Role]:
        """Roles up to the first coordinate. What differs from the renderer's own syntax tokens counts as the name."""
        lead, tail = self._leads[after_object], self.renderer.piece(BOX_OPEN)
        head = len(lead) if tuple(text[: len(lead)]) == lead else 0
        foot = len(tail) if tuple(text[-len(tail) :]) == tail and head + len(tail) <= len(text) else 0
        return [Role.STRUCT] * head + [Role.DESC] * (len(text) - head - foot) + [Role.STRUCT] * foot

    def _put(self, ids: Sequence[int], roles: Sequence[Role], subset: Subset) -> None:
        """Add tokens of an object, or of the end: the first of them may belong to what is before."""
        before = self.subset[-1] if self.subset else Subset.OUTER
        shared = self._shared[bool(self.ids)]
        if any(role is not Role.STRUCT for role in roles[:shared]):
            shared = 0
        self.subset += [before] * shared + [subset] * (len(ids) - shared)
        self.ids += ids
        self.roles += roles

    def aim(self, bins: Sequence[int]) -> None:
        """Set a label's bins as the targets of the last object's coordinates."""
        index = len(self.slots) // 4
        self.slots += [(at, c, index, k) for c, (at, k) in enumerate(zip(self.coords, bins, strict=True))]

    def append(self, missed: Sequence[DescBins], after_object: bool) -> None:
        """Add labels as further objects, then the outermost close and the end token."""
        rest = self.renderer.render(missed, after_object=after_object)
        ids, roles = rest.ids.tolist(), [Role(r) for r in rest.roles.tolist()]
        start, done = len(self.ids), 0
        for (_, bins), coords in zip(missed, (rest.slots.position + start).reshape(-1, 4).tolist(), strict=True):
            end = coords[3] + 1 - start
            self._put(ids[done:end], roles[done:end], Subset.MISS)
            self.coords, done = tuple(coords), end
            self.aim(bins)
        self._put(ids[done:-1], roles[done:-1], Subset.OUTER)
        self.ids.append(ids[-1])
        self.roles.append(roles[-1])
        self.subset.append(Subset.EOS)

    def target(self, num_kept: int, num_matched: int, num_appended: int) -> Target:
        pairs = zip(self.subset, self.roles, strict=True)
        supervised = [role is not Role.COORD and role in SUPERVISED[subset] for subset, role in pairs]
        columns = np.array(self.slots, dtype=np.int64).reshape(-1, 4).T
        return Target(
            Encoded(np.array(self.ids, dtype=np.int64), np.array(self.roles, dtype=np.int8), Slots(*columns)),
            np.array(self.subset, dtype=np.int8),
            np.array(supervised),
            np.array(self.committing, dtype=np.int64),
            num_kept,
            num_matched,
            num_appended,
        )


def _kept_part(parsed: ParseResult, max_objects: int) -> list[_Item]:
    """The objects up to the last complete one before the first thing that is not in the format."""
    kept: list[_Item] = []
    items: list[_Item] = [*parsed.objects, *parsed.faults]
    for item in sorted(items, key=lambda item: item.span):
        if isinstance(item, Fault) and not (item.status in _STAYS and len(item.coord_positions) == 4):
            break
        kept.append(item)
    return _ending_complete(kept[:max_objects])


def _ending_complete(items: list[_Item]) -> list[_Item]:
    """Without dropped objects at the end."""
    while items and isinstance(items[-1], Fault):
        items = items[:-1]
    return items


def _judge(
    objects: Sequence[ParsedObject], labels: _Labels, size_wh: tuple[int, int], bins: Bins
) -> tuple[SplitMatch, Outcomes]:
    """Match the objects of an answer to the labels of its image, by the definitions of evaluation."""
    instances = labels[1]
    names, truth_names = number_names([o.desc for o in objects], [i.desc for i in instances])
    found = Columns(
        np.zeros(len(objects), dtype=np.int64),
        names,
        bins.to_pixels([o.bins_xyxy for o in objects], size_wh),
        np.zeros(len(objects), dtype=bool),
    )
    truth = Columns(
        np.zeros(len(instances), dtype=np.int64),
        truth_names,
        np.array([i.bbox_xyxy for i in instances], dtype=np.float64).reshape(-1, 4),
        np.array([i.iscrowd for i in instances], dtype=bool),
    )
    match = match_labels(truth, found, np.arange(len(objects)))
    return match, label_outcomes(truth, found, match)


def _num_alike(a: Sequence[int], b: Sequence[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


# Counts of the answers of a step, which add up over samples, steps and processes, and the figures made of them.

KEYS = (
    *("answers", "tokens", "objects", "labels", "matched", "ignored", "missed", "iou", "records"),
    *("kept", "appended", "redundant", "generate_s", "update_s", "steps"),
    *(f"outcome/{outcome.label}" for outcome in Outcome if outcome is not Outcome.UNLABELLED),
    *(f"finish/{reason}" for reason in FinishReason),
    *(f"dropped/{status}" for status in ParseStatus),
)
"""All counts: processes sum theirs in this order."""


def tally(judged: Sequence[JudgedAnswer], generate_s: float) -> dict[str, float]:
    """The counts of some answers by `KEYS`; `generate_s` is the seconds it took to write them."""
    counts: Counter[str] = Counter()
    for one in judged:
        counts["answers"] += 1
        counts["tokens"] += len(one.rollout.ids)
        counts["objects"] += len(one.parsed.objects)
        counts["records"] += one.parsed.num_records
        counts["labels"] += len(one.match.pairs) + len(one.match.misses)
        counts["matched"] += len(one.match.pairs)
        counts["missed"] += len(one.match.misses)
        counts["ignored"] += len(one.match.ignored)
        counts["kept"] += one.target.num_kept
        counts["appended"] += one.target.num_appended
        counts["redundant"] += len(one.target.committing)
        counts[f"finish/{one.rollout.finish_reason}"] += 1
        counts.update({f"outcome/{name}": count for name, count in one.outcomes.counts().items()})
        counts.update({f"dropped/{status}": count for status, count in one.parsed.dropped.items()})
    known = counts | {"iou": float(sum(one.match.iou.sum() for one in judged)), "generate_s": generate_s}
    return {key: float(known[key]) if key in known else 0.0 for key in KEYS}


def figures(sums: Mapping[str, float]) -> dict[str, float]:
    """The figures named `b/...` from sums by `KEYS`; the caller adds `update_s` and `steps`."""

    def of(part: str, whole: str) -> float:
        return _ratio(sums[part], sums[whole])

    out = {
        "objects_per_answer": of("objects", "answers"),
        "labels_per_image": of("labels", "answers"),
        "tokens_per_answer": of("tokens", "answers"),
        "precision": _ratio(sums["matched"], sums["objects"] - sums["ignored"]),
        "recall": of("matched", "labels"),
        "f1": _ratio(2 * sums["matched"], sums["objects"] - sums["ignored"] + sums["labels"]),
        "mean_iou": of("iou", "matched"),
        "truncated": _ratio(sums["answers"] - sums[f"finish/{FinishReason.EOS}"], sums["answers"]),
        "kept_share": of("kept", "objects"),
        "appended_share": _ratio(sums["appended"], sums["kept"] + sums["appended"]),
        "redundant_per_answer": of("redundant", "answers"),
        "generate_s": of("generate_s", "steps"),
        "update_s": of("update_s", "steps"),
        "generate_time_share": _ratio(sums["generate_s"], sums["generate_s"] + sums["update_s"]),
    }
    per = {"outcome": "objects", "finish": "answers", "dropped": "records"}
    out |= {key: of(key, per[kind]) for key in KEYS for kind, slash, _ in [key.partition("/")] if slash}
    return {f"b/{name}": value for name, value in out.items()}


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
