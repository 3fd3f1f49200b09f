"""Sprites of people, animals and vehicles. Each draws one object into the pen's box, out to all four of its sides."""

from __future__ import annotations

from apiece.data.scenes.canvas import Color, Dice, Pen
from apiece.data.scenes.colors import HAIRS, SKINS, hsv, paint, shade

DARK: Color = (28, 28, 32)
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
        cap = paint(dice)
        pen.poly(
            [(u0, v1 * 0.42), (u0 + wide * 0.2, v1 * 0.1), (u1 - wide * 0.2, v1 * 0.1), (u1, v1 * 0.42)],
            cap,
            solid=False,
        )


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
    pen.poly(
        [(left - 0.04, waist - 0.02), (left, 0.1), (middle - 0.02, 0.1), (middle - 0.02, waist - 0.02)],
        glass,
        edge,
        width=0.6,
        solid=False,
    )
    pen.poly(
        [(middle + 0.02, waist - 0.02), (middle + 0.02, 0.1), (right, 0.1), (right + 0.09, waist - 0.02)],
        glass,
        edge,
        width=0.6,
        solid=False,
    )
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
    for part in (
        [(left, axle), seat, crank, (left, axle)],
        [seat, head, crank],
        [head, (right, axle)],
        [head, (0.66, 0.02)],
    ):
        pen.line(part, color, width=pipe)
    pen.rect(0.28, 0.1, 0.46, 0.18, DARK)
    pen.line([(0.66, 0.03), (0.8, 0.06)], DARK, width=pipe)
    pen.rect(0.6, 0, 0.72, 0.05, DARK)
    if dice.chance(0.3):
        pen.rect(0.72, 0.1, 0.9, 0.32, hsv(0.09, 0.5, 0.6), DARK, width=0.6)
