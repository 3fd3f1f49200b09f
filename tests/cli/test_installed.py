"""Without the repository: a built package has the configs, and commands find them by name."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which a wheel of this tree was unpacked."""
    folder = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    # From a copy: building leaves a folder `build` and metadata in the source tree.
    copied = folder / "source"
    copied.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (copied / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run(["cp", "-r", ROOT / "src", copied / "src"], check=True)
    build = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder, copied]
    made = subprocess.run([*pip, *build], capture_output=True, text=True)
    if "BackendUnavailable" in made.stderr or "No module named 'setuptools'" in made.stderr:
        pytest.skip("setuptools is not installed: nothing to build the wheel with")
    assert made.returncode == 0, made.stderr
    (wheel,) = folder.glob("apiece-*.whl")
    target = folder / "site"
    unpack = ["install", "--quiet", "--no-deps", "--no-index", "--target", target, wheel]
    subprocess.run([*pip, *unpack], check=True, capture_output=True)
    return target


@pytest.mark.slow
def test_a_built_package_works_without_the_repository(installed: Path, tmp_path: Path) -> None:
    def apiece(*words: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(installed), "COLUMNS": "200"}
        command = [sys.executable, "-m", "apiece", *words]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)

    listed = apiece("config", "--list").stdout
    shipped = sorted(p.relative_to(ROOT / "configs").with_suffix("").as_posix() for p in ROOT.glob("configs/**/*.yaml"))
    assert sorted(line.split()[0] for line in listed.splitlines()[1:] if not line.startswith(" ")) == shipped
    assert "Blood cells (real photos, crowded, incompletely labelled)" in listed

    shown = apiece("config", "tiny/bccd", "--changed")
    assert shown.returncode == 0
    assert f"# {installed}/apiece/configs/tiny/bccd.yaml:" in shown.stdout, "it is the installed one"

    assert apiece("config", "--copy", "tiny/bccd_overfit", "mine.yaml").returncode == 0
    assert "\nextends: tiny/bccd\n" in (tmp_path / "mine.yaml").read_text()
    plain = apiece("config", "tiny/bccd_overfit", "--against", "mine.yaml")
    assert (plain.returncode, plain.stdout) == (0, "{}\n"), plain.stderr

    missing = apiece("train", "tiny/bccd")
    assert missing.returncode == 1
    assert "data.train: expected a data file at data/bccd/train.jsonl, found nothing" in missing.stderr
    wrong = apiece("train", "configs/tiny/bccd.yaml")
    assert "config file not found (did you mean 'tiny/bccd'?)" in wrong.stderr
