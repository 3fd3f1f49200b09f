"""The classes: what each is called, how wide it is for its height, how tall next to a person, and how it is drawn."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from apiece_scenes.canvas import HAIRS, SKINS, Color, Dice, Item, Pen, hsv, mix, paint, shade

# Every sprite draws one object into the pen's box, out to all four of its sides.

DARK: Color = (28, 28, 32)
PAPER: Color = (244, 240, 226)
GLASS: tuple[Color, ...] = ((176, 212, 232), (120, 150, 176), (206, 226, 230))


def _head(pen: Pen, dice: Dice, u0: float, u1: float, v1: float) -> None:
    """A head from the top of the box to `v1`, with hair, a cap or neither."""
    skin, hair = dice.pick(SKINS), dice.pick(HAIRS)
    pen.oval(u0, 0, u1, v1, skin, shade(skin, 0.5), width=0.7)
    style = dice.between(0, 1)
    wide = u1 - u0
    if style < 0.5:
        sides = [(u0, v1 * 0.45), (u0 + wide * 0.08, v1 * 0.16), (u0 + wide * 0.5, 0), (u1 - wide * 0.08, v1 * 0.16)]
        pen.poly([*sides, (u1, v1 * 0.45), (u0 + wide * 0.6, v1 * 0.3)], hair, solid=False)
    elif style < 0.75:
        cap = [(u0, v1 * 0.42), (u0 + wide * 0.2, v1 * 0.1), (u1 - wide * 0.2, v1 * 0.1), (u1, v1 * 0.42)]
        pen.poly(cap, paint(dice), solid=False)


def spectator(pen: Pen, dice: Dice, color: Color) -> None:
    """A seated person from the front: head, shoulders, torso, now and then raised arms or a scarf."""
    edge = shade(color, 0.45)
    skin = dice.pick(SKINS)
    head_low = dice.between(0.36, 0.46)
    half = dice.between(0.24, 0.3)
    if dice.chance(0.15):
        top = dice.between(0.02, 0.2)
        for side in (0.06, 0.94):
            pen.line([(side, 0.62), (side, top)], edge, width=max(2.4, pen.w * 0.15))
            pen.line([(side, 0.62), (side, top)], skin, width=max(1.4, pen.w * 0.1))
    pen.poly([(0, 1), (0, 0.62), (0.16, head_low), (0.84, head_low), (1, 0.62), (1, 1)], color, edge)
    if dice.chance(0.35):
        pen.rect(0.4, head_low, 0.6, 1, paint(dice), solid=False)
    if dice.chance(0.5):
        for side in (0.24, 0.76):
            pen.line([(side, 0.72), (side, 1)], edge, width=0.7, solid=False)
    _head(pen, dice, 0.5 - half, 0.5 + half, head_low + 0.06)


def person(pen: Pen, dice: Dice, color: Color) -> None:
    """A standing, walking or running person."""
    edge, trousers = shade(color, 0.45), shade(paint(dice), 0.6)
    skin = dice.pick(SKINS)
    stride = dice.between(0.12, 0.36)
    limb = max(1.8, pen.w * 0.2)
    knee = stride * dice.between(0.5, 0.8)
    for side, reach in ((-1, stride), (1, stride)):
        leg = [(0.5 + side * 0.1, 0.52), (0.5 + side * knee, 0.76), (0.5 + side * reach, 0.98)]
        pen.line(leg, shade(trousers, 0.55), width=limb + 1)
        pen.line(leg, trousers, width=limb)
        pen.rect(0.5 + side * reach - 0.1, 0.95, 0.5 + side * reach + 0.14, 1, DARK)
    swing = dice.between(0.3, 0.42)
    hand = dice.between(0.3, 0.6)
    for side in (-1, 1):
        arm = [(0.5 + side * 0.2, 0.26), (0.5 + side * swing, 0.42), (0.5 + side * min(0.44, swing + 0.05), hand)]
        pen.line(arm, edge, width=limb * 0.75 + 1)
        pen.line(arm, color if dice.chance(0.6) else skin, width=limb * 0.75)
    pen.poly([(0.24, 0.21), (0.76, 0.21), (0.7, 0.56), (0.3, 0.56)], color, edge)
    if dice.chance(0.3):
        pen.rect(0.3, 0.34, 0.7, 0.42, paint(dice), solid=False)
    _head(pen, dice, 0.29, 0.71, 0.2)


def dog(pen: Pen, dice: Dice, color: Color) -> None:
    """A dog from the side: body, four legs, tail up, head with an ear."""
    coat = dice.pick(((150, 98, 52), (60, 46, 40), (214, 186, 140), (236, 232, 224), (110, 110, 112), (178, 120, 60)))
    edge = shade(coat, 0.4)
    leg = max(1.6, pen.w * 0.09)
    for u in (0.22, 0.34, 0.62, 0.72):
        pen.line([(u, 0.6), (u + dice.between(-0.05, 0.05), 0.98)], edge, width=leg + 0.8)
        pen.rect(u - 0.05, 0.7, u + 0.04, 1, coat, edge, width=0.6)
    tail = [(0.2, 0.42), (0.06, 0.26), (0.02, dice.between(0.06, 0.2))]
    pen.line(tail, edge, width=max(1.8, pen.w * 0.08))
    pen.oval(0.12, 0.32, 0.8, 0.76, coat, edge)
    if dice.chance(0.4):
        pen.oval(0.3, 0.36, 0.55, 0.6, shade(coat, 0.6), solid=False)
    pen.poly([(0.62, 0.5), (0.66, 0.14), (0.88, 0.14), (0.82, 0.6)], coat)
    pen.oval(0.62, 0.04, 0.9, 0.44, coat, edge)
    pen.rect(0.82, 0.2, 1, 0.4, coat, edge, width=0.7)
    pen.oval(0.94, 0.19, 1, 0.29, DARK, solid=False)
    pen.poly([(0.62, 0.05), (0.74, 0.0), (0.72, 0.36), (0.62, 0.34)], shade(coat, 0.55), edge, width=0.6)


def _wheels(pen: Pen, places: tuple[float, ...], radius: float) -> None:
    v = 1 - radius / pen.h
    for u in places:
        pen.disc(u, v, radius, DARK, (10, 10, 10), width=0.6)
        pen.disc(u, v, radius * 0.45, (170, 170, 174))


def car(pen: Pen, dice: Dice, color: Color) -> None:
    """A car from the side: saloon, hatchback or pick-up."""
    edge, glass = shade(color, 0.4), dice.pick(GLASS)
    nose, tail = dice.between(0.22, 0.34), dice.between(0.06, 0.24)
    waist = dice.between(0.4, 0.48)
    roof = [(tail * 0.6, waist), (tail + 0.06, 0), (1 - nose - 0.12, 0), (1 - nose + 0.04, waist)]
    pen.poly(roof, color, edge)
    pen.poly([(0, 0.5), (0.04, waist), (1 - nose, waist), (0.96, 0.56), (1, 0.64), (1, 0.84), (0, 0.84)], color, edge)
    left, right = tail + 0.09, 1 - nose - 0.14
    middle = (left + right) / 2
    sill = waist - 0.02
    front = [(left - 0.04, sill), (left, 0.1), (middle - 0.02, 0.1), (middle - 0.02, sill)]
    rear = [(middle + 0.02, sill), (middle + 0.02, 0.1), (right, 0.1), (right + 0.09, sill)]
    for window in (front, rear):
        pen.poly(window, glass, edge, width=0.6, solid=False)
    pen.line([(middle, waist), (middle, 0.8)], edge, width=0.7, solid=False)
    pen.rect(0.95, 0.6, 1, 0.7, (255, 240, 170), solid=False)
    pen.rect(0, 0.54, 0.035, 0.66, (214, 40, 36), solid=False)
    _wheels(pen, (dice.between(0.18, 0.22), dice.between(0.76, 0.8)), pen.h * dice.between(0.2, 0.24))


def bus(pen: Pen, dice: Dice, color: Color) -> None:
    """A bus from the side: a tall block with a row of windows and a door."""
    edge, glass = shade(color, 0.4), dice.pick(GLASS)
    pen.poly([(0, 0.06), (0.03, 0), (0.96, 0), (1, 0.08), (1, 0.88), (0, 0.88)], color, edge)
    if dice.chance(0.6):
        stripe = paint(dice)
        pen.rect(0.01, 0.58, 0.99, dice.between(0.64, 0.7), stripe, solid=False)
    windows = dice.whole(4, 6)
    low = dice.between(0.42, 0.5)
    pitch = 0.78 / windows
    for k in range(windows):
        pen.rect(0.03 + k * pitch, 0.13, 0.03 + (k + 0.82) * pitch, low, glass, edge, width=0.6, solid=False)
    pen.rect(0.84, 0.15, 0.95, 0.85, glass, edge, width=0.7, solid=False)
    pen.line([(0.895, 0.15), (0.895, 0.85)], edge, width=0.6, solid=False)
    _wheels(pen, (dice.between(0.16, 0.22), dice.between(0.7, 0.76)), pen.h * dice.between(0.14, 0.17))


def bicycle(pen: Pen, dice: Dice, color: Color) -> None:
    """A bicycle from the side: two open wheels, a frame, a saddle and handlebars."""
    radius = pen.w * dice.between(0.225, 0.25)
    left, right = radius / pen.w, 1 - radius / pen.w
    axle = 1 - radius / pen.h
    pipe = max(1.3, pen.w * 0.045)
    tyre = max(1.3, pen.w * 0.04)
    for u in (left, right):
        pen.disc(u, axle, radius, None, DARK, width=tyre)
        pen.disc(u, axle, max(1.0, radius * 0.16), shade(color, 0.7))
    crank, seat, head = (0.47, axle), (0.37, 0.2), (0.68, 0.18)
    triangle = [(left, axle), seat, crank, (left, axle)]
    for part in (triangle, [seat, head, crank], [head, (right, axle)], [head, (0.66, 0.02)]):
        pen.line(part, color, width=pipe)
    pen.rect(0.28, 0.1, 0.46, 0.18, DARK)
    pen.line([(0.66, 0.03), (0.8, 0.06)], DARK, width=pipe)
    pen.rect(0.6, 0, 0.72, 0.05, DARK)
    if dice.chance(0.3):
        pen.rect(0.72, 0.1, 0.9, 0.32, hsv(0.09, 0.5, 0.6), DARK, width=0.6)


def spine(pen: Pen, dice: Dice, color: Color) -> None:
    """The back of a book that stands on a shelf: bands, a title, a label."""
    pen.rect(0, 0, 1, 1, color, shade(color, 0.38))
    trim = dice.pick((mix(color, PAPER, 0.65), shade(color, 0.6), (222, 186, 90), paint(dice)))
    style = dice.whole(0, 4)
    low, high = 1.4 / pen.w, 1 - 1.4 / pen.w
    if style in (0, 1):
        for v in (dice.between(0.06, 0.14), dice.between(0.82, 0.9)):
            pen.rect(low, v, high, v + dice.between(0.025, 0.06), trim, solid=False)
    if style in (1, 2):
        u = dice.between(0.32, 0.4)
        pen.rect(u, dice.between(0.24, 0.34), 1 - u, dice.between(0.55, 0.75), trim, solid=False)
    if style == 3:
        v = dice.between(0.12, 0.3)
        pen.rect(max(low, 0.16), v, min(high, 0.84), v + dice.between(0.18, 0.3), trim, solid=False)
    pen.rect(low, 0.02, low + 0.1, 0.98, mix(color, (255, 255, 255), 0.25), solid=False)


def lying_spine(pen: Pen, dice: Dice, color: Color) -> None:
    """The back of a book that lies flat."""
    pen.rect(0, 0, 1, 1, color, shade(color, 0.38))
    trim = dice.pick((mix(color, PAPER, 0.65), shade(color, 0.6), (222, 186, 90)))
    u = dice.between(0.06, 0.14)
    pen.rect(u, 0.16, u + 0.05, 0.84, trim, solid=False)
    pen.rect(0.3, 0.36, dice.between(0.55, 0.8), 0.64, trim, solid=False)


def book(pen: Pen, dice: Dice, color: Color) -> None:
    """A single book: seen from the front, or open."""
    edge = shade(color, 0.38)
    if dice.chance(0.35):
        pen.poly([(0, 0.1), (0.5, 0.2), (1, 0.1), (1, 0.94), (0.5, 1), (0, 0.94)], color, edge)
        for side in (0, 1):
            page = [(abs(side - 0.04), 0.0), (0.5, 0.12), (0.5, 0.93), (abs(side - 0.04), 0.86)]
            pen.poly(page, PAPER, edge, width=0.8)
            for line in range(5):
                v = 0.2 + line * 0.12
                pen.line([(abs(side - 0.12), v), (abs(side - 0.43), v + 0.07)], (150, 146, 140), width=0.8, solid=False)
        return
    pen.poly([(0.08, 0.03), (1, 0.03), (1, 1), (0.08, 1)], PAPER, edge)
    for u in (0.94, 0.97):
        pen.line([(u, 0.04), (u, 0.98)], (190, 186, 176), width=0.5, solid=False)
    pen.rect(0, 0, 0.9, 0.96, color, edge)
    pen.rect(0.02, 0.02, 0.1, 0.94, shade(color, 0.7), solid=False)
    trim = mix(color, PAPER, 0.75)
    pen.rect(0.22, 0.14, 0.78, 0.24, trim, solid=False)
    pen.rect(0.3, 0.3, 0.7, 0.35, trim, solid=False)
    if dice.chance(0.5):
        pen.oval(0.3, 0.46, 0.7, 0.78, paint(dice), edge, solid=False)


def vase(pen: Pen, dice: Dice, color: Color) -> None:
    """A vase: narrow neck, round belly, foot, a painted band."""
    edge = shade(color, 0.4)
    neck, foot, belly = dice.between(0.14, 0.2), dice.between(0.2, 0.28), dice.between(0.5, 0.66)
    throat = [(0.5 + neck + 0.1, 0), (0.5 + neck, 0.08), (0.5 + neck, 0.24)]
    body = [(0.9, belly - 0.18), (1, belly), (0.92, belly + 0.16), (0.5 + foot, 0.96), (0.5 + foot, 1)]
    right = throat + body
    pen.poly([*right, *[(1 - u, v) for u, v in reversed(right)]], color, edge)
    pen.rect(0.07, belly - 0.05, 0.93, belly + 0.06, paint(dice), solid=False)
    pen.line([(0.26, belly - 0.1), (0.2, belly + 0.14)], mix(color, (255, 255, 255), 0.55), width=1.2, solid=False)


def plant(pen: Pen, dice: Dice, color: Color) -> None:
    """A plant in a pot: leaves that fan out above a tapering pot."""
    green = hsv(dice.between(0.24, 0.4), dice.between(0.5, 0.85), dice.between(0.4, 0.75))
    edge = shade(green, 0.45)
    pot_top = dice.between(0.62, 0.7)
    leaves = dice.whole(5, 8)
    for k in range(leaves):
        turn = math.pi * (0.04 + 0.92 * k / (leaves - 1))
        u, v = 0.5 - 0.5 * math.cos(turn), pot_top - (pot_top - 0.01) * math.sin(turn) ** 0.6
        du, dv = 0.1 * math.sin(turn), 0.1 * math.cos(turn)
        mu, mv = 0.5 + (u - 0.5) * 0.6, pot_top + (v - pot_top) * 0.6
        leaf = shade(green, dice.between(0.8, 1.2))
        pen.poly([(0.5, pot_top + 0.04), (mu - du, mv + dv), (u, v), (mu + du, mv - dv)], leaf, edge, width=0.6)
    pot = dice.pick(((190, 96, 56), (226, 222, 214), (96, 104, 120), color))
    pen.poly([(0.24, pot_top + 0.06), (0.76, pot_top + 0.06), (0.68, 1), (0.32, 1)], pot, shade(pot, 0.45))
    pen.rect(0.2, pot_top, 0.8, pot_top + 0.09, pot, shade(pot, 0.45))


def clock(pen: Pen, dice: Dice, color: Color) -> None:
    """A round clock: thick rim, white face, marks, two hands."""
    pen.oval(0, 0, 1, 1, color, shade(color, 0.4))
    face = dice.pick(((250, 250, 246), (250, 244, 220), (226, 236, 244)))
    pen.oval(0.13, 0.13, 0.87, 0.87, face, shade(color, 0.5), width=0.7, solid=False)
    for k in range(12):
        turn = math.pi * k / 6
        mark = [(0.5 + r * math.cos(turn), 0.5 + r * math.sin(turn)) for r in (0.28, 0.34)]
        pen.line(mark, DARK, width=0.7, solid=False)
    for reach, width in ((0.19, 1.5), (0.28, 1.0)):
        turn = dice.between(0, 2 * math.pi)
        hand = [(0.5, 0.5), (0.5 + reach * math.cos(turn), 0.5 + reach * math.sin(turn))]
        pen.line(hand, DARK, width=width, solid=False)


def lamp(pen: Pen, dice: Dice, color: Color) -> None:
    """A lamp: a shade that widens downwards, a stem, a foot."""
    glow = mix(color, (255, 240, 180), 0.55)
    low = dice.between(0.36, 0.46)
    stem = shade(dice.pick(((90, 90, 96), (150, 120, 70), (60, 50, 46))), 1.0)
    half = max(0.05, 1.1 / pen.w)
    pen.rect(0.5 - half, low, 0.5 + half, 0.94, stem, shade(stem, 0.5), width=0.6)
    if dice.chance(0.5):
        pen.oval(0.3, 0.56, 0.7, 0.9, stem, shade(stem, 0.5), width=0.7)
    pen.rect(0.2, 0.92, 0.8, 1, stem, shade(stem, 0.5), width=0.8)
    top = dice.between(0.16, 0.3)
    pen.poly([(top, 0), (1 - top, 0), (1, low), (0, low)], glow, shade(color, 0.4))
    pen.line([(0.08, low * 0.86), (0.92, low * 0.86)], shade(color, 0.7), width=1.0, solid=False)


def bench(pen: Pen, dice: Dice, color: Color) -> None:
    """A bench from the front: slats of a back, a seat, legs."""
    wood = dice.pick(((150, 96, 52), (110, 70, 42), (186, 140, 90), (88, 104, 92), color))
    edge = shade(wood, 0.4)
    iron = dice.pick(((50, 52, 58), (96, 98, 104), shade(wood, 0.55)))
    for u in (0.06, 0.94) if dice.chance(0.6) else (0.06, 0.5, 0.94):
        pen.rect(u - 0.035, 0.06, u + 0.035, 1, iron, shade(iron, 0.5), width=0.6)
    slats = dice.whole(2, 3)
    pitch = 0.44 / slats
    for k in range(slats):
        pen.rect(0, k * pitch, 1, k * pitch + pitch * 0.72, wood, edge, width=0.7)
    pen.rect(0, 0.54, 1, 0.7, shade(wood, 1.12), edge, width=0.8)


def ball(pen: Pen, dice: Dice, color: Color) -> None:
    """A ball: patches, stripes or seams."""
    edge = shade(color, 0.4)
    style = dice.whole(0, 2)
    base: Color = (246, 246, 244) if style == 0 else color
    pen.oval(0, 0, 1, 1, base, (60, 60, 64) if style == 0 else edge)
    if style == 0:
        pen.poly([(0.5, 0.34), (0.66, 0.46), (0.6, 0.64), (0.4, 0.64), (0.34, 0.46)], DARK, solid=False)
        for u, v in ((0.5, 0.08), (0.88, 0.38), (0.74, 0.84), (0.26, 0.84), (0.12, 0.38)):
            pen.oval(u - 0.09, v - 0.07, u + 0.09, v + 0.07, DARK, solid=False)
    elif style == 1:
        pen.oval(0.3, 0.05, 0.7, 0.95, (248, 248, 240), edge, width=0.7, solid=False)
    else:
        pen.line([(0.5, 0.04), (0.5, 0.96)], edge, width=1.1, solid=False)
        pen.line([(0.04, 0.5), (0.96, 0.5)], edge, width=1.1, solid=False)
        pen.oval(0.22, 0.1, 0.42, 0.3, mix(color, (255, 255, 255), 0.6), solid=False)


def sign(pen: Pen, dice: Dice, color: Color) -> None:
    """A road sign: a plate (octagon, triangle, square or disc) on a post."""
    plate = pen.w / pen.h
    half = max(0.05, 0.9 / pen.w)
    pen.rect(0.5 - half, plate * 0.8, 0.5 + half, 1, (150, 152, 156), (80, 82, 86), width=0.6)
    style = dice.whole(0, 3)
    hue = dice.pick(((204, 36, 32), (30, 84, 176), (30, 130, 70), (240, 180, 30)))
    edge, white = shade(hue, 0.5), (250, 250, 250)
    if style == 0:
        cut = 0.29
        ring = [(cut, 0), (1 - cut, 0), (1, cut), (1, 1 - cut), (1 - cut, 1), (cut, 1), (0, 1 - cut), (0, cut)]
        pen.poly([(u, v * plate) for u, v in ring], hue, edge)
        pen.rect(0.16, plate * 0.4, 0.84, plate * 0.6, white, solid=False)
    elif style == 1:
        pen.poly([(0.5, 0), (1, plate * 0.9), (0, plate * 0.9)], hue, edge)
        pen.poly([(0.5, plate * 0.26), (0.76, plate * 0.76), (0.24, plate * 0.76)], white, solid=False)
    elif style == 2:
        pen.rect(0, 0, 1, plate, hue, edge)
        pen.poly([(0.5, plate * 0.18), (0.8, plate * 0.6), (0.2, plate * 0.6)], white, solid=False)
        pen.rect(0.42, plate * 0.58, 0.58, plate * 0.84, white, solid=False)
    else:
        pen.oval(0, 0, 1, plate, hue, edge)
        pen.rect(0.2, plate * 0.4, 0.8, plate * 0.6, white, solid=False)


def tree(pen: Pen, dice: Dice, color: Color) -> None:
    """A tree: a trunk under a round crown, or a fir of three tiers."""
    hue = dice.between(0.2, 0.4) if dice.chance(0.85) else dice.between(0.04, 0.12)
    leaf = hsv(hue, dice.between(0.45, 0.8), dice.between(0.35, 0.65))
    edge, bark = shade(leaf, 0.5), (104, 72, 48)
    pen.rect(0.43, 0.55, 0.57, 1, bark, shade(bark, 0.5), width=0.7)
    if dice.chance(0.35):
        for low, wide in ((0.84, 1.0), (0.6, 0.78), (0.38, 0.54)):
            pen.poly([(0.5, low - 0.38), (0.5 + wide / 2, low), (0.5 - wide / 2, low)], leaf, edge)
        return
    blobs = ((0.0, 0.22, 0.6, 0.62), (0.4, 0.22, 1.0, 0.64), (0.18, 0.0, 0.82, 0.5), (0.2, 0.3, 0.8, 0.72))
    for u0, v0, u1, v1 in blobs:
        pen.oval(u0, v0, u1, v1, leaf, edge)
    for u0, v0, u1, v1 in blobs:
        pen.oval(u0 + 0.04, v0 + 0.03, u1 - 0.04, v1 - 0.03, leaf, solid=False)
    for _ in range(6):
        u, v = dice.between(0.18, 0.76), dice.between(0.1, 0.58)
        pen.oval(u, v, u + 0.1, v + 0.06, shade(leaf, dice.pick((0.75, 1.3))), solid=False)


Sprite = Callable[[Pen, Dice, Color], None]


class Looks(NamedTuple):
    """How the objects of a class look."""

    draw: Sprite
    aspect: tuple[float, float]  # range of width / height
    height: float  # in heights of a person, compressed so that small things can be seen


KINDS: dict[str, Looks] = {
    "ball": Looks(ball, (1.0, 1.0), 0.34),
    "bench": Looks(bench, (1.9, 2.5), 0.55),
    "bicycle": Looks(bicycle, (1.45, 1.65), 0.68),
    "book": Looks(book, (0.7, 0.85), 0.4),
    "bus": Looks(bus, (1.9, 2.4), 1.4),
    "car": Looks(car, (2.0, 2.5), 0.85),
    "clock": Looks(clock, (1.0, 1.0), 0.4),
    "dog": Looks(dog, (1.2, 1.5), 0.5),
    "lamp": Looks(lamp, (0.5, 0.7), 0.7),
    "person": Looks(person, (0.42, 0.52), 1.0),
    "plant": Looks(plant, (0.65, 0.9), 0.6),
    "sign": Looks(sign, (0.34, 0.5), 1.1),
    "tree": Looks(tree, (0.62, 0.85), 1.9),
    "vase": Looks(vase, (0.45, 0.68), 0.5),
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
    """An object of class `desc` in a box in units, mirrored or not, by the class's own sprite or another.

    `color` is the main paint; `row` and `crowd` are those of `Item`, `angle` is that of `Pen`.
    """
    item = Item(desc, row, crowd)
    pen = Pen(item, *box_xywh, angle=angle, flip=dice.chance(0.5))
    (sprite or KINDS[desc].draw)(pen, dice, color)
    return item
