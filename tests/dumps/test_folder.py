"""Runs as data: what is read, and what is missing or broken, which is said and left out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from made import example_entry, write_dump, write_run

from apiece.dumps.folder import Dump, dumped_steps, find_image, open_run, picture_name, read_dump
from apiece.errors import UserError


def ids(dump: Dump) -> list[str]:
    return [entry["id"] for entry in dump.entries]


def test_a_whole_run_is_read(tmp_path: Path) -> None:
    run = open_run(write_run(tmp_path / "a_only"))
    assert run.name == "a_only"
    assert run.config == {"seed": 0, "optim": {"lr": 1e-05}}
    assert run.panel is not None
    assert run.panel["ids"] == ["a", "b"]
    assert run.series("loss/total") == [(10, 2.0), (20, 1.0)]
    assert run.series("eval/f1/f1") == [(20, 0.25)]
    assert run.series("no such figure") == []
    assert run.steps == (0, 300)
    assert run.gaps == ()
    assert [run.dump(step).step for step in run.steps] == [0, 300]
    assert run.dump().step == 300
    assert ids(run.dump(0)) == ["a", "b"]
    assert run.dump().gaps == ()


@pytest.mark.parametrize("ids", [None, "a", [["a"], "b"], [1]])
def test_a_panel_without_ids_is_a_gap(tmp_path: Path, ids: object) -> None:
    folder = write_run(tmp_path / "run")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["panel"]["ids"] = ids
    (folder / "manifest.json").write_text(json.dumps(manifest))
    run = open_run(folder)
    assert run.panel is None and run.series("eval/f1/f1") == [(20, 0.25)]
    assert run.gaps == (f"{folder / 'manifest.json'}: panel.ids: expected a list of ids; the panel is left out",)


@pytest.mark.parametrize("name", ["config.yaml", "manifest.json", "metrics.jsonl"])
def test_a_missing_file_is_a_gap(tmp_path: Path, name: str) -> None:
    folder = write_run(tmp_path / "run")
    (folder / name).unlink()
    run = open_run(folder)
    assert len(run.gaps) == 1
    assert f"{name}: cannot be read: No such file" in run.gaps[0]
    assert [run.dump(step).step for step in run.steps] == [0, 300]


def test_half_written_last_lines_are_named_and_the_rest_is_read(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    for file in (folder / "metrics.jsonl", folder / "dumps" / "step_000300" / "records.jsonl"):
        content = file.read_bytes()
        file.write_bytes(content[: len(content) - 5])
    run = open_run(folder)
    assert run.series("loss/total") == [(10, 2.0), (20, 1.0)]
    assert run.gaps == (f"{folder}/metrics.jsonl:3: left out: the last line is half-written",)
    dump = run.dump()
    assert ids(dump) == ["a"]
    assert dump.gaps == (f"{dump.folder}/records.jsonl:2: left out: the last line is half-written",)


def test_broken_and_repeated_lines_are_left_out(tmp_path: Path) -> None:
    folder = write_dump(tmp_path, 5, [example_entry("a", 5), {"schema": 1}, example_entry("a", 5)])
    with (folder / "records.jsonl").open("ab") as file:
        file.write(b"\n\xff\n" + json.dumps(example_entry("c\u2028", 5), ensure_ascii=False).encode())
    (folder / "0000_a.png").touch()
    (folder / picture_name(4, "c\u2028")).touch()
    (folder / "0009_gone.png").touch()
    dump = read_dump(folder)
    assert ids(dump) == ["a", "c\u2028"]
    assert dump.pictures == {"a": folder / "0000_a.png", "c\u2028": folder / "0004_c_.png"}
    assert [gap.removeprefix(f"{folder}/records.jsonl:")[:14] for gap in dump.gaps] == [
        "2: left out: s",
        "3: left out: s",
        "5: left out: n",
    ]


def test_pictures_of_ids_that_look_alike_in_file_names_keep_their_order(tmp_path: Path) -> None:
    folder = write_dump(tmp_path, 5, [example_entry(name, 5) for name in ("a b", "x", "a:b")])
    names = [picture_name(0, "a b"), picture_name(2, "a:b")]
    assert names == ["0000_a_b.png", "0002_a_b.png"]
    for name in names:
        (folder / name).touch()
    assert read_dump(folder).pictures == {"a b": folder / names[0], "a:b": folder / names[1]}


def test_a_dump_of_another_schema_is_refused_and_the_others_are_read(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", steps=(0, 300))
    write_dump(folder, 100, [], schema=0)
    run = open_run(folder)
    assert run.steps == (0, 100, 300)
    assert [run.dump(step).step for step in (0, 300)] == [0, 300]
    with pytest.raises(UserError, match=r"step_000100/protocol\.json: expected a dump of schema 1, found 0"):
        run.dump(100)


def test_a_record_of_another_schema_stops_its_dump(tmp_path: Path) -> None:
    folder = write_dump(tmp_path, 5, [example_entry("a", 5), example_entry("b", 5, schema=2)])
    with pytest.raises(UserError, match=r"records.jsonl:2: expected a dump of schema 1, found 2"):
        read_dump(folder)


def test_unfinished_dumps_do_not_count(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    (folder / "dumps" / "step_000400.part").mkdir()
    (folder / "dumps" / "step_000500").touch()
    assert dumped_steps(folder) == (0, 300)


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected the folder of a run, found none"):
        open_run(tmp_path / "missing")
    with pytest.raises(UserError, match=r"expected the folder of a run \(config.yaml, .*none of these files in it"):
        open_run(tmp_path)


def test_a_run_without_dumps_says_how_to_get_some(tmp_path: Path) -> None:
    run = open_run(write_run(tmp_path / "run", steps=()))
    assert run.steps == ()
    with pytest.raises(UserError, match=r"expected dumps, found none\n  fix: set monitor.every_steps"):
        run.dump()


def test_an_unknown_step_is_told_with_the_known_ones(tmp_path: Path) -> None:
    run = open_run(write_run(tmp_path / "run"))
    with pytest.raises(UserError, match="no dump of step 7; there are 2: 0, 300"):
        run.dump(7)


def test_a_dump_without_protocol_is_none(tmp_path: Path) -> None:
    folder = write_dump(tmp_path, 5, [])
    (folder / "protocol.json").write_text("{")
    with pytest.raises(UserError, match=r"not the folder of a dump: protocol.json cannot be read: not valid JSON"):
        read_dump(folder)
    (folder / "protocol.json").unlink()
    with pytest.raises(UserError, match=r"protocol.json cannot be read: .*No such file"):
        read_dump(folder)


def test_an_image_is_found_where_it_was_or_in_the_run(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    record = open_run(folder).dump().entries[0]
    assert find_image(record, folder) is None
    (folder / "images").mkdir()
    (folder / "images" / "a.png").touch()
    assert find_image(record, folder) == folder / "images" / "a.png"
    record["image"] = str(tmp_path / "b.png")
    assert find_image(record, folder) is None
    (tmp_path / "b.png").touch()
    assert find_image(record, folder) == tmp_path / "b.png"
