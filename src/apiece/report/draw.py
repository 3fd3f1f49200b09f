"""Overlays: labels and predictions drawn over their image, as pictures that stay readable in a crowd and in print.

What became of a box is told twice, by colour and by line: solid where matched, dashed where not, dotted for crowd
regions and for predictions inside one, which count neither way.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from apiece.boxes import as_boxes
from apiece.dumps.form import Record
from apiece.files import atomic_open
from apiece.match import inside_crowd, number_names
from apiece.report.overlay import (
    BACKGROUND,
    BLACK,
    CAPTION_FONT,
    CLASS_COLOURS,
    CROWD_REGION,
    DASHED,
    DOTTED,
    FATES,
    HIDDEN,
    IGNORED,
    LABEL,
    MATCHED,
    MISSED,
    OUTCOMES,
    PREDICTION,
    SOLID,
    TITLE_FONT,
    WHITE,
    WRONG,
    Mark,
    Style,
    fit,
    line_height,
    overlay,
    wrap,
)
from apiece.types import BoxXYXY, Detection, Instance, Match

_MARGIN = 8


def draw_comparison(
    image: Image.Image,
    truth: Sequence[Instance],
    predictions: Sequence[Detection],
    match: Match | None = None,
    title: str = "",
) -> Image.Image:
    """Labels on the left, predictions on the right, counts above and a legend below.

    Args:
        image: The original; small ones are enlarged without smoothing, large ones reduced.
        truth: Labels, crowd regions among them.
        predictions: Boxes in pixels of the original.
        match: Between them, as `match_instances` gives it (indices into `truth` as given); `None` draws both sides
            without judging them.
        title: First line, such as the sample's id.

    Returns:
        An RGB picture.
    """
    left = [Mark(x.bbox_xyxy, style, x.desc) for x, style in zip(truth, _truth_styles(truth, match), strict=True)]
    styles = _prediction_styles(truth, predictions, match)
    right = [Mark(x.bbox_xyxy, style, x.desc, f"{x.score:.2f}") for x, style in zip(predictions, styles, strict=True)]
    objects = sum(not instance.iscrowd for instance in truth)
    ignored = sum(style is IGNORED for style in styles)
    counts = count_line(objects, len(predictions), None if match is None else len(match.pairs), ignored)
    return _page(_side_by_side(image, left, right), title, counts)


def draw_record(image: Image.Image, record: Record) -> Image.Image:
    """A record of a dump: labels by what became of them on the left, predictions by outcome on the right.

    What is there but not labelled is on the left too, where that is known.

    Args:
        image: The original.
        record: Its record.

    Returns:
        An RGB picture.
    """
    left = [
        Mark(_box(row["bbox"]), CROWD_REGION if row["fate"] is None else FATES[row["fate"]], row["desc"])
        for row in record["objects"]
    ]
    left += [Mark(_box(row["bbox"]), HIDDEN, row["desc"]) for row in record["hidden"] or ()]
    right = [
        Mark(
            _box(row["bbox"]),
            PREDICTION if row["outcome"] is None else OUTCOMES[row["outcome"]],
            row["desc"],
            "" if row["score"] is None else f"{row['score']:.2f}",
        )
        for row in record["predictions"]
    ]
    counts = record["counts"]
    line = count_line(counts["gt"], counts["pred"], counts["matched"], counts["ignored"])
    if counts["f1_true"] is not None:
        line += f"  true f1 {counts['f1_true']:.3f}".replace("f1 0.", "f1 .")
    if not record["answer"]["closed"]:
        line += "  answer cut off"
    return _page(_side_by_side(image, left, right), f"{record['id']}  step {record['step']}", line)


def _side_by_side(image: Image.Image, labels: Sequence[Mark], predictions: Sequence[Mark]) -> list[Image.Image]:
    """Both sides of an image, of one size."""
    most = max(len(labels), len(predictions))
    return [overlay(image, labels, "labels", most=most), overlay(image, predictions, "predictions", most=most)]


def draw_predictions(image: Image.Image, detections: Sequence[Detection], title: str = "") -> Image.Image:
    """Predictions alone, coloured by class, with their scores.

    Args:
        image: The original; small ones are enlarged without smoothing, large ones reduced.
        detections: Boxes in pixels of the original.
        title: First line, such as the file's name.

    Returns:
        An RGB picture.
    """
    names = sorted({detection.desc for detection in detections})
    dashes = (SOLID, DASHED, DOTTED)
    styles = {
        name: Style(name, CLASS_COLOURS[i % len(CLASS_COLOURS)], dashes[i // len(CLASS_COLOURS) % len(dashes)])
        for i, name in enumerate(names)
    }
    marks = [Mark(x.bbox_xyxy, styles[x.desc], x.desc, f"{x.score:.2f}") for x in detections]
    return _page([overlay(image, marks, "predictions", by_class=True)], title, f"pred {len(detections)}")


def contact_sheet(images: Sequence[Image.Image], columns: int = 2) -> Image.Image:
    """Pictures in rows of `columns`, each column and row as large as its largest picture.

    Raises:
        ValueError: There are no pictures, or `columns` is below 1.
    """
    if not images or columns < 1:
        raise ValueError(f"expected pictures and at least 1 column, got {len(images)} pictures, {columns} columns")
    rows = [images[start : start + columns] for start in range(0, len(images), columns)]
    widths = [max(row[i].width for row in rows if i < len(row)) for i in range(min(columns, len(images)))]
    heights = [max(picture.height for picture in row) for row in rows]
    sheet = Image.new(
        "RGB", (sum(widths) + _MARGIN * (len(widths) - 1), sum(heights) + _MARGIN * (len(rows) - 1)), WHITE
    )
    y = 0
    for row, height in zip(rows, heights, strict=True):
        x = 0
        for picture, width in zip(row, widths, strict=False):
            sheet.paste(picture, (x, y))
            x += width + _MARGIN
        y += height + _MARGIN
    return sheet


def save_png(path: Path, image: Image.Image) -> None:
    """Write a PNG atomically; the same picture gives the same bytes."""
    with atomic_open(path, "wb") as file:
        image.save(file, format="PNG")


def count_line(truths: int, predictions: int, matched: int | None, ignored: int = 0) -> str:
    """The counts of an image in one line; a rate with nothing to divide is `-`.

    Example:
        >>> count_line(17, 43, 5)
        'gt 17  pred 43  matched 5  p .116  r .294  f1 .167'
    """
    counts = f"gt {truths}  pred {predictions}"
    if matched is None:
        return counts
    judged = predictions - ignored
    rates = {"p": (matched, judged), "r": (matched, truths), "f1": (2 * matched, judged + truths)}
    shown = "  ".join(f"{name} {_short_rate(*rate)}" for name, rate in rates.items())
    return f"{counts}  matched {matched}{f'  ignored {ignored}' if ignored else ''}  {shown}"


def _box(values: Sequence[float]) -> BoxXYXY:
    x1, y1, x2, y2 = values
    return x1, y1, x2, y2


def _short_rate(part: int, whole: int) -> str:
    return f"{part / whole:.3f}".removeprefix("0") if whole else "-"


def _truth_styles(truth: Sequence[Instance], match: Match | None) -> list[Style]:
    matched = set() if match is None else set(match.pairs[:, 1].tolist())
    open_style = LABEL if match is None else MISSED
    return [
        CROWD_REGION if instance.iscrowd else MATCHED if i in matched else open_style
        for i, instance in enumerate(truth)
    ]


def _prediction_styles(truth: Sequence[Instance], predictions: Sequence[Detection], match: Match | None) -> list[Style]:
    if match is None:
        return [PREDICTION] * len(predictions)
    crowds = [instance for instance in truth if instance.iscrowd]
    groups, crowd_groups = number_names([x.desc for x in predictions], [x.desc for x in crowds])
    inside = inside_crowd(
        as_boxes([x.bbox_xyxy for x in predictions]), groups, as_boxes([x.bbox_xyxy for x in crowds]), crowd_groups
    )
    matched = set(match.pairs[:, 0].tolist())
    return [MATCHED if i in matched else IGNORED if inside[i] else WRONG for i in range(len(predictions))]


def _page(panels: Sequence[Image.Image], title: str, counts: str) -> Image.Image:
    """Panels side by side under a title and a line of counts."""
    width = sum(panel.width for panel in panels) + _MARGIN * (len(panels) + 1)
    room = width - 2 * _MARGIN
    head = [(fit(title, TITLE_FONT, room), TITLE_FONT)] if title else []
    head += [(line, CAPTION_FONT) for line in wrap(counts.split("  "), CAPTION_FONT, room, most=3, gap="   ")]
    top = _MARGIN + sum(line_height(font) for _, font in head)
    page = Image.new("RGB", (width, top + max(panel.height for panel in panels) + _MARGIN), BACKGROUND)
    draw = ImageDraw.Draw(page)
    y = _MARGIN
    for line, font in head:
        draw.text((_MARGIN, y), line, fill=BLACK, font=font)
        y += line_height(font)
    x = _MARGIN
    for panel in panels:
        page.paste(panel, (x, top))
        x += panel.width + _MARGIN
    return page
