"""`apiece config`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

import apiece.cli.config  # noqa: F401  registers the command
from apiece.cli import app
from apiece.config.reference import reference
from apiece.config.resolve import load_config, packaged_configs
from apiece.config.schema import Config
from apiece.errors import UserError


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("base.yaml").write_text("seed: 3\noptim:\n  lr: 1e-4\n")
    Path("a.yaml").write_text("extends: base.yaml\noptim:\n  lr: 2e-4\n")


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["config", *arguments])
    if isinstance(result.exception, UserError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_it_prints_every_setting_with_its_source() -> None:
    text = run("a.yaml", "train.steps=77")
    lines: dict[str, str] = {}
    for line in text.splitlines():
        lines.setdefault(line.split(":")[0].strip(), line.split("  # ")[-1])
    assert lines["seed"] == "base.yaml:1"
    assert lines["lr"] == "a.yaml:3"
    assert lines["steps"] == "command line"
    assert lines["batch_size"] == "default"
    Path("out.yaml").write_text(text)
    assert load_config(Path("out.yaml")).config == load_config(Path("a.yaml"), ["train.steps=77"]).config


def test_without_a_file_it_prints_the_defaults() -> None:
    assert yaml.safe_load(run()) == Config().model_dump(mode="json")
    assert yaml.safe_load(run("seed=4", "optim.betas[0]=0.8"))["optim"]["betas"] == [0.8, 0.95]


def test_changed_prints_what_is_no_default() -> None:
    assert run("a.yaml", "--changed", "data.flip=false") == (
        "seed: 3       # base.yaml:1\noptim:\n  lr: 0.0002  # a.yaml:3\n"
    )
    assert run("--changed") == "{}\n"


def test_against_prints_what_differs() -> None:
    assert run("a.yaml", "--against", "base.yaml") == (
        "optim:\n  lr: 0.0002  # a.yaml:3; base.yaml: 0.0001 (base.yaml:3)\n"
    )
    assert run("a.yaml", "--against", "a.yaml") == "{}\n"


def test_schema_and_reference() -> None:
    assert json.loads(run("--schema"))["title"] == "Config"
    assert run("--reference", "--out", "ref.md") == ""
    assert Path("ref.md").read_text() == reference()


def test_the_help_has_examples() -> None:
    assert "Examples" in run("--help")


@pytest.mark.parametrize(
    ("arguments", "message", "exit_code"),
    [
        (["a.yaml", "seed=x"], "command line: seed: expected a whole number >= 0", 1),
        (["gone.yaml"], "gone.yaml: config file not found", 1),
        (["a.yaml", "--against", "gone.yaml"], "gone.yaml: config file not found", 1),
        (["a.yaml", "base.yaml"], "expected key=value, found 'base.yaml'", 2),
        (["--schema", "a.yaml"], "these do not go together: --schema and FILE or KEY=VALUE", 2),
        (["a.yaml", "--changed", "--against", "b"], "these do not go together: --changed and --against", 2),
    ],
)
def test_mistakes(arguments: list[str], message: str, exit_code: int) -> None:
    with pytest.raises(UserError, match=message) as caught:
        run(*arguments)
    assert caught.value.exit_code == exit_code


# Packaged configs


def settings_files() -> list[str]:
    return [name for name in packaged_configs() if name.split("/")[0] not in ("ladders", "benchmarks")]


@pytest.mark.parametrize("name", settings_files())
def test_a_copy_of_a_packaged_config_is_equal_to_it(name: str) -> None:
    assert run("--copy", name, "copy.yaml") == ""
    assert load_config(Path("copy.yaml")).config == load_config(Path(name)).config


def test_the_list_has_every_packaged_config_with_its_first_sentence() -> None:
    listed = run("--list")
    assert all(f"{name} " in listed for name in packaged_configs())
    assert "Plain teacher forcing at matched weights: a_only.yaml with one pass." in " ".join(listed.split())


def test_a_packaged_config_is_extended_by_name() -> None:
    Path("mine.yaml").write_text("extends: tiny/bccd\nseed: 7\n")
    assert load_config(Path("mine.yaml")).config == load_config(Path("tiny/bccd"), ["seed=7"]).config


def test_a_file_of_that_name_comes_first() -> None:
    Path("tiny").mkdir()
    Path("tiny/bccd").write_text("seed: 8\n")
    assert load_config(Path("tiny/bccd")).config.seed == 8
