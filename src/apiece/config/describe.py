"""What the models expect, in words: for error messages and for the reference."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

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
            default = default_at(type(config), path)
            if value_at(config, path) == default or unless(config):
                return None
            return f"has no effect {why}, or set it back to its default ({'null' if default is None else default})"


def value_at(config: BaseModel, path: str) -> Any:
    """The value at a dotted path; `None` below a section that is null."""
    value: Any = config
    for name in path.split("."):
        value = None if value is None else getattr(value, keys(type(value))[name][0])
    return value


def default_at(model: type[BaseModel], path: str) -> Any:
    """The default of the setting at a dotted path."""
    *sections, name = path.split(".")
    for part in sections:
        section = section_of(keys(model)[part][1].rebuild_annotation())
        assert section is not None, path
        model = section
    return keys(model)[name][1].get_default(call_default_factory=True, validated_data={})


@cache
def _rules_of(model: type[BaseModel]) -> tuple[Rule, ...]:
    """The rules of which a model has all settings."""
    known = {".".join(setting.path) for setting in settings(model)}
    return tuple(rule for rule in RULES if known.issuperset(rule.reads))


def check_rules(config: BaseModel) -> None:
    """Check settings against all rules about them; raises a `RuleError` with every rule that they break."""
    broken = [(rule, message) for rule in _rules_of(type(config)) if (message := rule.check(config)) is not None]
    if broken:
        raise RuleError(broken)


_WORDS = {float: "a number", int: "a whole number", bool: "true or false", str: "text", type(None): "null"}
_BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<", "multiple_of": "a multiple of", "pattern": "matching"}
_SHOWN = 60


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting of a model, or a section of it: keys from the top, type with bounds, default, documentation."""

    path: tuple[str, ...]
    annotation: Any
    default: Any
    doc: str


REQUIRED: Any = PydanticUndefined
"""Default of a setting that must be set."""


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The model behind a type, if it is one (or one or null)."""
    if get_origin(annotation) is Annotated:
        return section_of(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        found = [section for arg in get_args(annotation) if (section := section_of(arg)) is not None]
        return found[0] if len(found) == 1 else None
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def keys(model: type[BaseModel]) -> dict[str, tuple[str, FieldInfo]]:
    """Key in a file -> attribute and field; they differ where the key is a word of Python's."""
    return {field.alias or name: (name, field) for name, field in model.model_fields.items()}


def settings(model: type[BaseModel], prefix: tuple[str, ...] = ()) -> Iterator[Setting]:
    """All sections and settings of a model, in order, each section before what is in it."""
    for key, (_, field) in keys(model).items():
        path = (*prefix, key)
        annotation = field.rebuild_annotation()
        default = field.get_default(call_default_factory=True, validated_data={})
        yield Setting(path, annotation, default, " ".join((field.description or "").split()))
        section = section_of(annotation)
        if section is not None:
            yield from settings(section, path)


def type_at(annotation: Any, path: KeyPath) -> Any:
    """The type that belongs at `path` below `annotation`; `None` where the models say nothing about it."""
    if not path:
        return annotation
    head, rest = path[0], path[1:]
    if get_origin(annotation) is Annotated:
        return type_at(get_args(annotation)[0], path)
    section = section_of(annotation)
    if section is not None:
        known = keys(section)
        return type_at(known[str(head)][1].rebuild_annotation(), rest) if head in known else None
    origin, args = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        found = [inner for arg in args if (inner := type_at(arg, path)) is not None]
        return found[0] if len(found) == 1 else None
    if origin is tuple and isinstance(head, int):
        return type_at(args[0 if args[-1] is Ellipsis else min(head, len(args) - 1)], rest)
    if origin is list and isinstance(head, int):
        return type_at(args[0], rest)
    return type_at(args[1], rest) if origin is dict and isinstance(head, str) else None


def options(annotation: Any) -> list[str]:
    """The words that a type allows, where it is a choice between words."""
    if get_origin(annotation) is Literal:
        return [str(arg) for arg in get_args(annotation)]
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return [str(member.value) for member in annotation]
    if get_origin(annotation) in (Union, types.UnionType, Annotated):
        return [word for arg in get_args(annotation) for word in options(arg)]
    return []


def base_types(annotation: Any) -> set[Any]:
    """The types that a type allows, bounds taken off: `{int, NoneType}` for a bounded int or null."""
    if get_origin(annotation) is Annotated:
        return base_types(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return {base for arg in get_args(annotation) for base in base_types(arg)}
    return {get_origin(annotation) or annotation}


def describe(annotation: Any) -> str:
    """A type in words, such as `a whole number >= 1 or null`."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return " ".join([describe(args[0]), *_bounds(args[1:])])
    if section_of(annotation) is not None and origin is None:
        return "a section (key: value)"
    if origin in (Union, types.UnionType):
        return " or ".join(describe(arg) for arg in args)
    if words := options(annotation):
        return "one of " + ", ".join(words)
    if origin is tuple and args[-1] is not Ellipsis:
        return f"a list of {len(args)}, each {describe(args[0])}"
    if origin in (tuple, list):
        return f"a list, each {describe(args[0])}"
    if origin is dict:
        return f"a mapping from names to {describe(args[1])}"
    return _WORDS.get(annotation, str(annotation))


def _bounds(metadata: tuple[Any, ...]) -> list[str]:
    """The constraints in the metadata of an `Annotated`."""
    flat = [part for item in metadata for part in (item.metadata if isinstance(item, FieldInfo) else [item])]
    found = [
        f"{words} {getattr(item, name)}" for item in flat for name, words in _BOUNDS.items() if hasattr(item, name)
    ]
    lengths = [("at least", getattr(item, "min_length", None)) for item in flat]
    lengths += [("at most", getattr(item, "max_length", None)) for item in flat]
    return [" and ".join(found)] * bool(found) + [f"of length {words} {n}" for words, n in lengths if n is not None]


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
