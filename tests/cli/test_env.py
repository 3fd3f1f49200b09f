"""`apiece env`: complete, honest about what is missing, and standing where torch does not."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest
import typer

from apiece.cli import env as module
from apiece.cli.env import EXTRAS, REQUIRED, Device, describe, env, read_environment

CPU = Device("cpu", "A processor", 24.0, bf16=True, cores=2)
GPU = Device("cuda:0", "A card", 139.0, bf16=True)


@pytest.fixture
def without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_devices", lambda: (None, [CPU]))
    monkeypatch.setattr(module, "_sees_nvidia", lambda: False)


def test_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    env(as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert found["problems"] == []
    assert found["devices"][0]["id"] == "cpu"
    assert found["devices"][0]["cores"] >= 1
    assert found["devices"][0]["memory_gb"] > 0.5
    assert list(found["versions"]) == list(REQUIRED)
    assert all(found["versions"].values())


def test_every_needed_package_is_named() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert set(REQUIRED) == {re.split(r"[<>=]", needed)[0] for needed in project["dependencies"]}


@pytest.mark.usefixtures("without_torch")
def test_missing_packages(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(module, "package_version", lambda name: None if name in ("hotcoco", "flash-attn") else "1.0")
    with pytest.raises(typer.Exit) as ended:
        env()
    assert ended.value.exit_code == 1
    out = capsys.readouterr().out
    assert re.search(r"^  hotcoco +MISSING$", out, re.MULTILINE)
    assert "hotcoco is missing: reinstall apiece" in out
    extra = next(extra for extra in EXTRAS if extra.name == "flash-attn")
    assert re.search(rf"^  flash-attn +missing +{re.escape(extra.use)}$", out, re.MULTILINE)
    assert extra.install in out


def test_a_broken_torch_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise OSError("libcudart.so.13: cannot open shared object file")

    monkeypatch.setattr(module, "_devices", broken)
    monkeypatch.setattr(module, "_sees_nvidia", lambda: False)
    assert read_environment().problems == ["torch cannot be loaded: libcudart.so.13: cannot open shared object file"]


@pytest.mark.parametrize(
    ("cuda", "devices", "problem"),
    [
        (None, [CPU], "an NVIDIA GPU is here, but this torch is built without CUDA"),
        ("13.0", [CPU], "an NVIDIA GPU is here, but torch (CUDA 13.0) cannot use it: check its driver"),
        ("13.0", [CPU, GPU], None),
    ],
)
def test_a_gpu_that_is_not_used(
    monkeypatch: pytest.MonkeyPatch, cuda: str | None, devices: list[Device], problem: str | None
) -> None:
    monkeypatch.setattr(module, "_devices", lambda: (cuda, devices))
    monkeypatch.setattr(module, "_sees_nvidia", lambda: True)
    found = read_environment()
    assert found.problems == ([] if problem is None else [problem])
    assert ("no GPU" in describe(found)) == (len(devices) == 1)


def test_devices_are_described(monkeypatch: pytest.MonkeyPatch) -> None:
    weak = Device("cpu", "An old processor", 15.6, bf16=False, cores=8)
    monkeypatch.setattr(module, "_devices", lambda: ("13.0", [weak, GPU]))
    text = describe(read_environment())
    assert re.search(r"^  cpu +An old processor, 8 cores, 16 GB, float32$", text, re.MULTILINE)
    assert re.search(r"^  cuda:0 +A card, 139 GB, bf16$", text, re.MULTILINE)
