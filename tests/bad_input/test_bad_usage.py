"""Bad files for `evaluate --predictions`, bad usage of every command, and servers that are none."""

from __future__ import annotations

from typing import Any

from cases import Bad, CommandLine, Make, Pins, Said, rows, write, write_json, write_lines
from dirt import data, photo, record

SCORE = "evaluate --predictions d.json --annotations gt.json --out out"
IMAGE = {"id": 7, "file_name": "a.png", "width": 64, "height": 48}
LABEL = {"id": 1, "image_id": 7, "category_id": 1, "bbox": [10, 10, 30, 20]}
FOUND = {"image_id": 7, "category_id": 1, "bbox": [10, 10, 30, 20], "score": 0.5}
CLOSED = "http://127.0.0.1:9/v1"
LOOK = "predict tiny a.png --out out"


def truth(label: dict[str, Any] | None = None, **changes: Any) -> Make:
    labels = [LABEL | (label or {})]
    return write_json(
        "gt.json", {"images": [IMAGE], "categories": [{"id": 1, "name": "dog"}], "annotations": labels} | changes
    )


def found(value: Any) -> tuple[Make, ...]:
    return (truth(), write_json("d.json", value))


# fmt: off
DETECTIONS = [
    Bad("no file", SCORE, [truth()]),
    Bad("no labels", SCORE, [write_json("d.json", [])]),
    Bad("empty file", SCORE, [truth(), write("d.json")]),
    Bad("binary", SCORE, [truth(), write("d.json", b"\xff\xfe\0")]),
    Bad("deep nesting", SCORE, [truth(), write("d.json", "[" * 100_000)]),
    Bad("an object", SCORE, found({"annotations": []})),
    Bad("the labels themselves", SCORE.replace("d.json", "gt.json"), [truth()]),
    Bad("a word a row", SCORE, found(["dog"])),
    Bad("no score", SCORE, found([{k: v for k, v in FOUND.items() if k != "score"}])),
    Bad("a score as text", SCORE, found([FOUND | {"score": "0.5"}])),
    Bad("a score of nan", SCORE, found([FOUND | {"score": float("nan")}])),
    Bad("a score of infinity", SCORE, found([FOUND | {"score": float("inf")}])),
    Bad("nan in a box", SCORE, found([FOUND | {"bbox": [1, 2, float("nan"), 4]}])),
    Bad("three numbers", SCORE, found([FOUND | {"bbox": [1, 2, 3]}])),
    Bad("no box", SCORE, found([{"image_id": 7, "category_id": 1, "score": 1}])),
    Bad("negative size", SCORE, found([FOUND | {"bbox": [40, 30, -20, 10]}])),
    Bad("unknown image", SCORE, found([FOUND | {"image_id": 8}])),
    Bad("image id as text", SCORE, found([FOUND | {"image_id": "7"}])),
    Bad("unknown class", SCORE, found([FOUND | {"category_id": 2}])),
    Bad("true as class", SCORE, found([FOUND | {"category_id": True}])),
    Bad("labels: a list", SCORE, [write_json("gt.json", []), write_json("d.json", [FOUND])]),
    Bad("labels: a class twice", SCORE, [truth(categories=[{"id": 1, "name": "dog"}, {"id": 2, "name": "dog"}]),
        write_json("d.json", [FOUND])]),
    Bad("labels: an image twice", SCORE, [truth(images=[IMAGE, IMAGE]), write_json("d.json", [FOUND])]),
    Bad("labels: no size", SCORE, [truth(images=[{"id": 7}]), write_json("d.json", [FOUND])]),
    Bad("labels: nan in a box", SCORE, [truth({"bbox": [float("nan")] * 4}), write_json("d.json", [FOUND])]),
    Bad("labels: two as iscrowd", SCORE, [truth({"iscrowd": 2}), write_json("d.json", [FOUND])]),
    Bad("labels: an unknown image", SCORE, [truth({"image_id": 9}), write_json("d.json", [FOUND])]),
    Bad("labels: dirt in jsonl", SCORE.replace("gt.json", "gt.jsonl"), [write_lines("gt.jsonl", {"image": "a.png"}),
        write_json("d.json", [FOUND])]),
    Bad("metrics are there", SCORE, [*found([FOUND]), write("out/metrics.json", "{}")]),
    Bad("out is a file", SCORE, [*found([FOUND]), write("out", "precious")]),
]

USAGE = [
    Bad("an unknown command", "trian c.yaml"),
    Bad("an unknown option", "evaluate --datta x.jsonl --out out"),
    Bad("no out", "evaluate tiny --data x.jsonl"),
    Bad("nothing to evaluate", "evaluate --out out"),
    Bad("no data", "evaluate tiny --out out"),
    Bad("two forms", "evaluate tiny --data x.jsonl --predictions d.json --out out"),
    Bad("options of the other form",
        "evaluate --predictions d.json --annotations gt.json --out out generate.batch_size=2"),
    Bad("nothing to resume", "evaluate tiny --data x.jsonl --out out --resume", [*data(record()), write("out/a", "x")]),
    Bad("an unfinished evaluation", "evaluate tiny --data x.jsonl --out out",
        [*data(record()), write("out/predictions.jsonl.part", "x")]),
    Bad("an unknown score policy", "evaluate tiny --data x.jsonl --out out --score-policy logits", data(record())),
    Bad("an unknown device", f"{LOOK} --device gpu", [photo()]),
    Bad("a batch of none", f"{LOOK} generate.batch_size=0", [photo()]),
    Bad("a batch in words", f"{LOOK} generate.batch_size=many", [photo()]),
    Bad("a negative temperature", f"{LOOK} generate.temperature=-1", [photo()]),
    Bad("two prompts", f"{LOOK} prompt.name=plain prompt.text=x", [photo()]),
    Bad("a blank prompt", f"{LOOK} prompt.name=text \"prompt.text=' '\"", [photo()]),
    Bad("labels without grammar", f"{LOOK} generate.labels=[dog] generate.grammar=false", [photo()]),
    Bad("a label that cannot be written", LOOK + """ "generate.labels=['a\\\"b']" """, [photo()]),
    Bad("a former option", f"{LOOK} --max-objects 3", [photo()]),
    Bad("a setting of training", f"{LOOK} train.steps=3", [photo()]),
    Bad("settings and no photo", "predict tiny seed=3 --out out", [photo()]),
    Bad("train: nothing", "train"),
    Bad("train: a packaged config misspelt", "train tiny/bcdc"),
    Bad("train: a path of the repository", "train configs/tiny/bccd.yaml"),
    Bad("config: a copy of nothing", "config --copy tiny/bccd"),
    Bad("config: a copy of what there is not", "config --copy tiny/bcd mine.yaml"),
    Bad("config: a copy over a file", "config --copy tiny/bccd mine.yaml", [write("mine.yaml", "seed: 1\n")]),
    Bad("train: settings alone", "train optim.lr=1"),
    Bad("train: config and run", "train c.yaml --resume runs/mine"),
    Bad("train: a name that is taken", "train c.yaml run.name=mine", [*data(record()), write("c.yaml",
        "data: {train: x.jsonl, workers: 0}\ntrain: {batch_size: 1}\n"), write("runs/mine/notes.txt", "precious")]),
    Bad("train: a name that leads away", "train c.yaml run.name=../../x", [*data(record()),
        write("c.yaml", "data: {train: x.jsonl}\n")]),
    Bad("demo: out is there", "demo --out old", [write("old/notes.txt", "precious")]),
    Bad("demo: too few steps", "demo --out new --steps 1"),
    Bad("scenes: no out", "scenes"),
    Bad("scenes: none", "scenes out --n 0"),
    Bad("scenes: too small", "scenes out --size 8"),
    Bad("scenes: too large", "scenes out --size 99999"),
    Bad("scenes: an unknown family", "scenes out --families shelf,stret"),
    Bad("scenes: no family", "scenes out --families ''"),
    Bad("scenes: a share above one", "scenes out --unlabelled 1.5"),
    Bad("scenes: nan as share", "scenes out --unlabelled nan"),
    Bad("scenes: a negative chance", "scenes out --group-boxes -0.1"),
    Bad("scenes: negative workers", "scenes out --workers -2"),
    Bad("scenes: a negative seed", "scenes out --seed -1"),
    Bad("scenes: out holds something", "scenes out --n 1", [write("out/notes.txt", "precious")]),
    Bad("scenes: out is a file", "scenes out --n 1", [write("out", "precious")]),
    Bad("env: a word too many", "env now"),
]

SERVERS = [
    Bad("server: no address", f"{LOOK} --server localhost", [photo()]),
    Bad("server: another protocol", f"{LOOK} --server ftp://localhost/v1", [photo()]),
    Bad("server: nothing answers", f"{LOOK} --server {CLOSED} server.timeout_s=2 server.retries=0", [photo()]),
    Bad("server: options without it", f"{LOOK} server.timeout_s=3 server.retries=1", [photo()]),
    Bad("server: options that it ignores", f"{LOOK} --server {CLOSED} generate.temperature=1", [photo()]),
    Bad("server: no time at all", f"{LOOK} --server {CLOSED} server.timeout_s=0", [photo()]),
    Bad("server: no request at once", f"{LOOK} --server {CLOSED} server.concurrency=0", [photo()]),
    Bad("server: for files", f"{SCORE} --server {CLOSED}", found([FOUND])),
]
# fmt: on


@rows("usage", DETECTIONS, USAGE, SERVERS)
def test_bad_usage(apiece: CommandLine, pins: Pins, area: str, case: Bad, said: Said) -> None:
    apiece.refuses(case, said, pins[area])
