"""Whatever is in a file or on the command line: a config or a `UserError`, never anything else."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from apiece.config.reference import dump_config
from apiece.config.resolve import LoadedConfig, load_config
from apiece.config.schema import Config
from apiece.errors import UserError

_SETTINGS = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

_KEYS = ["seed", "optim", "lr", "betas", "train", "steps", "batch_size", "eval", "objective", "config", "extends"]
_WORDS = ["c.yaml", "null", "~", "1e-4", "012", ".nan", "-.inf", "1e999", "9" * 25, "true", "no", "é", "😀", "=", "."]
_MARKS = [": ", ":", "\n", "\n  ", "\n- ", "- ", "[", "]", "{", "}", ", ", "? ", "|\n ", "> ", "# ", "'", '"', "<<"]
_ODD = ["&a ", "*a", "!!int ", "! ", "---\n", "...", "%YAML 1.1\n", "@", "`", "\\ud800", "\\UFFFFFFFF", "\\x"]
_BAD = ["\t", "\r", "\0", "\x85", "\u2028", "\ufeff"]
_PIECES = st.sampled_from([*_KEYS, *_WORDS, *_MARKS, *_ODD, *_BAD])
_YAML_TEXT = st.lists(_PIECES | st.text(max_size=3), max_size=25).map("".join)
_KEY = st.sampled_from(_KEYS)
_SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
_TREES = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEY | st.text(max_size=3), inner),
    max_leaves=8,
)


def load(path: Path, overrides: list[str]) -> LoadedConfig | None:
    """The config, if it is one; anything but a `UserError` fails the test."""
    with suppress(UserError):
        return load_config(path, overrides)
    return None


def check(path: Path, overrides: list[str]) -> None:
    loaded = load(path, overrides)
    if loaded is not None:
        path.write_text(dump_config(loaded.config), encoding="utf-8", newline="")
        assert load_config(path).config == loaded.config


@given(st.binary(max_size=60) | _YAML_TEXT.map(lambda text: text.encode("utf-8", "surrogatepass")))
@_SETTINGS
def test_any_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(content)
    check(path, [])


@given(st.dictionaries(_KEY, _TREES, min_size=1))
@_SETTINGS
def test_any_tree(tmp_path: Path, tree: dict[str, object]) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(yaml.dump(tree, allow_unicode=True), encoding="utf-8", errors="replace", newline="")
    check(path, [])


_OVERRIDE_KEYS = st.lists(_KEY | st.sampled_from(["0", "[0]", ".", "[7]", "betas[1]"]), max_size=4).map(".".join)


@given(st.lists(st.tuples(_OVERRIDE_KEYS, _YAML_TEXT).map("=".join) | st.text(max_size=8), max_size=3))
@_SETTINGS
def test_any_override(tmp_path: Path, overrides: list[str]) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("optim: {betas: [0.5, 0.5]}\n")
    check(path, overrides)


def test_the_check_would_notice(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("seed: 5\n")
    loaded = load(path, [])
    assert loaded is not None and loaded.config == Config(seed=5)
