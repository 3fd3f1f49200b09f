"""Settings given on the command line: `optim.lr=3e-4`, `optim.betas[0]=0.8`, `data={train: a.jsonl, flip: true}`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from apiece.config.yaml_source import COMMAND_LINE, DEFAULT, KeyPath, Node, Problem, dotted, read_yaml
from apiece.errors import UserError

_PART = re.compile(r"([^.\[\]]+)((?:\[[0-9]{1,6}\])*)")
_INDEX = re.compile(r"[0-9]{1,6}")


def merge(base: Node, over: Node) -> Node:
    """`over` on top of `base`: mappings key by key, anything else replaces what was there."""
    if not (isinstance(base.value, dict) and isinstance(over.value, dict)):
        return over
    merged = dict(base.value)
    for key, child in over.value.items():
        merged[key] = merge(merged[key], child) if key in merged else child
    return Node(merged, over.source if over.value else base.source)


def parse_override(argument: str, problems: list[Problem]) -> tuple[KeyPath, Node | None]:
    """Split `key=value` and read the value by the rules of the files.

    Args:
        argument: As typed. `key=` sets null, as `key:` does in a file.
        problems: Mistakes in single values are appended here.

    Returns:
        Keys and list indices from the top, and the value (`None`: not usable, a problem was noted).

    Raises:
        UserError: It is not `key=value` at all.
    """
    key, equals, text = argument.partition("=")
    parts = [_PART.fullmatch(part) for part in key.strip().split(".")]
    if not equals or None in parts:
        raise UserError(
            f"expected key=value, found '{argument}'",
            where=COMMAND_LINE.origin,
            fix="write for example optim.lr=3e-4 or optim.betas[0]=0.8",
            exit_code=2,
        )
    path: list[str | int] = []
    for match in parts:
        assert match is not None
        path += [match[1], *(int(index) for index in _INDEX.findall(match[2]))]
    try:
        value = read_yaml(text, lambda line: COMMAND_LINE, problems, tuple(path))
    except UserError as error:
        message = f"'{argument}': {error.message}"
        raise UserError(message, where=COMMAND_LINE.origin, fix=error.fix, exit_code=2) from error
    if value is None and not any(problem.path[: len(path)] == tuple(path) for problem in problems):
        value = Node(None, COMMAND_LINE)
    return tuple(path), value


def apply_override(tree: Node, argument: str, defaults: Mapping[str, Any], problems: list[Problem]) -> None:
    """Set one `key=value` in a tree.

    Args:
        tree: What the files say; changed in place.
        argument: As typed.
        defaults: Dotted path -> default, for lists of which one item is set and no file sets the rest.
        problems: Mistakes in single values and indices are appended here.

    Raises:
        UserError: The argument is not `key=value`.
    """
    path, value = parse_override(argument, problems)
    if value is None:
        return
    here = tree
    for depth, part in enumerate(path):
        below = path[: depth + 1]
        last = depth + 1 == len(path)
        if isinstance(here.value, list):
            index = _index(part, here.value, below, problems)
            if index is None:
                return
            here.value[index] = merge(here.value[index], value) if last else here.value[index]
            here = here.value[index]
            continue
        if not isinstance(here.value, dict):
            here.value, here.source, here.text = {}, COMMAND_LINE, ""
        name = str(part)
        if last:
            here.value[name] = merge(here.value[name], value) if name in here.value else value
        elif name not in here.value:
            here.value[name] = _start(defaults.get(dotted(below)))
        here = here.value[name]


def _start(default: Any) -> Node:
    """What an item is set in, where no file has set anything yet: the default list, or a new mapping."""
    if isinstance(default, list | tuple):
        return Node([Node(item, DEFAULT, str(item)) for item in default], DEFAULT)
    return Node({}, COMMAND_LINE)


def _index(part: str | int, items: list[Node], path: KeyPath, problems: list[Problem]) -> int | None:
    """`part` as an index of `items`; `None` where it is none, and a problem was noted."""
    if (isinstance(part, int) or _INDEX.fullmatch(part)) and int(part) < len(items):
        return int(part)
    has = f"indices 0 to {len(items) - 1}" if items else "no items"
    problems.append(Problem(COMMAND_LINE, path, f"expected an index of a list that has {has}, found '{part}'"))
    return None
