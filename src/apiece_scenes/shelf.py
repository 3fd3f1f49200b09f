"""The layout of `shelf` scenes: books side by side on one to three boards; some lean, some lie in stacks."""

from __future__ import annotations

import math
from dataclasses import dataclass

from PIL import Image

from apiece_scenes.backdrop import block, gradient
from apiece_scenes.canvas import UNITS, Color, Dice, Item, Palette, hsv, mix, paint, shade
from apiece_scenes.sprites import KINDS, lying_spine, make, spine

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

    def _add(
        self, color: Color, place: tuple[float, float, float, float], row: int, angle: float, *, lying: bool = False
    ) -> None:
        sprite = lying_spine if lying else spine
        self.items.append(make("book", self.dice, color, place, row=row, crowd=True, angle=angle, sprite=sprite))
        self.budget -= 1


def shelf(dice: Dice) -> tuple[Image.Image, list[Item]]:
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
