"""Bad data files: every kind of dirt that docs/start/your_data.md names, in the checker and in every reader."""

from __future__ import annotations

import json

from cases import Bad, CommandLine, Pins, Said, mkdir, rows, write, write_json, write_lines
from dirt import DOG, data, dog, photo, photo_bytes, record, text_data

CHECK = "data check x.jsonl"
RUN = ("runs*",)
"""What a run that has begun leaves: its settings and log, to go on from."""

# fmt: off
LINES = [
    Bad("half a line", CHECK, text_data(json.dumps(record())[:-9])),
    Bad("a word", CHECK, text_data("hello\n")),
    Bad("csv", CHECK, text_data("image,x1,y1,x2,y2,class\na.png,1,2,3,4,dog\n")),
    Bad("single quotes", CHECK, text_data("{'id': 'a'}\n")),
    Bad("a key twice", CHECK,
        text_data('{"id": "a", "id": "b", "image": "a.png", "width": 64, "height": 48, "objects": []}\n')),
    Bad("a list a line", CHECK, data([1, 2])),
    Bad("a number a line", CHECK, data(7)),
    Bad("deep nesting", CHECK, text_data("[" * 100_000 + "\n")),
    Bad("a number of ten thousand digits", CHECK, text_data('{"width": ' + "9" * 10_000 + "}\n")),
    Bad("a file over many lines", CHECK, text_data(json.dumps(record(), indent=1))),
    Bad("a coco file", CHECK, text_data(json.dumps({"images": [], "annotations": [], "categories": []}))),
    Bad("latin-1", CHECK, text_data(json.dumps(dog(desc="caf\xe9"), ensure_ascii=False).encode("latin-1"))),
    Bad("utf-16", CHECK, text_data(json.dumps(record()).encode("utf-16"))),
    Bad("a photo as data", CHECK, text_data(photo_bytes())),
    Bad("no lines", CHECK, text_data("")),
    Bad("blank lines", CHECK, text_data("\n  \n\n")),
    Bad("no file", CHECK),
    Bad("a folder as data", CHECK, [mkdir("x.jsonl")]),
    Bad("a link to nothing", CHECK, [lambda folder: (folder / "x.jsonl").symlink_to("gone.jsonl")]),
]
# fmt: on

# fmt: off
KEYS = [
    Bad("no width", CHECK, data(record(width=None))),
    Bad("no objects", CHECK, data(record(objects=None))),
    Bad("unknown key", CHECK, data(record(heigth=48))),
    Bad("a number as id", CHECK, data(record(id=7))),
    Bad("an empty id", CHECK, data(record(id=""))),
    Bad("a line break in an id", CHECK, data(record(id="a\nb"))),
    Bad("null as image", CHECK, text_data(json.dumps(record() | {"image": None}))),
    Bad("nul byte in a path", CHECK, data(record(image="a\0.png"))),
    Bad("a path too long", CHECK, data(record(image="x" * 300 + ".png"))),
    Bad("absolute path", CHECK, data(record(image="/etc/passwd"))),
    Bad("a drive of windows", CHECK, data(record(image="C:\\a.png"))),
    Bad("a fraction as width", CHECK, data(record(width=64.0))),
    Bad("width of nothing", CHECK, data(record(width=0))),
    Bad("negative height", CHECK, data(record(height=-48))),
    Bad("width of a million and one", CHECK, data(record(width=1_000_001))),
    Bad("true as width", CHECK, data(record(width=True))),
    Bad("objects by name", CHECK, data(record(objects={"dog": [1, 2, 3, 4]}))),
    Bad("an id twice", CHECK, data(record(), record())),
    Bad("an id twice, once implied", CHECK, data(record(id=None), record(id="a.png"))),
]
# fmt: on

# fmt: off
OBJECTS = [
    Bad("a list as object", CHECK, data(record(objects=[[10, 10, 40, 30]]))),
    Bad("object with an unknown key", CHECK, data(dog(score=0.5))),
    Bad("object without box", CHECK, data(dog(bbox=None))),
    Bad("object without name", CHECK, data(dog(desc=None))),
    Bad("a class number as name", CHECK, data(dog(desc=3))),
    Bad("empty name", CHECK, data(dog(desc=" "))),
    Bad("name with spaces around", CHECK, data(dog(desc=" dog"))),
    Bad("name too long", CHECK, data(dog(desc="d" * 101))),
    Bad("quote in a name", CHECK, data(dog(desc='a "dog"'))),
    Bad("line break in a name", CHECK, data(dog(desc="big\ndog"))),
    Bad("half a surrogate pair in a name", CHECK, data(dog(desc="dog \ud800"))),
    Bad("three numbers", CHECK, data(dog(bbox=[1, 2, 3]))),
    Bad("numbers as text", CHECK, data(dog(bbox=["1", "2", "3", "4"]))),
    Bad("a dictionary as box", CHECK, data(dog(bbox={"x1": 1}))),
    Bad("nan in a box", CHECK, data(dog(bbox=[1, 2, float("nan"), 4]))),
    Bad("infinity in a box", CHECK, data(dog(bbox=[1, 2, float("inf"), 4]))),
    Bad("a number beyond floats in a box", CHECK, data(dog(bbox=[1, 2, 10**400, 4]))),
    Bad("xywh", CHECK, data(dog(bbox=[40, 30, 20, 10]))),
    Bad("no width of a box", CHECK, data(dog(bbox=[10, 10, 10, 30]))),
    Bad("beyond the image", CHECK, data(dog(bbox=[10, 10, 70, 30]))),
    Bad("wholly outside", CHECK, data(dog(bbox=[100, 100, 140, 130]))),
    Bad("shares of the image", CHECK, data(dog(bbox=[-5, -5, 0.7, 0.6]))),
    Bad("negative area", CHECK, data(dog(area=-1))),
    Bad("nan as area", CHECK, data(dog(area=float("nan")))),
    Bad("one as iscrowd", CHECK, data(dog(iscrowd=1))),
    Bad("text as object id", CHECK, data(dog(id="1"))),
    Bad("an object id twice", CHECK, data(record(objects=[{**DOG, "id": 1}, {**DOG, "id": 1, "bbox": [0, 0, 9, 9]}]))),
]
# fmt: on

# fmt: off
USES = [
    Bad("fix without out", f"{CHECK} --fix drop", data(record())),
    Bad("out without fix", f"{CHECK} --out y.jsonl", data(record())),
    Bad("an unknown fix", f"{CHECK} --fix mend --out y.jsonl", data(record())),
    Bad("the copy over the file", f"{CHECK} --fix drop --out ./x.jsonl", data(record(), record(width=0))),
    Bad("the copy over another file", f"{CHECK} --fix drop --out y.jsonl", [*data(record(), record(id=3)),
        write("y.jsonl", "precious\n")]),
    Bad("nothing left", f"{CHECK} --fix drop --out y.jsonl", data(record(width=0))),
    Bad("the numbers over the file", f"{CHECK} --json x.jsonl", data(record())),
    Bad("the numbers over another file", f"{CHECK} --json y.json", [*data(record()), write("y.json", "precious\n")]),
    Bad("the numbers below a file", f"{CHECK} --json x.jsonl/y.json", data(record())),
    Bad("no object at most", f"{CHECK} --max-objects 0", data(record())),
    Bad("trained on", "train c.yaml", [*data(dog(bbox=[40, 30, 20, 10])), write("c.yaml", "data: {train: x.jsonl}\n")]),
    Bad("trained on with many errors", "train c.yaml", [*data(*[dog(bbox=[9, 9, 9, 9]) for _ in range(30)]),
        write("c.yaml", "data: {train: x.jsonl}\n")]),
    Bad("a coco file trained on", "train c.yaml", [write_json("x.jsonl",
        {"images": [], "annotations": [], "categories": []}), write("c.yaml", "data: {train: x.jsonl}\n")]),
    Bad("data of a config not there", "train c.yaml", [*data(record()), write("c.yaml", "data: {train: y.jsonl}\n")]),
    Bad("data of a config is a folder", "train c.yaml", [mkdir("y"), write("c.yaml", "data: {train: y}\n")]),
    Bad("no data in a config", "train c.yaml", [write("c.yaml", "seed: 1\n")]),
    Bad("all above the object limit", "train c.yaml", [*data(record(objects=[DOG, DOG])), write("c.yaml",
        "data: {train: x.jsonl, max_objects: 1}\n")]),
    Bad("a photo of the training data gone", "train c.yaml", [write_lines("x.jsonl", record()), write("c.yaml",
        "data: {train: x.jsonl, workers: 0}\ntrain: {steps: 1, batch_size: 1}\noptim: {warmup_steps: 0}\n")], RUN),
    Bad("a photo of the training data cut", "train c.yaml", [write_lines("x.jsonl", record()), write("a.png",
        photo_bytes()[:500]), write("c.yaml",
        "data: {train: x.jsonl, workers: 1}\ntrain: {steps: 1, batch_size: 1}\noptim: {warmup_steps: 0}\n")], RUN),
    Bad("a photo of the training data of another size", "train c.yaml", [write_lines("x.jsonl", record()),
        photo(size_wh=(48, 64)), write("c.yaml",
        "data: {train: x.jsonl, workers: 0}\ntrain: {steps: 1, batch_size: 1}\noptim: {warmup_steps: 0}\n")], RUN),
    Bad("evaluated on", "evaluate tiny --data x.jsonl --out out", data(dog(bbox=[10, 10, 10, 30]))),
    Bad("evaluated on nothing", "evaluate tiny --data x.jsonl --out out", text_data("")),
    Bad("evaluated on what is not there", "evaluate tiny --data y.jsonl --out out", data(record())),
    Bad("evaluated on photos gone", "evaluate tiny --data x.jsonl --out out", [write_lines("x.jsonl", record())]),
    Bad("evaluated on photos of another size", "evaluate tiny --data x.jsonl --out out", [write_lines("x.jsonl",
        record()), photo(size_wh=(48, 64))]),
    Bad("complete truth of another size", "evaluate tiny --data x.jsonl --complete y.jsonl --out out",
        [*data(record()), write_lines("y.jsonl", record(width=65))]),
    Bad("complete truth with dirt", "evaluate tiny --data x.jsonl --complete y.jsonl --out out", [*data(record()),
        write_lines("y.jsonl", dog(bbox=[1, 2, 3]))]),
    Bad("predicted on", "predict tiny x.jsonl --out out", data(record())),
    Bad("diagnosed on", "diagnose tiny --data x.jsonl", data(dog(bbox=[10, 10, 10, 30]))),
    Bad("diagnosed on nothing", "diagnose tiny"),
    Bad("diagnosed in an unknown order", "diagnose tiny --data x.jsonl --object-order readng", data(record())),
]
# fmt: on


@rows("data", LINES, KEYS, OBJECTS, USES)
def test_bad_data(apiece: CommandLine, pins: Pins, area: str, case: Bad, said: Said) -> None:
    apiece.refuses(case, said, pins[area])
