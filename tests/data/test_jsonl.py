"""The JSONL contract: what is read back is what was written, and every bad line is told by name."""

from __future__ import annotations

import gc
import json
import os
import string
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from records import DOG, kinds, record, with_box, with_desc, write_lines

from apiece.data import jsonl
from apiece.data.jsonl import iter_lines, read_jsonl, write_jsonl
from apiece.errors import UserError
from apiece.types import Instance, Sample

HUGE = 10**400
LONG = "9" * 5000

BAD_LINES = [
    (
        "not json",
        "{'image'",
        "broken_json",
        "not valid JSON: Expecting property name enclosed in double quotes at column 2",
    ),
    (
        "cut off",
        '{"image": "a.jpg", "wid',
        "broken_json",
        "not valid JSON: Unterminated string starting at column 20",
    ),
    ("a pretty-printed file", "{", "broken_json", "expected one JSON object a line, found one spread over lines"),
    ("a key twice", '{"image": "a", "image": "b"}', "broken_json", "key 'image' appears twice in one object"),
    ("a number of 5000 digits", f'{{"width": {LONG}}}', "broken_json", "nested too deep, or a number of thousands"),
    ("nested too deep", "[" * 200_000, "broken_json", "nested too deep"),
    ("latin-1", b'{"image": "caf\xe9.jpg"}', "not_utf8", "not UTF-8 text: byte 0xe9 at column 15"),
    ("a binary file", b"\x89PNG\x00\x00", "not_utf8", "expected UTF-8 text, found a binary file"),
    ("a list", [1], "wrong_type", "expected a JSON object, found a list"),
    ("a text", '"image"', "wrong_type", "expected a JSON object, found the text 'image'"),
    (
        "a COCO file",
        {"images": [], "annotations": []},
        "unknown_key",
        "this is a COCO file: convert it with `apiece data",
    ),
    ("a misspelt key", record(hieght=3), "unknown_key", "unknown key 'hieght' (did you mean 'height'?)"),
    ("no image", {"width": 1, "height": 1, "objects": []}, "missing_key", "missing 'image'"),
    ("nothing", {}, "missing_key", "missing 'image', 'width', 'height', 'objects'"),
    ("a numeric id", record(id=7), "wrong_type", "'id': expected text, found the number 7"),
    ("an empty id", record(id=" "), "wrong_type", "'id': expected text, found an empty one"),
    ("an id of two lines", record(id="a\nb"), "wrong_type", "'id': holds a line break or control character: 'a\\nb'"),
    ("an image null", record(image=None), "wrong_type", "'image': expected text, found null"),
    ("a NUL in a path", record(image="a\0.jpg"), "wrong_type", "'image': holds a line break or control character"),
    ("an absolute path", record(image="/data/a.jpg"), "bad_path", "found the absolute '/data/a.jpg'"),
    ("a Windows path", record(image="C:\\a.jpg"), "bad_path", "expected a path relative to this file's folder"),
    (
        "a path that leads out",
        record(image="../a.jpg"),
        "bad_path",
        "'image': leads out of this file's folder: '../a.jpg'",
    ),
    ("out behind a folder", record(image="b/../../../a.jpg"), "bad_path", "APIECE_DATA_ROOT=FOLDER in the environment"),
    ("out, as Windows writes it", record(image="b\\..\\..\\a.jpg"), "bad_path", "leads out of this file's folder"),
    (
        "a width of zero",
        record(width=0),
        "bad_size",
        "'width': expected a whole number of pixels from 1 to 1,000,000, found 0",
    ),
    ("a width as text", record(width="64"), "bad_size", "found the text '64'"),
    ("a width of true", record(width=True), "bad_size", "found true"),
    ("a width of 64.0", record(width=64.0), "bad_size", "found the number 64"),
    ("a huge width", record(width=HUGE), "bad_size", "found a huge number"),
    (
        "objects as an object",
        record() | {"objects": {}},
        "wrong_type",
        "'objects': expected a list, found a JSON object",
    ),
    (
        "an object that is none",
        record(objects=[3]),
        "wrong_type",
        "object 0: expected a JSON object, found the number 3",
    ),
    (
        "an unknown object key",
        record(objects=[DOG | {"label": 1}]),
        "unknown_key",
        "object 0 ('dog'): unknown key 'label'",
    ),
    ("a misspelt object key", record(objects=[{"desc": "a", "box": []}]), "unknown_key", "(did you mean 'bbox'?)"),
    ("no box", record(objects=[DOG, {"desc": "cat"}]), "missing_key", "object 1 ('cat'): missing 'bbox'"),
    ("three numbers", with_box(1, 2, 3), "wrong_type", "'bbox': expected a list of 4 numbers, found a list of 3"),
    (
        "a text in a box",
        with_box(1, 2, 3, "4"),
        "wrong_type",
        "'bbox': expected 4 numbers, found the text '4' among them",
    ),
    ("a true in a box", with_box(1, 2, 3, True), "wrong_type", "'bbox': expected 4 numbers, found true among them"),
    ("NaN", with_box(1, 2, float("nan"), 4), "box_not_finite", "box is not finite: found nan among its 4 numbers"),
    ("infinity", with_box(1, 2, float("inf"), 4), "box_not_finite", "box is not finite: found inf among its 4 numbers"),
    ("a huge number", with_box(1, 2, HUGE, 4), "box_outside", "box is outside any image: found a huge number in it"),
    (
        "inverted in x",
        with_box(30, 2, 1, 40),
        "box_inverted",
        "expected x1 < x2 in [x1, y1, x2, y2], found [30, 2, 1, 40]",
    ),
    ("inverted in y", with_box(1, 40, 30, 2), "box_inverted", "expected y1 < y2"),
    ("no width", with_box(5, 2, 5, 40), "box_zero_size", "object 0 ('dog'): box has zero width: [5, 2, 5, 40]"),
    ("no height", with_box(5, 2, 6, 2), "box_zero_size", "box has zero height"),
    ("outside, right", with_box(5, 2, 65.1, 40), "box_outside", "expected it within 64 x 48, found [5, 2, 65.1, 40]"),
    ("outside, left", with_box(-1.5, 2, 30, 40), "box_outside", "box is outside the image"),
    ("wholly outside by a hair", with_box(64.1, 2, 64.9, 40), "box_outside", "box is outside the image"),
    (
        "iscrowd 1",
        with_box(1, 2, 3, 4, iscrowd=1),
        "wrong_type",
        "'iscrowd': expected true or false, found the number 1",
    ),
    (
        "a negative area",
        with_box(1, 2, 3, 4, area=-1),
        "bad_area",
        "'area': expected a finite number from 0, found a negative",
    ),
    ("an area NaN", with_box(1, 2, 3, 4, area=float("nan")), "bad_area", "found NaN"),
    ("an area null", with_box(1, 2, 3, 4, area=None), "bad_area", "'area': expected a number, found null"),
    (
        "an object id as text",
        with_box(1, 2, 3, 4, id="1"),
        "wrong_type",
        "'id': expected a whole number, found the text '1'",
    ),
    ("a desc of no text", with_desc(3), "wrong_type", "'desc': expected text, found the number 3"),
    ("an empty desc", with_desc(""), "desc_empty", "object 0 (''): 'desc' is empty"),
    ("a blank desc", with_desc(" \t"), "desc_empty", "'desc' is empty"),
    ("space at the end", with_desc("dog "), "desc_spaces", "'desc' starts or ends with space"),
    ("a long desc", with_desc("d" * 101), "desc_too_long", "expected at most 100 characters, found 101"),
    (
        "a quote",
        with_desc('12" record'),
        "desc_quote",
        "double quote or backslash, which would break the answer's JSON",
    ),
    ("a backslash", with_desc("a\\b"), "desc_quote", "double quote or backslash"),
    ("a newline", with_desc("a\nb"), "desc_control", "'desc' holds a line break or control character"),
    ("an escape", with_desc("a\x1b[31mb"), "desc_control", "line break or control character"),
    (
        "half a surrogate",
        '{"image":"a","width":9,"height":9,"objects":[{"desc":"\\ud800x","bbox":[1,1,2,2]}]}',
        "desc_control",
        "",
    ),
    ("a line separator", with_desc("a\u2028b"), "desc_control", "line break or control character"),
]


@pytest.mark.parametrize(("line", "kind", "message"), [row[1:] for row in BAD_LINES], ids=[row[0] for row in BAD_LINES])
def test_a_bad_line_is_named_and_refused(tmp_path: Path, line: object, kind: str, message: str) -> None:
    path = write_lines(tmp_path / "x.jsonl", line)
    (read,) = iter_lines(path)
    assert kinds(read.errors)[:1] == [kind]
    assert message in read.errors[0].message
    assert read.errors[0].where == f"{path}:1"
    with pytest.raises(UserError) as caught:
        read_jsonl(path)
    assert f"{path}:1: " in str(caught.value) and f"[{kind}]" in str(caught.value)
    remedy = (
        "apiece data import coco --annotations" if "COCO" in read.errors[0].message else f"apiece data check {path}"
    )
    assert remedy in str(caught.value)


@pytest.mark.parametrize(
    ("line", "kind", "message"),
    [
        (with_desc("café"), "desc_non_ascii", "letters beyond ASCII, or emoji"),
        (with_desc("🐕"), "desc_non_ascii", "letters beyond ASCII, or emoji"),
        (with_desc("👩‍👧"), "desc_non_ascii", "letters beyond ASCII, or emoji"),
        (with_desc("dog (wet)"), "desc_punctuation", "ends in ')', which a tokenizer may merge with the closing quote"),
        (with_box(5, 2, 5.5, 40), "box_under_one_pixel", "box is narrower than one pixel: [5, 2, 5.5, 40]"),
    ],
)
def test_a_warning_does_not_refuse(tmp_path: Path, line: object, kind: str, message: str) -> None:
    path = write_lines(tmp_path / "x.jsonl", line)
    (read,) = iter_lines(path)
    assert kinds(read.problems) == [kind] and message in read.problems[0].message and not read.errors
    assert len(read_jsonl(path)[0].objects) == 1


@pytest.mark.parametrize(
    "line",
    [
        record(objects=[]),
        record(size_wh=(1, 1), objects=[]),
        with_box(0, 0, 64, 48),
        with_box(-1, -0.5, 65, 48.25),
        with_box(1, 2, 3, 4, iscrowd=True, area=0, id=0),
        with_desc("d" * 100),
        with_desc("it's a {dog}, [wet]: 3"),
        record(name="a folder/../other folder/a.jpg"),
    ],
)
def test_a_good_line_has_no_problems(tmp_path: Path, line: object) -> None:
    (read,) = iter_lines(write_lines(tmp_path / "x.jsonl", line))
    assert read.problems == [] and read.sample is not None


def test_only_the_faulty_object_is_left_out(tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "x.jsonl", record(objects=[DOG, with_box(5, 5, 5, 9)["objects"][0], DOG | {"desc": "cat"}])
    )
    (read,) = iter_lines(path)
    assert read.sample is not None and [instance.desc for instance in read.sample.objects] == ["dog", "cat"]
    assert read.kept == [0, 2] and [problem.object_index for problem in read.problems] == [1]


@pytest.mark.parametrize("long", [False, True], ids=["a short file", "a long file"])
def test_ids_are_unique_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, long: bool) -> None:
    if long:
        monkeypatch.setattr(jsonl, "_LONG_BYTES", 0)
    numbered = DOG | {"id": 5}
    path = write_lines(
        tmp_path / "x.jsonl",
        record("a.jpg", objects=[numbered, numbered]),
        record("b.jpg", id="a.jpg"),
        record("c.jpg", objects=[DOG, numbered]),
    )
    first, second, third = iter_lines(path)
    assert kinds(first.problems) == ["duplicate_object_id"] and first.problems[0].object_index == 1
    assert "object id 5 appears twice, first in line 1" in first.problems[0].message
    assert kinds(second.problems) == ["duplicate_id"] and second.sample is None
    assert "id 'a.jpg' appears twice, first in line 1" in second.problems[0].message
    assert third.kept == [0] and "object 1 ('dog'): object id 5 appears twice" in third.problems[0].message


def test_ids_of_lines_that_only_the_strict_reader_can_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonl, "_LONG_BYTES", 0)
    bom = b"\xef\xbb\xbf" + json.dumps(record(objects=[DOG | {"id": 5}])).encode()
    path = write_lines(
        tmp_path / "x.jsonl", bom, "{", record("b.jpg", id="a.jpg"), record("c", objects=[DOG | {"id": 5}])
    )
    assert [kinds(line.problems) for line in iter_lines(path)] == [
        *([], ["broken_json"], ["duplicate_id"], ["duplicate_object_id"])
    ]


def test_the_first_errors_are_told_at_once(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "x.jsonl", record(), *["{"] * 30)
    with pytest.raises(UserError, match="at least 10 errors") as caught:
        read_jsonl(path)
    assert str(caught.value).count("[broken_json]") == 10
    assert f"{path}:11:" in str(caught.value) and f"{path}:12:" not in str(caught.value)


def test_blank_lines_bom_and_windows_line_ends_are_read(tmp_path: Path) -> None:
    text = b"\xef\xbb\xbf" + json.dumps(record()).encode() + b"\r\n\r\n  \n" + json.dumps(record("b.jpg")).encode()
    path = write_lines(tmp_path / "x.jsonl", text)
    assert [sample.id for sample in read_jsonl(path)] == ["a.jpg", "b.jpg"]
    assert [line.number for line in iter_lines(path)] == [1, 4]


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_an_empty_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError, match="expected one image a line, found an empty file"):
        read_jsonl(path)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a JSONL data file not found"):
        read_jsonl(tmp_path / "none.jsonl")
    with pytest.raises(UserError, match="expected a JSONL data file, found a folder"):
        read_jsonl(tmp_path)


def test_what_is_written(tmp_path: Path) -> None:
    objects = (Instance("dog", (1.0, 2.5, 30.0, 40.0)), Instance("café", (0, 0, 9, 9), iscrowd=True, area=7.5, id=3))
    write_jsonl(tmp_path / "x.jsonl", [Sample("9", tmp_path / "images" / "a.jpg", (64, 48), objects)])
    assert (tmp_path / "x.jsonl").read_text(encoding="utf-8") == (
        '{"id": "9", "image": "images/a.jpg", "width": 64, "height": 48, "objects": ['
        '{"desc": "dog", "bbox": [1, 2.5, 30, 40]}, '
        '{"desc": "café", "bbox": [0, 0, 9, 9], "iscrowd": true, "area": 7.5, "id": 3}]}\n'
    )


def test_a_number_that_json_lacks_is_not_written(tmp_path: Path) -> None:
    bad = Sample("9", tmp_path / "a.jpg", (64, 48), (Instance("dog", (1.0, 2.0, float("nan"), 4.0)),))
    with pytest.raises(ValueError, match="sample '9': a box or area is NaN or infinite"):
        write_jsonl(tmp_path / "x.jsonl", [bad])
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_is_not_unicode_is_told(tmp_path: Path) -> None:
    # As the file system gives the name of a file whose bytes are not UTF-8.
    bad = Sample("9", tmp_path / "a\udcff.jpg", (64, 48), ())
    with pytest.raises(UserError, match="sample '9': a name in it is not Unicode text"):
        write_jsonl(tmp_path / "x.jsonl", [bad])
    assert list(tmp_path.iterdir()) == []


def test_paths_lead_to_the_image_from_wherever_the_file_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = tmp_path / "photos" / "a.jpg"
    image.parent.mkdir()
    image.write_text("here")
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "deep" / "er", target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("APIECE_DATA_ROOT", str(tmp_path))
    for out in (
        tmp_path / "x.jsonl",
        tmp_path / "photos" / "x.jsonl",
        tmp_path / "link" / "x.jsonl",
        Path("new", "x.jsonl"),
    ):
        for source in (image, Path("photos", "a.jpg"), Path("deep", "..", "photos", "a.jpg")):
            write_jsonl(out, [Sample("9", source, (64, 48))])
            (read,) = read_jsonl(out)
            assert read.image.read_text() == "here", (out, source)


def test_where_images_may_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("data/labels", "data/images", "elsewhere", "data/images/deep"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    labels = tmp_path / "data" / "labels"
    (labels / "link").symlink_to(tmp_path / "data" / "images" / "deep", target_is_directory=True)

    def refused(image: str) -> bool:
        (line,) = iter_lines(write_lines(labels / "x.jsonl", record(image)))
        assert kinds(line.errors) in ([], ["bad_path"])
        return bool(line.errors)

    inside = ["a.jpg", "b/../a.jpg", "..a/b..jpg", "link/a.jpg", "...", "../labels/a.jpg"]
    beside = ["../images/a.jpg", "link/../a.jpg", "b/../../images/a.jpg"]  # `..` behind a link leads where it points
    far = [
        "../../elsewhere/a.jpg",
        "../images/../../elsewhere/a.jpg",
        "../../../../../../../../../etc/a.jpg",
        "/etc/a.jpg",
    ]
    assert [refused(image) for image in inside] == [False] * len(inside)
    assert [refused(image) for image in beside + far] == [True] * len(beside + far)
    monkeypatch.setenv("APIECE_DATA_ROOT", str(tmp_path / "data"))
    assert [refused(image) for image in inside + beside] == [False] * len(inside + beside)
    assert [refused(image) for image in far] == [True] * len(far)
    monkeypatch.setenv("APIECE_DATA_ROOT", os.pathsep.join([str(tmp_path / "no"), "", str(tmp_path / "elsewhere")]))
    assert [refused(image) for image in inside] == [False] * len(inside)
    assert refused("../images/a.jpg") and not refused("../../elsewhere/a.jpg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("APIECE_DATA_ROOT", "data")
    assert not refused("../images/a.jpg") and refused("../../elsewhere/a.jpg")


def test_reading_leaves_the_garbage_collector_as_it_was(tmp_path: Path) -> None:
    assert gc.isenabled()
    read_jsonl(write_lines(tmp_path / "x.jsonl", record()))
    with pytest.raises(UserError):
        read_jsonl(write_lines(tmp_path / "x.jsonl", "{"))
    assert gc.isenabled()


corner = st.floats(0, 1000, allow_nan=False).map(lambda value: round(value, 3))
descs = st.text(string.ascii_letters + string.digits + " -'éß漢🐕", min_size=1, max_size=100).filter(
    lambda text: text == text.strip()
)


@st.composite
def instances(draw: st.DrawFn) -> Instance:
    x, y = draw(corner), draw(corner)
    box = (x, y, x + draw(st.floats(0.25, 500)), y + draw(st.floats(0.25, 500)))
    area = draw(st.none() | st.floats(0, 1e9))
    return Instance(draw(descs), box, draw(st.booleans()), area, None)


@given(st.lists(st.lists(instances(), max_size=4), min_size=1, max_size=4), st.booleans())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_read_is_what_was_written(tmp_path: Path, lists: list[list[Instance]], numbered: bool) -> None:
    written = []
    number = 0
    for place, objects in enumerate(lists):
        if numbered:
            objects = [Instance(o.desc, o.bbox_xyxy, o.iscrowd, o.area, number := number + 1) for o in objects]
        written.append(Sample(f"image {place} é", tmp_path / f"a folder/é {place}.jpg", (1600, 1600), tuple(objects)))
    write_jsonl(tmp_path / "x.jsonl", written)
    assert read_jsonl(tmp_path / "x.jsonl") == written
