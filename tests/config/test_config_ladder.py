"""A ladder's file: what is wrong with it is told at once, with file and line; it may go on top of another one."""

from __future__ import annotations

from pathlib import Path

import pytest

from apiece.config.ladder import LadderFile, Match
from apiece.config.resolve import load_file
from apiece.errors import UserError

GOOD = """\
name: mine
data: {train: a.jsonl, test: b.jsonl}
reference: base
arms:
  base: {config: base.yaml}
  other: {config: other.yaml, set: [seed=1], match: compute}
"""


def load(tmp_path: Path, text: str) -> LadderFile:
    (tmp_path / "ladder.yaml").write_text(text)
    return load_file(tmp_path / "ladder.yaml", LadderFile)


def test_defaults(tmp_path: Path) -> None:
    ladder = load(tmp_path, GOOD)
    assert (ladder.start, ladder.seeds, ladder.match) == ("tiny", (0, 1, 2), Match.STEPS)
    assert list(ladder.chosen) == ["base", "other"]
    assert ladder.arms["other"].match is Match.COMPUTE


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("reference", "referense", r"ladder.yaml:3: referense: unknown key \(did you mean 'reference'\?\)"),
        ("name: mine\n", "", "name: must be set: it has no default"),
        ("config: base.yaml", "confg: base.yaml", r"ladder.yaml:5: arms.base.confg: unknown key"),
        ("match: compute", "match: flops", "arms.other.match: expected one of steps, compute.* found the text 'flops'"),
        ("[seed=1]", "seed=1", "arms.other.set: expected a list, each text, found the text 'seed=1'"),
        ("reference: base", "reference: bass", "reference: there is no arm 'bass'; arms: base, other"),
        ("name: mine", "name: a/b", "names are of letters, digits and _ . [+] -, found a/b"),
        ("arms:", "seeds: [1, 1]\narms:", "seeds: name each seed once"),
        ("arms:", "only: [other]\narms:", "reference: 'base' is not among `only`"),
        ("test: b.jsonl", "panel: b.jsonl", "name scenes, or a train and a test file"),
        ("test: b.jsonl", "test: b.jsonl, scenes: {benchmark: x.yaml}", "name scenes or files, not both"),
    ],
)
def test_mistakes(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in GOOD
    with pytest.raises(UserError, match=message):
        load(tmp_path, GOOD.replace(old, new, 1))


def test_all_mistakes_are_told_at_once_and_none_that_follows_from_another(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        load(tmp_path, "nmae: mine\narms:\n  base: {confg: base.yaml}\n")
    told = str(caught.value).splitlines()
    assert [line.split(": ")[1] for line in told[1:]] == [
        "name", "data", "reference", "nmae", "arms.base.config", "arms.base.confg",
    ]  # fmt: skip


def test_a_ladder_on_top_of_another_one(tmp_path: Path) -> None:
    (tmp_path / "parent.yaml").write_text(GOOD)
    ladder = load(tmp_path, "extends: parent.yaml\nname: less\nonly: [base]\narms:\n  base: {set: [seed=3]}\n")
    assert ladder.name == "less"
    assert list(ladder.chosen) == ["base"]
    assert (ladder.arms["base"].config, ladder.arms["base"].set) == ("base.yaml", ("seed=3",))
