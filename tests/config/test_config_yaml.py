"""What a word means, and that a tree knows its lines."""

from __future__ import annotations

from typing import Any

import pytest

from apiece.config.yaml_source import MAX_DEPTH, Mistake, Place, read_yaml, resolve_plain
from apiece.errors import UserError


def read(text: str) -> tuple[Any, list[Mistake]]:
    mistakes: list[Mistake] = []
    tree = read_yaml(text, lambda line: Place("f.yaml", line), mistakes)
    return None if tree is None else tree.plain(), mistakes


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        ("3", 3),
        ("-3", -3),
        ("+3", 3),
        ("0", 0),
        ("1_048_576", 1048576),
        ("0.5", 0.5),
        (".5", 0.5),
        ("5.", 5.0),
        ("-1.5e+3", -1500.0),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("no", "no"),
        ("yes", "yes"),
        ("On", "On"),
        ("off", "off"),
        ("y", "y"),
        ("012", "012"),
        ("-012", "-012"),
        ("0x1F", "0x1F"),
        ("0o17", "0o17"),
        ("1__0", "1__0"),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("nan", "nan"),
        ("1e", "1e"),
        ("e5", "e5"),
        (".", "."),
        ("-", "-"),
        ("=", "="),
        ("١", "١"),
    ],
)
def test_a_plain_word_means(text: str, value: object) -> None:
    assert resolve_plain(text) == value
    assert type(resolve_plain(text)) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (".nan", "expected a finite number, found .nan"),
        ("-.inf", "expected a finite number, found -.inf"),
        ("1e999", "expected a finite number, found 1e999"),
        ("9" * 30, "expected a whole number that fits 64 bits"),
        ("9" * 6000, "expected a whole number that fits 64 bits"),
        ("-9223372036854775809", "expected a whole number that fits 64 bits"),
    ],
)
def test_a_number_that_no_setting_can_take(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve_plain(text)


def test_quotes_make_text() -> None:
    assert read("a: '1'\nb: \"true\"\nc: |\n  no\n")[0] == {"a": "1", "b": "true", "c": "no\n"}


def test_every_value_knows_its_line() -> None:
    mistakes: list[Mistake] = []
    tree = read_yaml("a:\n  b: 1\n  c:\n    - 2\n    - {d: 3}\n", lambda line: Place("f.yaml", line), mistakes)
    assert tree is not None and isinstance(tree.value, dict)
    a = tree.value["a"]
    assert str(a.source) == "f.yaml:1"
    assert isinstance(a.value, dict) and str(a.value["c"].source) == "f.yaml:3"
    items = a.value["c"].value
    assert isinstance(items, list) and [str(item.source) for item in items] == ["f.yaml:4", "f.yaml:5"]


def test_an_alias_is_written_out() -> None:
    assert read("a: &x [1, 2]\nb: *x\n")[0] == {"a": [1, 2], "b": [1, 2]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "f.yaml:3: a: duplicate key, first set at f.yaml:1"),
        ("s:\n  a: 1\n  a: 1\n", "f.yaml:3: s.a: duplicate key, first set at f.yaml:2"),
        ("'a': 1\na: 3\n", "f.yaml:2: a: duplicate key, first set at f.yaml:1"),
        ("a: [1, .nan]\n", "f.yaml:1: a.1: expected a finite number, found .nan"),
        ("? [1, 2]\n: 3\n", "f.yaml:1: a key must be a word, found a list, a mapping or broken text"),
        (
            "a: {<<: {b: 1}}\n",
            "f.yaml:1: a.<<: merge keys (<<) are not supported; use `extends: FILE` at the top of the file",
        ),
        ('a: "\\ud800"\n', "f.yaml:1: a: the text holds half of a surrogate pair (\\ud800 to \\udfff)"),
    ],
)
def test_a_mistake_in_one_value_is_noted(text: str, message: str) -> None:
    assert [str(problem) for problem in read(text)[1]] == [message]


_BILLION = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [*{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}]\n"
    for a, b in zip("abcdefg", "bcdefgh", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1, 2\n", "f.yaml:2: broken YAML: while parsing a flow sequence"),
        ("a:\n\tb: 1\n", "f.yaml:2: broken YAML: .*\n  fix: indent with spaces, not with tabs"),
        ("a: b: c\n", "f.yaml:1: broken YAML: mapping values are not allowed here"),
        ("a: 1\n---\nb: 2\n", "f.yaml:2: broken YAML: expected a single document"),
        ("a: 1\nb: \x07\n", "f.yaml:2: broken YAML: the character #x0007 is not allowed"),
        ('a: "\\UFFFFFFFF"\n', "f.yaml:1: broken YAML: .*\n  fix: look at the .U escapes"),
        ("a: !!int 3\n", "f.yaml:1: broken YAML: tags such as tag:yaml.org,2002:int are not supported"),
        ("a: !!python/object:os.system x\n", "broken YAML: tags such as"),
        ("a: *x\n", "f.yaml:1: broken YAML: found undefined alias"),
        ("a: &x [*x]\n", "broken YAML: an alias contains itself"),
        ("[" * 5000, f"broken YAML: more than {MAX_DEPTH} levels deep"),
        (_BILLION, "broken YAML: more than 10,000 values, aliases written out"),
    ],
)
def test_what_is_no_yaml_is_one_error_with_a_line(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(text)


def test_nothing_is_none() -> None:
    assert read("") == (None, [])
    assert read("# only a comment\n") == (None, [])
