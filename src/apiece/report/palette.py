"""Colours and line styles of boxes.

The colours are Okabe & Ito's, which colour-blind eyes tell apart (https://jfly.uni-koeln.de/color/). The line says the
same again, for print in grey: solid is matched, dashed is not, dotted is left out of the count.
"""

from __future__ import annotations

from dataclasses import dataclass

Colour = tuple[int, int, int]

BLUE, SKY, GREEN = (0, 114, 178), (86, 180, 233), (0, 158, 115)
ORANGE, VERMILLION, PURPLE, YELLOW = (230, 159, 0), (213, 94, 0), (204, 121, 167), (240, 228, 66)
GREY, BLACK, WHITE = (64, 64, 74), (0, 0, 0), (255, 255, 255)
BACKGROUND: Colour = (250, 250, 250)
CLASS_COLOURS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, YELLOW)

SOLID, LONG, DASHED, SHORT, DOTTED = (1, 0), (14, 4), (9, 6), (5, 4), (3, 6)
"""Line styles: pixels drawn, pixels left out."""


@dataclass(frozen=True, slots=True)
class Style:
    """How one kind of box is drawn, and its word in the legend."""

    word: str
    colour: Colour
    dash: tuple[int, int]

    @property
    def css(self) -> str:
        """The colour as `#rrggbb`."""
        return "#" + bytes(self.colour).hex()


MATCHED = Style("matched", BLUE, SOLID)
MISSED = Style("missed", ORANGE, DASHED)
WRONG = Style("unmatched", VERMILLION, DASHED)
IGNORED = Style("ignored", GREY, DOTTED)
CROWD_REGION = Style("crowd region", GREY, DOTTED)
LABEL = Style("label", BLUE, SOLID)
PREDICTION = Style("prediction", VERMILLION, SOLID)

# A miss has the colour of the outcome that explains it: merged labels are what group boxes cover.
OUTCOMES = {
    "tp": MATCHED,
    "duplicate": Style("duplicate", PURPLE, DASHED),
    "group": Style("group", VERMILLION, LONG),
    "fragment": Style("fragment", ORANGE, SHORT),
    "mislocalised": Style("mislocalised", SKY, DASHED),
    "wrong_class": Style("wrong class", YELLOW, DASHED),
    "unlabelled": Style("unlabelled", GREEN, LONG),
    "background": Style("background", BLACK, SHORT),
    "ignored": IGNORED,
}
"""Of predictions, by outcome, in the order in which legends list them."""
FATES = {
    "matched": MATCHED,
    "merged": Style("merged", VERMILLION, LONG),
    "misclassified": Style("misclassified", YELLOW, DASHED),
    "near_miss": Style("near miss", SKY, DASHED),
    "missed": MISSED,
}
"""Of labels, by what became of them."""
HIDDEN = Style("hidden truth", GREEN, DOTTED)
"""There, but not labelled."""


def ink_on(colour: Colour) -> Colour:
    """Black or white, whichever stands out on `colour` (luma of ITU-R BT.601)."""
    return BLACK if 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 130 else WHITE
