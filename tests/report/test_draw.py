"""Overlays: sizes, what each line means, tags that keep off each other, and boxes no one would draw on purpose."""

from __future__ import annotations

import io
from itertools import combinations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from apiece.match import match_instances
from apiece.report import draw as draw_module
from apiece.report.draw import (
    BLUE,
    CAPTION_FONT,
    CROWD,
    CROWD_REGION,
    FATES,
    GREY,
    MATCHED,
    MAX_SIDE,
    MIN_SIDE,
    MISSED,
    ORANGE,
    OUTCOMES,
    VERMILLION,
    WRONG,
    Mark,
    contact_sheet,
    count_line,
    draw_comparison,
    draw_entry,
    draw_predictions,
    fit,
    overlay,
    save_png,
    short_names,
    text_width,
    wrap,
)
from apiece.types import Detection, Instance

PHOTO = Image.new("RGB", (640, 480), (150, 140, 130))


def colours(picture: Image.Image) -> set[tuple[int, ...]]:
    counted = picture.getcolors(picture.width * picture.height)
    assert counted is not None
    return {colour for _, colour in counted if isinstance(colour, tuple)}


def row_of(count: int, desc: str = "book") -> list[Instance]:
    return [Instance(desc, (30.0 * i + 5, 40, 30.0 * i + 25, 400)) for i in range(count)]


@pytest.mark.parametrize(
    ("size_wh", "drawn_wh"),
    [
        ((640, 480), (640, 480)),  # as it is
        ((480, 100), (480, 100)),  # just large enough
        ((96, 64), (480, 320)),  # enlarged by a whole number
        ((300, 400), (600, 800)),  # enlarged until the longer side is large enough
        ((1, 1), (480, 480)),  # one pixel
        ((4000, 3000), (1000, 750)),  # reduced
        ((5000, 1), (1000, 1)),  # flat
    ],
)
def test_size_of_the_image(size_wh, drawn_wh) -> None:
    panel = overlay(Image.new("RGB", size_wh, (1, 2, 3)), [], "")
    painted = np.argwhere((np.asarray(panel) == (1, 2, 3)).all(-1))
    assert tuple(np.ptp(painted, axis=0) + 1)[::-1] == drawn_wh
    assert panel.width == max(drawn_wh[0], MIN_SIDE)
    assert max(drawn_wh) <= MAX_SIDE


def test_enlarged_pixels_stay_crisp() -> None:
    checked = Image.fromarray(np.indices((48, 48)).sum(0).astype(np.uint8) % 2 * 200 + 20).convert("RGB")
    assert {colour[0] for colour in colours(overlay(checked, [], ""))} & set(range(30, 210)) == set()


def test_both_sides_are_of_one_size(monkeypatch) -> None:
    sides = []
    monkeypatch.setattr(draw_module, "_page", lambda panels, *_: sides.extend(panels) or panels[0])
    small, few = Image.new("RGB", (192, 192)), [Instance("book", (9, 9, 30, 60))]
    draw_comparison(small, few, [Detection("book", (9, 9, 30, 60), 0.5)] * (CROWD + 1))
    assert sides[0].width == sides[1].width > overlay(small, [], "").width


def test_colours_tell_what_became_of_a_box() -> None:
    truth = [Instance("cup", (50, 50, 150, 150)), Instance("cup", (300, 50, 400, 150))]
    right, wrong = Detection("cup", (52, 50, 150, 152), 0.9), Detection("cup", (500, 300, 600, 400), 0.4)
    crowd = Instance("cup", (200, 200, 400, 460), iscrowd=True)
    inside = Detection("cup", (210, 210, 300, 300), 0.3)

    def drawn(labels, predictions) -> set[tuple[int, ...]]:
        match = match_instances(predictions, labels)
        return colours(draw_comparison(PHOTO, labels, predictions, match)) & {BLUE, ORANGE, VERMILLION, GREY}

    assert drawn(truth[:1], [right]) == {BLUE}
    assert drawn(truth, [right]) == {BLUE, ORANGE}
    assert drawn(truth[:1], [right, wrong]) == {BLUE, VERMILLION}
    assert drawn([crowd], [inside]) == {GREY}
    assert drawn([crowd], [wrong]) == {GREY, VERMILLION}


def test_unmatched_lines_are_dashed() -> None:
    def share_of_top_line(style) -> float:
        panel = np.asarray(overlay(PHOTO, [Mark((100, 200, 400, 300), style, "")], ""))
        lines = (panel == style.colour).all(-1)[:, 100:400].mean(1)
        return float(lines.max())

    assert share_of_top_line(MATCHED) == 1.0
    assert 0.5 < share_of_top_line(WRONG) < 0.7
    assert 0.5 < share_of_top_line(MISSED) < 0.7


def test_lines_lie_on_the_box() -> None:
    panel = np.asarray(overlay(Image.new("RGB", (96, 64)), [Mark((20, 10, 60, 50), MATCHED, "")], ""))
    picture = panel[np.flatnonzero((panel == 0).all(-1).sum(1) > 300)[0] :][:320, :480]
    rows, columns = np.nonzero((picture == BLUE).all(-1))
    assert (columns.min(), columns.max()) == (100, 300 - 1)
    assert (rows.min(), rows.max()) == (50, 250 - 1)


def tags(monkeypatch, marks) -> list[tuple[tuple[int, int, int, int], str]]:
    """The tags that are drawn for `marks`: place and text."""
    places: list[tuple[int, int, int, int]] = []
    found: list[tuple[tuple[int, int, int, int], str]] = []

    class Recorder(ImageDraw.ImageDraw):
        def rectangle(self, xy, fill=None, **options):
            places.append(tuple(xy))

        def text(self, xy, text, **options):
            found.append((places[-1], text))

    monkeypatch.setattr(draw_module.ImageDraw, "Draw", Recorder)
    short = short_names(mark.desc for mark in marks) if len(marks) > CROWD else {}
    boxes = [tuple(map(int, mark.box_xyxy)) for mark in marks]
    draw_module._draw_tags(PHOTO.copy(), marks, boxes, short)
    return found


def test_tags_keep_off_each_other_and_inside(monkeypatch) -> None:
    rng = np.random.default_rng(0)
    marks = []
    for i in range(60):
        x, y = rng.uniform(0, 600), rng.uniform(0, 440)
        marks.append(
            Mark((x, y, x + rng.uniform(2, 200), y + rng.uniform(2, 200)), (MATCHED, WRONG)[i % 2], f"c{i % 5}")
        )
    drawn = tags(monkeypatch, marks)
    assert 10 < len(drawn) <= 60
    for (a, _), (b, _) in combinations(drawn, 2):
        assert a[0] >= b[2] or b[0] >= a[2] or a[1] >= b[3] or b[1] >= a[3]
    for (x1, y1, x2, y2), _ in drawn:
        assert x1 >= 0 and y1 >= 0 and x2 <= 640 and y2 <= 480


def test_tags_say_name_and_score_and_in_a_crowd_less(monkeypatch) -> None:
    few = [Mark((100, 100, 200, 200), MATCHED, "cup", "0.75")]
    assert [text for _, text in tags(monkeypatch, few)] == ["cup 0.75"]
    one_class = [Mark((40.0 * i, 100, 40.0 * i + 35, 300), MATCHED, "book", "0.75") for i in range(14)]
    assert tags(monkeypatch, one_class) == []
    two = [*one_class[1:], Mark((100, 350, 300, 460), WRONG, "bottle", "0.1")]
    assert {text for _, text in tags(monkeypatch, two)} == {"boo", "bot"}


def test_tags_in_a_crowd_keep_off_small_boxes(monkeypatch) -> None:
    marks = [
        Mark((20.0 * (i % 30), 20.0 * (i // 30), 20.0 * (i % 30) + 18, 20.0 * (i // 30) + 18), MATCHED, "ab"[i % 2])
        for i in range(720)
    ]
    assert tags(monkeypatch, marks) == []


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([], {}),
        (["cup", "cup"], {"cup": ""}),
        (["cup", "mug"], {"cup": "c", "mug": "m"}),
        (["cat", "car", "bus"], {"cat": "cat", "car": "car", "bus": "b"}),
        (["wine", "wine glass"], {"wine": "wine", "wine glass": "wine g"}),
    ],
)
def test_short_names(names, expected) -> None:
    assert short_names(names) == expected


@pytest.mark.parametrize(
    ("counts", "line"),
    [
        ((17, 43, 5), "gt 17  pred 43  matched 5  p .116  r .294  f1 .167"),
        ((2, 2, 2), "gt 2  pred 2  matched 2  p 1.000  r 1.000  f1 1.000"),
        ((0, 0, 0), "gt 0  pred 0  matched 0  p -  r -  f1 -"),
        ((3, 0, 0), "gt 3  pred 0  matched 0  p -  r .000  f1 .000"),
        ((2, 5, 1, 3), "gt 2  pred 5  matched 1  ignored 3  p .500  r .500  f1 .500"),
        ((4, 9, None), "gt 4  pred 9"),
    ],
)
def test_count_line(counts, line) -> None:
    assert count_line(*counts) == line


@pytest.mark.parametrize(
    "box",
    [
        (10, 10, 10, 10),  # no area
        (0, 0, 640, 480),  # the whole image
        (-500, -500, -400, -400),  # outside
        (630, 470, 9000, 9000),  # far beyond the edge
        (0.2, 0.2, 0.4, 0.4),  # below a pixel
        (5, 100, 635, 101),  # flat
    ],
)
def test_odd_boxes_can_be_drawn(box) -> None:
    truth, prediction = [Instance("cup", box)], [Detection("cup", box, 0.5)]
    drawn = draw_comparison(PHOTO, truth, prediction, match_instances(prediction, truth))
    assert colours(drawn) & {BLUE, ORANGE, VERMILLION}
    assert draw_predictions(PHOTO, prediction).width > 640


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_modes_of_images(mode) -> None:
    assert draw_predictions(PHOTO.convert(mode), []).mode == "RGB"


def test_the_original_is_left_alone_and_pictures_repeat(tmp_path) -> None:
    photo, truth = PHOTO.copy(), row_of(14)
    predictions = [Detection("book", x.bbox_xyxy, 0.5) for x in truth[::2]]
    match = match_instances(predictions, truth)
    for name in "ab":
        save_png(tmp_path / f"{name}.png", draw_comparison(photo, truth, predictions, match, "shelf-1"))
    assert photo.tobytes() == PHOTO.tobytes()
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert Image.open(io.BytesIO((tmp_path / "a.png").read_bytes())).size[0] == 2 * 640 + 3 * 8


def test_without_a_match_nothing_is_judged() -> None:
    drawn = draw_comparison(PHOTO, row_of(2), [Detection("book", (5, 40, 25, 400), 0.5)])
    assert not colours(drawn) & {ORANGE, GREY}


def test_long_titles_and_many_classes_fit() -> None:
    many = [Detection(f"a rather long class name {i}", (i, i, 90 + i, 90 + i), 0.5) for i in range(40)]
    picture = draw_predictions(PHOTO, many, "a/very/long/path/" * 20)
    assert picture.width == 640 + 2 * 8
    assert picture.height < 2000


def test_contact_sheet() -> None:
    pictures = [Image.new("RGB", size) for size in ((10, 20), (30, 5), (7, 7))]
    assert contact_sheet(pictures, 2).size == (10 + 8 + 30, 20 + 8 + 7)
    assert contact_sheet(pictures[:1], 5).size == (10, 20)
    for wrong in (([], 2), (pictures, 0)):
        with pytest.raises(ValueError, match="expected pictures and at least 1 column"):
            contact_sheet(*wrong)


def test_text_fits_its_room() -> None:
    assert fit("cup", CAPTION_FONT, 500) == "cup"
    short = fit("cup" * 50, CAPTION_FONT, 100)
    assert short.endswith("...")
    assert text_width(short, CAPTION_FONT) <= 100
    lines = wrap([f"word{i}" for i in range(100)], CAPTION_FONT, 200, 3)
    assert len(lines) == 3
    assert all(text_width(line, CAPTION_FONT) <= 200 for line in lines)
    shown = sum(word.startswith("word") for line in lines for word in line.split())
    assert lines[-1].endswith(f"and {100 - shown} more")
    assert wrap([], CAPTION_FONT, 200, 3) == []


def dumped(**changes: object) -> dict[str, object]:
    """An entry with one box of every outcome and one label of every fate."""
    predictions = [
        {"desc": "cup", "bbox": [10 + 60 * i, 20, 60 + 60 * i, 90], "score": None if i else 0.75, "outcome": outcome}
        for i, outcome in enumerate(OUTCOMES)
    ]
    objects = [{"desc": "cup", "bbox": [10 + 60 * i, 120, 60 + 60 * i, 190], "fate": f} for i, f in enumerate(FATES)]
    objects.append({"desc": "cup", "bbox": [10, 300, 300, 400], "fate": None})
    counts = {"gt": 17, "pred": 43, "matched": 5, "ignored": 0, "f1_true": None}
    entry = {
        "id": "shelf-17",
        "step": 300,
        "objects": objects,
        "hidden": None,
        "predictions": predictions,
        "counts": counts,
        "answer": {"closed": True},
    }
    return entry | changes


def test_an_entry_shows_every_outcome_and_every_fate(monkeypatch) -> None:
    lines: list[str] = []
    page = draw_module._page
    monkeypatch.setattr(
        draw_module, "_page", lambda panels, title, line: lines.append(line) or page(panels, title, line)
    )
    found = colours(draw_entry(PHOTO, dumped()))
    assert {style.colour for style in (*OUTCOMES.values(), *FATES.values(), CROWD_REGION)} <= found
    assert lines == ["gt 17  pred 43  matched 5  p .116  r .294  f1 .167"]
    counts = {"gt": 0, "pred": 0, "matched": 0, "ignored": 0, "f1_true": 0.5}
    nothing = dumped(objects=[], predictions=[], counts=counts, answer={"closed": False})
    draw_entry(PHOTO, nothing | {"hidden": [{"desc": "cup", "bbox": [0, 0, 9, 9]}]})
    assert lines[1] == "gt 0  pred 0  matched 0  p -  r -  f1 -  true f1 .500  answer cut off"


def test_outcomes_stay_apart_in_print() -> None:
    for styles in (OUTCOMES.values(), FATES.values()):
        looks = {(style.colour, style.dash) for style in styles}
        assert len(looks) == len(styles)


def test_lines_of_boxes_that_touch_lie_side_by_side() -> None:
    marks = [Mark((100, 100, 200, 200), MATCHED, ""), Mark((200, 100, 300, 200), MATCHED, "")]
    panel = np.asarray(overlay(Image.new("RGB", (640, 480)), marks, ""))
    row = panel[panel.shape[0] // 2 - 130]
    assert (row == BLUE).all(-1).sum() == 4 * 3


def test_dashed_boxes_have_all_four_corners() -> None:
    for side in (7, 30, 31, 32, 33, 100, 333):
        panel = np.asarray(overlay(Image.new("RGB", (640, 480)), [Mark((50, 50, 50 + side, 50 + side), WRONG, "")], ""))
        rows, columns = np.nonzero((panel[: 480 + 20] == VERMILLION).all(-1))
        drawn = set(zip(rows.tolist(), columns.tolist(), strict=True))
        assert {(y, x) for y in (rows.min(), rows.max()) for x in (columns.min(), columns.max())} <= drawn
