"""The report page without a browser: what is written, what it weighs, and every kind of bad input."""

from __future__ import annotations

import base64
import gzip
import http.client
import json
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from apiece.dumps.form import decode_curve, encode_curve
from apiece.errors import UserError
from apiece.report import page as build_module
from apiece.report.page import MAX_SIDE, Photos, build_report
from apiece.report.payload import (
    MAX_POINTS,
    WIDE,
    logged_figures,
    page_curve,
    panel_figures,
    steps_and_values,
    write_payload,
)
from apiece.report.serve import make_server
from made_runs import HOSTILE, Made, make_run

TEMPLATES = Path(build_module.__file__).parent / "templates"
SMALL = Made(samples=2, steps=(100, 200))


def unpacked(file: Path) -> Any:
    """What a data file holds, read as the page reads it."""
    found = re.fullmatch(r'apiece\.put\("[\w/]+","([\w+/=]*)"\);\n', file.read_text(encoding="ascii"))
    assert found, file
    return json.loads(gzip.decompress(base64.b64decode(found[1], validate=True)))


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("runs")
    return make_run(folder, Made("a", samples=2, steps=(100, 200), hostile=True)), make_run(
        folder, Made("b", samples=3, steps=(100, 300), seed=1)
    )


@pytest.fixture(scope="module")
def report(two_runs: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_report(two_runs, tmp_path_factory.mktemp("out") / "report").page.parent


def test_a_payload_comes_back(tmp_path: Path) -> None:
    value = {"text": "</script> 🦔 \u2028 \"'\\", "numbers": [1, float("nan"), 2.5]}
    write_payload(tmp_path, "run0/x", value)
    assert unpacked(tmp_path / "run0" / "x.js") == {**value, "numbers": [1, None, 2.5]}


def masses(curve: list[Any]) -> tuple[int, int, np.ndarray]:
    """First bin, bins a cell and masses of a curve on the page, as its scripts read them."""
    start, step, peak, digits = curve
    return start, step, np.array([(int(digit, 32) / 31) ** 2 * peak for digit in digits])


def test_curves_keep_their_place_and_mass() -> None:
    bins = np.arange(1000)
    narrow, wide = (np.exp(-(((bins - 300) / width) ** 2) / 2) for width in (4, 90))
    packed = [encode_curve(mass / mass.sum()) for mass in (narrow, wide)]
    start, step, cells = masses(page_curve(packed[0]))
    assert (start, step) == (packed[0]["start"], 1)
    assert cells.sum() == pytest.approx(1, abs=0.05)
    start, step, cells = masses(page_curve(packed[1]))
    assert step == 2 * packed[1]["step"]
    assert len(cells) <= WIDE
    assert cells.sum() == pytest.approx(1, abs=0.05)
    assert start + step * (int(cells.argmax()) + 0.5) == pytest.approx(300, abs=step)
    assert decode_curve(packed[1], 1000).argmax() == pytest.approx(300, abs=step)


@pytest.mark.parametrize(
    "broken",
    [
        None,
        {"start": -1, "step": 1, "peak": 0.5, "values": "AAAA"},
        {"start": 0, "step": 0, "peak": 0.5, "values": "AAAA"},
        {"start": 0, "step": 1, "peak": 7.0, "values": "AAAA"},
        {"start": 0, "step": 1, "peak": 0.5, "values": "not base64!"},
        {"start": 0, "step": 1, "peak": 0.5, "values": "A" * 400},
        {"start": 0, "step": 1, "peak": 0.5, "values": ""},
    ],
)
def test_what_is_no_curve_is_not_drawn(broken: Any) -> None:
    assert page_curve(broken) is None


def test_the_folder_holds_all_that_the_page_needs(report: Path) -> None:
    html = (report / "index.html").read_text(encoding="utf-8")
    for address in re.findall(r'(?:src|href)="([^"#:]+)"', html):
        assert (report / address).is_file(), address
    assert "default-src 'none'" in html
    index = unpacked(report / "data" / "index.js")
    assert [run["steps"] for run in index["runs"]] == [[100, 200], [100, 300]]
    assert [sample["id"] for sample in index["samples"]] == ["000000", "000001", "000002"]
    assert [sample["runs"] for sample in index["samples"]] == [[0, 1], [0, 1], [1]]
    assert all((report / sample["photo"]).is_file() for sample in index["samples"])
    assert len(list((report / "photos").iterdir())) == 3, "each photo once, whatever the number of runs and steps"
    assert ["objective.a1_smoothl1_weight", "0.0", "0.0"] not in index["differences"]
    boxes = unpacked(report / "data" / "run1" / "boxes_0002.js")
    assert [step is not None for step in boxes["steps"]] == [True, True]


def test_boxes_and_details_are_those_of_the_dump(report: Path, two_runs: tuple[Path, Path]) -> None:
    lines = (two_runs[1] / "dumps" / "step_000300" / "records.jsonl").read_text(encoding="utf-8").splitlines()
    record = json.loads(lines[1])
    boxes = unpacked(report / "data" / "run1" / "boxes_0001.js")
    details = unpacked(report / "data" / "run1" / "details_0001.js")
    step, detail = boxes["steps"][1], details["steps"][1]
    assert [boxes["descs"][i] for i in step["desc"]] == [p["desc"] for p in record["predictions"]]
    assert np.allclose(step["box"], [p["bbox"] for p in record["predictions"]], atol=0.05)
    labels = boxes["labels"][step["l"]]
    assert [row[5] for row in labels] == [int(o["iscrowd"]) for o in record["objects"]]
    assert detail["line"] == 2
    assert detail["bins"] == [p["bins"] for p in record["predictions"]]
    assert [len(curves) for curves in detail["curves"]] == [4] * len(record["predictions"])
    assert [curves is None for curves in detail["label_curves"]] == [o["slots"] is None for o in record["objects"]]
    label = next(i for i, o in enumerate(record["objects"]) if o["slots"] is not None)
    for name in ("a1", "last"):
        for shown, dumped in zip(
            detail["label_curves"][label][name], record["objects"][label]["slots"][name], strict=True
        ):
            start, step, cells = masses(shown)
            assert start == dumped["start"]
            assert cells.sum() == pytest.approx(decode_curve(dumped, 1000).sum(), abs=0.05)


def test_nothing_that_a_model_wrote_is_in_a_script_or_the_page(report: Path) -> None:
    for file in [*report.rglob("*.js"), report / "index.html"]:
        text = file.read_text(encoding="utf-8")
        assert not any(hostile in text for hostile in HOSTILE), file
        if "data" in file.parts:
            assert re.fullmatch(r'apiece\.put\("[\w/]+","[\w+/=]*"\);\n', text, re.ASCII), file


def test_scripts_set_text_never_html_and_ask_no_one() -> None:
    scripts = sorted(TEMPLATES.glob("*.js"))
    assert {path.stem for path in scripts} == set(build_module.SCRIPTS)
    for path in [*scripts, TEMPLATES / "page.css", TEMPLATES / "index.html"]:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text), (
            path
        )
        assert not re.search(r"\bfetch\(|XMLHttpRequest|https?://(?!www\.w3\.org/2000/svg)", text), path
        assert len(text.splitlines()) <= 400, path


def test_a_report_weighs_little(report: Path, two_runs: tuple[Path, Path]) -> None:
    """benchmarks/report.py measures a report of full size; this holds the ratio that its figure rests on."""
    data = sum(path.stat().st_size for path in (report / "data").glob("run*/*_*.js"))
    assert data < 0.25 * sum(path.stat().st_size for run in two_runs for path in run.glob("dumps/*/records.jsonl"))


def test_rates_of_the_panel() -> None:
    def entry(outcomes: list[str], fates: list[str | None]) -> Any:
        return {
            "objects": [{"desc": "book", "fate": fate, "iscrowd": fate is None} for fate in fates],
            "predictions": [{"outcome": o, "near_duplicate": o == "duplicate", "strip": False} for o in outcomes],
            "counts": {"gt": 2, "pred": len(outcomes), "matched": outcomes.count("tp"), "ignored": 0},
            **{"answer": {"closed": True}, "probes": None},
        }

    dump = [
        entry(["tp", "duplicate", "group"], ["matched", "merged", None]),
        entry([], ["missed", "missed"]),
    ]
    figures = panel_figures(dump)
    assert figures["panel/f1"] == pytest.approx(2 / 7)
    assert figures["panel/recall"] == 0.25
    assert figures["rates/group"] == pytest.approx(1 / 3)
    assert figures["misses/missed"] == 0.5
    assert figures["shape/near_duplicate"] == pytest.approx(1 / 3)
    assert "probes/flip" not in figures
    assert panel_figures([]) == {}


def test_long_curves_keep_their_spikes_and_gaps() -> None:
    rows = [{"step": i, "loss/total": 1.0, "note": "text"} for i in range(10_000)]
    rows[1234]["loss/total"], rows[4000]["loss/total"] = 99.0, None
    points = logged_figures(rows)
    assert list(points) == ["loss/total"]
    steps, values = steps_and_values(points["loss/total"])
    assert len(steps) <= MAX_POINTS + 2
    assert (steps[0], steps[-1]) == (0, 9999)
    assert values[steps.index(1234)] == 99
    assert steps_and_values({5: float(np.float32(0.1)), 2: None}) == [[2, 5], [None, 0.1]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda run: run.rename(run.with_name("gone")), "expected the folder of a run"),
        (lambda run: (run / "dumps").rename(run / "kept"), "expected runs with dumps, found none in a_only"),
    ],
)
def test_what_cannot_be_shown_is_refused(tmp_path: Path, change: Any, message: str) -> None:
    run = make_run(tmp_path, SMALL)
    change(run)
    with pytest.raises(UserError, match=message):
        build_report([run], tmp_path / "report")
    assert not (tmp_path / "report").exists()
    assert not list(tmp_path.glob(".report*"))


def test_a_run_without_dumps_beside_one_with_dumps_shows_its_curves(tmp_path: Path) -> None:
    runs = make_run(tmp_path, SMALL), make_run(tmp_path, Made("bare", samples=0, steps=()))
    built = build_report(runs, tmp_path / "report")
    index = unpacked(tmp_path / "report" / "data" / "index.js")
    assert [run["steps"] for run in index["runs"]] == [[100, 200], []]
    assert built.steps == 2
    assert unpacked(tmp_path / "report" / "data" / "run1" / "curves.js")["series"]


def test_a_dump_that_cannot_be_read_is_a_gap(tmp_path: Path) -> None:
    run = make_run(tmp_path, SMALL)
    file = run / "dumps" / "step_000100" / "protocol.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"schema": 0}))
    built = build_report([run], tmp_path / "report")
    assert built.steps == 1
    assert len(built.gaps) == 1
    assert "step_000100/protocol.json: expected a dump of schema 1, found 0" in built.gaps[0]
    index = unpacked(tmp_path / "report" / "data" / "index.js")
    assert (index["runs"][0]["steps"], index["runs"][0]["gaps"]) == ([200], list(built.gaps))


def test_a_run_named_twice_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path, SMALL)
    with pytest.raises(UserError, match="named twice"):
        build_report([run, run / "."], tmp_path / "report")


def test_only_a_report_is_ever_replaced(tmp_path: Path) -> None:
    run = make_run(tmp_path, Made(samples=1, steps=(100,)))
    (out := tmp_path / "out").mkdir()
    build_report([run], out)
    with pytest.raises(UserError, match=r"not empty.*\n.*--overwrite"):
        build_report([run], out)
    (out / "data" / "old.js").write_text("")
    build_report([run], out, overwrite=True)
    assert not (out / "data" / "old.js").exists()
    (own := tmp_path / "own").mkdir()
    (own / "index.html").write_text("my page")
    with pytest.raises(UserError, match="not empty"):
        build_report([run], own, overwrite=True)
    (file := tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="found a file"):
        build_report([run], file)


def test_photos_are_made_small_and_lose_their_metadata(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "the place where it was taken"
    Image.new("RGB", (300, 200), "red").save(tmp_path / "turned.jpg", exif=exif)
    Image.new("RGB", (4000, 1000), "blue").save(tmp_path / "large.jpg")
    Image.new("RGB", (300, 200), "green").save(tmp_path / "plain.jpg")
    (tmp_path / "torn.jpg").write_bytes((tmp_path / "plain.jpg").read_bytes()[:200])
    photos = Photos(tmp_path / "out")
    (tmp_path / "out").mkdir()
    turned, _ = photos.add(tmp_path / "turned.jpg", (200, 300))
    assert b"place" not in (tmp_path / "out" / turned).read_bytes()
    with Image.open(tmp_path / "out" / turned) as image:
        assert image.size == (200, 300)
    large, _ = photos.add(tmp_path / "large.jpg", (4000, 1000))
    with Image.open(tmp_path / "out" / large) as image:
        assert image.size == (MAX_SIDE, MAX_SIDE // 4)
    plain, _ = photos.add(tmp_path / "plain.jpg", (300, 200))
    assert (tmp_path / "out" / plain).read_bytes() == (tmp_path / "plain.jpg").read_bytes()
    assert photos.add(tmp_path / "torn.jpg", (300, 200))[0] is None
    address, message = photos.add(tmp_path / "plain.jpg", (640, 480))
    assert address is None
    assert "300 x 200 now, but its boxes are for 640 x 480" in message


@pytest.fixture
def port(report: Path) -> Iterator[int]:
    with make_server(report) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/", {}, 200),
        ("/data/index.js", {}, 200),
        ("/index.html?x=1", {"Host": "localhost:8000"}, 200),
        ("/data/", {}, 404),
        ("/nothing", {}, 404),
        ("/../secret.txt", {}, 404),
        ("/%2e%2e/secret.txt", {}, 404),
        ("/data/../../secret.txt", {}, 404),
        ("/link.txt", {}, 403),
        ("/", {"Host": "evil.example"}, 403),
        ("/", {"Host": "127.0.0.1.evil.example:80"}, 403),
        ("/", {"Host": "localhost.evil.example"}, 403),
        ("/", {"Host": ""}, 403),
        ("//evil.example/../secret.txt", {}, 404),
        ("/data/..%2f..%2fsecret.txt", {}, 404),
        ("/..%5csecret.txt", {}, 404),
    ],
)
def test_the_server_gives_the_report_and_nothing_else(
    report: Path, port: int, path: str, headers: dict[str, str], status: int
) -> None:
    (report.parent / "secret.txt").write_text("secret")
    if not (report / "link.txt").exists():
        (report / "link.txt").symlink_to(report.parent / "secret.txt")
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.putrequest("GET", path, skip_host="Host" in headers)
    for key, value in headers.items():
        connection.putheader(key, value)
    connection.endheaders()
    answer = connection.getresponse()
    assert answer.status == status
    assert b"secret" not in answer.read()
    connection.close()


def test_the_server_listens_on_loopback_alone(report: Path) -> None:
    with make_server(report) as server:
        assert server.server_address[0] == "127.0.0.1"


def test_what_cannot_be_served_is_refused(report: Path, port: int, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected the folder of a report"):
        make_server(tmp_path)
    with pytest.raises(UserError, match=f"port {port} cannot be used"):
        make_server(report, port)


def test_the_command_writes_a_report_and_says_what_is_missing(
    two_runs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from apiece.cli import main

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["apiece", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as caught:
            code = int(caught.code or 0)
        return code, *capsys.readouterr()

    code, out, err = run("report", two_runs[0], two_runs[1], "--out", tmp_path / "report")
    assert code == 0, err
    assert "3 images, 4 dumps" in out
    assert f"apiece view {tmp_path / 'report'}" in out.replace("\n", " ")
    index = unpacked(tmp_path / "report" / "data" / "index.js")
    assert index["comparison"] is not None or index["comparison_note"]
    code, _, err = run("report", two_runs[0], "--out", tmp_path / "report")
    assert (code, "not empty" in err) == (2, True)
    (bad := tmp_path / "comparison.json").write_text("[]")
    code, _, err = run("report", two_runs[0], "--out", tmp_path / "other", "--comparison", bad)
    assert (code, "expected a comparison" in err) == (1, True)
    code, _, err = run("view", tmp_path)
    assert (code, "expected the folder of a report" in err) == (1, True)
