"""Sprites of things that stand still. Each draws one object into the pen's box, out to all four of its sides."""

from __future__ import annotations

import math

from apiece.data.scenes.canvas import Color, Dice, Pen
from apiece.data.scenes.colors import hsv, mix, paint, shade

DARK: Color = (28, 28, 32)
PAPER: Color = (244, 240, 226)


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
            pen.poly(
                [(abs(side - 0.04), 0.0), (0.5, 0.12), (0.5, 0.93), (abs(side - 0.04), 0.86)], PAPER, edge, width=0.8
            )
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
    band = paint(dice)
    pen.rect(0.07, belly - 0.05, 0.93, belly + 0.06, band, solid=False)
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
        pen.line(
            [(0.5, 0.5), (0.5 + reach * math.cos(turn), 0.5 + reach * math.sin(turn))], DARK, width=width, solid=False
        )


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
