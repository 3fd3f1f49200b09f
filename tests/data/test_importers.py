"""COCO, YOLO and VOC in: faithful where the contract can hold it, refused by name where it cannot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from records import kinds, save_image

from apiece.data.coco import import_coco
from apiece.data.formats import Imported, import_voc, import_yolo, read_names
from apiece.data.jsonl import read_jsonl, write_jsonl
from apiece.errors import UserError
from apiece.types import Instance

IMAGE = {"id": 7, "file_name": "a.jpg", "width": 64, "height": 48}
CATEGORY = {"id": 3, "name": "dog"}
ANNOTATION = {"id": 11, "image_id": 7, "category_id": 3, "bbox": [1.5, 2, 10, 20.25], "area": 99.5, "iscrowd": 0}


def coco(tmp_path: Path, *annotations: Any, **sections: Any) -> Imported:
    """Import a COCO file with these annotations; the image a.jpg exists."""
    save_image(tmp_path / "images" / "a.jpg")
    document = {"images": [IMAGE], "categories": [CATEGORY], "annotations": list(annotations)} | sections
    (tmp_path / "c.json").write_text(json.dumps(document))
    return import_coco(tmp_path / "c.json", tmp_path / "images")


def test_coco_keeps_ids_areas_and_crowds(tmp_path: Path) -> None:
    crowd = {"id": 12, "image_id": 7, "category_id": 3, "bbox": [0, 0, 64, 48], "iscrowd": 1}
    other = {"id": 8, "file_name": "b/c.jpg", "width": 10, "height": 10}
    save_image(tmp_path / "images" / "b" / "c.jpg", (10, 10))
    result = coco(tmp_path, ANNOTATION, crowd, images=[IMAGE, other])
    assert result.problems == [] and result.clipped == 0
    first, second = result.samples
    assert (first.id, first.size_wh, first.image) == ("7", (64, 48), tmp_path / "images" / "a.jpg")
    assert first.objects == (
        Instance("dog", (1.5, 2, 11.5, 22.25), False, 99.5, 11),
        Instance("dog", (0, 0, 64, 48), True, None, 12),
    )
    assert (second.id, second.objects) == ("8", ())
    write_jsonl(tmp_path / "x.jsonl", result.samples)
    assert read_jsonl(tmp_path / "x.jsonl") == result.samples


@pytest.mark.parametrize(
    ("bbox", "expected", "clipped"),
    [
        ([60, 40, 4, 8], (60, 40, 64, 48), 0),
        ([1.08, 2, 62.92, 3], (1.08, 2, 64, 5), 0),  # 1.08 + 62.92 is 64.00000000000001 in floats
        ([60, 40, 4.9, 8.9], (60, 40, 64, 48), 1),
        ([-0.5, -0.5, 10, 10], (0, 0, 9.5, 9.5), 1),
        ([-2, 0, 10, 10], (-2, 0, 8, 10), 0),
        ([60, 40, 6, 8], (60, 40, 66, 48), 0),
        ([5, 5, 0, 0], (5, 5, 5, 5), 0),
        ([5, 5, -3, 4], (5, 5, 2, 9), 0),
        ([64.5, 5, 0.4, 4], (64.5, 5, 64.9, 9), 0),
    ],
)
def test_coco_cuts_rounding_and_keeps_dirt(
    tmp_path: Path, bbox: list[float], expected: tuple[float, ...], clipped: int
) -> None:
    result = coco(tmp_path, ANNOTATION | {"bbox": bbox})
    assert result.problems == []
    assert result.samples[0].objects[0].bbox_xyxy == expected and result.clipped == clipped


def without(entry: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if name != key}


@pytest.mark.parametrize(
    ("annotation", "kind", "message"),
    [
        (ANNOTATION | {"category_id": 4}, "unknown_category", "annotations[1] (id 11): no category has the id 4"),
        (ANNOTATION | {"category_id": "3"}, "unknown_category", "no category has the id '3'"),
        (ANNOTATION | {"image_id": 70}, "unknown_image", "no image has the id 70"),
        (ANNOTATION | {"image_id": None}, "unknown_image", "no image has the id None"),
        (ANNOTATION | {"id": 1}, "duplicate_object_id", "annotation id 1 appears twice"),
        (ANNOTATION | {"id": "x"}, "wrong_type", "'id': expected a number, found 'x'"),
        (without(ANNOTATION, "bbox"), "missing_key", "missing 'bbox'"),
        (without(without(ANNOTATION, "image_id"), "category_id"), "missing_key", "missing 'image_id', 'category_id'"),
        (ANNOTATION | {"bbox": [1, 2, 3]}, "wrong_type", "'bbox': expected a list of 4 numbers, found a list of 3"),
        (ANNOTATION | {"bbox": None}, "wrong_type", "'bbox': expected a list of 4 numbers, found null"),
        (ANNOTATION | {"bbox": [1, 2, float("nan"), 4]}, "box_not_finite", "box is not finite: found nan"),
        (ANNOTATION | {"area": -1}, "bad_area", "found a negative one"),
        (ANNOTATION | {"iscrowd": 2}, "wrong_type", "'iscrowd': expected 0 or 1, found 2"),
        (7, "wrong_type", "annotations[1]: expected a JSON object, found 7"),
    ],
)
def test_coco_names_a_bad_annotation(tmp_path: Path, annotation: Any, kind: str, message: str) -> None:
    result = coco(tmp_path, ANNOTATION | {"id": 1}, annotation)
    assert kinds(result.errors) == [kind] and message in str(result.errors[0])
    assert len(result.samples[0].objects) == 1, "the good one is still there for --skip-bad"


@pytest.mark.parametrize(
    ("image", "kind", "message"),
    [
        (IMAGE, "duplicate_id", "images[1] (id 7): image id 7 appears twice"),
        (IMAGE | {"id": 8, "file_name": "none.jpg"}, "missing_image", "image file not found: "),
        (IMAGE | {"id": 8, "file_name": "../c.json"}, "bad_path", "'file_name' leads out of the image folder"),
        (IMAGE | {"id": 8, "file_name": "/etc/passwd"}, "bad_path", "'file_name' leads out of the image folder"),
        (IMAGE | {"id": 8, "width": 0}, "bad_size", "expected 'width' and 'height' in whole pixels, found 0 and 48"),
        (IMAGE | {"id": 8, "width": None}, "bad_size", "found None and 48"),
        (IMAGE | {"id": [8]}, "wrong_type", "'id': expected a number or text, found [8]"),
        (IMAGE | {"id": 8, "file_name": 3}, "wrong_type", "'file_name': expected text, found the number 3"),
        (IMAGE | {"id": "\ud800"}, "wrong_type", "'id': holds a line break or control character: '\\ud800'"),
        (
            IMAGE | {"id": 8, "file_name": "a\n.jpg"},
            "wrong_type",
            "'file_name': holds a line break or control character",
        ),
        (without(IMAGE | {"id": 8}, "file_name"), "missing_key", "missing 'file_name'"),
        ({"id": 8, "file_name": "text.txt"}, "not_an_image", "not an image that can be read"),
    ],
)
def test_coco_names_a_bad_image_once(tmp_path: Path, image: Any, kind: str, message: str) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "text.txt").write_text("text")
    result = coco(tmp_path, ANNOTATION, ANNOTATION | {"id": 2, "image_id": 8}, images=[IMAGE, image])
    assert kinds(result.errors)[:1] == [kind] and message in str(result.errors[0])
    hashable = image["id"] == 8
    assert kinds(result.errors)[1:] == ([] if hashable else ["unknown_image"])
    assert [len(sample.objects) for sample in result.samples] == [1]


def test_coco_takes_a_size_that_is_not_given_from_the_file(tmp_path: Path) -> None:
    result = coco(tmp_path, images=[{"id": "abc", "file_name": "a.jpg"}])
    assert [(sample.id, sample.size_wh) for sample in result.samples] == [("abc", (64, 48))]


@pytest.mark.parametrize(
    ("categories", "kind", "message"),
    [
        ([CATEGORY, {"id": 3, "name": "cat"}], "duplicate_id", "category id 3 appears twice: 'dog' and 'cat'"),
        ([CATEGORY, {"id": 4, "name": "dog"}], "shared_category_name", "categories 3, 4 share the name 'dog'"),
        ([CATEGORY, {"id": 4}], "missing_key", "categories[1]: missing 'name'"),
        ([CATEGORY, {"id": "4", "name": "cat"}], "wrong_type", "expected a number 'id' and a text 'name'"),
    ],
)
def test_coco_names_a_bad_category(tmp_path: Path, categories: list[Any], kind: str, message: str) -> None:
    result = coco(tmp_path, ANNOTATION, categories=categories)
    assert kinds(result.problems) == [kind] and message in str(result.problems[0])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"c\.json: broken JSON: .* in line 1, column 2"),
        ('{"images": [],\n "annotations": [}', r"c\.json: broken JSON: .* in line 2, column 18"),
        ("[]", "expected a JSON object with images, annotations and categories"),
        ('[{"image_id": 1, "score": 0.5}]', "this is a COCO results file"),
        ('{"images": [], "annotations": []}', "missing 'categories', found 'images', 'annotations'"),
        ('{"images": 3, "annotations": [], "categories": []}', "missing 'images'"),
    ],
)
def test_a_file_that_is_no_coco_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(UserError, match=message):
        import_coco(tmp_path / "c.json", tmp_path)


def test_a_wrong_image_folder_is_told_in_one_line(tmp_path: Path) -> None:
    many = [{"id": k, "file_name": f"{k}.jpg", "width": 9, "height": 9} for k in range(50)]
    with pytest.raises(UserError, match=r"none of its 50 images is in .*\n  fix: check --images; the first .*0\.jpg"):
        coco(tmp_path, images=many)
    with pytest.raises(UserError, match="the image folder not found"):
        import_coco(tmp_path / "c.json", tmp_path / "none")
    with pytest.raises(UserError, match="expected the image folder, found a file"):
        import_coco(tmp_path / "c.json", tmp_path / "c.json")


def yolo(tmp_path: Path, label: str, names: str = "dog\ncat\n") -> Imported:
    """Import one 100 x 200 image with this label file."""
    save_image(tmp_path / "images" / "sub" / "a.b.jpg", (100, 200))
    (tmp_path / "labels" / "sub").mkdir(parents=True, exist_ok=True)
    (tmp_path / "labels" / "sub" / "a.b.txt").write_text(label)
    (tmp_path / "names.txt").write_text(names)
    return import_yolo(tmp_path / "images", tmp_path / "labels", tmp_path / "names.txt")


def test_yolo_boxes(tmp_path: Path) -> None:
    save_image(tmp_path / "images" / "background.PNG", (9, 9))
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "classes.txt").write_text("dog")
    polygon = "1 0.1 0.1 0.5 0.1 0.5 0.2 0.1 0.2"
    result = yolo(tmp_path, f"0 0.5 0.5 1 1\n\n1 0.25 0.1 0.1 0.05\n{polygon}\n")
    assert result.problems == []
    assert [(sample.id, sample.size_wh) for sample in result.samples] == [
        ("background", (9, 9)),
        ("sub/a.b", (100, 200)),
    ]
    assert result.samples[1].objects == (
        Instance("dog", (0, 0, 100, 200)),
        Instance("cat", (20, 15, 30, 25)),
        Instance("cat", (10, 20, 50, 40), area=800.0),
    )
    assert result.notes == [
        "1 of 2 images have no label file: taken as images without objects",
        "1 polygons became their bounding boxes",
    ]


def test_yolo_shares_are_of_the_upright_photo(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    save_image(tmp_path / "images" / "sub" / "a.b.jpg", (200, 100), exif=exif)
    image = tmp_path / "images" / "sub" / "a.b.jpg"
    raw = image.read_bytes()
    yolo(tmp_path, "")
    image.write_bytes(raw)
    (tmp_path / "labels" / "sub" / "a.b.txt").write_text("0 0.5 0.5 1 1")
    result = import_yolo(tmp_path / "images", tmp_path / "labels", tmp_path / "names.txt")
    assert result.samples[0].objects[0].bbox_xyxy == (0, 0, 100, 200)


@pytest.mark.parametrize(
    ("label", "kind", "message"),
    [
        ("2 0.5 0.5 1 1", "unknown_category", "a.b.txt:1: no class has the number 2; the names go from 0 to 1"),
        ("-1 0.5 0.5 1 1", "unknown_category", "no class has the number -1"),
        ("0.5 0.5 0.5 1 1", "unknown_category", "no class has the number 0.5"),
        ("0 0.5 0.5 1", "wrong_type", "expected 5 columns (class cx cy width height)"),
        ("0 0.5 0.5 1 1 0.9", "wrong_type", "a sixth is a confidence: these are predictions, not labels"),
        ("dog 0.5 0.5 1 1", "wrong_type", "expected numbers, found 'dog 0.5 0.5 1 1'"),
        ("0 nan 0.5 1 1", "box_not_finite", "expected shares from 0 to 1, found '0 nan 0.5 1 1'"),
        ("0 50 50 20 20", "box_outside", "expected shares of the image from 0 to 1, found 50: are these pixels?"),
    ],
)
def test_yolo_names_a_bad_line(tmp_path: Path, label: str, kind: str, message: str) -> None:
    result = yolo(tmp_path, label)
    assert kinds(result.errors) == [kind] and message in str(result.errors[0])
    assert result.samples[0].objects == ()


def test_yolo_names_what_belongs_to_nothing(tmp_path: Path) -> None:
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "lost.txt").write_text("")
    (tmp_path / "labels" / "b.txt").write_bytes(b"\xff\xfe")
    save_image(tmp_path / "images" / "b.jpg")
    save_image(tmp_path / "images" / "c.jpg")
    save_image(tmp_path / "images" / "c.png")
    (tmp_path / "images" / "d.jpg").write_text("no image")
    result = yolo(tmp_path, "")
    assert kinds(result.errors) == ["broken_file", "duplicate_id", "not_an_image", "no_image_for_label"]
    assert "two images share this label: c.jpg, c.png" in str(result.errors[1])
    assert "lost.txt: no image belongs to this label file" in str(result.errors[3])
    with pytest.raises(UserError, match="no image files in this folder"):
        import_yolo(tmp_path / "labels", tmp_path / "labels", tmp_path / "names.txt")


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("n.txt", "dog\nhot dog \r\n\n", ["dog", "hot dog"]),
        ("n.yaml", "names: [dog, no, 012]", ["dog", "no", "012"]),
        ("n.yaml", "nc: 2\nnames:\n  1: cat\n  0: dog\n", ["dog", "cat"]),
    ],
)
def test_yolo_names(tmp_path: Path, name: str, text: str, expected: list[str]) -> None:
    (tmp_path / name).write_text(text)
    assert read_names(tmp_path / name) == expected


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("n.txt", "", "expected one class name a line, found none or an empty one"),
        ("n.txt", "dog\n\ncat", "found none or an empty one"),
        ("n.yaml", "names: [dog", "not valid YAML"),
        ("n.yaml", "classes: [dog]", "expected 'names'"),
        ("n.yaml", "- dog", "expected 'names'"),
        ("n.yaml", "names: {0: dog, 2: cat}", "'names' must be numbered 0 to 1 without gaps, found 0, 2"),
        ("n.yaml", "nc: 3\nnames: [dog]", "'nc' is 3, but 'names' has 1"),
        ("n.yaml", "names: [[dog]]", "expected 'names'"),
    ],
)
def test_yolo_refuses_bad_names(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        read_names(tmp_path / name)


OBJECT = (
    "<object><name>dog</name><difficult>0</difficult>"
    "<bndbox><xmin>1</xmin><ymin>3</ymin><xmax>64</xmax><ymax>48</ymax></bndbox></object>"
)
SIZE = "<size><width>64</width><height>48</height><depth>3</depth></size>"


def voc(tmp_path: Path, *parts: str, whole: str | None = None) -> Imported:
    """Import one XML file with these parts; its image a.jpg is 64 x 48."""
    save_image(tmp_path / "images" / "a.jpg")
    (tmp_path / "xml").mkdir(exist_ok=True)
    text = f"<annotation><filename>a.jpg</filename>{''.join(parts)}</annotation>" if whole is None else whole
    (tmp_path / "xml" / "a.xml").write_text(text)
    return import_voc(tmp_path / "xml", tmp_path / "images")


def test_voc_counts_pixels_from_one_and_includes_the_last(tmp_path: Path) -> None:
    part = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>"
    result = voc(tmp_path, SIZE, OBJECT.replace("</object>", part + "</object>").replace(">0<", ">1<"))
    assert result.problems == [] and result.notes == ["1 objects marked difficult are kept as ordinary ones"]
    assert result.samples[0].id == "a" and result.samples[0].objects == (Instance("dog", (0, 2, 64, 48)),)


def test_voc_with_pixels_from_zero_is_cut(tmp_path: Path) -> None:
    result = voc(tmp_path, SIZE, OBJECT.replace("<xmin>1", "<xmin>0"))
    assert result.samples[0].objects[0].bbox_xyxy == (0, 2, 64, 48) and result.clipped == 1


def test_voc_without_size_or_objects_or_suffix(tmp_path: Path) -> None:
    whole = "<annotation><filename>a</filename><size><width>0</width><height>0</height></size></annotation>"
    result = voc(tmp_path, whole=whole)
    assert result.problems == [] and [sample.size_wh for sample in result.samples] == [(64, 48)]


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("<annotation>", "broken_file", "not valid XML: no element found"),
        ("<html></html>", "broken_file", "expected a VOC <annotation>, found <html>"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><annotation/>', "broken_file", "XML with a DOCTYPE is refused"),
        ("<annotation><filename>b.jpg</filename></annotation>", "missing_image", "image file not found: "),
        ("<annotation><filename>../a.jpg</filename></annotation>", "bad_path", "'filename' leads out of the image"),
        (
            "<annotation><size><width>65</width><height>48</height></size></annotation>",
            "size_differs",
            "size differs: 65 x 48 in the XML, 64 x 48 in ",
        ),
        (
            "<annotation><object><name>dog</name></object></annotation>",
            "missing_key",
            "object 0: missing <xmin>, <ymin>",
        ),
        ("<annotation>" + OBJECT.replace("name>", "label>") + "</annotation>", "missing_key", "missing <name>"),
        ("<annotation>" + OBJECT.replace(">64<", ">wide<") + "</annotation>", "wrong_type", "expected 4 numbers"),
        ("<annotation>" + OBJECT.replace(">64<", ">nan<") + "</annotation>", "box_not_finite", "box is not finite"),
    ],
)
def test_voc_names_what_is_bad(tmp_path: Path, text: str, kind: str, message: str) -> None:
    result = voc(tmp_path, whole=text)
    assert kinds(result.errors) == [kind] and message in str(result.errors[0])
    assert "a.xml" in result.errors[0].where


def test_voc_names_a_size_before_rotation(tmp_path: Path) -> None:
    voc(tmp_path, SIZE)
    exif = Image.Exif()
    exif[0x0112] = 6
    save_image(tmp_path / "images" / "a.jpg", (64, 48), exif=exif)
    result = import_voc(tmp_path / "xml", tmp_path / "images")
    assert kinds(result.errors) == ["size_unrotated"] and "size is the one before EXIF rotation" in str(
        result.errors[0]
    )


def test_voc_without_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no XML files in this folder"):
        import_voc(tmp_path, tmp_path)
