"""One scene from two numbers: the picture, what is in it, and what an annotator would have labelled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from apiece.errors import UserError, nearest
from apiece.types import Instance
from apiece_scenes.backdrop import develop
from apiece_scenes.canvas import Dice, render
from apiece_scenes.labelling import observe
from apiece_scenes.layouts import Family, sparse, stands, street
from apiece_scenes.shelf import shelf

ALL: tuple[Family, ...] = tuple(Family)
MIN_SIZE, MAX_SIZE = 64, 1024
_LAYOUTS = {Family.SHELF: shelf, Family.STANDS: stands, Family.STREET: street, Family.SPARSE: sparse}


@dataclass(frozen=True, slots=True)
class Scene:
    """One drawn image with its truth.

    Attributes:
        image: RGB, `size` x `size`.
        family: What kind of scene it is.
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
    """What scenes are drawn, and how well they are labelled.

    Attributes:
        size: Side of the images in pixels, 64 to 1024.
        families: Families in turn: scene k is of family k mod their number.
        unlabelled: Mean share of the crowd that is left out of `observed`, in [0, 1).
        group_boxes: Probability for each row that a run of its labelled members becomes one box.
        iscrowd_rows: Probability for each row that it becomes one `iscrowd` region.

    Raises:
        UserError: A value is out of its range.
    """

    size: int = 192
    families: tuple[Family, ...] = ALL
    unlabelled: float = 0.0
    group_boxes: float = 0.0
    iscrowd_rows: float = 0.0

    def __post_init__(self) -> None:
        settings = (self.size, self.families, self.unlabelled, self.group_boxes, self.iscrowd_rows)
        if mistakes := scene_mistakes(*settings):
            raise usage(mistakes)


def scene_mistakes(
    size: int, families: Sequence[str], unlabelled: float, group_boxes: float, iscrowd_rows: float
) -> list[str]:
    """What of these settings is out of its range; see `SceneSettings`."""
    found = []
    if not MIN_SIZE <= size <= MAX_SIZE:
        found.append(f"size must be {MIN_SIZE} to {MAX_SIZE} pixels, got {size}")
    if not families:
        found.append(f"expected at least one family of {', '.join(ALL)}, got none")
    found += unknown_families(families)
    if not 0 <= unlabelled < 1:
        found.append(f"unlabelled must be a share in [0, 1), got {unlabelled}")
    for name, value in (("group_boxes", group_boxes), ("iscrowd_rows", iscrowd_rows)):
        if not 0 <= value <= 1:
            found.append(f"{name} must be a probability in [0, 1], got {value}")
    return found


def usage(mistakes: Sequence[str]) -> UserError:
    """All mistakes of a call in one message."""
    head = [f"{len(mistakes)} mistakes"] if len(mistakes) > 1 else []
    return UserError("\n  ".join([*head, *mistakes]), exit_code=2)


def unknown_families(names: Sequence[str]) -> list[str]:
    """What is wrong with names that are no families."""
    known = ", ".join(ALL)
    return [f"unknown family '{name}'{nearest(name, ALL)}; known: {known}" for name in names if name not in ALL]


def split_families(names: str) -> tuple[str, ...]:
    """The names in a list with commas, such as `shelf,stands`, known or not."""
    return tuple(part.strip() for part in names.split(","))


def generate_scene(
    seed: int,
    index: int,
    *,
    size: int = 192,
    families: Sequence[Family] = ALL,
    unlabelled: float = 0.0,
    group_boxes: float = 0.0,
    iscrowd_rows: float = 0.0,
) -> Scene:
    """Draw scene `index` of the series `seed`.

    The picture depends on seed, index, families and size alone; the labelling settings change `observed` only.

    Args:
        seed: Seed of the series, 0 or more.
        index: From 0; the scene does not depend on how many are drawn.
        size: See `SceneSettings`, as for all others.
        families: Families in turn.
        unlabelled: Mean share of the crowd left out of `observed`.
        group_boxes: Probability for each row.
        iscrowd_rows: Probability for each row.

    Raises:
        UserError: A setting is out of its range.
    """
    settings = SceneSettings(size, tuple(families), unlabelled, group_boxes, iscrowd_rows)
    return draw_labelled(seed, index, (settings,))[0]


def draw_labelled(seed: int, index: int, settings: Sequence[SceneSettings]) -> tuple[Scene, ...]:
    """One scene, drawn once and labelled under each of the settings, which differ in labelling alone."""
    first = settings[0]
    assert all((s.size, s.families) == (first.size, first.families) for s in settings), "one picture for all"
    if seed < 0 or index < 0:
        raise usage([f"seed and index must be 0 or more, got {seed} and {index}"])
    family = first.families[index % len(first.families)]
    dice = Dice(np.random.default_rng([seed, index]))
    backdrop, items = _LAYOUTS[family](dice)
    picture, seen = render(backdrop, items, first.size)
    complete = tuple(
        Instance(str(entry.item.desc), entry.bbox_xyxy, area=entry.area, id=number)
        for number, entry in enumerate(seen, start=1)
    )
    observed = [
        observe(
            Dice(np.random.default_rng([seed, index, 1])),
            seen,
            complete,
            unlabelled=each.unlabelled,
            group_boxes=each.group_boxes,
            iscrowd_rows=each.iscrowd_rows,
        )
        for each in settings
    ]
    image = develop(dice, picture)
    return tuple(Scene(image, family, complete, labels) for labels in observed)
