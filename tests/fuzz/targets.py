"""What is fuzzed: each target takes spoilt input as a user would hand it over. Only a `UserError` may come out."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from spoil import encode, spoilt, spoilt_lines, torn

import apiece
from apiece.codec.parse import parse, parse_ids
from apiece.codec.render import desc_problem, render_text
from apiece.config.reference import dump_config
from apiece.config.resolve import load_config
from apiece.data.check import check_jsonl
from apiece.data.coco import import_coco
from apiece.data.jsonl import read_jsonl, write_jsonl
from apiece.dumps.folder import open_run, read_dump
from apiece.errors import UserError
from apiece.evaluate.detections import load_coco_ground_truth, load_coco_results
from apiece.evaluate.export import export_coco
from apiece.model.load import load_text_side
from apiece.report.page import build_report
from apiece.study.arms import dump_source
from made_runs import Made, make_run

REPOSITORY = Path(__file__).parents[2]
TINY = Path(apiece.__file__).parent / "assets" / "tiny"

RECORD = {
    **{"id": "a", "image": "a.png", "width": 64, "height": 48},
    "objects": [
        {"desc": "dog", "bbox": [10, 10, 40, 30], "area": 600.5, "id": 1},
        {"desc": "hot dog", "bbox": [0.5, 0, 64, 48], "iscrowd": True},
    ],
}
COCO = {
    "images": [{"id": 7, "file_name": "a.png", "width": 64, "height": 48}, {"id": 8, "file_name": "b.png"}],
    "categories": [{"id": 1, "name": "dog"}, {"id": 3, "name": "cat"}],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 1, "bbox": [10, 10, 30, 20], "area": 600, "iscrowd": 0},
        {"id": 2, "image_id": 8, "category_id": 3, "bbox": [0, 0, 64.0, 48.0]},
    ],
}
TRUTH = COCO | {"images": [COCO["images"][0], COCO["images"][1] | {"width": 64, "height": 48}]}
RESULTS = [
    {"image_id": 7, "category_id": 1, "bbox": [10, 10, 30, 20], "score": 0.5},
    {"image_id": 8, "category_id": 3, "bbox": [0, 0, 64, 48], "score": 1},
]
ANSWER = (
    '{"objects": [{"desc": "person", "bbox_2d": [<|coord_12|>, <|coord_340|>, <|coord_96|>, <|coord_711|>]}, '
    '{"desc": "hot dog", "bbox_2d": [<|coord_0|>, <|coord_0|>, <|coord_999|>, <|coord_999|>]}]}'
)
MODEL_FILES = ("config.json", "apiece.json", "tokenizer_config.json", "preprocessor_config.json", "tokenizer.json")
PIECES = (
    '{"desc": "',
    '"',
    '", "bbox_2d": [',
    "<|coord_5|>",
    "<|coord_1000|>",
    "<|coord_",
    ", ",
    "]}",
    "]}]}",
    "\n",
    "é",
)


@dataclass(frozen=True)
class Target:
    """One kind of input.

    Attributes:
        name: Of the target.
        inputs: Makes them.
        check: Hands one over, in an empty folder; anything but a `UserError` fails.
        examples: In a short run.
    """

    name: str
    inputs: st.SearchStrategy[Any]
    check: Callable[[Path, Any], None]
    examples: int = 60


def check_config(folder: Path, given: tuple[bytes, Sequence[str]]) -> None:
    content, overrides = given
    (folder / "c.yaml").write_bytes(content)
    with suppress(UserError):
        loaded = load_config(folder / "c.yaml", list(overrides))
        (folder / "d.yaml").write_text(dump_config(loaded.config), encoding="utf-8", newline="")
        assert load_config(folder / "d.yaml").config == loaded.config, "a config changes on its way to a file and back"


def check_lines(folder: Path, content: bytes) -> None:
    (folder / "x.jsonl").write_bytes(content)
    with suppress(UserError):
        report = check_jsonl(folder / "x.jsonl", open_images=False)
        json.dumps(report.as_dict())
        strict_errors = None
        try:
            samples = read_jsonl(folder / "x.jsonl")
        except UserError as error:
            strict_errors = str(error)
        assert (strict_errors is None) == (not report.errors), "reading and checking do not agree"
        if strict_errors is None:
            write_jsonl(folder / "y.jsonl", samples)
            again = read_jsonl(folder / "y.jsonl")
            assert [s.objects for s in again] == [s.objects for s in samples]


def check_coco(folder: Path, content: bytes) -> None:
    (folder / "c.json").write_bytes(content)
    for name in ("a.png", "b.png"):
        shutil.copyfile(_photo(), folder / name)
    with suppress(UserError):
        write_jsonl(folder / "x.jsonl", import_coco(folder / "c.json", folder).samples)
        check_jsonl(folder / "x.jsonl", open_images=False)


def check_detections(folder: Path, given: tuple[bytes, bytes]) -> None:
    for name, content in zip(("gt.json", "dets.json"), given, strict=True):
        (folder / name).write_bytes(content)
    with suppress(UserError):
        truth = load_coco_ground_truth(folder / "gt.json")
        load_coco_results(folder / "dets.json", truth).check_against(truth)


def check_text(folder: Path, text: str) -> None:
    found = parse(text)
    assert sum(found.dropped.values()) == len(found.faults)
    assert all(desc_problem(one.desc) is None for one in found.objects)
    rendered = render_text([(one.desc, one.bins_xyxy) for one in found.objects])
    assert [(o.desc, o.bins_xyxy) for o in parse(rendered).objects] == [(o.desc, o.bins_xyxy) for o in found.objects]


def check_ids(folder: Path, ids: Sequence[int]) -> None:
    side = _side()
    found = parse_ids(ids, side.tokenizer, side.vocab)
    assert all(len(one.coord_positions or ()) == 4 for one in found.objects)
    assert sum(found.dropped.values()) == len(found.faults)


def check_model(folder: Path, given: tuple[str, bytes]) -> None:
    name, content = given
    shutil.copytree(TINY, folder / "model", copy_function=os.link)
    (folder / "model" / name).unlink()  # it is a hard link: the original stays as it is
    (folder / "model" / name).write_bytes(content)
    with suppress(UserError):
        side = load_text_side(str(folder / "model"))
        side.images.size_for((640, 480))


def check_run(folder: Path, given: Mapping[str, bytes]) -> None:
    run = folder / "run"
    shutil.copytree(_run(), run)
    for name, content in given.items():
        (run / name).write_bytes(content)
    with suppress(UserError):
        opened = open_run(run)
        dump = read_dump(run / "dumps" / "step_000100")
        with suppress(UserError):
            dump_source(opened, dump, run)
        with suppress(UserError):
            export_coco(dump, folder / "out.json")
        build_report([run], folder / "report")


@cache
def _side() -> Any:
    return load_text_side("tiny")


@cache
def _home() -> Path:
    import atexit
    import tempfile

    home = tempfile.TemporaryDirectory(prefix="apiece-fuzz-")
    atexit.register(home.cleanup)
    return Path(home.name)


@cache
def _photo() -> Path:
    from PIL import Image

    Image.new("RGB", (64, 48)).save(_home() / "a.png")
    return _home() / "a.png"


@cache
def _run() -> Path:
    return make_run(_home(), Made(samples=2, steps=(100,), size=64))


def _json_files(names: Sequence[str], folder: Path) -> st.SearchStrategy[tuple[str, bytes]]:
    def of(name: str) -> st.SearchStrategy[tuple[str, bytes]]:
        good = json.loads((folder / name).read_bytes())
        if name == "tokenizer.json":  # most of it is vocabulary
            spoil = st.sampled_from(sorted(good)).flatmap(
                lambda key: st.sampled_from([None, [], {}, 0, "x", [0], {"a": 1}]).map(lambda v: good | {key: v})
            )
        else:
            spoil = spoilt(good)
        return st.tuples(st.just(name), spoil.map(encode).flatmap(lambda text: torn(text, 1)))

    return st.sampled_from(list(names)).flatmap(of)


def _configs() -> st.SearchStrategy[tuple[bytes, list[str]]]:
    texts = [path.read_bytes() for path in sorted((REPOSITORY / "configs" / "tiny").glob("*.yaml"))]
    odd = ["null", ".nan", "1e999", "-1", "0", "[]", "{}", "yes", "'", "[1", "{a: 1}", "9" * 30, "é", "", "\t", "1e-4"]
    names = [
        "seed",
        "optim.lr",
        "optim.betas[0]",
        "optim.betas[9]",
        "data",
        "train.steps",
        "a..b",
        "=",
        "extends",
        "stage2_ab",
    ]
    override = st.tuples(st.sampled_from(names), st.sampled_from(odd)).map("=".join)
    return st.tuples(st.sampled_from(texts).flatmap(torn), st.lists(override, max_size=2))


def _run_files() -> st.SearchStrategy[dict[str, bytes]]:
    run = _run()
    dump = "dumps/step_000100"

    def lines(name: str) -> st.SearchStrategy[bytes]:
        return spoilt_lines([json.loads(line) for line in (run / name).read_text().splitlines()[:4]])

    manifest = json.loads((run / "manifest.json").read_bytes())
    protocol = json.loads((run / dump / "protocol.json").read_bytes())
    files = {
        f"{dump}/records.jsonl": lines(f"{dump}/records.jsonl"),
        f"{dump}/protocol.json": spoilt(protocol).map(encode).flatmap(torn),
        "manifest.json": spoilt(manifest | {"panel": {"ids": ["000000", "000001"]}}).map(encode).flatmap(torn),
        "metrics.jsonl": lines("metrics.jsonl"),
        "config.yaml": torn((run / "config.yaml").read_bytes()),
    }
    return st.sampled_from(sorted(files)).flatmap(lambda name: files[name].map(lambda content: {name: content}))


@cache
def targets() -> tuple[Target, ...]:
    """All of them; the first call makes what they spoil."""
    vocabulary = len(_side().tokenizer)
    good_ids = _side().tokenizer.encode(ANSWER, add_special_tokens=False)
    some_ids = st.sampled_from(good_ids) | st.integers(0, vocabulary - 1)
    ids = st.lists(some_ids, max_size=60) | st.tuples(
        st.integers(0, len(good_ids)), st.lists(some_ids, max_size=3), st.integers(0, 5)
    ).map(lambda t: [*good_ids[: t[0]], *t[1], *good_ids[t[0] + t[2] :]])
    torn_answer = torn(ANSWER.encode()).map(lambda text: text.decode("utf-8", "replace"))
    answers = torn_answer | st.lists(st.sampled_from(PIECES) | st.text(max_size=2), max_size=20).map("".join)
    detections = st.tuples(
        spoilt(TRUTH).map(encode) | st.just(encode(TRUTH)), spoilt(RESULTS).map(encode).flatmap(torn)
    )
    return (
        Target("config", _configs(), check_config),
        Target("jsonl", spoilt_lines([RECORD, RECORD | {"id": "b"}]), check_lines),
        Target("coco", spoilt(COCO).map(encode).flatmap(lambda text: torn(text, 1)), check_coco, 40),
        Target("detections", detections, check_detections),
        Target("answer text", answers, check_text, 100),
        Target("answer ids", ids, check_ids, 100),
        Target("checkpoint", _json_files(MODEL_FILES, TINY), check_model, 15),
        Target("run", _run_files(), check_run, 15),
    )
