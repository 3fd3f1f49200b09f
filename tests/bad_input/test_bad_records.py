"""Bad runs, dumps and evaluations, and folders that are none of them, given to what reads them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cases import Bad, CommandLine, Make, Pins, Said, mkdir, rows, write, write_json

from made_runs import Made, make_run

HOME = TemporaryDirectory(prefix="apiece-runs-")
DUMP = "runs/mine/dumps/step_000100"


@cache
def good_run() -> Path:
    return make_run(Path(HOME.name), Made(name="mine", samples=2, steps=(100,), size=64))


def run(*spoil: Make, name: str = "mine") -> list[Make]:
    """A run with one dump, then spoilt."""
    return [lambda folder: shutil.copytree(good_run(), folder / "runs" / name), *spoil]


def gone(name: str) -> Make:
    def make(folder: Path) -> None:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return make


def protocol(**changes: Any) -> Make:
    def make(folder: Path) -> None:
        path = folder / DUMP / "protocol.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return make


def records(change: Callable[[dict[str, Any]], object]) -> Make:
    """All records of the dump with something changed."""

    def make(folder: Path) -> None:
        path = folder / DUMP / "records.jsonl"
        found = [json.loads(line) for line in path.read_text().splitlines()]
        for record in found:
            change(record)
        path.write_text("".join(json.dumps(record) + "\n" for record in found))

    return make


def no_scores(record: dict[str, Any]) -> None:
    for row in record["predictions"]:
        row["score"] = float("nan")


# fmt: off
CASES = [
    Bad("compare: one run", "compare runs/mine", run()),
    Bad("compare: a run twice", "compare runs/mine runs/../runs/mine", run()),
    Bad("compare: nothing", "compare"),
    Bad("compare: runs and arms", "compare runs/mine --arm a=runs/mine", run()),
    Bad("compare: an arm without name", "compare --arm runs/mine", run()),
    Bad("compare: not there", "compare runs/mine runs/mien", run()),
    Bad("compare: a file", "compare runs/mine notes.txt", run(write("notes.txt", "hello"))),
    Bad("compare: an empty folder", "compare runs/mine empty", run(mkdir("empty"))),
    Bad("compare: a run without dumps", "compare runs/mine runs/bare",
        run(write("runs/bare/config.yaml", "seed: 1\n"))),
    Bad("compare: a step that is not there", "compare runs/mine runs/b --step 200", [*run(), *run(name="b")]),
    Bad("compare: out is there", "compare runs/mine runs/b --out o", [*run(), *run(name="b"),
        write("o/comparison.json", "{}")]),
    Bad("compare: few draws", "compare runs/mine runs/b --draws 3", [*run(), *run(name="b")]),
    Bad("compare: an evaluation of which files are gone", "compare runs/mine ev",
        run(write_json("ev/metrics.json", {}))),
    Bad("report: not there", "report runs/mien --out page", run()),
    Bad("report: not a run", "report empty --out page", [mkdir("empty")]),
    Bad("report: a file", "report notes.txt --out page", [write("notes.txt", "hello")]),
    Bad("report: no dumps", "report runs/bare --out page", [write("runs/bare/config.yaml", "seed: 1\n")]),
    Bad("report: a run twice", "report runs/mine runs/mine --out page", run()),
    Bad("report: out holds something", "report runs/mine --out page --overwrite",
        run(write("page/notes.txt", "precious"))),
    Bad("report: out is a file", "report runs/mine --out page", run(write("page", "precious"))),
    Bad("report: no comparison", "report runs/mine --out page --comparison c.json", run()),
    Bad("report: a broken comparison", "report runs/mine --out page --comparison c.json", run(write("c.json", "{"))),
    Bad("report: another json as comparison", "report runs/mine --out page --comparison c.json",
        run(write("c.json", "[]"))),
    Bad("view: not there", "view page"),
    Bad("view: not a report", "view runs/mine", run()),
    Bad("view: a port beyond all", "view page --port 70000"),
    Bad("view: a port in words", "view page --port http"),
    Bad("export: nothing asked", "export runs/mine", run()),
    Bad("export: labels alone", "export runs/mine --annotations a.json", run()),
    Bad("export: not a run", "export empty --coco r.json", [mkdir("empty")]),
    Bad("export: no dumps", "export runs/bare --coco r.json", [write("runs/bare/config.yaml", "seed: 1\n")]),
    Bad("export: a step that is not there", "export runs/mine --coco r.json --step 7", run()),
    Bad("export: an older schema", "export runs/mine --coco r.json", run(protocol(schema=0))),
    Bad("export: a newer schema", "export runs/mine --coco r.json", run(protocol(schema=99))),
    Bad("export: records of an older schema", "export runs/mine --coco r.json",
        run(records(lambda r: r.update(schema=0)))),
    Bad("export: no protocol", "export runs/mine --coco r.json", run(gone(f"{DUMP}/protocol.json"))),
    Bad("export: half a protocol", "export runs/mine --coco r.json", run(write(f"{DUMP}/protocol.json", '{"schema"'))),
    Bad("export: no records", "export runs/mine --coco r.json", run(write(f"{DUMP}/records.jsonl", ""))),
    Bad("export: records gone", "export runs/mine --coco r.json", run(gone(f"{DUMP}/records.jsonl"))),
    Bad("export: half a line", "export runs/mine --coco r.json",
        run(write(f"{DUMP}/records.jsonl", '{"schema": 1, "st'))),
    Bad("export: boxes of three numbers", "export runs/mine --coco r.json",
        run(records(lambda r: [row["bbox"].pop() for row in r["predictions"]]))),
    Bad("diagnose: an older schema", "diagnose runs/mine", run(protocol(schema=0), gone("runs/mine/config.yaml"))),
    Bad("diagnose: out is there", "diagnose runs/mine --out d", run(write("d/diagnosis.json", "{}"))),
    Bad("diagnose: scores that are none", "diagnose runs/mine", run(records(no_scores), gone("runs/mine/config.yaml"))),
    Bad("diagnose: not there", "diagnose runs/mien", run()),
    Bad("diagnose: no images at all", "diagnose tiny --data x.jsonl --samples 0"),
    Bad("resume: not a run", "train --resume runs/mine", [mkdir("runs/mine")]),
    Bad("resume: a file", "train --resume notes.txt", [write("notes.txt", "hello")]),
]
# fmt: on


@rows("records", CASES)
def test_bad_records(apiece: CommandLine, pins: Pins, area: str, case: Bad, said: Said) -> None:
    apiece.refuses(case, said, pins[area])
