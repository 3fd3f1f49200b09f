"""A contact sheet: the first scenes with their boxes, labelled ones solid, unlabelled ones dashed."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw

from apiece.types import BoxXYXY
from apiece_scenes.canvas import Color
from apiece_scenes.scene import Scene

SHEET_CELLS = 24
_COLUMNS = 6
_CELL = 256
_GAP = 6
_SOLID: Color = (0, 255, 70)
_DASHED: Color = (255, 60, 220)
_REGION: Color = (255, 190, 0)


def contact_sheet(scenes: Sequence[Scene]) -> Image.Image:
    """Draw the scenes in rows of six: labelled green, unlabelled dashed magenta, boxes over rows orange."""
    columns = min(_COLUMNS, len(scenes))
    rows = -(-len(scenes) // columns)
    sheet = Image.new("RGB", (columns * (_CELL + _GAP) + _GAP, rows * (_CELL + _GAP) + _GAP), (24, 24, 26))
    for k, scene in enumerate(scenes):
        place = (_GAP + (k % columns) * (_CELL + _GAP), _GAP + (k // columns) * (_CELL + _GAP))
        sheet.paste(_cell(scene), place)
    return sheet


def _cell(scene: Scene) -> Image.Image:
    scale = _CELL / scene.image.width
    cell = scene.image.resize((_CELL, _CELL), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(cell)
    whole = {instance.id for instance in scene.complete}
    labelled = {instance.id for instance in scene.observed}
    for instance in scene.complete:
        if instance.id not in labelled:
            _dashed(draw, instance.bbox_xyxy, scale)
    for instance in scene.observed:
        color = _SOLID if instance.id in whole else _REGION
        draw.rectangle(
            [value * scale for value in instance.bbox_xyxy], outline=color, width=1 if color == _SOLID else 3
        )
    return cell


def _dashed(draw: ImageDraw.ImageDraw, bbox_xyxy: BoxXYXY, scale: float) -> None:
    x1, y1, x2, y2 = (value * scale for value in bbox_xyxy)
    for start, end in (((x1, y1), (x2, y1)), ((x2, y1), (x2, y2)), ((x1, y2), (x2, y2)), ((x1, y1), (x1, y2))):
        length = max(abs(end[0] - start[0]), abs(end[1] - start[1]))
        for k in range(0, int(length), 6):
            a, b = k / length, min(1.0, (k + 3) / length)
            points = [(start[0] + (end[0] - start[0]) * t, start[1] + (end[1] - start[1]) * t) for t in (a, b)]
            draw.line(points, fill=_DASHED)
