"""What the guards share: the command line in process, and golden files that say what differs.

The guards hold what a rearrangement of the code must not change. They know the commands and the files that these read
and write, no module beside `apiece.cli`. `APIECE_PIN=1 pytest tests/guards` writes the golden files anew; read the
difference before it is kept.
"""

from __future__ import annotations

import json
import lzma
import math
import os
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import unified_diff
from pathlib import Path
from typing import Any

import pytest
import torch

from apiece.cli import main

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
GOLDEN = HERE / "golden"
PINNING = bool(os.environ.get("APIECE_PIN"))
SHOWN = 20
"""Differences that a failure lists."""
ELSEWHERE = {"rel_tol": 1e-4, "abs_tol": 1e-6}
"""How near figures of training must come on another machine than the golden file's."""
OF_THE_CLOCK = ("speed/", "memory/", "data/")
"""Figures of training that differ from run to run: by their beginning, and, for seconds and their shares, their end."""
SECONDS = ("_s", "_time_share")

Line = dict[str, Any]


@dataclass
class CommandLine:
    """Runs commands in a folder."""

    folder: Path
    capsys: pytest.CaptureFixture[str]
    monkeypatch: pytest.MonkeyPatch

    def __call__(self, *words: object) -> str:
        """What a command printed; it must end well."""
        self.monkeypatch.setattr(sys, "argv", ["apiece", *map(str, words)])
        self.capsys.readouterr()
        code: Any = 0
        try:
            main()
        except SystemExit as ended:
            code = ended.code or 0
        out, err = self.capsys.readouterr()
        assert code == 0, f"apiece {' '.join(map(str, words))} ended with {code}:\n{out}{err}"
        return out


def fingerprint() -> dict[str, str]:
    """What decides the last bits of training."""
    capability = torch.backends.cpu.get_cpu_capability()
    return {"torch": torch.__version__, "cpu": capability, "machine": platform.machine()}


def leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every figure of a JSON value under its dotted key; empty containers count as figures."""
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from leaves(inner, f"{key}.{name}" if key else name)
    elif isinstance(value, list) and value:
        for index, inner in enumerate(value):
            yield from leaves(inner, f"{key}[{index}]")
    else:
        yield key, value


def differences(golden: Any, found: Any) -> list[str]:
    """Keys that were added, left out or changed, a line each."""
    old, new = dict(leaves(golden)), dict(leaves(found))
    lines = [f"{key}: {old[key]!r} -> gone" for key in old if key not in new]
    lines += [f"{key}: new, {new[key]!r}" for key in new if key not in old]
    return lines + [f"{k}: {old[k]!r} -> {new[k]!r}" for k in old if k in new and repr(old[k]) != repr(new[k])]


def holds_text(path: Path, found: str) -> None:
    """Hold a text against a golden file (`.xz`: compressed), byte for byte; of JSON the keys that differ are told."""
    packed = path.suffix == ".xz"
    if PINNING:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(lzma.compress(found.encode(), preset=9) if packed else found.encode())
        return
    golden = (lzma.decompress(path.read_bytes()) if packed else path.read_bytes()).decode()
    if found == golden:
        return
    if ".json" in path.suffixes:
        told = differences(json.loads(golden), json.loads(found)) or ["the same figures, in another order or spelling"]
    else:
        told = list(unified_diff(golden.splitlines(), found.splitlines(), "golden", "found", n=0, lineterm=""))
    fails(path, told)


def timeless(lines: Sequence[Mapping[str, Any]]) -> list[Line]:
    """Lines of `metrics.jsonl` without what the clock and the machine's memory decide."""
    return [
        {k: v for k, v in line.items() if not k.startswith(OF_THE_CLOCK) and not k.endswith(SECONDS)} for line in lines
    ]


def read_lines(path: Path) -> list[Line]:
    """A JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def holds_training(path: Path, run: Path) -> None:
    """Hold a run's `metrics.jsonl` against a golden one, or pin it."""
    if PINNING:
        lines = [fingerprint(), *timeless(read_lines(run / "metrics.jsonl"))]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    else:
        compare_training(path, run)


def compare_training(path: Path, run: Path) -> None:
    """Hold a run's `metrics.jsonl` against a golden one: to the last bit where that was made, else closely.

    The golden file's first line is its machine's fingerprint.
    """
    made_on, *golden = read_lines(path)
    found = timeless(read_lines(run / "metrics.jsonl"))
    told = differences(golden, found) if made_on == fingerprint() else _far(golden, found)
    if told:
        fails(path, told)


def _far(golden: Sequence[Line], found: Sequence[Line]) -> list[str]:
    """As `differences`, but figures that come near are the same."""
    old, new = dict(leaves(list(golden))), dict(leaves(list(found)))
    if list(old) != list(new):
        return differences(golden, found)
    return [f"{k}: {old[k]!r} -> {new[k]!r}" for k in old if not _near(old[k], new[k])]


def _near(a: Any, b: Any) -> bool:
    return math.isclose(a, b, **ELSEWHERE) if isinstance(a, float) and isinstance(b, float) else bool(a == b)


def fails(path: Path, told: Sequence[str]) -> None:
    """Fail with what differs from a golden file."""
    more = [f"... and {len(told) - SHOWN} more"] if len(told) > SHOWN else []
    name = path.relative_to(HERE)
    pytest.fail("\n".join([f"{name} differs ({len(told)}):", *told[:SHOWN], *more]), pytrace=False)
