"""Text in pictures: Pillow's own font at three sizes, measured, shortened and wrapped."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import ImageFont

Font = ImageFont.FreeTypeFont


def _font(size: int) -> Font:
    font = ImageFont.load_default(size=size)
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow was built without FreeType"
    return font


TITLE_FONT, CAPTION_FONT, TAG_FONT = _font(18), _font(15), _font(12)


def text_width(text: str, font: Font) -> int:
    """Width in pixels."""
    return round(font.getlength(text))


def line_height(font: Font) -> int:
    """Pixels from one line to the next."""
    return round(font.size) + 6


def fit(text: str, font: Font, room: int) -> str:
    """`text`, or as much of its beginning and `...` as `room` pixels hold."""
    if text_width(text, font) <= room:
        return text
    end = len(text)
    while end and text_width(f"{text[:end]}...", font) > room:
        end -= 1
    return f"{text[:end]}..."


def wrap(words: Sequence[str], font: Font, room: int, most: int, gap: str = " ") -> list[str]:
    """Words in lines of at most `room` pixels and `most` lines; how many were left out ends the last one."""
    lines: list[list[str]] = []
    for number, word in enumerate(words):
        word = fit(word, font, room)
        if lines and text_width(gap.join([*lines[-1], word]), font) <= room:
            lines[-1].append(word)
        elif len(lines) < most:
            lines.append([word])
        else:
            rest = len(words) - number
            while lines[-1] and text_width(gap.join([*lines[-1], f"and {rest} more"]), font) > room:
                lines[-1].pop()
                rest += 1
            lines[-1].append(f"and {rest} more")
            break
    return [gap.join(line) for line in lines]
