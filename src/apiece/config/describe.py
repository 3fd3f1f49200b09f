"""What the models expect, in words: for error messages and for the reference."""

from __future__ import annotations

import types
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from apiece.config.yaml_source import KeyPath, Node

_WORDS = {float: "a number", int: "a whole number", bool: "true or false", str: "text", type(None): "null"}
_BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<", "multiple_of": "a multiple of", "pattern": "matching"}
_SHOWN = 60


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting of a model, or a section of it.

    Attributes:
        path: Keys from the top.
        annotation: Its type, bounds included.
        default: What holds where it is not set; `REQUIRED` where it must be.
        doc: Its documentation.
    """

    path: tuple[str, ...]
    annotation: Any
    default: Any
    doc: str


REQUIRED: Any = PydanticUndefined


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
