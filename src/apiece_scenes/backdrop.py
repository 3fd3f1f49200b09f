"""What is behind the objects (walls, boards, sky, grass, asphalt) and what light and lens do to the whole picture."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter

from apiece_scenes.canvas import UNITS, Color, Dice, Item, Pen, hsv, mix, shade

_FIELD = 96
"""Side of the array that gradients are made in; they are smooth, so a small one does."""


def gradient(dice: Dice, top: Color, low: Color, *, rough: float = 0.06) -> Image.Image:
    """A slanted gradient from `top` to `low` with soft blotches; `rough` is their strength."""
    line = np.linspace(0.0, 1.0, _FIELD, dtype=np.float32)
    slant = dice.between(-0.4, 0.4)
    share = np.clip(line[:, None] + slant * (line[None] - 0.5), 0, 1)[..., None]
    cells = dice.whole(3, 14)
    noise = (dice.rng.random((cells, cells)) * 255).astype(np.uint8)
    blotches = np.asarray(Image.fromarray(noise).resize((_FIELD, _FIELD), Image.Resampling.BICUBIC), np.float32)
    ends = np.array([top, low], np.float32)
    picture = ends[0] + (ends[1] - ends[0]) * share + (blotches[..., None] - 127.5) * (2 * rough)
    return Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))


def plain_backdrop(dice: Dice) -> tuple[Image.Image, list[Item]]:
    """A wall, a room with a floor, or a lawn, with marks that are no objects."""
    hue = dice.between(0, 1)
    wall = hsv(hue, dice.between(0.05, 0.45), dice.between(0.45, 0.95))
    image = gradient(dice, wall, shade(wall, dice.between(0.6, 1.1)), rough=dice.between(0.02, 0.12))
    marks: list[Item] = []
    style = dice.whole(0, 4)
    if style == 1:
        floor = hsv(dice.between(0.05, 0.13), dice.between(0.2, 0.6), dice.between(0.3, 0.7))
        y = dice.between(100, 160)
        marks.append(block(0, y, UNITS, UNITS - y, floor))
        for _ in range(dice.whole(2, 5)):
            v = dice.between(y + 4, UNITS)
            marks.append(block(0, v, UNITS, 1.0, shade(floor, 0.82)))
    elif style == 2:
        y = dice.between(60, 120)
        grass = hsv(dice.between(0.22, 0.36), dice.between(0.35, 0.7), dice.between(0.4, 0.75))
        marks.append(block(0, y, UNITS, UNITS - y, grass))
        marks.append(tufts(dice, y + 4, UNITS, shade(grass, 0.8), 24))
    elif style == 3:
        stripe = mix(wall, (255, 255, 255), 0.2)
        pitch = dice.between(14, 34)
        marks.extend(block(x * pitch, 0, pitch * 0.45, UNITS, stripe) for x in range(int(UNITS / pitch) + 1))
    elif style == 4:
        for _ in range(dice.whole(2, 5)):
            tint = mix(wall, hsv(dice.between(0, 1), 0.5, 0.7), 0.3)
            box = (dice.between(-20, 170), dice.between(-20, 170), dice.between(20, 90), dice.between(20, 90))
            marks.append(block(*box, tint))
    return image, marks


def block(x: float, y: float, w: float, h: float, color: Color, edge: Color | None = None) -> Item:
    """A flat rectangle that is no object."""
    item = Item()
    Pen(item, x, y, w, h).rect(0, 0, 1, 1, color, edge)
    return item


def tufts(dice: Dice, top: float, low: float, color: Color, count: int) -> Item:
    """Short strokes: blades of grass, cracks, scuffs."""
    item = Item()
    pen = Pen(item, 0, top, UNITS, max(low - top, 1.0))
    for _ in range(count):
        u, v = dice.between(0, 1), dice.between(0, 1)
        pen.line([(u, v), (u + dice.between(-0.02, 0.02), v + 2.5 / pen.h)], color, width=0.8)
    return item


def develop(dice: Dice, image: Image.Image) -> Image.Image:
    """Uneven light, exposure, contrast, tint and grain, and now and then a soft focus."""
    if dice.chance(0.15):
        image = image.filter(ImageFilter.GaussianBlur(dice.between(0.3, 0.7) * image.width / UNITS))
    side = image.width
    line = np.linspace(-0.5, 0.5, side, dtype=np.float32)
    slope_x, slope_y = dice.between(-0.25, 0.25), dice.between(-0.25, 0.25)
    light = dice.between(0.82, 1.12) * (1 + slope_x * line[None] + slope_y * line[:, None])
    contrast = dice.between(0.8, 1.15)
    tint = np.array([dice.between(0.94, 1.06) for _ in range(3)], np.float32) * np.float32(contrast)
    picture = np.asarray(image, np.float32)
    grain = dice.between(1.0, 6.0) * dice.rng.standard_normal((side, side), dtype=np.float32)
    picture = picture * (light.astype(np.float32)[..., None] * tint)
    picture += (grain + np.float32(128 * (1 - contrast)))[..., None]
    return Image.fromarray(np.clip(picture, 0, 255, out=picture).astype(np.uint8))
