"""A tree of values -> a model, or every mistake in it, in words and with its place."""

from __future__ import annotations

import json
from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from apiece.config.describe import base_types, describe, keys, options, section_of, settings, show, type_at
from apiece.config.pairs import RuleError
from apiece.config.yaml_source import COMMAND_LINE, DEFAULT, KeyPath, Node, Problem, Source, dotted
from apiece.errors import nearest

M = TypeVar("M", bound=BaseModel)


def validate(tree: Node, problems: list[Problem], model: type[M]) -> M | None:
    """Check a tree.

    Rules about pairs only run on a config that is whole. So what is broken is taken out and the rest is checked again,
    with defaults in its place; a broken rule counts if nothing that it reads was taken out.

    Args:
        tree: All settings, merged.
        problems: What is known to be wrong already; every further mistake is appended.
        model: What it is to be: `Config`, or another one of `apiece.config`.

    Returns:
        The model, with defaults for what is wrong; `None` where there is none.
    """
    data = tree.plain()
    bad = {problem.path for problem in problems}
    whole = True
    while True:
        try:
            # From JSON, because strictness there lets an integer be a float, text an enum and a list a tuple.
            return model.model_validate_json(json.dumps(data))
        except ValidationError as error:
            found = [(item, _path(item["loc"], item["type"], data)) for item in error.errors()]
        for item, path in found:
            cause = item.get("ctx", {}).get("error")
            if isinstance(cause, RuleError):
                problems += _broken(cause, tree, bad)
                return None
            if not any(known[: len(path)] == path for known in bad):
                problems.append(Problem(node_at(path, tree)[0].source, path, _message(item, path, tree, model)))
                bad |= {path, _meant(path, item["type"], model)}
            broken_part = path[:-1] if item["type"] == "missing" and path == item["loc"] else path
            if broken_part:
                _prune(data, broken_part)
            else:  # nothing can stand in its place
                whole = False
        if not whole:
            return None


def node_at(path: KeyPath, tree: Node) -> tuple[Node, int]:
    """The deepest node on the way to `path`, and how many parts of the path lead to it."""
    for depth, part in enumerate(path):
        value = tree.value
        if isinstance(value, dict) and part in value:
            tree = value[str(part)]
        elif isinstance(value, list) and isinstance(part, int) and part < len(value):
            tree = value[part]
        else:
            return tree, depth
    return tree, len(path)


def setting_source(path: KeyPath, tree: Node) -> Source:
    """Where a setting as a whole was set; for a list, the command line if that set an item."""
    node, depth = node_at(path, tree)
    if depth < len(path):
        return DEFAULT
    items = node.value if isinstance(node.value, list) else []
    return COMMAND_LINE if any(item.source == COMMAND_LINE for item in items) else node.source


def _path(loc: tuple[str | int, ...], kind: str, data: Any) -> KeyPath:
    """Where an error of pydantic is in the data: without the names of union members that it puts in between."""
    path: list[str | int] = []
    for part in loc:
        inside = part in data if isinstance(data, dict) else isinstance(data, list) and part in range(len(data))
        if inside:
            path.append(part)
            data = data[part]
    # A missing key is named; a missing item is a fault of its list.
    return (*path, loc[-1]) if kind == "missing" and isinstance(loc[-1], str) else tuple(path)


def _prune(data: Any, path: KeyPath) -> None:
    """Remove what is at `path`, or the list around it; nothing where that is gone already."""
    steps: list[tuple[dict[str, Any], str]] = []
    for part in path:
        if isinstance(data, dict):
            if part not in data:
                return
            steps.append((data, str(part)))
        data = data[part]
    owner, key = steps[-1]
    del owner[key]


def _message(item: Any, path: KeyPath, tree: Node, model: type[BaseModel]) -> str:
    """What was expected and what was found, for one error of pydantic."""
    kind, node = item["type"], node_at(path, tree)[0]
    if kind == "extra_forbidden":
        return f"unknown key{_suggestion(path, model)}"
    if kind == "missing" and path == item["loc"]:
        return "must be set: it has no default"
    annotation = type_at(model, path)
    if annotation is None or kind in ("value_error", "assertion_error"):
        return f"{item['msg'].removeprefix('Value error, ')}, found {show(node)}"
    return f"expected {describe(annotation)}, found {show(node)}{_hint(annotation, node)}"


def _hint(annotation: Any, node: Node) -> str:
    """The likely remedy for a wrong value, or nothing."""
    value, allowed = node.value, base_types(annotation)
    if value is None and section_of(annotation) is not None:
        return ": leave it out for the defaults"
    if isinstance(value, float) and value.is_integer() and int in allowed:
        return f": write {int(value)}"
    if isinstance(value, bool | int | float) and str in allowed:
        return f": put it in quotes to mean the text '{node.text}'"
    if not isinstance(value, str):
        return ""
    digits = value.lstrip("+-")
    if allowed & {int, float} and digits.startswith("0") and digits.isdigit():
        return " (a number with a leading zero is text)"
    return nearest(value, options(annotation))


def _sibling(path: KeyPath, model: type[BaseModel]) -> str | None:
    """The known key next to an unknown one that is most like it."""
    section = section_of(type_at(model, path[:-1]))
    close = get_close_matches(str(path[-1]), list(keys(section)) if section else [], n=1)
    return close[0] if close else None


def _suggestion(path: KeyPath, model: type[BaseModel]) -> str:
    """What an unknown key was probably meant to be: a key beside it, or one of the same name elsewhere."""
    name = str(path[-1])
    known = [dotted(setting.path) for setting in settings(model)]
    if name == "extends":
        return ": `extends` goes at the top of a file"
    if name in known and "." in name:
        return f": in a file write {name.replace('.', ': {')}: ...{'}' * name.count('.')}"
    if (sibling := _sibling(path, model)) is not None:
        return f" (did you mean '{sibling}'?)"
    elsewhere = [one for one in known if one.split(".")[-1] == name]
    return f" (did you mean {' or '.join(elsewhere[:3])}?)" if elsewhere else ""


def _meant(path: KeyPath, kind: str, model: type[BaseModel]) -> KeyPath:
    """The setting that an unknown key was probably meant to be: a rule that reads it cannot be judged either."""
    sibling = _sibling(path, model) if kind == "extra_forbidden" else None
    return path if sibling is None else (*path[:-1], sibling)


def _broken(error: RuleError, tree: Node, bad: set[KeyPath]) -> Iterator[Problem]:
    """The broken rules that can be judged, each at the first value that someone set."""
    for broken in error.broken:
        paths = [tuple(name.split(".")) for name in broken.reads]
        if any(one[: len(other)] == other[: len(one)] for one in paths for other in bad):
            continue
        places = [setting_source(path, tree) for path in paths]
        first = next((number for number, place in enumerate(places) if place != DEFAULT), 0)
        others = [f"{name}: {places[n]}" for n, name in enumerate(broken.reads) if n != first]
        beside = f" [{'; '.join(others)}]" if others else ""
        yield Problem(places[first], paths[first], f"{broken.message}{beside}")
