"""What the models expect, in words: for error messages and for the reference."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

from pydantic import BaseModel

from apiece.config.yaml_source import KeyPath, Node

# Rules about several settings at once: functions of the whole config, registered with the settings that they read, so
# that the loader can skip rules about settings that are broken by themselves, and can name the place of each value.
# `Config` checks itself against all rules when it is made, in Python as well as from a file.


Check = Callable[[Any], str | None]
"""Config -> what is wrong and how to mend it, or `None`. (This module comes before `Config`, so it cannot name it.)"""


@dataclass(frozen=True, slots=True)
class Rule:
    """A check and the dotted paths of all settings that it reads, the one to change first."""

    reads: tuple[str, ...]
    check: Check


class RuleError(ValueError):
    """All rules that a config breaks, with their messages; pydantic passes it on inside its own error."""

    def __init__(self, broken: Sequence[tuple[Rule, str]]) -> None:
        self.broken = broken
        super().__init__("\n".join(f"{', '.join(one.reads)}: {message}" for one, message in broken))


RULES: list[Rule] = []


def rule(*reads: str) -> Callable[[Check], Check]:
    """Register a rule that reads the settings at these dotted paths."""

    def register(check: Check) -> Check:
        RULES.append(Rule(reads, check))
        return check

    return register


def no_effect(*paths: str, reads: tuple[str, ...], unless: Callable[[Any], bool], why: str) -> None:
    """Register a rule for each path: changing it contradicts other settings that switch it off.

    Args:
        paths: Settings that matter only sometimes.
        reads: The settings that decide whether they do.
        unless: Config -> whether they do.
        why: Why they do not, and what to change; goes between "has no effect" and "or set it back to its default".
    """
    for path in paths:

        @rule(path, *reads)
        def check(config: BaseModel, path: str = path) -> str | None:
            # Not whether someone wrote the key: the config that a run writes spells out every default, and must load.
            default = value_at(_defaults(type(config)), path)
            if value_at(config, path) == default or unless(config):
                return None
            return f"has no effect {why}, or set it back to its default ({'null' if default is None else default})"


def value_at(config: BaseModel, path: str) -> Any:
    """The value at a dotted path; `None` below a section that is null."""
    value: Any = config
    for name in path.split("."):
        if value is not None:
            aliases = {field.alias: attribute for attribute, field in type(value).model_fields.items()}
            value = getattr(value, aliases.get(name, name))
    return value


@cache
def _defaults(model: type[BaseModel]) -> BaseModel:
    return model.model_construct()


@cache
def _rules_of(model: type[BaseModel]) -> tuple[Rule, ...]:
    """The rules of which a model has all settings."""
    known = {".".join(path) for path in settings(model)}
    return tuple(rule for rule in RULES if known.issuperset(rule.reads))


def check_rules(config: BaseModel) -> None:
    """Check settings against all rules about them; raises a `RuleError` with every rule that they break."""
    broken = [(rule, message) for rule in _rules_of(type(config)) if (message := rule.check(config)) is not None]
    if broken:
        raise RuleError(broken)


# What the models expect, from their JSON schemas.

Schema = dict[str, Any]
_TYPES = {
    "number": "a number",
    "integer": "a whole number",
    "boolean": "true or false",
    "string": "text",
    "null": "null",
}
_BOUNDS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
_BOUNDS |= {"minLength": "of length at least", "maxLength": "of length at most"}
_SHOWN = 60


@cache
def _schema_of(model: type[BaseModel]) -> Schema:
    """The JSON schema of a model, references written out; a section has the documentation of its class."""
    document = model.model_json_schema()

    def expanded(value: Any) -> Any:
        if isinstance(value, list):
            return [expanded(item) for item in value]
        if not isinstance(value, dict):
            return value
        own = {key: expanded(child) for key, child in value.items() if key not in ("$ref", "$defs")}
        if "$ref" not in value:
            return own
        named = expanded(document["$defs"][value["$ref"].rpartition("/")[2]])
        return own | named if "properties" in named else named | own

    return cast(Schema, expanded(document))


@cache
def settings(model: type[BaseModel]) -> dict[tuple[str, ...], Schema]:
    """JSON schema by path of all sections and settings of a model, in order, each section before its settings."""

    def walk(schema: Schema, prefix: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Schema]]:
        for key, child in section(schema).items():
            yield (*prefix, key), child
            yield from walk(child, (*prefix, key))

    return dict(walk(_schema_of(model), ()))


def schema_at(model: type[BaseModel], path: KeyPath) -> Schema | None:
    """The schema of the value at `path`; `None` where the model has no such setting."""
    schema = _schema_of(model)
    for part in path:
        inner = [child for kind in _kinds(schema) if (child := _inside(kind, part)) is not None]
        if len(inner) != 1:
            return None
        schema = inner[0]
    return schema


def _inside(kind: Schema, part: str | int) -> Schema | None:
    if isinstance(part, str):
        child = kind.get("properties", {}).get(part, kind.get("additionalProperties"))
    else:
        fixed = kind.get("prefixItems")
        child = fixed[min(part, len(fixed) - 1)] if fixed else kind.get("items")
    return child or None  # additionalProperties is false in a section


def _kinds(schema: Schema) -> list[Schema]:
    """The alternatives of a schema: a bounded number and null, for example."""
    return [kind for one in schema["anyOf"] for kind in _kinds(one)] if "anyOf" in schema else [schema]


def section(schema: Schema | None) -> dict[str, Schema]:
    """Key -> schema of what is in a section; empty for a setting."""
    return next((kind["properties"] for kind in _kinds(schema or {}) if "properties" in kind), {})


def options(schema: Schema) -> list[str]:
    """The words that a setting allows, where it is a choice between words."""
    return [word for kind in _kinds(schema) for word in kind.get("enum", [kind["const"]] if "const" in kind else [])]


def free_types(schema: Schema) -> set[str]:
    """JSON types of which a setting allows any value within bounds: `{"integer", "null"}`."""
    return {kind.get("type", "") for kind in _kinds(schema) if not options(kind)}


def describe(schema: Schema) -> str:
    """A type in words, such as `a whole number >= 1 or null`."""
    return " or ".join(_words(kind) for kind in _kinds(schema))


def _words(kind: Schema) -> str:
    if section(kind):
        return "a section (key: value)"
    if words := options(kind):
        return "one of " + ", ".join(words)
    if fixed := kind.get("prefixItems"):
        return f"a list of {len(fixed)}, each {describe(fixed[0])}"
    if "items" in kind:
        return f"a list, each {describe(kind['items'])}"
    if kind.get("additionalProperties"):
        return f"a mapping from names to {describe(kind['additionalProperties'])}"
    bounds = " and ".join(f"{words} {kind[name]}" for name, words in _BOUNDS.items() if name in kind)
    return f"{_TYPES[kind['type']]} {bounds}".rstrip()


def show(node: Node) -> str:
    """A value as it was written, with the kind where that is not plain to see."""
    value = node.value
    if value is None:
        return "null" if node.text else "nothing"
    if isinstance(value, str):
        return f"the text '{_short(value)}'"
    return _short(_written(node))


def _written(node: Node) -> str:
    if isinstance(node.value, dict):
        return "{" + ", ".join(f"{key}: {_written(child)}" for key, child in node.value.items()) + "}"
    if isinstance(node.value, list):
        return "[" + ", ".join(_written(child) for child in node.value) + "]"
    return node.text


def _short(text: str) -> str:
    line = text.replace("\n", "\\n")
    return line if len(line) <= _SHOWN else line[: _SHOWN - 3] + "..."
