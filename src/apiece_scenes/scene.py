"""One scene from two numbers: the picture, what is in it, and what an annotator would have labelled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from apiece.errors import UserError, nearest
from apiece.types import BoxXYXY, Instance
from apiece_scenes.backdrop import develop
from apiece_scenes.canvas import Dice, Seen, render
from apiece_scenes.layouts import Family, shelf, sparse, stands, street

ALL: tuple[Family, ...] = tuple(Family)
MIN_SIZE, MAX_SIZE = 64, 1024
_LAYOUTS = {Family.SHELF: shelf, Family.STANDS: stands, Family.STREET: street, Family.SPARSE: sparse}
_CONCENTRATION = 6.0
"""a + b of the Beta distribution that an image's share is drawn from: sd .19 around .4."""
_ROW = 3
"""Fewest neighbours that are written down as one box."""


@dataclass(frozen=True, slots=True)
class Scene:
    """One drawn image with its truth.

    Attributes:
        image: RGB, `size` x `size`.
        family: The layout it was drawn from.
        complete: Every object in the picture, back to front; boxes are tight to what can be seen, `area` is the visible
            area in square pixels, ids run from 1.
        observed: What an annotator would have labelled. Ids are those of `complete`; group boxes and `iscrowd` regions
            have ids after the last of them.
    """

    image: Image.Image
    family: Family
    complete: tuple[Instance, ...]
    observed: tuple[Instance, ...]


@dataclass(frozen=True, slots=True)
class SceneSettings:
    """What scenes are drawn, and how well they are labelled."""

    size: int = 192  # side of the images in pixels
    families: tuple[str, ...] = ALL  # scene k is of family k mod their number
    unlabelled: float = 0.0  # mean share of the crowd that is left out of `observed`, in [0, 1)
    group_boxes: float = 0.0  # probability for each row that a run of its labelled members becomes one box
    iscrowd_rows: float = 0.0  # probability for each row that it becomes one `iscrowd` region

    def mistakes(self) -> list[str]:
        """Which values are out of their range, for one message about all of them."""
        found = []
        if not MIN_SIZE <= self.size <= MAX_SIZE:
            found.append(f"size must be {MIN_SIZE} to {MAX_SIZE} pixels, got {self.size}")
        known = ", ".join(ALL)
        if not self.families:
            found.append(f"expected at least one family of {known}, got none")
        unknown = [name for name in self.families if name not in ALL]
        found += [f"unknown family '{name}'{nearest(name, ALL)}; known: {known}" for name in unknown]
        if not 0 <= self.unlabelled < 1:
            found.append(f"unlabelled must be a share in [0, 1), got {self.unlabelled}")
        for name, value in (("group_boxes", self.group_boxes), ("iscrowd_rows", self.iscrowd_rows)):
            if not 0 <= value <= 1:
                found.append(f"{name} must be a probability in [0, 1], got {value}")
        return found


DEFAULTS = SceneSettings()


def refuse(mistakes: Sequence[str]) -> None:
    """Raise a `UserError` with all mistakes of a call, if there are any."""
    if mistakes:
        head = [f"{len(mistakes)} mistakes"] if len(mistakes) > 1 else []
        raise UserError("\n  ".join([*head, *mistakes]), exit_code=2)


def generate_scene(seed: int, index: int, settings: SceneSettings = DEFAULTS) -> Scene:
    """Draw scene `index` of the series `seed`, both from 0; it is the same however many scenes are drawn.

    The picture depends on seed, index, families and size alone; the labelling settings change `observed` only.

    Raises:
        UserError: A value is out of its range.
    """
    return draw_labelled(seed, index, (settings,))[0]


def draw_labelled(seed: int, index: int, settings: Sequence[SceneSettings]) -> tuple[Scene, ...]:
    """One scene, drawn once and labelled under each of the settings, which differ in labelling alone."""
    first = settings[0]
    assert all((s.size, s.families) == (first.size, first.families) for s in settings), "one picture for all"
    wrong = [] if min(seed, index) >= 0 else [f"seed and index must be 0 or more, got {seed} and {index}"]
    refuse([*(mistake for each in settings for mistake in each.mistakes()), *wrong])
    family = Family(first.families[index % len(first.families)])
    dice = Dice(np.random.default_rng([seed, index]))
    backdrop, items = _LAYOUTS[family](dice)
    picture, seen = render(backdrop, items, first.size)
    complete = tuple(
        Instance(str(entry.item.desc), entry.bbox_xyxy, area=entry.area, id=number)
        for number, entry in enumerate(seen, start=1)
    )
    observed = [observe(Dice(np.random.default_rng([seed, index, 1])), seen, complete, each) for each in settings]
    image = develop(dice, picture)
    return tuple(Scene(image, family, complete, labels) for labels in observed)


def observe(
    dice: Dice, seen: Sequence[Seen], complete: Sequence[Instance], settings: SceneSettings
) -> tuple[Instance, ...]:
    """The labels of one image as an annotator would have left them.

    Args:
        dice: Not the one that laid out the scene: labelling never changes the picture.
        seen: What can be seen, in the order of `complete`.
        complete: Every instance.
        settings: How well it is labelled.

    Returns:
        Labelled instances with their ids in `complete`; boxes over rows come last and have new ids.
    """
    hidden = leave_out(dice, _crowd_members(seen), len(seen), settings.unlabelled)
    kept = [k for k in range(len(seen)) if k not in hidden]
    regions: list[Instance] = []
    for members in _rows(seen):
        as_crowd, as_group = dice.chance(settings.iscrowd_rows), dice.chance(settings.group_boxes)
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
        regions.append(Instance(complete[chosen[0]].desc, box, iscrowd=as_crowd, area=area, id=number))
        kept = [k for k in kept if k not in chosen]
    return (*(complete[k] for k in kept), *regions)


def leave_out(dice: Dice, crowd: Sequence[int], total: int, share: float) -> set[int]:
    """Choose the instances of one image that nobody labelled: of `crowd`, a mean share in [0, 1).

    The image's own share is drawn once from Beta(6 s, 6 (1 - s)), whose mean is `share` s, and rounded to a count up or
    down at random so that the mean stays s; at least one of the image's `total` instances keeps its label.
    """
    if not share or not crowd:
        return set()
    own = float(dice.rng.beta(_CONCENTRATION * share, _CONCENTRATION * (1 - share)))
    count = min(int(own * len(crowd) + dice.between(0, 1)), total - 1, len(crowd))
    return {crowd[int(k)] for k in dice.rng.permutation(len(crowd))[:count]}


def _crowd_members(seen: Sequence[Seen]) -> list[int]:
    """Indices of the instances that an annotator may leave out.

    In a street only the smaller or partly hidden ones: less than 95 % visible, or smaller than the median. Where things
    stand in rows (shelf, stands) every member of a row.
    """
    able = [k for k, entry in enumerate(seen) if entry.item.crowd]
    if not any(seen[k].item.row is None for k in able):
        return able
    median = sorted(seen[k].area for k in able)[len(able) // 2]
    return [k for k in able if seen[k].visible < 0.95 or seen[k].area < median]


def _rows(seen: Sequence[Seen]) -> Iterator[list[int]]:
    """Indices of the members of every row, from left to right (or from top to bottom)."""
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
