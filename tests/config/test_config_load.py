"""Files and overrides -> a config with sources, or every mistake at once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import pytest
from pydantic import Field

from apiece.config.resolve import LoadedConfig, load_config, validate
from apiece.config.schema import Config, Section
from apiece.config.yaml_source import Mistake, Place, read_yaml
from apiece.errors import UserError


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def load(text: str, overrides: Sequence[str] = (), **others: str) -> LoadedConfig:
    for name, content in {"c": text, **others}.items():
        Path(f"{name}.yaml").write_text(content)
    return load_config(Path("c.yaml"), overrides)


def message_of(text: str, overrides: Sequence[str] = (), **others: str) -> str:
    with pytest.raises(UserError) as caught:
        load(text, overrides, **others)
    return str(caught.value)


def test_no_file_is_the_defaults() -> None:
    loaded = load_config(None)
    assert loaded.config == Config()
    assert loaded.files == ()
    assert {str(source) for source in loaded.sources.values()} == {"default"}


def test_an_integer_is_a_number_and_text_an_enum() -> None:
    config = load("optim: {lr: 1, betas: [0, 0.5]}\nmodel: {precision: bf16}\n").config
    assert config.optim.lr == 1.0 and isinstance(config.optim.lr, float)
    assert config.optim.betas == (0.0, 0.5)
    assert config.model.precision.value == "bf16"


def test_null_resets_where_that_is_allowed() -> None:
    assert load("extends: p.yaml\nrun: {name: null}\n", p="run: {name: a}\n").config.run.name is None


# Mistakes


def test_three_mistakes_are_told_at_once() -> None:
    text = "extends: p.yaml\noptim:\n  lrr: 1e-4\ntrain:\n  steps: many\n"
    assert message_of(text, p="seed: 1\nmodel:\n  precision: fp23\n") == (
        "3 mistakes in the config\n"
        "  c.yaml:3: optim.lrr: unknown key (did you mean 'lr'?)\n"
        "  c.yaml:5: train.steps: expected a whole number >= 1, found the text 'many'\n"
        "  p.yaml:3: model.precision: expected one of auto, fp32, bf16, found the text 'fp23' (did you mean 'fp32'?)"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1.5\n", "c.yaml:1: seed: expected a whole number >= 0, found 1.5"),
        ("seed: 1e3\n", "c.yaml:1: seed: expected a whole number >= 0, found 1e3: write 1000"),
        ("seed: -1\n", "c.yaml:1: seed: expected a whole number >= 0, found -1"),
        ("seed: true\n", "c.yaml:1: seed: expected a whole number >= 0, found true"),
        (
            "seed: 012\n",
            "c.yaml:1: seed: expected a whole number >= 0, found the text '012' (a number with a leading zero is text)",
        ),
        ("seed:\n", "c.yaml:1: seed: expected a whole number >= 0, found nothing"),
        ("seed: [1]\n", "c.yaml:1: seed: expected a whole number >= 0, found [1]"),
        ("seed: .nan\n", "c.yaml:1: seed: expected a finite number, found .nan"),
        ("optim:\n  lr: fast\n", "c.yaml:2: optim.lr: expected a number > 0, found the text 'fast'"),
        ("optim: {betas: [0.9]}\n", "c.yaml:1: optim.betas: expected a list of 2, each a number, found [0.9]"),
        ("optim: {betas: [1, 1, 1]}\n", "c.yaml:1: optim.betas: expected a list of 2, each a number, found [1, 1, 1]"),
        ("optim: {betas:\n  [0.9,\n  x]}\n", "c.yaml:3: optim.betas.1: expected a number, found the text 'x'"),
        ("optim: {betas: [.nan, 0.9]}\n", "c.yaml:1: optim.betas.0: expected a finite number, found .nan"),
        ("data: {flip: yes}\n", "c.yaml:1: data.flip: expected true or false, found the text 'yes'"),
        (
            "run: {dir: 3}\n",
            "c.yaml:1: run.dir: expected text, found 3: put it in quotes to mean the text '3'",
        ),
        ("run: {name: [a, {b: 1}]}\n", "c.yaml:1: run.name: expected text or null, found [a, {b: 1}]"),
        (f"seed: {'x' * 99}\n", f"c.yaml:1: seed: expected a whole number >= 0, found the text '{'x' * 57}...'"),
        ("train: 3\n", "c.yaml:1: train: expected a section (key: value), found 3"),
        ("train:\n", "c.yaml:1: train: expected a section (key: value), found nothing: leave it out for the defaults"),
        ("lr: 1\n", "c.yaml:1: lr: unknown key (did you mean optim.lr?)"),
        ("optim: {extends: b}\n", "c.yaml:1: optim.extends: unknown key: `extends` goes at the top of a file"),
        ("optim.lr: 1\n", "c.yaml:1: optim.lr: unknown key: in a file write optim: {lr: ...}"),
        ("zzzz: 1\n", "c.yaml:1: zzzz: unknown key"),
        ("'': 1\n", "c.yaml:1: '': unknown key"),
        ("seed: 1\nseed: x\n", "c.yaml:2: seed: duplicate key, first set at c.yaml:1"),
        ("extends: [a, b]\n", "c.yaml:1: `extends` takes one file, as text; found [a, b]\n  fix: write for example"),
        ("extends:\n", "c.yaml:1: `extends` takes one file, as text; found nothing"),
        ("", "c.yaml: the file is empty\n  fix: write at least one setting, such as seed: 0"),
        ("# nothing\n", "c.yaml: the file is empty"),
        ("- 1\n", "c.yaml: expected settings (key: value), found a list"),
        ("hello\n", "c.yaml: expected settings (key: value), found the text 'hello'"),
        (".nan\n", "c.yaml: expected settings (key: value), found one broken value"),
        ("a: [\n", "c.yaml:2: broken YAML"),
    ],
)
def test_a_mistake_is_told_with_its_place(text: str, message: str) -> None:
    told = message_of(text)
    assert told.startswith(message)
    assert len(told.splitlines()) <= 1 + ("fix:" in told)


def test_a_file_that_is_not_there_names_the_nearest() -> None:
    Path("stage1.yaml").write_text("seed: 1\n")
    with pytest.raises(UserError, match=r"stag1.yaml: config file not found \(did you mean 'stage1.yaml'\?\)"):
        load_config(Path("stag1.yaml"))
    with pytest.raises(UserError, match=r"gone/a.yaml: config file not found\n  fix: check the path"):
        load_config(Path("gone/a.yaml"))


def test_a_file_that_cannot_be_read() -> None:
    Path("folder.yaml").mkdir()
    with pytest.raises(UserError, match=r"folder.yaml: expected a YAML file, found a folder"):
        load_config(Path("folder.yaml"))
    Path("latin.yaml").write_bytes(b"run: {name: \xe9}\n")
    with pytest.raises(UserError, match=r"latin.yaml: not UTF-8 text \(byte 12\)"):
        load_config(Path("latin.yaml"))
    with pytest.raises(UserError, match="cannot be read: File name too long"):
        load_config(Path("x" * 5000))


def test_a_byte_order_mark_is_no_mistake() -> None:
    Path("bom.yaml").write_bytes(b"\xef\xbb\xbfseed: 3\n")
    assert load_config(Path("bom.yaml")).config.seed == 3


# Rules about pairs


def test_a_broken_pair_is_told_beside_wrong_values() -> None:
    text = "train:\n  batch_size: 8\n  micro_batch_size: 3\n  steps: x\noptim:\n  warmup_steps: 5000\n"
    assert message_of(text) == (
        "2 mistakes in the config\n"
        "  c.yaml:3: train.micro_batch_size: train.batch_size (8) must be a multiple of train.micro_batch_size (3)"
        " [train.batch_size: c.yaml:2]\n"
        "  c.yaml:4: train.steps: expected a whole number >= 1, found the text 'x'"
    ), "warmup_steps cannot be judged while train.steps is broken"


def test_a_broken_pair_points_at_what_was_set() -> None:
    assert message_of("seed: 0\n", ["train.steps=10"]) == (
        "command line: train.steps: optim.warmup_steps (50) must be below train.steps (10): "
        "for a run this short, set optim.warmup_steps=1 too"
        " [optim.warmup_steps: default]"
    )


def test_a_rule_waits_for_a_misspelt_key() -> None:
    assert message_of("eval:\n  every_steps: 5\ndata:\n  evall: x.jsonl\n") == (
        "c.yaml:4: data.evall: unknown key (did you mean 'eval'?)"
    )


# extends


def test_extends_is_a_chain_with_sources() -> None:
    Path("sub").mkdir()
    Path("root.yaml").write_text("seed: 1\noptim:\n  lr: 1e-3\n  betas: [0.5, 0.6]\n")
    Path("sub/mid.yaml").write_text("extends: ../root.yaml\noptim:\n  lr: 2e-3\n")
    Path("sub/leaf.yaml").write_text("extends: mid.yaml\noptim: {betas: [0.7, 0.8]}\ntrain: {steps: 99}\n")
    loaded = load_config(Path("sub/leaf.yaml"), ["train.steps=100"])
    config = loaded.config
    assert (config.seed, config.optim.lr, config.optim.betas, config.train.steps) == (1, 2e-3, (0.7, 0.8), 100)
    assert [str(file) for file in loaded.files] == ["sub/leaf.yaml", "sub/mid.yaml", "root.yaml"]
    expected = {
        "seed": "root.yaml:1",
        "optim.lr": "sub/mid.yaml:3",
        "optim.betas": "sub/leaf.yaml:2",
        "train.steps": "command line",
        "train.batch_size": "default",
    }
    assert {key: str(loaded.sources[key]) for key in expected} == expected


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"c": "extends: c.yaml\n"}, "c.yaml:1: `extends` goes in a circle: c.yaml -> c.yaml"),
        (
            {"c": "seed: 1\nextends: a.yaml\n", "a": "extends: ./c.yaml\n"},
            "a.yaml:1: `extends` goes in a circle: c.yaml -> a.yaml -> c.yaml",
        ),
        (
            {"c": "\nextends: bse.yaml\n", "base": "seed: 1\n"},
            r"c.yaml:2: `extends` names bse.yaml: config file not found \(did you mean 'base.yaml'\?\)\n"
            "  fix: check the path; it is relative to the file that names it",
        ),
        ({"c": "extends: .\n"}, "c.yaml:1: `extends` names .: expected a YAML file, found a folder"),
        ({"c": 'extends: "a\\0b"\n'}, "c.yaml:1: `extends` names .*: config file not found"),
        ({"c": "extends: a.yaml\n", "a": ""}, "a.yaml: the file is empty"),
        ({"c": "extends: a.yaml\n", "a": "x: [\n"}, "a.yaml:2: broken YAML"),
    ],
)
def test_extends_that_cannot_be_followed(files: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(files.pop("c"), **files)


def test_a_parent_may_be_wrong_where_the_child_mends_it() -> None:
    assert load("extends: a.yaml\nseed: 2\n", a="seed: x\n").config.seed == 2


# Overrides


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("optim.lr=3e-4", "optim.lr", 3e-4),
        ("optim.lr_coord=", "optim.lr_coord", None),
        ("optim.lr_coord=null", "optim.lr_coord", None),
        ("run.name=no", "run.name", "no"),
        ('run.name="12"', "run.name", "12"),
        ("run.name=a=b", "run.name", "a=b"),
        ("data.flip=true", "data.flip", True),
        ("optim.betas=[0.1, 0.2]", "optim.betas", (0.1, 0.2)),
        ("optim.betas[0]=0.1", "optim.betas", (0.1, 0.95)),
        ("optim.betas.1=0.2", "optim.betas", (0.9, 0.2)),
        ("optim={lr: 0.5}", "optim.lr", 0.5),
    ],
)
def test_an_override_sets(override: str, path: str, value: object) -> None:
    loaded = load("run: {name: x}\noptim: {lr: 1, lr_coord: 2}\n", [override])
    section, name = path.split(".")
    assert getattr(getattr(loaded.config, section), name) == value
    assert str(loaded.sources[path]) == "command line"


def test_overrides_go_on_top_of_each_other() -> None:
    loaded = load(
        "optim: {betas: [0.1, 0.2], lr: 1}\n", ["optim.betas[0]=0.3", "optim={betas: [0.4, 0.5]}", "seed=1", "seed=2"]
    )
    assert (loaded.config.optim.betas, loaded.config.optim.lr, loaded.config.seed) == ((0.4, 0.5), 1.0, 2)
    assert str(loaded.sources["optim.lr"]) == "c.yaml:1"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lrr=1", "command line: optim.lrr: unknown key (did you mean 'lr'?)"),
        ("optim.lr=x", "command line: optim.lr: expected a number > 0, found the text 'x'"),
        ("optim.lr=.inf", "command line: optim.lr: expected a finite number, found .inf"),
        ("optim={lr: 1, lr: 2}", "command line: optim.lr: duplicate key, first set at command line"),
        (
            "optim.betas[2]=1",
            "command line: optim.betas.2: expected an index of a list that has indices 0 to 1, found '2'",
        ),
        (
            "optim.betas.x=1",
            "command line: optim.betas.x: expected an index of a list that has indices 0 to 1, found 'x'",
        ),
        ("optim.betas[0][1]=1", "command line: optim.betas.0: expected a number, found {1: 1}"),
        ("optim.lr.x=1", "command line: optim.lr: expected a number > 0, found {x: 1}"),
        ("optim=3", "command line: optim: expected a section (key: value), found 3"),
        ("extends=a.yaml", "command line: extends: unknown key: `extends` goes at the top of a file"),
    ],
)
def test_a_mistake_in_an_override_is_told(override: str, message: str) -> None:
    assert message_of("seed: 1\n", [override]) == message


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", "command line: expected key=value, found 'seed'"),
        ("=3", "command line: expected key=value, found '=3'"),
        ("a..b=3", "command line: expected key=value, found 'a..b=3'"),
        ("a[x]=3", r"command line: expected key=value, found 'a\[x\]=3'"),
        ("seed=[1", r"command line: 'seed=\[1': broken YAML: while parsing a flow sequence"),
    ],
)
def test_what_is_no_override_is_bad_usage(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load("seed: 1\n", [override])
    assert caught.value.exit_code == 2


# Models that the settings do not have yet


class _Item(Section):
    name: str
    share: Annotated[float, Field(ge=0)] = 0.5


class _Toy(Section):
    items: list[_Item] = Field(default=[])
    named: dict[str, _Item] = Field(default={})
    either: int | Annotated[str, Field(min_length=2)] = 0
    must: int


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("seed: 1\nmust: 1\n", ["f:1: seed: unknown key"]),
        ("items: [{name: a}]\n", ["f:1: must: must be set: it has no default"]),
        ("must: x\n", ["f:1: must: expected a whole number, found the text 'x'"]),
        ("must: 1\nitems:\n- share: 1\n", ["f:3: items.0.name: must be set: it has no default"]),
        (
            "must: 1\nitems:\n- {nam: b}\n- {name: b,\n   share: -1}\n",
            [
                "f:3: items.0.name: must be set: it has no default",
                "f:3: items.0.nam: unknown key (did you mean 'name'?)",
                "f:5: items.1.share: expected a number >= 0, found -1",
            ],
        ),
        (
            "must: 1\nnamed: {a: {name: 1}}\n",
            ["f:2: named.a.name: expected text, found 1: put it in quotes to mean the text '1'"],
        ),
        (
            "must: 1\neither: a\n",
            ["f:2: either: expected a whole number or text of length at least 2, found the text 'a'"],
        ),
    ],
)
def test_required_lists_mappings_and_unions(text: str, messages: list[str]) -> None:
    mistakes: list[Mistake] = []
    tree = read_yaml(text, lambda line: Place("f", line), mistakes)
    assert tree is not None
    validate(tree, mistakes, _Toy)
    assert [str(mistake) for mistake in mistakes] == messages
