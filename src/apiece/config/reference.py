"""The models as documents: a JSON schema for editors and a Markdown reference for people."""

from __future__ import annotations

from enum import Enum
from typing import Any

from apiece.config.describe import REQUIRED, Setting, describe, section_of, settings
from apiece.config.dump import yaml_text
from apiece.config.schema import Config
from apiece.config.yaml_source import dotted

_INTRODUCTION = """\
# Settings

<!-- Written by `apiece config --reference --out docs/config.md`: edit src/apiece/config, not this file. -->

A config is a YAML file. What it leaves out has the default below; unknown keys, wrong values and combinations that make
no sense are errors, all reported at once with file and line.

```yaml
# yaml-language-server: $schema=config.schema.json
extends: ../base.yaml     # one parent, relative to this file; what stands here goes on top of it
data:
  train: train.jsonl
optim:
  lr: 3e-4
```

- **On the command line**: `apiece train FILE optim.lr=3e-4 'optim.betas[0]=0.8' data.eval=null`. Values are read as
  in a file.
- **Where a value comes from**: `apiece config FILE [KEY=VALUE]...` prints every setting with file and line;
  `--changed` leaves out the defaults; `--against OTHER` prints what differs between two configs.
- **In an editor**: `apiece config --schema --out config.schema.json` writes the schema for the first line above.
- **Values**: `1e-4` is a number; only `true` and `false` are booleans (`yes`, `no`, `on`, `off` are text); a number
  with a leading zero (`012`) is text; `null`, `~` or nothing resets a setting that allows null. NaN, infinity,
  duplicate keys, tags (`!!int`) and merge keys (`<<`) are errors.
- **A setting without effect**: to change one that does nothing beside the others is an error that says so; its default
  is always allowed.
"""


def config_schema() -> dict[str, Any]:
    """The JSON schema of a config file, documentation included, with `extends` at the top."""
    schema = Config.model_json_schema()
    extends = {
        "type": "string",
        "title": "Extends",
        "description": "A config file that this one goes on top of, relative to this file.",
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "properties": {"extends": extends, **schema["properties"]},
    }


def reference() -> str:
    """All settings as Markdown: a table for every section."""
    blocks = [_INTRODUCTION]
    found = list(settings(Config))
    sections = [Setting((), Config, REQUIRED, ""), *(each for each in found if section_of(each.annotation) is not None)]
    for section in sections:
        model = section_of(section.annotation)
        assert model is not None
        own = [each for each in found if each.path[:-1] == section.path and section_of(each.annotation) is None]
        title = f"`{dotted(section.path)}`" if section.path else "At the top"
        about = " ".join((model.__doc__ or "").split()) if section.path else "Beside the sections below."
        text = f"## {title}\n\n{about}\n"
        rows = [f"| `{dotted(each.path)}` | {_type(each)} | {_default(each)} | {_cell(each.doc)} |" for each in own]
        table = "\n".join(["| setting | value | default | meaning |", "|---|---|---|---|", *rows]) + "\n"
        blocks.append(f"{text}\n{table}" if own else text)
    return "\n".join(blocks)


def _type(setting: Setting) -> str:
    return _cell(describe(setting.annotation))


def _default(setting: Setting) -> str:
    if setting.default is REQUIRED:
        return "must be set"
    default = setting.default.value if isinstance(setting.default, Enum) else setting.default
    return f"`{_cell(yaml_text(default))}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
