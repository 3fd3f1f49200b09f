"""`apiece compare` as it is typed."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest

from apiece.cli import commands, main  # noqa: F401  registers the commands
from compared import shelves, write_evaluation
from made_runs import Made, make_run


@pytest.fixture
def runs(tmp_path: Path) -> list[str]:
    return [str(make_run(tmp_path, Made(name, skill=skill, steps=(100,)))) for name, skill in (("a", 0.3), ("b", 0.9))]


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> int | str | None:
    monkeypatch.setattr("sys.argv", ["apiece", "compare", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


def test_table_and_file(
    runs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, *runs, "--draws", 200, "--out", tmp_path / "out") == 0
    text = capsys.readouterr().out
    assert "  F1  " in text
    assert re.search(r"\d+ of \d+ figures differ; by chance alone about \d+\.\d would", text)
    assert "…" not in text
    assert max(map(len, text.splitlines()[:-1])) <= 100
    found = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert set(found) == {"schema", "a", "b", "runs", "rows", "changed", "remarks", "protocol"}
    assert [(r["name"], r["step"], r["arm"]) for r in found["runs"]] == [("a", 100, "a"), ("b", 100, "b")]
    assert set(found["rows"][0]) == {
        *(
            "key",
            "label",
            "group",
            "a",
            "b",
            "difference",
            "lo",
            "hi",
            "verdict",
            "more_images",
            "higher_is_better",
            "n",
        )
    }
    groups = list(dict.fromkeys(row["group"] for row in found["rows"]))
    assert groups[:5] == ["F1 and AP", "outcomes", "misses", "shape", "probes"]
    assert all(math.isfinite(row[key]) for row in found["rows"] for key in ("a", "b", "lo") if row[key] is not None)
    assert (found["protocol"]["draws"], found["protocol"]["level"], found["protocol"]["unit"]) == (200, 0.95, "images")
    assert run(monkeypatch, *runs, "--out", tmp_path / "out") == 2
    assert "not overwritten" in capsys.readouterr().err
    assert run(monkeypatch, *runs, "--draws", 200, "--out", tmp_path / "out", "--overwrite") == 0


def test_arms(runs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    more = str(make_run(tmp_path, Made("c", skill=0.8, steps=(100,), seed=4)))
    target = tmp_path / "x.json"
    arms = ("--arm", f"one={runs[0]}", "--arm", f"two={runs[1]},{more}")
    assert run(monkeypatch, *arms, "--draws", 100, "--json", target) == 0
    assert [r["arm"] for r in json.loads(target.read_text())["runs"]] == ["one", "two", "two"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "nothing to compare"),
        (("runs/a",), "expected two runs or more, found runs/a alone"),
        (("runs/a", "--arm", "x=y"), "these do not go together: RUNs, --arm"),
        (("--arm", "runs/a"), "expected --arm NAME=RUN or NAME=RUN,RUN, found 'runs/a'"),
        (("--arm", "x=,"), "expected --arm NAME=RUN"),
    ],
)
def test_usage(
    words: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, *words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "fix: apiece compare RUN_A RUN_B" in error


def test_one_arm_is_none(runs: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "--arm", f"a={runs[0]}") == 2
    assert "expected two arms or more, found 1" in capsys.readouterr().err
    assert run(monkeypatch, "--arm", f"a={runs[0]}", "--arm", f"a={runs[1]}") == 2
    assert "two arms have the same name: a" in capsys.readouterr().err


def test_a_folder_is_not_held_against_itself(
    runs: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in ((runs[0], runs[0]), ("--arm", f"x={runs[0]}", "--arm", f"y={runs[0]}")):
        assert run(monkeypatch, *words) == 2
        assert (
            f"{runs[0]} is named twice; there is nothing to compare\n  fix: name another run" in capsys.readouterr().err
        )
    assert run(monkeypatch, runs[0], f"{runs[0]}/../a") == 2
    assert "are the same folder" in capsys.readouterr().err


def test_score_policies_can_be_what_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pair = [
        write_evaluation(tmp_path / name, shelves(20, 0.5), score_policy=policy)
        for name, policy in (("a", "coord_logprob"), ("b", "product"))
    ]
    assert run(monkeypatch, *pair) == 2
    assert "score policy: coord_logprob and product" in capsys.readouterr().err
    assert run(monkeypatch, *pair, "--score-policies", "--draws", 200) == 0
    assert re.search(r"AP +\S+ +\S+ +\+0\.0000 .* same", capsys.readouterr().out)
