"""A config written down loads back; the models as documents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from apiece.config.describe import section, value_at
from apiece.config.describe import settings as settings_of
from apiece.config.reference import config_schema, dump_config, flatten, reference, render, yaml_text
from apiece.config.resolve import load_config
from apiece.config.schema import Config, DataSection, OptimSection, PromptSection, RunSection
from apiece.config.yaml_source import DEFAULT, read_yaml

_DOCS = Path(__file__).parents[2] / "docs" / "reference" / "config.md"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1e-5, "1.0e-05"),
        (2.5e-5, "2.5e-05"),
        (1e16, "1.0e+16"),
        (-0.0, "-0.0"),
        (3, "3"),
        (True, "true"),
        (None, "null"),
        ("runs/a-1.yaml", "runs/a-1.yaml"),
        ("no", '"no"'),
        ("012", '"012"'),
        ("1e5", '"1e5"'),
        ("", '""'),
        ("a: b # c", '"a: b # c"'),
        ("two\nlines", '"two\\nlines"'),
        ("\u2028\x7f", '"\\u2028\\u007f"'),
        ("日本", '"日本"'),
        ([1, "a"], "[1, a]"),
        ({"a": [None]}, "{a: [null]}"),
        ({}, "{}"),
    ],
)
def test_a_value_on_one_line(value: object, text: str) -> None:
    assert yaml_text(value) == text
    assert yaml.safe_load(text) == value
    tree = read_yaml(text, lambda line: DEFAULT, [])
    assert tree is not None and tree.plain() == value


def test_comments_stand_in_a_column_unless_a_line_is_long() -> None:
    flat = {("a",): 1, ("b", "c"): "x" * 60, ("b", "d"): {}}
    comments = dict.fromkeys(flat, "here")
    assert render(flat, comments) == (
        f"a: 1{' ' * 44}  # here\nb:\n  c: {'x' * 60}  # here\n  d: {{}}{' ' * 41}  # here\n"
    )
    assert render({}) == "{}\n"


def test_flatten_keeps_lists_and_empty_mappings_whole() -> None:
    assert flatten({"a": {"b": [1], "c": {}}, "d": None}) == {("a", "b"): [1], ("a", "c"): {}, ("d",): None}


_TEXT = st.text(st.characters(exclude_categories=["Cs"]))
_CONFIGS = st.builds(
    Config,
    seed=st.integers(0, 2**63 - 1),
    run=st.builds(RunSection, name=st.none() | _TEXT, dir=_TEXT),
    data=st.builds(DataSection, train=st.none() | _TEXT, flip=st.booleans()),
    prompt=st.builds(PromptSection, name=st.just("text"), text=_TEXT.filter(str.strip)),
    optim=st.builds(
        OptimSection,
        lr=st.floats(min_value=0, exclude_min=True, allow_infinity=False),
        betas=st.tuples(*[st.floats(allow_nan=False, allow_infinity=False)] * 2),
    ),
)


@given(_CONFIGS)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_written_loads_back_equal(tmp_path: Path, config: Config) -> None:
    text = dump_config(config)
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8", newline="")
    assert load_config(path).config == config
    assert yaml.safe_load(text) == config.model_dump(mode="json"), "any YAML reader reads the same"
    assert dump_config(load_config(path).config) == text


def test_a_section_left_out_is_the_section_with_nothing_set() -> None:
    for path, schema in settings_of(Config).items():
        if section(schema):
            found = value_at(Config(), ".".join(path))
            assert found == type(found)(), path


def test_every_setting_is_documented() -> None:
    assert [path for path, schema in settings_of(Config).items() if not schema.get("description")] == []


def test_the_schema_has_extends_and_the_documentation() -> None:
    schema: dict[str, Any] = config_schema()
    assert next(iter(schema["properties"])) == "extends"
    assert schema["additionalProperties"] is False
    assert schema["properties"]["seed"]["description"] == Config.model_fields["seed"].description
    assert schema["$schema"].endswith("2020-12/schema")


def test_the_reference_in_docs_is_up_to_date() -> None:
    remedy = "docs/reference/config.md is out of date; run: apiece config --reference --out docs/reference/config.md"
    assert _DOCS.read_text(encoding="utf-8") == reference(), remedy


def test_a_key_that_is_a_word_of_pythons_is_that_key_everywhere(tmp_path: Path) -> None:
    overrides = ["data.eval=x.jsonl", "monitor.every_steps=5", "monitor.panel.from=runs/a"]
    loaded = load_config(None, overrides)
    assert loaded.config.monitor.panel.from_run == "runs/a"
    assert str(loaded.sources["monitor.panel.from"]) == "command line"
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(loaded.config))
    assert "    from: runs/a\n" in path.read_text()
    assert load_config(path).config == loaded.config
    assert "from" in config_schema()["$defs"]["PanelSection"]["properties"]
    assert "| `monitor.panel.from` | text or null | `null` |" in reference()
