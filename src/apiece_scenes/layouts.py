"""Where things stand: a layout for each family of scenes. It returns a backdrop and the items, back to front."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from PIL import Image

from apiece_scenes.backdrop import block, gradient, plain_backdrop, tufts
from apiece_scenes.canvas import UNITS, Color, Dice, Item, Palette, Pen, hsv, mix, paint, shade
from apiece_scenes.sprites import CLASSES, KINDS, lying_spine, make, spectator, spine

Layout = tuple[Image.Image, list[Item]]
Place = tuple[float, float, float, float]


class Family(StrEnum):
    """What a scene shows; `sparse` is a few large objects."""

    SHELF = "shelf"
    STANDS = "stands"
    STREET = "street"
    SPARSE = "sparse"


EMPTY_SHARE = 0.015
"""Share of `sparse` scenes with nothing in them."""
SPECTATORS = 35
"""Most spectators in one scene."""


def stands(dice: Dice) -> Layout:
    """Rows of spectators above a field, each row in front of the one behind it; players, benches, a ball."""
    close = dice.chance(0.25)  # the camera sees nothing but the crowd
    wide = dice.between(25, 36) if close else dice.between(15, 26)
    tall = wide * dice.between(1.35, 1.7)
    step = max(tall * dice.between(0.62, 0.85), 12.5)
    first = dice.between(2, 14) + tall
    lowest = 205.0 if close else min(165.0, first + step * dice.whole(1, 4))
    lines = [first + step * k for k in range(9) if first + step * k <= lowest]
    concrete = hsv(dice.between(0, 1), dice.between(0, 0.18), dice.between(0.4, 0.8))
    image = gradient(dice, shade(concrete, 0.7), concrete)
    items: list[Item] = []
    palette = Palette(dice, dice.chance(0.5))
    seat = paint(dice)
    space = dice.between(0.98, 1.25)
    seats = len(lines) * UNITS / (wide * space)
    share = min(max(dice.between(0.4, 1.0), 13 / seats), SPECTATORS / seats)
    left = SPECTATORS
    for row, y in enumerate(lines):
        size = 0.86 + 0.14 * (row + 1) / len(lines)
        w, h = wide * size, tall * size
        items.append(block(0, y - h * 0.42, UNITS, 2.0, shade(concrete, 0.55)))
        items.append(block(0, y - h * 0.42 + 2, UNITS, UNITS, shade(concrete, 0.8 + 0.06 * (row % 2))))
        x = dice.between(-0.3, 0.9) * w
        while x + w * 0.6 < UNITS:
            if left and dice.chance(share):
                lean, lift = dice.between(0.9, 1.0), dice.between(-0.07, 0.07) * h
                place = (x + dice.between(-0.06, 0.06) * w, y - h * lean + lift, w * dice.between(0.9, 1.02), h * lean)
                color = palette.next()
                items.append(make("person", dice, color, place, row=row, crowd=True, sprite=spectator))
                left -= 1
            else:
                back = block(x + w * 0.12, y - h * 0.4, w * 0.76, h * 0.4, mix(seat, concrete, 0.25), shade(seat, 0.5))
                items.append(back)
            x += w * space
    if close:
        return image, items
    y = lines[-1]
    items.append(block(0, y, UNITS, UNITS, shade(concrete, 0.6)))
    items.append(block(0, y - tall * 0.12, UNITS, tall * 0.12 + 2, paint(dice), (40, 40, 44)))
    items.extend(_field(dice, y + 2, palette))
    return image, items


def _field(dice: Dice, top: float, palette: Palette) -> list[Item]:
    """The field below the stands, with lines, benches, players and a ball."""
    turf = hsv(dice.pick((0.3, 0.27, 0.08, 0.58)), dice.between(0.4, 0.7), dice.between(0.45, 0.75))
    items = [block(0, top, UNITS, UNITS, turf)]
    depth = UNITS - top
    for k in range(0, 6, 2):
        items.append(block(k * 36 - 10, top, 30, UNITS, shade(turf, 0.92)))
    items.append(block(0, top + depth * dice.between(0.3, 0.6), UNITS, 1.6, (236, 240, 236)))
    if depth < 20:
        return items
    tall = min(depth * 0.9, dice.between(32, 58))
    x = dice.between(0, 40)
    for _ in range(dice.whole(0, 2)):
        h = max(11.0, tall * 0.42)
        w = h * dice.between(*KINDS["bench"].aspect)
        if x + w > UNITS:
            break
        items.append(make("bench", dice, paint(dice), (x, top + dice.between(1, 4), w, h)))
        x += w + dice.between(6, 50)
    shirts = (palette.next(), paint(dice))
    feet = sorted(dice.between(top + tall * 0.85, UNITS - 1) for _ in range(dice.whole(0, 4)))
    players: list[Place] = []
    for y in feet:
        w = tall * dice.between(*KINDS["person"].aspect)
        place = (dice.between(2, UNITS - w - 2), y - tall, w, tall)
        if _hides(place, players, 0.6):
            continue
        players.append(place)
        items.append(make("person", dice, dice.pick(shirts), place))
    if dice.chance(0.5):
        d = max(10.5, tall * 0.28)
        items.append(make("ball", dice, paint(dice), (dice.between(4, 170), UNITS - d - dice.between(2, 8), d, d)))
    return items


def street(dice: Dice) -> Layout:
    """A road with pavements: vehicles, people, animals, trees and signs, the nearer ones larger and in front."""
    sky = hsv(dice.between(0.52, 0.66), dice.between(0.1, 0.5), dice.between(0.6, 1.0))
    image = gradient(dice, sky, mix(sky, (255, 255, 255), dice.between(0.2, 0.7)))
    horizon = dice.between(66, 104)
    items = _houses(dice, horizon)
    grey = dice.between(0.3, 0.6)
    asphalt = hsv(dice.between(0, 1), dice.between(0, 0.1), grey)
    pavement = hsv(dice.between(0.05, 0.15), dice.between(0.02, 0.2), min(0.9, grey + 0.25))
    kerb = horizon + dice.between(22, 40)
    items.append(block(0, horizon, UNITS, UNITS, pavement))
    items.append(block(0, kerb, UNITS, UNITS, asphalt))
    items.append(block(0, kerb, UNITS, 2.0, shade(pavement, 0.6)))
    lane, pitch = kerb + dice.between(20, 50), dice.between(22, 44)
    items.extend(block(k * pitch + 4, lane, pitch * 0.5, 2.2, (232, 226, 200)) for k in range(int(UNITS / pitch) + 1))
    items.append(tufts(dice, kerb + 4, UNITS, shade(asphalt, 0.8), 14))
    near = dice.between(0.3, 0.75)  # a person's height for each unit below the horizon
    things: list[tuple[float, Item]] = []
    count = dice.whole(4, 15)  # some are hidden by others and taken out
    if dice.chance(0.4):
        queue = _queue(dice, horizon, near, dice.whole(3, 6))
        things.extend(queue)
        count = max(0, count - len(queue))
    taken: dict[str, list[Place]] = {}
    for _ in range(count):
        desc = dice.pick(_STREET)
        moving = desc in ("car", "bus")
        y = dice.between(kerb + 6, UNITS) if moving else dice.between(horizon + 14, UNITS)
        tall = _tall(desc, y - horizon, near)
        w = tall * dice.between(*KINDS[desc].aspect)
        place = (dice.between(-0.25 * w, UNITS - 0.75 * w), y - tall, w, tall)
        if _hides(place, taken.setdefault(desc, []), 0.7):
            continue
        taken[desc].append(place)
        things.append((y, make(desc, dice, paint(dice), place, crowd=True)))
    things.sort(key=lambda thing: thing[0])
    return image, items + [item for _, item in things]


_STREET = (
    *("person",) * 5,
    *("car",) * 5,
    *("bicycle", "sign", "tree", "dog") * 2,
    *("bus", "bench", "lamp", "plant", "ball"),
)
"""Classes of a street, as often as they are drawn."""


def _tall(desc: str, below: float, near: float) -> float:
    """Height in units of a class whose feet are `below` units under the horizon."""
    tall = KINDS[desc].height * (20 + near * below)
    return min(max(tall, 10.5), 96.0 / max(1.0, KINDS[desc].aspect[0]))


def _houses(dice: Dice, horizon: float) -> list[Item]:
    """Fronts with windows along the horizon: no objects."""
    items: list[Item] = []
    x = dice.between(-30, 10)
    while x < UNITS:
        w, h = dice.between(26, 70), dice.between(20, horizon * 0.95)
        wall = hsv(dice.between(0, 0.16), dice.between(0.05, 0.4), dice.between(0.4, 0.85))
        house = block(x, horizon - h, w, h + 2, wall, shade(wall, 0.7))
        pen = Pen(house, x, horizon - h, w, h)
        columns, floors = max(1, int(w / 13)), max(1, int(h / 15))
        glass = shade(wall, dice.pick((0.6, 0.75, 1.25)))
        for column in range(columns):
            for floor in range(floors):
                u, v = (column + 0.3) / columns, (floor + 0.25) / floors
                pen.rect(u, v, u + 0.4 / columns, v + 0.45 / floors, glass)
        items.append(house)
        x += w + (dice.between(0, 30) if dice.chance(0.4) else 0)
    return items


def _queue(dice: Dice, horizon: float, near: float, count: int) -> list[tuple[float, Item]]:
    """Neighbours of one class in a line: people who wait, parked cars or bicycles."""
    desc = dice.pick(("person", "person", "car", "bicycle"))
    y = dice.between(horizon + 20, 150)
    tall = _tall(desc, y - horizon, near)
    palette = Palette(dice, dice.chance(0.4))
    x = dice.between(0, 40)
    things = []
    for _ in range(count):
        h = tall * dice.between(0.94, 1.04)
        w = h * dice.between(*KINDS[desc].aspect)
        if x + w * 0.7 > UNITS:
            break
        place = (x, y - h + dice.between(-1, 1), w, h)
        things.append((y, make(desc, dice, palette.next(), place, row=0, crowd=True)))
        x += w * dice.between(0.75, 1.05)
    return things


def sparse(dice: Dice) -> Layout:
    """One to five large objects of any class, rarely none."""
    image, items = plain_backdrop(dice)
    if dice.chance(EMPTY_SHARE):
        return image, items
    count = dice.whole(1, 5)
    placed: list[Place] = []
    for _ in range(count):
        desc = dice.pick(CLASSES)
        for attempt in range(8):
            wide, narrow = max(KINDS[desc].aspect[1], 1.0), min(KINDS[desc].aspect[0], 1.0)
            tall = dice.between(28, 120 - 12 * count) * (0.9**attempt) / math.sqrt(wide * narrow)
            tall = min(tall, 170.0 / wide)
            w = tall * dice.between(*KINDS[desc].aspect)
            w, tall = max(w, 11.0), max(tall, 11.0)
            x, y = dice.between(-0.08 * w, UNITS - 0.92 * w), dice.between(0, UNITS - tall)
            if not _hides((x, y, w, tall), placed, 0.3):
                placed.append((x, y, w, tall))
                items.append(make(desc, dice, paint(dice), (x, y, w, tall)))
                break
    return image, items


def _hides(place: Place, others: list[Place], most: float) -> bool:
    """Whether an `xywh` box shares `most` or more of the smaller area with one of the others."""
    x, y, w, h = place
    for other_x, other_y, other_w, other_h in others:
        wide = min(x + w, other_x + other_w) - max(x, other_x)
        tall = min(y + h, other_y + other_h) - max(y, other_y)
        if max(wide, 0.0) * max(tall, 0.0) >= most * min(w * h, other_w * other_h):
            return True
    return False


MAX_BOOKS = 30
_BOOKS = {1: (6, 16), 2: (10, 26), 3: (14, MAX_BOOKS)}
"""Fewest and most books wanted, by number of boards."""
_THIN = 9.8
"""Thinnest book in units, a little above the smallest side that is labelled."""


@dataclass(slots=True)
class _Board:
    """One board being filled from left to right."""

    dice: Dice
    items: list[Item]
    palette: Palette
    row: int
    y: float
    room: float
    left: float
    right: float
    thick: float
    tall: float
    budget: int

    @property
    def space(self) -> float:
        return self.right - self.left

    def upright(self) -> None:
        """One book that stands; books of a series have nearly one height."""
        dice = self.dice
        w = min(max(self.thick * dice.between(0.75, 1.35), _THIN), 36.0)
        h = self.room * min(0.97, self.tall * dice.between(0.86, 1.08))
        self._add(self.palette.next(), (self.left, self.y - h, w, h), self.row, 0.0)
        self.left += w + (dice.between(0.6, 2.0) if dice.chance(0.15) else 0.35)

    def leaning(self) -> None:
        """One to three books that lean to the left, against the last one."""
        dice = self.dice
        angle = math.radians(dice.between(7, 17))
        w = min(max(self.thick * dice.between(0.8, 1.2), _THIN), 26.0)
        h = self.room * self.tall * dice.between(0.8, 0.95)
        sin, cos = math.sin(angle), math.cos(angle)
        middle = self.left + h * sin + w / 2 * cos
        for _ in range(dice.whole(1, 3)):
            if middle + w / 2 * cos > self.right or self.budget <= 0:
                break
            place = (middle - w / 2, self.y - h - w / 2 * sin, w, h)
            self._add(self.palette.next(), place, self.row, -angle)
            middle += (w + 0.4) / cos
        self.left = middle - w / 2 * cos + 1.0

    def stack(self, row: int) -> None:
        """Two to four books that lie on one another."""
        dice = self.dice
        thick = dice.between(_THIN + 0.4, 14)
        w = min(self.space - 1, dice.between(28, 48))
        y = self.y
        for _ in range(min(dice.whole(2, 4), int(self.room / thick), self.budget)):
            h = max(_THIN, thick * dice.between(0.85, 1.15))
            own = w * dice.between(0.78, 1.0)
            x = self.left + (w - own) * dice.between(0, 1)
            self._add(self.palette.next(), (x, y - h, own, h), row, 0.0, lying=True)
            y -= h + 0.35
        self.left += w + dice.between(0.5, 3)

    def thing(self) -> None:
        """Something else between the books."""
        dice = self.dice
        desc = dice.pick(("vase", "plant", "clock", "ball", "lamp"))
        h = self.room * dice.between(0.45, 0.85)
        w = h * dice.between(*KINDS[desc].aspect)
        squeeze = min(1.0, (self.space - 2) / w, 44 / w)
        w, h = w * squeeze, h * squeeze
        if min(w, h) < 11:
            self.left += 8
            return
        self.items.append(make(desc, dice, paint(dice), (self.left + 1, self.y - h, w, h)))
        self.left += w + dice.between(1.5, 5)

    def _add(self, color: Color, place: Place, row: int, angle: float, *, lying: bool = False) -> None:
        sprite = lying_spine if lying else spine
        self.items.append(make("book", self.dice, color, place, row=row, crowd=True, angle=angle, sprite=sprite))
        self.budget -= 1


def shelf(dice: Dice) -> Layout:
    """Books side by side on one to three boards, in similar or mixed colours, now and then a vase or a plant."""
    wood = hsv(dice.between(0.04, 0.12), dice.between(0.05, 0.65), dice.between(0.25, 0.9))
    back = shade(wood, dice.between(0.45, 0.8)) if dice.chance(0.6) else shade(paint(dice), dice.between(0.4, 1.0))
    image = gradient(dice, back, shade(back, dice.between(0.7, 1.1)), rough=dice.between(0.02, 0.08))
    boards = dice.pick((1, 2, 2, 3, 3))
    # Three boards need low books; on one board, books are seen from nearer.
    pitch = min(UNITS * 0.9 / boards, dice.between(58, 130))
    first = dice.between(0.05, 0.95) * (UNITS - pitch * boards - 4) + pitch
    margin = dice.between(0, 10)
    wanted = dice.whole(*_BOOKS[boards])
    alike = dice.chance(0.55)
    items: list[Item] = []
    if margin > 4:
        for x in (0.0, UNITS - margin):
            items.append(block(x, 0, margin, UNITS, shade(wood, 0.85), shade(wood, 0.5)))
    used = 0
    for k in range(boards):
        y = first + k * pitch
        thick = dice.between(4, 7)
        items.append(block(0, y, UNITS, thick, wood, shade(wood, 0.5)))
        items.append(block(0, y + thick, UNITS, 2.2, shade(back, 0.6)))
        room = pitch - thick - dice.between(2, 8)
        share = max(3, round((wanted - used) / (boards - k)))
        edge = max(margin, 1.0) + 1
        board = _Board(
            dice,
            items,
            Palette(dice, alike),
            row=2 * k,
            y=y,
            room=room,
            left=edge + (dice.between(0, 30) if dice.chance(0.35) else 0.0),
            right=UNITS - edge,
            thick=min(max((UNITS - 2 * margin) / share * dice.between(0.8, 1.0), _THIN + 0.8), 30.0, room * 0.5),
            tall=dice.between(0.72, 0.95),
            budget=min(share, MAX_BOOKS - used),
        )
        before = board.budget
        _fill(board, dice)
        used += before - board.budget
    if dice.chance(0.3):
        items.insert(0, block(dice.between(0, 120), 0, dice.between(20, 60), UNITS, mix(back, (255, 255, 255), 0.08)))
    return image, items


def _fill(board: _Board, dice: Dice) -> None:
    """Fill a board until its books or its space run out."""
    stacks = 0
    while board.budget > 0 and board.space > max(board.thick * 1.4, 14):
        roll = dice.between(0, 1)
        if roll < 0.07 and board.space > board.room * 0.35 + 16:
            board.leaning()
        elif roll < 0.13 and board.space > 50 and board.room > 36 and not stacks and board.budget > 2:
            stacks += 1
            board.stack(board.row + 1)
        elif roll < 0.18 and board.space > 24:
            board.thing()
        elif roll < 0.25:
            board.left += dice.between(3, 16)
        else:
            board.upright()
