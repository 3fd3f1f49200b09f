"""Files and the command line -> one checked config that knows where each value was set, or every mistake.

A file may name one parent with `extends: FILE` (relative to itself); its settings go on top of the parent's, mappings
key by key. Settings of the command line go on top of all.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from apiece.config.describe import RuleError, base_types, describe, keys, options, section_of, settings, show, type_at
from apiece.config.reference import values
from apiece.config.schema import Config
from apiece.config.yaml_source import COMMAND_LINE, DEFAULT, KeyPath, Node, Problem, Source, dotted, read_yaml
from apiece.errors import UserError, nearest

# Settings given on the command line: `optim.lr=3e-4`, `optim.betas[0]=0.8`, `data={train: a.jsonl, flip: true}`.


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


# A tree of values -> a model, or every mistake in it, in words and with its place.


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


@dataclass(frozen=True, slots=True)
class LoadedConfig:
    """A config and where it comes from.

    Attributes:
        config: Complete and checked.
        sources: Dotted path of every setting -> where its value is from: a file and line, the command line, or the
            default.
        files: The file that was named, its parent, and so on; empty where there was none.
    """

    config: Config
    sources: Mapping[str, Source]
    files: tuple[Path, ...]


def load_config(path: Path | None, overrides: Sequence[str] = ()) -> LoadedConfig:
    """Load a config.

    Args:
        path: YAML file; `None` starts from the defaults.
        overrides: `key=value` settings on top, later ones over earlier ones.

    Raises:
        UserError: With every mistake at once: unknown keys, wrong values and impossible pairs, each with its place.
            Files that cannot be read at all and arguments that are not `key=value` are told alone.
    """
    problems: list[Problem] = []
    tree, files = (Node({}, DEFAULT), ()) if path is None else _read_chain(Path(path), problems)
    defaults = {dotted(setting.path): setting.default for setting in settings(Config)}
    for argument in overrides:
        apply_override(tree, argument, defaults, problems)
    config = validate(tree, problems, Config)
    if config is None or problems:
        raise _error(problems, files)
    return LoadedConfig(config, {dotted(path): setting_source(path, tree) for path in values(config)}, files)


def load_file(path: Path, model: type[M], overrides: Sequence[str] = ()) -> M:
    """Load a file that is no config, such as a ladder, by the same rules: it may have parents, and settings on top.

    Raises:
        UserError: With every mistake at once.
    """
    problems: list[Problem] = []
    tree, files = _read_chain(path, problems)
    defaults = {dotted(setting.path): setting.default for setting in settings(model)}
    for argument in overrides:
        apply_override(tree, argument, defaults, problems)
    found = validate(tree, problems, model)
    if found is None or problems:
        raise _error(problems, files)
    return found


MAX_BYTES = 1_000_000
"""Of a config file; the longest one is a hundredth of that, and a file of data takes minutes to be read as one."""
MAX_LISTED = 100
"""Mistakes that are told at once."""


def require_data(loaded: LoadedConfig) -> None:
    """Raise a `UserError` that names every data file of a config that is not there, and where it was set."""
    data = loaded.config.data
    named = {"train": data.train, "eval": data.eval, "complete": data.complete}
    problems = []
    for name, value in named.items():
        if value is None or Path(value).is_file():
            continue
        beside = [file.name for file in Path(value).parent.iterdir()] if Path(value).parent.is_dir() else []
        found = "a folder" if Path(value).is_dir() else f"nothing{nearest(Path(value).name, beside)}"
        message = f"expected a data file at {value}, found {found}"
        problems.append(Problem(loaded.sources[f"data.{name}"], ("data", name), message))
    if problems:
        known = _error(problems, loaded.files)
        raise UserError(known.message, fix="check the path; it is read relative to the current folder")


def _read_chain(path: Path, problems: list[Problem]) -> tuple[Node, tuple[Path, ...]]:
    """Read a file and its parents; returns them merged, and the files from the one named upwards."""
    files: dict[str, Path] = {}
    trees: list[Node] = []
    named_at: Source | None = None
    following: Path | None = path
    while following is not None:
        tree = _read_file(following, named_at, problems)
        real = os.path.realpath(following)
        if real in files:
            chain = " -> ".join(str(file) for file in [*files.values(), following])
            raise UserError(f"`extends` goes in a circle: {chain}", where=str(named_at), fix="take one of them out")
        files[real] = following
        trees.append(tree)
        following, named_at = _parent(tree, following)
    merged = trees.pop()
    while trees:
        merged = merge(merged, trees.pop())
    return merged, tuple(files.values())


def _parent(tree: Node, path: Path) -> tuple[Path | None, Source | None]:
    """Take `extends` out of a file's tree; returns the file that it names, and where it does."""
    assert isinstance(tree.value, dict)
    node = tree.value.pop("extends", None)
    if node is None:
        return None, None
    if not isinstance(node.value, str):
        message = f"`extends` takes one file, as text; found {show(node)}"
        raise UserError(message, where=str(node.source), fix="write for example extends: base.yaml")
    # normpath keeps messages short: configs/base.yaml, not configs/tiny/../base.yaml.
    return Path(os.path.normpath(path.parent / node.value)), node.source


def _read_file(path: Path, named_at: Source | None, problems: list[Problem]) -> Node:
    """Read one file; `named_at` is the `extends` that asked for it."""
    where, what = (str(path), "") if named_at is None else (str(named_at), f"`extends` names {path}: ")
    try:
        if path.is_dir():
            raise UserError(f"{what}expected a YAML file, found a folder", where=where, fix="name the file in it")
        if not path.is_file():
            beside = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
            relative_to = "the current folder" if named_at is None else "the file that it stands in"
            fix = f"check the path; it is relative to {relative_to}"
            raise UserError(f"{what}config file not found{nearest(path.name, beside)}", where=where, fix=fix)
        if (size := path.stat().st_size) > MAX_BYTES:
            message = f"{what}expected a config, found a file of {size / 1e6:.1f} MB"
            raise UserError(message, where=where, fix="name the YAML file with the settings")
        content = path.read_bytes()
        if b"\0" in content:
            message = f"{what}expected a YAML file, found a binary file (or UTF-16: save it as UTF-8)"
            raise UserError(message, where=where)
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{what}cannot be read: {error.strerror}", where=where) from error
    except UnicodeDecodeError as error:
        raise UserError(f"{what}not UTF-8 text (byte {error.start})", where=where, fix="save it as UTF-8") from error
    before = len(problems)
    tree = read_yaml(text, lambda line: Source(str(path), line), problems)
    if tree is None and len(problems) == before:
        raise UserError("the file is empty", where=path, fix="write at least one setting, such as seed: 0")
    if tree is None or not isinstance(tree.value, dict):
        found = "one broken value" if tree is None else "a list" if isinstance(tree.value, list) else show(tree)
        raise UserError(f"expected settings (key: value), found {found}", where=path)
    return tree


def _error(problems: Sequence[Problem], files: Sequence[Path]) -> UserError:
    """One message with all problems, by file and line; the command line comes last."""
    order = {str(file): number for number, file in enumerate(files)}
    told = sorted(problems, key=lambda one: (order.get(one.source.origin, len(order)), one.source.line or 0))
    lines = list(dict.fromkeys(str(problem) for problem in told))
    head = [] if len(lines) == 1 else [f"{len(lines):,} mistakes in the config"]
    rest = [f"and {len(lines) - MAX_LISTED:,} more"] if len(lines) > MAX_LISTED else []
    return UserError("\n  ".join([*head, *lines[:MAX_LISTED], *rest]))
