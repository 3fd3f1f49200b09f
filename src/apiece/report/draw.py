"""Pictures of images with boxes: labels and predictions over their photo, readable in a crowd and in print.

What became of a box is shown twice, by colour and by line: solid where matched, dashed where not, dotted for crowd
regions and for predictions inside one, which count neither way. Every line has a rim, light around dark colours and
dark around light ones, so that it shows on any photo. Tags are drawn only where there is room: in a crowd the legend
takes their place.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from apiece.boxes import as_boxes
from apiece.dumps.form import Entry
from apiece.files import atomic_open
from apiece.match import inside_crowd, number_names
from apiece.types import Detection, Instance, Match

Colour = tuple[int, int, int]

# Okabe & Ito's colours, which colour-blind eyes can distinguish (https://jfly.uni-koeln.de/color/).
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
"""Predictions by outcome, in the order in which legends list them."""
FATES = {
    "matched": MATCHED,
    "merged": Style("merged", VERMILLION, LONG),
    "misclassified": Style("misclassified", YELLOW, DASHED),
    "near_miss": Style("near miss", SKY, DASHED),
    "missed": MISSED,
}
"""Labels by what became of them."""
HIDDEN = Style("hidden truth", GREEN, DOTTED)
"""There, but not labelled."""


def ink_on(colour: Colour) -> Colour:
    """Black or white, whichever stands out on `colour` (luma of ITU-R BT.601)."""
    return BLACK if 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 130 else WHITE


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
    """`text`, or as much of its beginning and `...` as fits into `room` pixels."""
    if text_width(text, font) <= room:
        return text
    end = len(text)
    while end and text_width(f"{text[:end]}...", font) > room:
        end -= 1
    return f"{text[:end]}..."


def wrap(words: Sequence[str], font: Font, room: int, most: int, gap: str = " ") -> list[str]:
    """Words in at most `most` lines of `room` pixels; the last line ends with how many were left out."""
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


MIN_SIDE, MIN_SIDE_CROWD, MAX_SIDE = 480, 720, 1000
"""Pixels of the longer side: smaller images are enlarged (more for a crowd), larger ones reduced."""

CROWD = 12
"""With more boxes than this, tags hold a short name only and stay off small boxes."""

_Rectangle = tuple[int, int, int, int]
_MARGIN = 8


@dataclass(frozen=True, slots=True)
class Mark:
    """One box to draw, in pixels of the original image; its tag is the class name and a note, such as a score."""

    box_xyxy: Sequence[float]
    style: Style
    desc: str
    note: str = ""


def overlay(
    image: Image.Image, marks: Sequence[Mark], caption: str, *, by_class: bool = False, most: int = 0
) -> Image.Image:
    """Draw `marks` on a copy of `image`, with a caption above and a legend below.

    Args:
        image: The original; small ones are enlarged by a whole number, so that their pixels stay crisp.
        marks: The boxes.
        caption: Line above the image.
        by_class: Styles stand for classes, so the legend need not count classes as well.
        most: Marks on the most crowded picture of the same page: all get one size.

    Returns:
        An RGB picture at least `MIN_SIDE` wide.
    """
    crowded = max(len(marks), most) > CROWD
    scale = _scale(image.size, MIN_SIDE_CROWD if crowded else MIN_SIDE)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    resample = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
    picture = image.convert("RGB").resize(size, resample)
    boxes = [_placed(mark.box_xyxy, scale) for mark in marks]
    short = short_names(mark.desc for mark in marks) if crowded else {}
    _draw_boxes(picture, marks, boxes, width=3)
    _draw_tags(picture, marks, boxes, short)
    width = max(picture.width, MIN_SIDE)
    kinds = _legend_places(marks, width)
    classes = (
        [] if by_class and not any(short.values()) else wrap(_class_words(marks, short), CAPTION_FONT, width, 3, "   ")
    )
    step = line_height(CAPTION_FONT)
    rows = 1 + max((row for row, _, _, _ in kinds), default=-1)
    foot = step + picture.height + 4
    panel = Image.new("RGB", (width, foot + step * (rows + len(classes))), BACKGROUND)
    draw = ImageDraw.Draw(panel)
    draw.text((0, 1), fit(caption, CAPTION_FONT, width), fill=BLACK, font=CAPTION_FONT)
    panel.paste(picture, (0, step))
    for row, x, style, words in kinds:
        _draw_legend(draw, (x, foot + step * row), style, words)
    for i, line in enumerate(classes):
        draw.text((0, foot + step * (rows + i)), line, fill=BLACK, font=CAPTION_FONT)
    return panel


def short_names(descs: Iterable[str]) -> dict[str, str]:
    """Each name's shortest beginning that no other name shares; nothing where there is one name only."""
    names = sorted(set(descs))
    if len(names) < 2:
        return dict.fromkeys(names, "")
    return {name: next((part for part in _beginnings(name) if _shared(part, names) == 1), name) for name in names}


def _beginnings(name: str) -> Iterator[str]:
    return (name[:n] for n in range(1, len(name)) if not name[n - 1].isspace())


def _shared(beginning: str, names: Sequence[str]) -> int:
    return sum(name.startswith(beginning) for name in names)


def _scale(size_wh: tuple[int, int], least: int) -> float:
    """How much an image is enlarged or reduced; a whole number where it is enlarged."""
    longest = max(size_wh)
    return min(float(-(-least // longest)), max(MAX_SIDE // longest, MAX_SIDE / longest if longest > MAX_SIDE else 1))


def _placed(box: Sequence[float], scale: float) -> _Rectangle:
    x1, y1, x2, y2 = (round(value * scale) for value in box)
    return x1, y1, x2, y2


def _draw_boxes(picture: Image.Image, marks: Sequence[Mark], boxes: Sequence[_Rectangle], width: int) -> None:
    """All rims, then all lines: large boxes first and matched ones last, so that small and matched ones stay on top."""
    draw = ImageDraw.Draw(picture)
    area = [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in boxes]
    order = sorted(range(len(marks)), key=lambda i: (marks[i].style == MATCHED, -area[i], i))
    strokes = [(marks[i].style, list(_strokes(boxes[i], picture.size, marks[i].style.dash, width))) for i in order]
    for style, rectangles in strokes:
        for x1, y1, x2, y2 in rectangles:
            draw.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), fill=ink_on(style.colour))
    for style, rectangles in strokes:
        for rectangle in rectangles:
            draw.rectangle(rectangle, fill=style.colour)


def _strokes(box: _Rectangle, size_wh: tuple[int, int], dash: tuple[int, int], width: int) -> Iterator[_Rectangle]:
    """The dashes of a box's four sides as filled rectangles, kept inside the picture.

    Lines lie inside the box, so that the sides of two boxes that touch are seen side by side.
    """
    farthest = [max(side - width, 0) for side in size_wh * 2]
    x1, y1, x2, y2 = box
    inner = x1, y1, max(x2 - width, x1), max(y2 - width, y1)
    x1, y1, x2, y2 = (min(max(v, 0), most) for v, most in zip(inner, farthest, strict=True))
    for start, end in _dashes(x1, x2 + width - 1, dash):
        yield start, y1, end, y1 + width - 1
        yield start, y2, end, y2 + width - 1
    for start, end in _dashes(y1, y2 + width - 1, dash):
        yield x1, start, x1 + width - 1, end
        yield x2, start, x2 + width - 1, end


def _dashes(start: int, end: int, dash: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """Pieces of a line from `start` to `end`, both drawn: a box has its corners. Shorter ones on short lines."""
    on, off = dash
    if not off:
        yield start, end
        return
    on = min(on, max(3, (end - start) // 5))
    room = end + 1 - on - start
    gaps = max(1, round(room / (on + off)))
    for i in range(gaps + 1 if room > 0 else 1):
        at = start + round(i * room / gaps) if room > 0 else start
        yield at, min(at + on - 1, end)


def _draw_tags(picture: Image.Image, marks: Sequence[Mark], boxes: Sequence[_Rectangle], short: dict[str, str]) -> None:
    """A tag at each box where no other tag is; `short` names are for crowds, where no tag may cover a small box."""
    draw = ImageDraw.Draw(picture)
    height = int(TAG_FONT.size) + 3
    small = [box for box in boxes if short and min(box[2] - box[0], box[3] - box[1]) < 2 * height]
    taken: list[_Rectangle] = []
    for i in sorted(range(len(marks)), key=lambda i: marks[i].style != MATCHED):
        mark, (x1, y1, x2, y2) = marks[i], boxes[i]
        text = short[mark.desc] if short else f"{fit(mark.desc, TAG_FONT, 160)} {mark.note}".strip()
        if not text:
            continue
        width = text_width(text, TAG_FONT) + 5
        corners = ((x1, y1 - height), (x1 + 2, y1 + 2), (x2 - width, y1 - height), (x1, y2 + 1), (x2 - width, y2 + 1))
        for x, y in corners:
            spot = (x, y, x + width, y + height)
            inside = x >= 0 and y >= 0 and spot[2] <= picture.width and spot[3] <= picture.height
            if inside and not any(_overlap(spot, other) for other in (*taken, *small)):
                taken.append(spot)
                draw.rectangle(spot, fill=mark.style.colour)
                draw.text((x + 3, y), text, fill=ink_on(mark.style.colour), font=TAG_FONT)
                break


def _overlap(a: _Rectangle, b: _Rectangle) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _class_words(marks: Sequence[Mark], short: dict[str, str]) -> list[str]:
    """`cup 5`, or `c = cup 5` where tags hold a short name; most frequent first."""
    counts = sorted(Counter(mark.desc for mark in marks).items(), key=lambda item: (-item[1], item[0]))
    return [f"{short[desc]} = {desc} {n}" if short.get(desc) else f"{desc} {n}" for desc, n in counts]


def _legend_places(marks: Sequence[Mark], width: int) -> list[tuple[int, int, Style, str]]:
    """Row, x, style and words of each legend entry, in lines of `width` pixels."""
    places: list[tuple[int, int, Style, str]] = []
    row = x = 0
    solid_first = sorted(
        Counter(mark.style for mark in marks).items(),
        key=lambda item: (item[0].dash[1] > 0, -item[0].dash[0], -item[1]),
    )
    for style, count in solid_first:
        words = f"{fit(style.word, CAPTION_FONT, 240)} {count}"
        length = 36 + text_width(words, CAPTION_FONT)
        if x and x + length > width:
            row, x = row + 1, 0
        places.append((row, x, style, words))
        x += length + 18
    return places


def _draw_legend(draw: ImageDraw.ImageDraw, at: tuple[int, int], style: Style, words: str) -> None:
    x, y = at
    middle = y + int(CAPTION_FONT.size) // 2
    on, off = style.dash
    for start in range(x, x + 30, on + off) if off else (x,):
        draw.rectangle((start, middle, min(start + on - 1, x + 30) if off else x + 30, middle + 2), fill=style.colour)
    draw.text((x + 36, y), words, fill=BLACK, font=CAPTION_FONT)


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
        match: By `match_instances`, indices into `truth` as given; `None` draws both sides without judging them.
        title: First line, such as the sample's id.
    """
    left = [Mark(x.bbox_xyxy, style, x.desc) for x, style in zip(truth, _truth_styles(truth, match), strict=True)]
    styles = _prediction_styles(truth, predictions, match)
    right = [Mark(x.bbox_xyxy, style, x.desc, f"{x.score:.2f}") for x, style in zip(predictions, styles, strict=True)]
    objects = sum(not instance.iscrowd for instance in truth)
    ignored = sum(style is IGNORED for style in styles)
    counts = count_line(objects, len(predictions), None if match is None else len(match.pairs), ignored)
    return _page(_sides(image, left, right), title, counts)


def draw_entry(image: Image.Image, entry: Entry) -> Image.Image:
    """An entry of a dump: labels by what became of them on the left, predictions by outcome on the right.

    What is there but not labelled is on the left too, where that is known. `image` is the original; the picture is RGB.
    """
    left = [
        Mark(row["bbox"], CROWD_REGION if row["fate"] is None else FATES[row["fate"]], row["desc"])
        for row in entry["objects"]
    ]
    left += [Mark(row["bbox"], HIDDEN, row["desc"]) for row in entry["hidden"] or ()]
    right = [
        Mark(
            row["bbox"],
            PREDICTION if row["outcome"] is None else OUTCOMES[row["outcome"]],
            row["desc"],
            "" if row["score"] is None else f"{row['score']:.2f}",
        )
        for row in entry["predictions"]
    ]
    counts = entry["counts"]
    line = count_line(counts["gt"], counts["pred"], counts["matched"], counts["ignored"])
    if counts["f1_true"] is not None:
        line += f"  true f1 {counts['f1_true']:.3f}".replace("f1 0.", "f1 .")
    if not entry["answer"]["closed"]:
        line += "  answer cut off"
    return _page(_sides(image, left, right), f"{entry['id']}  step {entry['step']}", line)


def _sides(image: Image.Image, labels: Sequence[Mark], predictions: Sequence[Mark]) -> list[Image.Image]:
    most = max(len(labels), len(predictions))  # so that both get one size
    return [overlay(image, labels, "labels", most=most), overlay(image, predictions, "predictions", most=most)]


def draw_predictions(image: Image.Image, detections: Sequence[Detection], title: str = "") -> Image.Image:
    """Predictions alone, coloured by class, with their scores; `title` is the first line, such as the file's name.

    Small images are enlarged without smoothing, large ones reduced.
    """
    names = sorted({detection.desc for detection in detections})
    dashes = (SOLID, DASHED, DOTTED)
    styles = {
        name: Style(name, CLASS_COLOURS[i % len(CLASS_COLOURS)], dashes[i // len(CLASS_COLOURS) % len(dashes)])
        for i, name in enumerate(names)
    }
    marks = [Mark(x.bbox_xyxy, styles[x.desc], x.desc, f"{x.score:.2f}") for x in detections]
    return _page([overlay(image, marks, "predictions", by_class=True)], title, f"pred {len(detections)}")


def contact_sheet(images: Sequence[Image.Image], columns: int = 2, ground: Colour = WHITE) -> Image.Image:
    """Pictures in rows of `columns`, each column and row as large as its largest picture.

    Raises:
        ValueError: There are no pictures, or `columns` is below 1.
    """
    if not images or columns < 1:
        raise ValueError(f"expected pictures and at least 1 column, got {len(images)} pictures, {columns} columns")
    rows = [images[start : start + columns] for start in range(0, len(images), columns)]
    widths = [max(row[i].width for row in rows if i < len(row)) for i in range(min(columns, len(images)))]
    heights = [max(picture.height for picture in row) for row in rows]
    size = [sum(sides) + _MARGIN * (len(sides) - 1) for sides in (widths, heights)]
    sheet = Image.new("RGB", (size[0], size[1]), ground)
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
    body = contact_sheet(panels, len(panels), BACKGROUND)
    page = Image.new("RGB", (width, top + body.height + _MARGIN), BACKGROUND)
    page.paste(body, (_MARGIN, top))
    draw, y = ImageDraw.Draw(page), _MARGIN
    for line, font in head:
        draw.text((_MARGIN, y), line, fill=BLACK, font=font)
        y += line_height(font)
    return page
