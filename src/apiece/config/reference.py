"""The models as documents: a JSON schema for editors and a Markdown reference for people."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import yaml

from apiece.config.describe import Schema, describe, section, settings
from apiece.config.schema import AnswerSettings, Config
from apiece.config.yaml_source import dotted, resolve_plain

Keys = tuple[str, ...]

_COMMENT_COLUMN = 48
"""Comments stand in one column, unless a line is longer than this."""
_PLAIN = re.compile(r"[A-Za-z_/][A-Za-z0-9_/.+-]*")
_ESCAPED = re.compile("[\x7f-\xa0\ud800-\udfff\u2028\u2029\ufeff\ufffe\uffff]")


def flatten(data: Mapping[str, Any], prefix: Keys = ()) -> dict[Keys, Any]:
    """Nested mappings -> value by path of every setting; lists and empty mappings are values."""
    flat: dict[Keys, Any] = {}
    for key, value in data.items():
        path = (*prefix, key)
        flat |= flatten(value, path) if isinstance(value, dict) and value else {path: value}
    return flat


def yaml_text(value: Any) -> str:
    """A finite JSON value as YAML on one line."""
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
    """Settings, as `flatten` gives them, as nested YAML that any YAML reader reads the same; comments in one column."""
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
    """Path of every setting -> its value as JSON has it."""
    return flatten(config.model_dump(mode="json"))


def default_values() -> dict[Keys, Any]:
    """The same for the defaults."""
    return values(Config.model_construct())


def dump_config(config: Config) -> str:
    """A config in full as YAML, in the order of the models; loading it gives an equal config."""
    return render(values(config))


_INTRODUCTION = """\
# Settings

<!-- Written by `apiece config --reference --out docs/reference/config.md`: edit src/apiece/config, not this file. -->

*Which settings are there, and what does each of them do?*

A config is a YAML file. Settings that it leaves out have the defaults below; unknown keys, wrong values and
contradictions are errors, all reported at once with file and line.

```yaml
# yaml-language-server: $schema=config.schema.json
extends: ../base.yaml     # one parent, relative to this file, or a packaged config (tiny/bccd); this file overrides it
data:
  train: train.jsonl
optim:
  lr: 3e-4
```

- **Packaged configs** go by name, in every command that takes a config: `apiece train tiny/bccd`. `apiece config
  --list` lists them, `apiece config --copy tiny/bccd mine.yaml` makes a copy to edit. A file of that name in the
  current folder comes first.
- **On the command line**: `apiece train FILE optim.lr=3e-4 'optim.betas[0]=0.8' data.eval=null`. Values are read as
  in a file. `apiece evaluate` and `apiece predict` take `seed`, `prompt.*`, `generate.*` and `server.*` likewise.
- **Where a value comes from**: `apiece config FILE [KEY=VALUE]...` prints every setting with file and line;
  `--changed` leaves out the defaults; `--against OTHER` prints what differs between two configs.
- **In an editor**: `apiece config --schema --out config.schema.json` writes the schema for the first line above.
- **Values**: `1e-4` is a number; only `true` and `false` are booleans (`yes`, `no`, `on`, `off` are text); a number
  with a leading zero (`012`) is text; `null`, `~` or nothing resets a setting that allows null. NaN, infinity,
  duplicate keys, tags (`!!int`) and merge keys (`<<`) are errors.
- **Contradictions**: a setting that asks for what another one rules out is an error that names both; its default is
  always allowed.
"""


def config_schema() -> dict[str, Any]:
    """The JSON schema of a config file, documentation included, with `extends` at the top."""
    schema = Config.model_json_schema()
    extends = {
        "type": "string",
        "title": "Extends",
        "description": "The config that this one overrides: a file relative to this one, or a packaged config.",
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "properties": {"extends": extends, **schema["properties"]},
    }


def reference() -> str:
    """All settings as Markdown: a table for every section."""
    server = {path: schema for path, schema in settings(AnswerSettings).items() if path[0] == "server"}
    found = settings(Config) | server
    sections: dict[Keys, str] = {(): "In addition to the sections below."}
    sections |= {path: schema["description"] for path, schema in found.items() if section(schema)}
    blocks = [_INTRODUCTION]
    for place, about in sections.items():
        title = f"`{dotted(place)}`" if place else "At the top"
        text = f"## {title}\n\n{_cell(about)}\n"
        rows = [
            f"| `{dotted(path)}` | {_cell(describe(schema))} | {_default(schema)} | {_cell(schema['description'])} |"
            for path, schema in found.items()
            if path[:-1] == place and path not in sections
        ]
        table = "\n".join(["| setting | value | default | meaning |", "|---|---|---|---|", *rows]) + "\n"
        blocks.append(f"{text}\n{table}" if rows else text)
    return "\n".join(blocks)


def _default(schema: Schema) -> str:
    return f"`{_cell(yaml_text(schema['default']))}`" if "default" in schema else "must be set"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
