"""A display list and the two images it is drawn into: the picture, and a buffer of object ids.

Sprites record marks; nothing is drawn until the whole scene is laid out. The id buffer is drawn first: it says how much
of every object can be seen, objects that are nearly hidden are taken out of the scene, and only then is the picture
painted. So the truth holds every object that is in the picture, each with a box tight to what can be seen of it.

Units: the layout is written for an image of 192 x 192 `units`, for any size in pixels. Images are drawn at
`SUPERSAMPLE` times their size and averaged down.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeVar

import numpy as np
from PIL import Image, ImageDraw

SKINS: tuple[Color, ...] = (
    *((255, 219, 188), (241, 194, 150), (216, 160, 112), (172, 116, 76), (120, 78, 52), (84, 54, 38)),
)
HAIRS: tuple[Color, ...] = ((30, 24, 20), (70, 44, 26), (120, 78, 40), (196, 160, 84), (150, 150, 150), (150, 62, 30))


def hsv(hue: float, saturation: float, value: float) -> Color:
    """RGB of a hue in turns (any float) and saturation and value in [0, 1] (clamped)."""
    red, green, blue = colorsys.hsv_to_rgb(hue % 1.0, min(max(saturation, 0.0), 1.0), min(max(value, 0.0), 1.0))
    return round(red * 255), round(green * 255), round(blue * 255)


def shade(color: Color, factor: float) -> Color:
    """Darker (factor < 1) or lighter (factor > 1)."""
    red, green, blue = (min(255, max(0, round(channel * factor))) for channel in color)
    return red, green, blue


def mix(a: Color, b: Color, share: float) -> Color:
    """`a` with a `share` of `b`."""
    red, green, blue = (round(x + (y - x) * share) for x, y in zip(a, b, strict=True))
    return red, green, blue


def paint(dice: Dice) -> Color:
    """Any clear colour, now and then a grey."""
    if dice.chance(0.15):
        level = dice.between(0.2, 0.95)
        return hsv(0, 0, level)
    return hsv(dice.between(0, 1), dice.between(0.35, 0.95), dice.between(0.45, 0.98))


class Palette:
    """Paints for the members of a row: `alike` ones share a hue and differ by shade alone."""

    def __init__(self, dice: Dice, alike: bool) -> None:
        self.dice, self.alike = dice, alike
        self.hue, self.saturation, self.value = dice.between(0, 1), dice.between(0.2, 0.9), dice.between(0.5, 0.9)

    def next(self) -> Color:
        dice = self.dice
        if not self.alike:
            return paint(dice)
        return hsv(
            self.hue + dice.between(-0.03, 0.03),
            self.saturation + dice.between(-0.1, 0.1),
            self.value + dice.between(-0.13, 0.13),
        )


UNITS = 192.0
SUPERSAMPLE = 2
MIN_SIDE = 9.0
"""Shortest side of a labelled box, in units: about 1/20 of the image."""
MIN_VISIBLE = 0.35
"""Share of an object's own pixels that must not be covered by others."""
MIN_INSIDE = 0.5
"""Share of an object's extent that must be inside the image."""

Color = tuple[int, int, int]
Point = tuple[float, float]
Shape = Literal["polygon", "rect", "oval", "line"]  # how the points of a mark are read
T = TypeVar("T")


class Dice:
    """Scalar draws from a numpy generator: `Generator.uniform` and `choice` cost ten times as much per scalar."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self.rng.random()

    def whole(self, low: int, high: int) -> int:
        """An integer in [low, high], both ends included."""
        return low + int(self.rng.random() * (high - low + 1))

    def pick(self, options: Sequence[T]) -> T:
        return options[int(self.rng.random() * len(options))]

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)


class Mark(NamedTuple):
    """One primitive, in units. `solid` marks make up the object's shape; others are drawn in the picture only."""

    shape: Shape
    points: tuple[Point, ...]
    fill: Color | None
    edge: Color | None
    width: float
    solid: bool


@dataclass(slots=True)
class Item:
    """Something in the scene."""

    desc: str | None = None  # class name; `None` for decoration, which hides what is behind it and has no label
    row: int | None = None  # items that stand in one row share this number
    crowd: bool = False  # whether an annotator may leave it out
    marks: list[Mark] = field(default_factory=list)

    def extent(self) -> tuple[float, float, float, float]:
        """`xyxy` in units around the solid marks."""
        points = [point for mark in self.marks if mark.solid for point in mark.points]
        xs, ys = [x for x, _ in points], [y for _, y in points]
        return min(xs), min(ys), max(xs), max(ys)


class Pen:
    """Draws into a box of an item: (u, v) run from 0 to 1 over the box, v downwards.

    x, y, w and h are the box in units; `angle` turns it clockwise, in radians, around the middle of its lower edge;
    `flip` mirrors it left and right.
    """

    def __init__(
        self, item: Item, x: float, y: float, w: float, h: float, *, angle: float = 0.0, flip: bool = False
    ) -> None:
        self.item, self.x, self.y, self.w, self.h, self.flip, self.angle = item, x, y, w, h, flip, angle
        self.sin, self.cos = math.sin(angle), math.cos(angle)

    def at(self, u: float, v: float) -> Point:
        """The point (u, v) of the box in units of the image."""
        x, y = self.x + (1 - u if self.flip else u) * self.w, self.y + v * self.h
        if not self.angle:
            return x, y
        dx, dy = x - (self.x + self.w / 2), y - (self.y + self.h)
        return (
            self.x + self.w / 2 + dx * self.cos - dy * self.sin,
            self.y + self.h + dx * self.sin + dy * self.cos,
        )

    def poly(
        self, uv: Sequence[Point], fill: Color, edge: Color | None = None, *, width: float = 1.0, solid: bool = True
    ) -> None:
        self.item.marks.append(Mark("polygon", tuple(self.at(u, v) for u, v in uv), fill, edge, width, solid))

    def rect(
        self,
        u0: float,
        v0: float,
        u1: float,
        v1: float,
        fill: Color,
        edge: Color | None = None,
        *,
        width: float = 1.0,
        solid: bool = True,
    ) -> None:
        if self.angle:
            self.poly([(u0, v0), (u1, v0), (u1, v1), (u0, v1)], fill, edge, width=width, solid=solid)
            return
        self.item.marks.append(Mark("rect", _corners(self.at(u0, v0), self.at(u1, v1)), fill, edge, width, solid))

    def oval(
        self,
        u0: float,
        v0: float,
        u1: float,
        v1: float,
        fill: Color | None,
        edge: Color | None = None,
        *,
        width: float = 1.0,
        solid: bool = True,
    ) -> None:
        """An ellipse; `fill=None` leaves it open."""
        if self.angle and fill is not None:
            turn = [2 * math.pi * k / 18 for k in range(18)]
            cu, cv, ru, rv = (u0 + u1) / 2, (v0 + v1) / 2, (u1 - u0) / 2, (v1 - v0) / 2
            self.poly([(cu + ru * math.cos(t), cv + rv * math.sin(t)) for t in turn], fill, edge, solid=solid)
            return
        self.item.marks.append(Mark("oval", _corners(self.at(u0, v0), self.at(u1, v1)), fill, edge, width, solid))

    def disc(
        self, u: float, v: float, radius: float, fill: Color | None, edge: Color | None = None, *, width: float = 1.0
    ) -> None:
        """A circle around (u, v); `radius` in units of the image."""
        x, y = self.at(u, v)
        box = ((x - radius, y - radius), (x + radius, y + radius))
        self.item.marks.append(Mark("oval", box, fill, edge, width, True))

    def line(self, uv: Sequence[Point], fill: Color, *, width: float = 1.0, solid: bool = True) -> None:
        """A polyline of `width` units."""
        self.item.marks.append(Mark("line", tuple(self.at(u, v) for u, v in uv), fill, None, width, solid))


def _corners(a: Point, b: Point) -> tuple[Point, Point]:
    return (min(a[0], b[0]), min(a[1], b[1])), (max(a[0], b[0]), max(a[1], b[1]))


class Seen(NamedTuple):
    """An object as it can be seen: box in pixels of the image, visible area in square pixels, share not covered."""

    item: Item
    bbox_xyxy: tuple[float, float, float, float]
    area: float
    visible: float


def render(backdrop: Image.Image, items: Sequence[Item], size: int) -> tuple[Image.Image, list[Seen]]:
    """Draw items, back to front (at most 255 objects), onto a backdrop that is resized to `size` x `size` pixels.

    Returns:
        The RGB image, and the objects in it, in the order of `items`. Objects that would be too hidden, too small or
        too far outside are in neither.
    """
    big = size * SUPERSAMPLE
    seen = _visibility(items, big)
    kept = {id(entry.item) for entry in seen}
    drawn = [item for item in items if item.desc is None or id(item) in kept]
    if len(drawn) < len(items):  # what they covered shows again: boxes can only grow, so nothing more is lost
        seen = _visibility(drawn, big)
    picture = backdrop.resize((big, big), Image.Resampling.BILINEAR)
    draw = ImageDraw.Draw(picture)
    for item in drawn:
        for mark in item.marks:
            _draw(draw, mark, big / UNITS, mark.fill, mark.edge)
    return picture.reduce(SUPERSAMPLE), seen


def _visibility(items: Sequence[Item], big: int) -> list[Seen]:
    """Draw the id buffer `[big, big]` and read from it what can be seen of every object."""
    scale = big / UNITS
    labels = Image.new("L", (big, big))
    draw = ImageDraw.Draw(labels)
    objects: list[tuple[Item, int, tuple[int, int, int, int]]] = []
    for item in items:
        number = 0
        if item.desc is not None:
            number = len(objects) + 1
            assert number < 256, "the id buffer has 8 bits"
        for mark in item.marks:
            if mark.solid:
                _draw(draw, mark, scale, number if mark.fill is not None else None, number if mark.edge else None)
        if number:
            x0, y0, x1, y1 = (value * scale for value in item.extent())
            near = (max(int(x0) - 4, 0), max(int(y0) - 4, 0), min(int(x1) + 5, big), min(int(y1) + 5, big))
            inside = (min(x1, big) - max(x0, 0)) * (min(y1, big) - max(y0, 0)) / max((x1 - x0) * (y1 - y0), 1e-9)
            outside = near[0] >= near[2] or near[1] >= near[3] or inside < MIN_INSIDE
            count = 0 if outside else labels.crop(near).histogram()[number]
            objects.append((item, count, near))
    return _seen(np.asarray(labels), objects, big)


def _seen(ids: np.ndarray, objects: Sequence[tuple[Item, int, tuple[int, int, int, int]]], big: int) -> list[Seen]:
    seen = []
    least = MIN_SIDE * big / UNITS
    for number, (item, count, (x0, y0, x1, y1)) in enumerate(objects, start=1):
        if not count:
            continue
        mask = ids[y0:y1, x0:x1] == number
        columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
        pixels = int(np.count_nonzero(mask))
        if not pixels or pixels < MIN_VISIBLE * count:
            continue
        left, top, right, low = x0 + columns[0], y0 + rows[0], x0 + columns[-1] + 1, y0 + rows[-1] + 1
        if min(right - left, low - top) < least:
            continue
        box = tuple(float(value) / SUPERSAMPLE for value in (left, top, right, low))
        seen.append(Seen(item, (box[0], box[1], box[2], box[3]), pixels / SUPERSAMPLE**2, pixels / count))
    return seen


def _draw(
    draw: ImageDraw.ImageDraw, mark: Mark, scale: float, fill: Color | int | None, edge: Color | int | None
) -> None:
    points = [(x * scale, y * scale) for x, y in mark.points]
    width = max(1, round(mark.width * scale))
    match mark.shape:
        case "rect":
            draw.rectangle(points, fill=fill, outline=edge, width=width)
        case "oval":
            draw.ellipse(points, fill=fill, outline=edge, width=width)
        case "line":
            draw.line(points, fill=fill, width=width, joint="curve" if width > 3 else None)
        case "polygon":
            draw.polygon(points, fill=fill)
            if edge is not None:  # polygon(width=...) masks the whole canvas: slow
                draw.line([*points, points[0]], fill=edge, width=width)
