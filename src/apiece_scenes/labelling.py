"""What an annotator would have written down: instances left out, group boxes, and `iscrowd` regions over rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from apiece.types import BoxXYXY, Instance
from apiece_scenes.canvas import Dice, Seen

_CONCENTRATION = 6.0
"""a + b of the Beta distribution that an image's share is drawn from: sd .19 around .4."""
_ROW = 3
"""Fewest neighbours that are written down as one box."""


def leave_out(dice: Dice, crowd: Sequence[int], total: int, share: float) -> set[int]:
    """Choose the instances of one image that nobody labelled.

    The image's own share is drawn once from Beta(6 s, 6 (1 - s)), whose mean is `share` s, and rounded to a count up or
    down at random so that the mean stays s; at least one of the image's `total` instances keeps its label.

    Args:
        dice: Source of randomness.
        crowd: Indices that may be left out.
        total: Number of instances in the image.
        share: Mean share of `crowd` that is left out, in [0, 1).
    """
    if not share or not crowd:
        return set()
    own = float(dice.rng.beta(_CONCENTRATION * share, _CONCENTRATION * (1 - share)))
    count = min(int(own * len(crowd) + dice.between(0, 1)), total - 1, len(crowd))
    return {crowd[int(k)] for k in dice.rng.permutation(len(crowd))[:count]}


def crowd_members(seen: Sequence[Seen]) -> list[int]:
    """Indices of the instances that an annotator may leave out.

    In a street that is not everything but the smaller or partly hidden ones: less than 95 % visible, or smaller than
    the median. Where things stand in rows (shelf, stands) it is every member of a row.
    """
    able = [k for k, entry in enumerate(seen) if entry.item.crowd]
    if not any(seen[k].item.row is None for k in able):
        return able
    areas = sorted(seen[k].area for k in able)
    median = areas[len(areas) // 2]
    return [k for k in able if seen[k].visible < 0.95 or seen[k].area < median]


def observe(
    dice: Dice,
    seen: Sequence[Seen],
    complete: Sequence[Instance],
    *,
    unlabelled: float,
    group_boxes: float,
    iscrowd_rows: float,
) -> tuple[Instance, ...]:
    """The labels of one image as an annotator would have left them.

    Args:
        dice: Source of randomness, not the one that laid out the scene: settings here never change the picture.
        seen: What can be seen, in the order of `complete`.
        complete: Every instance.
        unlabelled: Mean share of the crowd that is left out.
        group_boxes: Probability for each row that a run of three or more of its labelled members becomes one box.
        iscrowd_rows: Probability for each row that all of it becomes one `iscrowd` region.

    Returns:
        Labelled instances with their ids in `complete`; boxes over rows come last and have new ids.
    """
    hidden = leave_out(dice, crowd_members(seen), len(seen), unlabelled)
    kept = [k for k in range(len(seen)) if k not in hidden]
    regions: list[Instance] = []
    for members in _rows(seen):
        as_crowd, as_group = dice.chance(iscrowd_rows), dice.chance(group_boxes)
        labelled = [k for k in members if k not in hidden]
        start, length = dice.between(0, 1), dice.between(0, 1)
        if as_crowd and len(members) >= _ROW:
            chosen = members
        elif as_group and len(labelled) >= _ROW:
            count = _ROW + int(length * (len(labelled) - _ROW + 1))
            first = int(start * (len(labelled) - count + 1))
            chosen = labelled[first : first + count]
        else:
            continue
        box = _around([complete[k].bbox_xyxy for k in chosen])
        area = (box[2] - box[0]) * (box[3] - box[1])
        number = len(complete) + len(regions) + 1
        desc = complete[chosen[0]].desc
        regions.append(Instance(desc, box, iscrowd=as_crowd, area=area, id=number))
        kept = [k for k in kept if k not in chosen]
    return (*(complete[k] for k in kept), *regions)


def _rows(seen: Sequence[Seen]) -> Iterator[list[int]]:
    """Indices of the members of every row, side by side (or one above the other)."""
    rows: dict[int, list[int]] = {}
    for k, entry in enumerate(seen):
        if entry.item.row is not None:
            rows.setdefault(entry.item.row, []).append(k)
    for _, members in sorted(rows.items()):
        boxes = [seen[k].bbox_xyxy for k in members]
        whole = _around(boxes)
        axis = 0 if whole[2] - whole[0] >= max(box[2] - box[0] for box in boxes) * 1.5 else 1
        yield sorted(members, key=lambda k: seen[k].bbox_xyxy[axis])


def _around(boxes_xyxy: Sequence[BoxXYXY]) -> BoxXYXY:
    lefts, tops, rights, lows = zip(*boxes_xyxy, strict=True)
    return min(lefts), min(tops), max(rights), max(lows)
