"""One entry or protocol: what is written, what is read, what is refused with which words."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made import example_entry, example_probes, example_protocol

from apiece.dumps.form import BrokenLineError, finite, form_reference, json_line, parse_entry, parse_protocol
from apiece.errors import UserError


def uneven_probes() -> dict[str, Any]:
    probes = example_probes()
    probes["slots"]["drift"] = [0, 1]
    return probes


def test_an_entry_comes_back_as_it_was_written() -> None:
    entry = example_entry()
    line = json_line(entry)
    assert line.endswith("}\n")
    assert line.count("\n") == 1
    assert parse_entry(line, "x:1") == entry


def test_what_is_not_finite_becomes_null() -> None:
    row = {"score": float("nan"), "iou": np.float32("inf"), "mass": np.array([0.5, np.nan]), "n": np.int64(3)}
    assert finite(row) == {"score": None, "iou": None, "mass": [0.5, None], "n": 3}
    assert json_line({"a": (1, float("-inf"), True, "NaN")}) == '{"a":[1,null,true,"NaN"]}\n'


def test_a_nan_that_another_tool_wrote_is_read_as_null() -> None:
    entry = example_entry()
    entry["predictions"][0]["score"] = float("nan")
    read = parse_entry(json.dumps(entry), "x:1")
    assert read["predictions"][0]["score"] is None


@pytest.mark.parametrize("desc", ["</script><b>", "بطة", "🦆\u2028book", "x" * 10_000, ""])
def test_hostile_names_pass_through_as_text(desc: str) -> None:
    entry = example_entry()
    entry["predictions"][0]["desc"] = desc
    line = json_line(entry)
    assert line.count("\n") == 1
    assert parse_entry(line.encode(), "x:1")["predictions"][0]["desc"] == desc


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (0, r"expected a dump of schema 1, found 0: it was written by an older apiece\n  fix: read it with the apiece"),
        (None, "expected a dump of schema 1, found none: it was written by an older apiece"),
        ("1", "found '1': it was written by an older apiece"),
        (2, r"found 2: it was written by a newer apiece\n  fix: update apiece to read it"),
    ],
)
def test_another_schema_is_told_with_its_remedy(found: Any, message: str) -> None:
    for read, value in ((parse_entry, example_entry()), (parse_protocol, example_protocol())):
        value["schema"] = found
        with pytest.raises(UserError, match=rf"dumps/x\.jsonl:7: .*{message}") as caught:
            read(json.dumps(value), Path("dumps/x.jsonl:7"))
        assert caught.value.fix


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"predictions": None}, "predictions: Input should be a valid list"),
        ({"width": "192"}, "width: Input should be a valid integer"),
        ({"hidden": [{"desc": "book", "bbox": [1, 2, 3]}]}, "expected a bbox of 4 numbers, found 3"),
        ({"objects": [], "probes": None}, "a prediction points to an object that is not among the 0 of the entry"),
        ({"objects": [], "predictions": []}, "a probe points to an object that is not among the 0 of the entry"),
        ({"probes": uneven_probes()}, "the columns of its probes differ in length"),
    ],
)
def test_a_broken_entry_says_where(change: dict[str, Any], message: str) -> None:
    with pytest.raises(BrokenLineError, match=re.escape(message)):
        parse_entry(json.dumps(example_entry(**change)), "x:1")


@pytest.mark.parametrize(("text", "message"), [("[]", "expected a JSON object"), ('{"schema": 1,', "not valid JSON")])
def test_a_line_that_is_no_object_is_refused(text: str, message: str) -> None:
    with pytest.raises(BrokenLineError, match=message):
        parse_entry(text, "x:1")


def test_a_missing_key_is_named() -> None:
    protocol = example_protocol()
    del protocol["data_sha256"]
    with pytest.raises(BrokenLineError, match="data_sha256: Field required"):
        parse_protocol(json.dumps(protocol), "protocol.json")


def test_further_keys_are_no_mistake() -> None:
    assert parse_entry(json.dumps(example_entry(note="of a later version")), "x:1")["id"] == "000044"


def test_the_page_shows_this_form() -> None:
    """Where `APIECE_PIN` is set, the page is written instead."""
    (page,) = (Path(__file__).parents[2] / "docs").rglob("records.md")
    text = page.read_text(encoding="utf-8")
    begin, end = re.search(r"<!-- form of a dump: begin.*?-->\n", text), text.find("<!-- form of a dump: end -->")
    assert begin and end > 0, "the marks between which the form stands"
    fresh = f"{text[: begin.end()]}\n{form_reference()}\n{text[end:]}"
    if os.environ.get("APIECE_PIN"):
        page.write_text(fresh, encoding="utf-8")
    assert text == fresh, "run APIECE_PIN=1 pytest tests/dumps"


def test_the_example_has_every_key_of_the_form() -> None:
    keys = set(re.findall(r"^\| `(\w+)` \|", form_reference(), re.MULTILINE))
    line = json.dumps([example_entry(), example_protocol()])
    assert keys == set(re.findall(r'"(\w+)":', line)) - {
        "truncated",
        "book",
        "temperature",
        "constant",
        "coord_logprob",
    } | {"near_neighbour", "near_own", "elsewhere", "neighbour"}
