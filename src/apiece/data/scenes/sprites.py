"""The classes: what each is called, how wide it is for its height, how tall beside a person, and how it is drawn."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from apiece.data.scenes import sprites_moving as moving
from apiece.data.scenes import sprites_still as still
from apiece.data.scenes.canvas import Color, Dice, Item, Pen

Sprite = Callable[[Pen, Dice, Color], None]


class Kind(NamedTuple):
    """A class of objects.

    Attributes:
        draw: Its sprite.
        aspect: Range of width / height.
        height: Height in heights of a person, compressed so that small things can be seen.
    """

    draw: Sprite
    aspect: tuple[float, float]
    height: float


KINDS: dict[str, Kind] = {
    "ball": Kind(still.ball, (1.0, 1.0), 0.34),
    "bench": Kind(still.bench, (1.9, 2.5), 0.55),
    "bicycle": Kind(moving.bicycle, (1.45, 1.65), 0.68),
    "book": Kind(still.book, (0.7, 0.85), 0.4),
    "bus": Kind(moving.bus, (1.9, 2.4), 1.4),
    "car": Kind(moving.car, (2.0, 2.5), 0.85),
    "clock": Kind(still.clock, (1.0, 1.0), 0.4),
    "dog": Kind(moving.dog, (1.2, 1.5), 0.5),
    "lamp": Kind(still.lamp, (0.5, 0.7), 0.7),
    "person": Kind(moving.person, (0.42, 0.52), 1.0),
    "plant": Kind(still.plant, (0.65, 0.9), 0.6),
    "sign": Kind(still.sign, (0.34, 0.5), 1.1),
    "tree": Kind(still.tree, (0.62, 0.85), 1.9),
    "vase": Kind(still.vase, (0.45, 0.68), 0.5),
}
CLASSES: tuple[str, ...] = tuple(sorted(KINDS))


def make(
    desc: str,
    dice: Dice,
    color: Color,
    box_xywh: tuple[float, float, float, float],
    *,
    row: int | None = None,
    crowd: bool = False,
    angle: float = 0.0,
    sprite: Sprite | None = None,
) -> Item:
    """An object of class `desc` in a box, mirrored or not.

    Args:
        desc: Class name, a key of `KINDS`.
        dice: Source of randomness.
        color: Its main paint; some sprites use it for a part only.
        box_xywh: Left, top, width, height in units.
        row: Number of its row, if it stands in one.
        crowd: Whether an annotator may leave it out.
        angle: Clockwise turn around the middle of its foot, in radians.
        sprite: Draws it in place of the class's own sprite.
    """
    item = Item(desc, row, crowd)
    pen = Pen(item, *box_xywh, angle=angle, flip=dice.chance(0.5))
    (sprite or KINDS[desc].draw)(pen, dice, color)
    return item
