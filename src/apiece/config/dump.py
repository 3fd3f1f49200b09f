"""A config -> YAML that any YAML reader reads the same, one line a setting."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import yaml

from apiece.config.schema import Config
from apiece.config.yaml_source import resolve_plain

Keys = tuple[str, ...]

_COMMENT_COLUMN = 48
"""Comments stand in one column, unless a line is longer than this."""
_PLAIN = re.compile(r"[A-Za-z_/][A-Za-z0-9_/.+-]*")
_ESCAPED = re.compile("[\x7f-\xa0\ud800-\udfff\u2028\u2029\ufeff\ufffe\uffff]")


def flatten(data: Mapping[str, Any], prefix: Keys = ()) -> dict[Keys, Any]:
    """Nested mappings -> path of every setting and its value; lists and empty mappings are values."""
    flat: dict[Keys, Any] = {}
    for key, value in data.items():
        path = (*prefix, key)
        flat |= flatten(value, path) if isinstance(value, dict) and value else {path: value}
    return flat


def yaml_text(value: Any) -> str:
    """A value as YAML on one line.

    Args:
        value: Of JSON's kinds, finite.
    """
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{yaml_text(key)}: {yaml_text(child)}" for key, child in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(yaml_text(child) for child in value) + "]"
    if isinstance(value, float):
        # YAML 1.1, and so PyYAML, takes 1e-05 for text and 1.0e-05 for a number.
        return re.sub(r"^(-?\d+)e", r"\1.0e", repr(value))
    if not isinstance(value, str):
        return json.dumps(value)
    return value if _is_plain(value) else _quoted(value)


def _is_plain(text: str) -> bool:
    """Whether text needs no quotes, by our rules and by YAML 1.1 (where `no` would be false)."""
    if not _PLAIN.fullmatch(text) or not isinstance(resolve_plain(text), str):
        return False
    return bool(yaml.resolver.Resolver().resolve(yaml.ScalarNode, text, (True, False)) == "tag:yaml.org,2002:str")


def _quoted(text: str) -> str:
    # JSON with its non-ASCII characters left alone is YAML, but for a few that YAML does not print.
    return _ESCAPED.sub(lambda match: f"\\u{ord(match[0]):04x}", json.dumps(text, ensure_ascii=False))


def render(flat: Mapping[Keys, Any], comments: Mapping[Keys, str] | None = None) -> str:
    """Settings as nested YAML.

    Args:
        flat: As `flatten` gives them.
        comments: What to write behind a setting, in one column.
    """
    if not flat:
        return "{}\n"
    lines: list[tuple[str, str]] = []
    open_keys: Keys = ()
    for path, value in flat.items():
        shared = 0
        while shared < len(path) - 1 and path[: shared + 1] == open_keys[: shared + 1]:
            shared += 1
        for depth in range(shared, len(path) - 1):
            lines.append((f"{'  ' * depth}{yaml_text(path[depth])}:", ""))
        open_keys = path[:-1]
        lines.append(
            (f"{'  ' * len(open_keys)}{yaml_text(path[-1])}: {yaml_text(value)}", (comments or {}).get(path, ""))
        )
    column = min(max(len(line) for line, _ in lines), _COMMENT_COLUMN)
    return "".join(f"{line:<{column}}  # {comment}\n" if comment else f"{line}\n" for line, comment in lines)


def values(config: Config) -> dict[Keys, Any]:
    """Path of every setting -> its value, of JSON's kinds."""
    return flatten(config.model_dump(mode="json"))


def default_values() -> dict[Keys, Any]:
    """The same for the defaults; settings that have none are left out."""
    return values(Config.model_construct())


def dump_config(config: Config) -> str:
    """A config in full as YAML, in the order of the models; loading it gives an equal config."""
    return render(values(config))
