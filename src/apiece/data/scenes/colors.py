"""Colours: random paints, shades of a paint, and palettes."""

from __future__ import annotations

import colorsys

from apiece.data.scenes.canvas import Color, Dice

SKINS: tuple[Color, ...] = (
    (255, 219, 188),
    (241, 194, 150),
    (216, 160, 112),
    (172, 116, 76),
    (120, 78, 52),
    (84, 54, 38),
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
    """Paints for the members of a row: all alike, or of any colour.

    Args:
        dice: Source of randomness.
        alike: Whether members share a hue and differ by shade alone.
    """

    def __init__(self, dice: Dice, alike: bool) -> None:
        self.dice, self.alike = dice, alike
        self.hue, self.saturation, self.value = dice.between(0, 1), dice.between(0.2, 0.9), dice.between(0.5, 0.9)

    def next(self) -> Color:
        """The paint of the next member."""
        dice = self.dice
        if not self.alike:
            return paint(dice)
        return hsv(
            self.hue + dice.between(-0.03, 0.03),
            self.saturation + dice.between(-0.1, 0.1),
            self.value + dice.between(-0.13, 0.13),
        )
