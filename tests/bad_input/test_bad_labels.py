"""Bad labels of other tools: COCO, YOLO and Pascal VOC files broken in each way, on their way in."""

from __future__ import annotations

from typing import Any

from cases import Bad, CommandLine, Make, Pins, Said, mkdir, rows, write, write_json
from dirt import photo, photo_bytes

COCO = "data import coco --annotations c.json --images photos --out x.jsonl"
YOLO = "data import yolo --images photos --labels labels --names names.txt --out x.jsonl"
VOC = "data import voc --annotations xml --images photos --out x.jsonl"

BOX = {"id": 1, "image_id": 7, "category_id": 1, "bbox": [10, 10, 30, 20]}
IMAGE = {"id": 7, "file_name": "a.png", "width": 64, "height": 48}
DOG = {"id": 1, "name": "dog"}


def coco(annotation: dict[str, Any] | None = None, **changes: Any) -> tuple[Make, ...]:
    """A COCO file with one image, one class and one box, some of it changed."""
    document = {"images": [IMAGE], "categories": [DOG], "annotations": [BOX | (annotation or {})], **changes}
    return (photo("photos/a.png"), write_json("c.json", document))


def yolo(label: str | bytes = "0 0.5 0.5 0.2 0.2\n", names: str = "dog\n") -> tuple[Make, ...]:
    return (photo("photos/a.png"), write("labels/a.txt", label), write("names.txt", names))


def voc(text: str) -> tuple[Make, ...]:
    return (photo("photos/a.png"), write("xml/a.xml", text))


def annotation(
    box: str = "<xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax>",
    name: str = "<name>dog</name>",
    rest: str = "<filename>a.png</filename>",
) -> str:
    return f"<annotation>{rest}<object>{name}<bndbox>{box}</bndbox></object></annotation>"


# fmt: off
CASES = [
    Bad("coco: no file", COCO, [mkdir("photos")]),
    Bad("coco: no image folder", COCO, [write_json("c.json", {})]),
    Bad("coco: the image folder is a file", COCO, [write_json("c.json", {}), write("photos")]),
    Bad("coco: empty", COCO, [mkdir("photos"), write("c.json")]),
    Bad("coco: cut off", COCO, [mkdir("photos"), write("c.json", '{"images": [')]),
    Bad("coco: not utf-8", COCO, [mkdir("photos"), write("c.json", b'{"a": "\xe9"}')]),
    Bad("coco: a photo", COCO, [mkdir("photos"), write("c.json", photo_bytes())]),
    Bad("coco: deep nesting", COCO, [mkdir("photos"), write("c.json", "[" * 100_000)]),
    Bad("coco: a folder", COCO, [mkdir("photos"), mkdir("c.json")]),
    Bad("coco: a results file", COCO, [mkdir("photos"), write_json("c.json", [BOX | {"score": 0.5}])]),
    Bad("coco: a list", COCO, [mkdir("photos"), write_json("c.json", [1])]),
    Bad("coco: captions", COCO, [mkdir("photos"), write_json("c.json", {"images": [], "annotations": [], "info": {}})]),
    Bad("coco: images by id", COCO, coco(images={"7": IMAGE})),
    Bad("coco: a word as image", COCO, coco(images=["a.png"])),
    Bad("coco: an image without file", COCO, coco(images=[{"id": 7, "width": 64, "height": 48}])),
    Bad("coco: a number as file", COCO, coco(images=[IMAGE | {"file_name": 3}])),
    Bad("coco: an image twice", COCO, coco(images=[IMAGE, IMAGE])),
    Bad("coco: a fraction as image id", COCO, coco(images=[IMAGE | {"id": 7.5}])),
    Bad("coco: a size as text", COCO, coco(images=[IMAGE | {"width": "64"}])),
    Bad("coco: a path out of the folder", COCO, coco(images=[IMAGE | {"file_name": "../c.json"}])),
    Bad("coco: one image file gone", COCO, coco(images=[IMAGE, IMAGE | {"id": 8, "file_name": "b.png"}])),
    Bad("coco: all image files gone", COCO, coco(images=[IMAGE | {"file_name": "b.png"}])),
    Bad("coco: no size and no image", COCO, [write("photos/a.png", b"no image"), write_json("c.json",
        {"images": [{"id": 7, "file_name": "a.png"}], "categories": [DOG], "annotations": [BOX]})]),
    Bad("coco: a class without name", COCO, coco(categories=[{"id": 1}])),
    Bad("coco: a class twice", COCO, coco(categories=[DOG, {"id": 1, "name": "cat"}])),
    Bad("coco: an unknown class", COCO, coco({"category_id": 9})),
    Bad("coco: an unknown image", COCO, coco({"image_id": 9})),
    Bad("coco: an image id as text", COCO, coco({"image_id": "7"})),
    Bad("coco: a list as image id", COCO, coco({"image_id": [7]})),
    Bad("coco: an annotation without box", COCO, coco(annotations=[{"image_id": 7, "category_id": 1}])),
    Bad("coco: three numbers", COCO, coco({"bbox": [1, 2, 3]})),
    Bad("coco: nan in a box", COCO, coco({"bbox": [1, 2, float("nan"), 4]})),
    Bad("coco: null as box", COCO, coco({"bbox": None})),
    Bad("coco: a polygon as iscrowd", COCO, coco({"iscrowd": [1]})),
    Bad("coco: two as iscrowd", COCO, coco({"iscrowd": 2})),
    Bad("coco: text as area", COCO, coco({"area": "12"})),
    Bad("coco: an annotation id twice", COCO, coco(annotations=[BOX, BOX])),
    Bad("coco: text as annotation id", COCO, coco({"id": "one"})),
    Bad("coco: a number as annotation", COCO, coco(annotations=[3])),
    Bad("coco: no images", COCO, coco(images=[], annotations=[])),
    Bad("coco: forty mistakes", COCO, coco(annotations=[BOX | {"id": k, "category_id": 9} for k in range(40)])),
    Bad("coco: out is there", COCO, [*coco(), write("x.jsonl", "precious\n")]),
    Bad("coco: out is a folder", f"{COCO} --overwrite", [*coco(), mkdir("x.jsonl")]),
    Bad("coco: out below a file", "data import coco --annotations c.json --images photos --out c.json/x.jsonl", coco()),
    Bad("coco: out is the annotations",
        "data import coco --annotations c.json --images photos --out c.json --overwrite", coco()),
    Bad("yolo: no labels", YOLO, [photo("photos/a.png"), write("names.txt", "dog\n")]),
    Bad("yolo: no names", YOLO, [photo("photos/a.png"), mkdir("labels")]),
    Bad("yolo: no photos", YOLO, [mkdir("photos"), mkdir("labels"), write("names.txt", "dog\n")]),
    Bad("yolo: empty names", YOLO, yolo(names="")),
    Bad("yolo: a blank name", YOLO, yolo(names="dog\n\ncat\n")),
    Bad("yolo: names with a gap", YOLO.replace("names.txt", "data.yaml"), [*yolo(), write("data.yaml",
        "names: {0: dog, 2: cat}\n")]),
    Bad("yolo: yaml without names", YOLO.replace("names.txt", "data.yaml"), [*yolo(), write("data.yaml",
        "train: x\n")]),
    Bad("yolo: broken yaml", YOLO.replace("names.txt", "data.yaml"), [*yolo(), write("data.yaml", "names: [dog\n")]),
    Bad("yolo: control characters in yaml", YOLO.replace("names.txt", "data.yaml"), [*yolo(), write("data.yaml",
        "names: [a\x07b]\n")]),
    Bad("yolo: nc that does not fit", YOLO.replace("names.txt", "data.yaml"), [*yolo(), write("data.yaml",
        "nc: 3\nnames: [dog]\n")]),
    Bad("yolo: an unknown class", YOLO, yolo("4 0.5 0.5 0.2 0.2\n")),
    Bad("yolo: a name as class", YOLO, yolo("dog 0.5 0.5 0.2 0.2\n")),
    Bad("yolo: four columns", YOLO, yolo("0 0.5 0.5 0.2\n")),
    Bad("yolo: predictions", YOLO, yolo("0 0.5 0.5 0.2 0.2 0.93\n")),
    Bad("yolo: pixels", YOLO, yolo("0 30 20 10 10\n")),
    Bad("yolo: nan", YOLO, yolo("0 nan 0.5 0.2 0.2\n")),
    Bad("yolo: nan as class", YOLO, yolo("nan 0.5 0.5 0.2 0.2\n")),
    Bad("yolo: binary label", YOLO, yolo(photo_bytes())),
    Bad("yolo: a label of no image", YOLO, [*yolo(), write("labels/b.txt", "0 0.5 0.5 0.2 0.2\n")]),
    Bad("yolo: two images of one label", YOLO, [*yolo(), photo("photos/a.jpg")]),
    Bad("yolo: a photo that is none", YOLO, [*yolo(), write("photos/b.png", "hello")]),
    Bad("yolo: a label that is a folder", YOLO, [photo("photos/a.png"), mkdir("labels/a.txt"), write("names.txt",
        "dog\n")]),
    Bad("voc: no folder", VOC, [photo("photos/a.png")]),
    Bad("voc: no xml", VOC, [photo("photos/a.png"), mkdir("xml")]),
    Bad("voc: not xml", VOC, voc("hello")),
    Bad("voc: cut off", VOC, voc("<annotation><object>")),
    Bad("voc: html", VOC, voc("<html></html>")),
    Bad("voc: entities", VOC, voc('<!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>')),
    Bad("voc: binary", VOC, [photo("photos/a.png"), write("xml/a.xml", photo_bytes())]),
    Bad("voc: an unknown encoding", VOC, [photo("photos/a.png"), write("xml/a.xml",
        '<?xml version="1.0" encoding="x-klingon"?><annotation/>')]),
    Bad("voc: an image that is not there", VOC, voc(annotation(rest="<filename>b.png</filename>"))),
    Bad("voc: a path out of the folder", VOC, voc(annotation(rest="<filename>../a.png</filename>"))),
    Bad("voc: another size", VOC,
        voc(annotation(rest="<filename>a.png</filename><size><width>640</width><height>480</height></size>"))),
    Bad("voc: no box", VOC,
        voc("<annotation><filename>a.png</filename><object><name>dog</name></object></annotation>")),
    Bad("voc: no name", VOC, voc(annotation(name=""))),
    Bad("voc: text in a box", VOC, voc(annotation(box="<xmin>a</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax>"))),
    Bad("voc: nan in a box", VOC, voc(annotation(box="<xmin>nan</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax>"))),
    Bad("voc: an edge missing", VOC, voc(annotation(box="<xmin>1</xmin><ymin>1</ymin><xmax>9</xmax>"))),
    Bad("no tool named", "data import"),
    Bad("an unknown tool", "data import cocco"),
]
# fmt: on


@rows("labels", CASES)
def test_bad_labels(apiece: CommandLine, pins: Pins, area: str, case: Bad, said: Said) -> None:
    apiece.refuses(case, said, pins[area])
