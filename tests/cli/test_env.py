"""`apiece env`: versions of everything, and what is missing."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

import pytest
import typer

from apiece.cli import env as module
from apiece.cli.env import OPTIONAL, env

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]


def test_every_needed_package_is_named_with_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    env()
    out = capsys.readouterr().out
    for needed in PROJECT["dependencies"]:
        assert re.search(rf"^  {re.split('[<>=]', needed)[0]} +\d", out, re.MULTILINE)
    assert "GPUs that it can use: " in out


def test_missing_packages(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(module, "_version", lambda name: None if name in ("hotcoco", "peft") else "1.0")
    with pytest.raises(typer.Exit) as ended:
        env()
    assert ended.value.exit_code == 1
    out = capsys.readouterr().out
    assert re.search(r"^  hotcoco +MISSING: reinstall apiece$", out, re.MULTILINE)
    assert OPTIONAL["peft"].endswith("pip install 'apiece[lora]'") and OPTIONAL["peft"] in out


def test_a_torch_that_does_not_load(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(typer.Exit) as ended:
        env()
    assert ended.value.exit_code == 1
    assert "torch cannot be loaded: " in capsys.readouterr().out


def test_the_extras_in_the_hints_exist() -> None:
    named = {extra for use in OPTIONAL.values() for extra in re.findall(r"apiece\[(\w+)\]", use)}
    assert named <= set(PROJECT["optional-dependencies"])
