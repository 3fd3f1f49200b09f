"""YAML files and `key=value` settings -> one checked config that knows where each value was set, or every mistake.

The steps, in order: read the named file and its parents (`extends`), put the child's settings on top of the parent's,
then those of the command line, and validate the whole once. Configs that come with the package go by name:
`tiny/bccd` instead of a path.
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

from apiece.config.describe import RuleError, Schema, describe, free_types, options, schema_at, section, settings, show
from apiece.config.reference import values
from apiece.config.schema import Config
from apiece.config.yaml_source import COMMAND_LINE, DEFAULT, KeyPath, Mistake, Node, Place, dotted, read_yaml
from apiece.errors import UserError, nearest

PACKAGED = Path(__file__).parents[1] / "configs"
MAX_BYTES = 1_000_000
"""Of a config file; the longest one is a hundredth of that, and parsing a data file as YAML takes minutes."""
MAX_LISTED = 100
"""Mistakes listed in one message."""

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class LoadedConfig:
    """A complete and checked config and where it comes from."""

    config: Config
    sources: Mapping[str, Place]  # by dotted path of every setting
    files: tuple[Path, ...]  # the named file, its parent, and so on; empty without a file


def load_config(path: Path | None, overrides: Sequence[str] = ()) -> LoadedConfig:
    """Load a config.

    Args:
        path: YAML file, or the name of a packaged config; `None` starts from the defaults.
        overrides: `key=value` settings on top, later ones over earlier ones.

    Raises:
        UserError: With every mistake at once: unknown keys, wrong values and contradictions, each with its place.
            Files that cannot be read at all and arguments that are not `key=value` are reported alone.
    """
    config, tree, files = _load(path, Config, overrides)
    return LoadedConfig(config, {dotted(keys): _place_of(keys, tree) for keys in values(config)}, files)


def load_file(path: Path | None, model: type[M], overrides: Sequence[str] = ()) -> M:
    """Load settings of another kind, such as a ladder, by the rules of `load_config`."""
    return _load(path, model, overrides)[0]


def _load(path: Path | None, model: type[M], overrides: Sequence[str]) -> tuple[M, Node, tuple[Path, ...]]:
    mistakes: list[Mistake] = []
    tree, files = (Node({}, DEFAULT), ()) if path is None else _read_chain(Path(path), mistakes)
    defaults = {dotted(path): schema.get("default") for path, schema in settings(model).items()}
    for argument in overrides:
        _apply_override(tree, argument, defaults, mistakes)
    found = validate(tree, mistakes, model)
    if found is None or mistakes:
        raise _error(mistakes, files)
    return found, tree, files


def require_data(loaded: LoadedConfig) -> None:
    """Raise a `UserError` that names every missing data file of a config, and where it was set."""
    data = loaded.config.data
    mistakes = []
    for name, value in {"train": data.train, "eval": data.eval, "complete": data.complete}.items():
        if value is None or Path(value).is_file():
            continue
        found = "a folder" if Path(value).is_dir() else f"nothing{nearest(Path(value).name, _neighbours(value))}"
        message = f"expected a data file at {value}, found {found}"
        mistakes.append(Mistake(loaded.sources[f"data.{name}"], ("data", name), message))
    if mistakes:
        known = _error(mistakes, loaded.files)
        raise UserError(known.message, fix="check the path; it is relative to the current folder")


# Files: the one that was named, and its parents.


def packaged_configs() -> dict[str, Path]:
    """Name (such as `tiny/bccd`) -> file of every config that comes with the package."""
    return {file.relative_to(PACKAGED).with_suffix("").as_posix(): file for file in sorted(PACKAGED.rglob("*.yaml"))}


def copy_of(name: str) -> str:
    """Text of a packaged config for a file anywhere else: its parent is named as a packaged config."""
    known = packaged_configs()
    if name not in known:
        message = f"there is no packaged config '{name}'{nearest(name, known)}"
        raise UserError(message, fix="apiece config --list", exit_code=2)

    def by_name(match: re.Match[str]) -> str:
        parent = Path(os.path.normpath(known[name].parent / match[1])).relative_to(PACKAGED)
        return f"extends: {parent.with_suffix('').as_posix()}"

    return re.sub(r"(?m)^extends: (\S+\.yaml)", by_name, known[name].read_text(encoding="utf-8"))


def _packaged(name: str, path: Path) -> Path:
    """The packaged config of that name, unless there is a file at `path`."""
    known = packaged_configs() if not path.suffix else {}
    return known[name] if name in known and not path.is_file() else path


def _read_chain(path: Path, mistakes: list[Mistake]) -> tuple[Node, tuple[Path, ...]]:
    """Read a file and its parents; returns them merged, and the files from the named one upwards."""
    files: dict[str, Path] = {}
    trees: list[Node] = []
    named_at: Place | None = None
    following: Path | None = _packaged(path.as_posix(), path)
    while following is not None:
        tree = _read_file(following, named_at, mistakes)
        real = os.path.realpath(following)
        if real in files:
            chain = " -> ".join(str(file) for file in [*files.values(), following])
            raise UserError(f"`extends` goes in a circle: {chain}", where=str(named_at), fix="remove one of them")
        files[real] = following
        trees.append(tree)
        following, named_at = _parent(tree, following)
    merged = trees.pop()
    while trees:
        merged = merge(merged, trees.pop())
    return merged, tuple(files.values())


def merge(base: Node, over: Node) -> Node:
    """`over` on top of `base`: mappings key by key, anything else replaces what was there."""
    if not (isinstance(base.value, dict) and isinstance(over.value, dict)):
        return over
    merged = dict(base.value)
    for key, child in over.value.items():
        merged[key] = merge(merged[key], child) if key in merged else child
    return Node(merged, over.source if over.value else base.source)


def _parent(tree: Node, path: Path) -> tuple[Path | None, Place | None]:
    """Remove `extends` from a file's tree; the file that it names, and the place where it does."""
    assert isinstance(tree.value, dict)
    node = tree.value.pop("extends", None)
    if node is None:
        return None, None
    if not isinstance(node.value, str):
        message = f"`extends` takes one file, as text; found {show(node)}"
        raise UserError(message, where=str(node.source), fix="write for example extends: base.yaml")
    # normpath keeps messages short: configs/base.yaml, not configs/tiny/../base.yaml.
    return _packaged(node.value, Path(os.path.normpath(path.parent / node.value))), node.source


def _read_file(path: Path, named_at: Place | None, mistakes: list[Mistake]) -> Node:
    """Read one file; `named_at` is the `extends` that asked for it."""
    where, what = (str(path), "") if named_at is None else (str(named_at), f"`extends` names {path}: ")
    try:
        if path.is_dir():
            raise UserError(f"{what}expected a YAML file, found a folder", where=where, fix="name the file in it")
        if not path.is_file():
            plain = re.sub(r"^configs/|\.ya?ml$", "", path.as_posix())
            near = nearest(path.name, _neighbours(path)) or nearest(plain, packaged_configs())
            relative_to = "the current folder" if named_at is None else "the file that names it"
            fix = f"check the path; it is relative to {relative_to} (packaged configs: apiece config --list)"
            raise UserError(f"{what}config file not found{near}", where=where, fix=fix)
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
    before = len(mistakes)
    tree = read_yaml(text, lambda line: Place(str(path), line), mistakes)
    if tree is None and len(mistakes) == before:
        raise UserError("the file is empty", where=path, fix="write at least one setting, such as seed: 0")
    if tree is None or not isinstance(tree.value, dict):
        found = "one broken value" if tree is None else "a list" if isinstance(tree.value, list) else show(tree)
        raise UserError(f"expected settings (key: value), found {found}", where=path)
    return tree


def _neighbours(path: str | Path) -> list[str]:
    """Names in the folder where a file was expected."""
    folder = Path(path).parent
    return [file.name for file in folder.iterdir()] if folder.is_dir() else []


# Settings of the command line: `optim.lr=3e-4`, `optim.betas[0]=0.8`, `data={train: a.jsonl, flip: true}`.

_KEY = re.compile(r"[^.\[\]]+(\.[^.\[\]]+|\[[0-9]{1,6}\])*")
_INDEX = re.compile(r"[0-9]{1,6}")


def _apply_override(tree: Node, argument: str, defaults: Mapping[str, Any], mistakes: list[Mistake]) -> None:
    """Set one `key=value` in a tree, in place; its value is read by the rules of the files, mistakes are appended.

    `defaults` (by dotted path) are for lists of which one item is set and no file sets the rest.
    """
    key, equals, text = argument.partition("=")
    if not equals or not _KEY.fullmatch(key.strip()):
        message, fix = (
            f"expected key=value, found '{argument}'",
            "write for example optim.lr=3e-4 or optim.betas[0]=0.8",
        )
        raise UserError(message, where=COMMAND_LINE.origin, fix=fix, exit_code=2)
    path = tuple(re.split(r"[.\[]", key.strip().replace("]", "")))
    before = len(mistakes)
    try:
        value = read_yaml(text, lambda line: COMMAND_LINE, mistakes, path)
    except UserError as error:
        message = f"'{argument}': {error.message}"
        raise UserError(message, where=COMMAND_LINE.origin, fix=error.fix, exit_code=2) from error
    if value is None and len(mistakes) > before:
        return
    value = value or Node(None, COMMAND_LINE)
    here = tree
    for depth, part in enumerate(path, 1):
        if isinstance(here.value, list):
            if not _INDEX.fullmatch(part) or int(part) >= len(here.value):
                has = f"indices 0 to {len(here.value) - 1}" if here.value else "no items"
                message = f"expected an index of a list that has {has}, found '{part}'"
                mistakes.append(Mistake(COMMAND_LINE, path[:depth], message))
                return
            items: Any = here.value
            slot: Any = int(part)
        else:
            if not isinstance(here.value, dict):
                here.value, here.source, here.text = {}, COMMAND_LINE, ""
            items, slot = here.value, part
            if part not in items:
                items[part] = (
                    Node({}, COMMAND_LINE) if depth == len(path) else _start(defaults.get(".".join(path[:depth])))
                )
        if depth == len(path):
            items[slot] = merge(items[slot], value)
        here = items[slot]


def _start(default: Any) -> Node:
    """Where an item is set when no file has set its list or section: the default list, or a new mapping."""
    if isinstance(default, list | tuple):
        return Node([Node(item, DEFAULT, str(item)) for item in default], DEFAULT)
    return Node({}, COMMAND_LINE)


# A tree of values -> a model, or every mistake in it, in words and with its place.


def validate(tree: Node, mistakes: list[Mistake], model: type[M]) -> M | None:
    """The model of a tree, with defaults for broken values; `None` where there is none. Mistakes are appended.

    Rules about several settings only run on a config that is whole. So broken values are taken out, and what is left is
    checked once more, with defaults in their place; a broken rule counts if nothing that it reads was taken out.
    """
    data = tree.plain()
    bad = {mistake.path for mistake in mistakes}
    for _ in ("values", "rules"):
        try:
            # From JSON, because strictness there lets an integer be a float, text an enum and a list a tuple.
            return model.model_validate_json(json.dumps(data))
        except ValidationError as error:
            found = [(item, _path(item["loc"], item["type"], data)) for item in error.errors()]
        for item, path in found:
            cause = item.get("ctx", {}).get("error")
            if isinstance(cause, RuleError):
                mistakes += _broken(cause, tree, bad)
                return None
            if not any(known[: len(path)] == path for known in bad):
                mistakes.append(Mistake(node_at(path, tree)[0].source, path, _message(item, path, tree, model)))
                bad |= {path, _meant(path, item["type"], model)}
            _prune(data, path[:-1] if item["type"] == "missing" and path == item["loc"] else path)
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


def _place_of(path: KeyPath, tree: Node) -> Place:
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
    if steps:
        owner, key = steps[-1]
        del owner[key]


def _message(item: Any, path: KeyPath, tree: Node, model: type[BaseModel]) -> str:
    """What was expected and what was found, for one error of pydantic."""
    kind, node = item["type"], node_at(path, tree)[0]
    if kind == "extra_forbidden":
        return f"unknown key{_suggestion(path, model)}"
    if kind == "missing" and path == item["loc"]:
        return "must be set: it has no default"
    schema = schema_at(model, path)
    if schema is None or kind in ("value_error", "assertion_error"):
        return f"{item['msg'].removeprefix('Value error, ')}, found {show(node)}"
    return f"expected {describe(schema)}, found {show(node)}{_hint(schema, node)}"


def _hint(schema: Schema, node: Node) -> str:
    """The likely remedy for a wrong value, or nothing."""
    value, allowed = node.value, free_types(schema)
    if value is None and section(schema):
        return ": leave it out for the defaults"
    if isinstance(value, float) and value.is_integer() and "integer" in allowed:
        return f": write {int(value)}"
    if isinstance(value, bool | int | float) and "string" in allowed:
        return f": put it in quotes to mean the text '{node.text}'"
    if not isinstance(value, str):
        return ""
    digits = value.lstrip("+-")
    if allowed & {"integer", "number"} and digits.startswith("0") and digits.isdigit():
        return " (a number with a leading zero is text)"
    return nearest(value, options(schema))


def _sibling(path: KeyPath, model: type[BaseModel]) -> str | None:
    """The known key in the same section that is most like an unknown one."""
    close = get_close_matches(str(path[-1]), section(schema_at(model, path[:-1])), n=1)
    return close[0] if close else None


def _suggestion(path: KeyPath, model: type[BaseModel]) -> str:
    """What an unknown key was probably meant to be: one of its section, or one of the same name elsewhere."""
    name = str(path[-1])
    known = [dotted(path) for path in settings(model)]
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


def _broken(error: RuleError, tree: Node, bad: set[KeyPath]) -> Iterator[Mistake]:
    """The broken rules that can be judged, each at the first value that someone set."""
    for rule, message in error.broken:
        paths = [tuple(name.split(".")) for name in rule.reads]
        if any(one[: len(other)] == other[: len(one)] for one in paths for other in bad):
            continue
        places = [_place_of(path, tree) for path in paths]
        first = next((number for number, place in enumerate(places) if place != DEFAULT), 0)
        others = "; ".join(f"{name}: {places[n]}" for n, name in enumerate(rule.reads) if n != first)
        yield Mistake(places[first], paths[first], f"{message} [{others}]" if others else message)


def _error(mistakes: Sequence[Mistake], files: Sequence[Path]) -> UserError:
    """One message with all mistakes, by file and line; the command line comes last."""
    order = {str(file): number for number, file in enumerate(files)}
    ordered = sorted(mistakes, key=lambda one: (order.get(one.source.origin, len(order)), one.source.line or 0))
    lines = list(dict.fromkeys(str(mistake) for mistake in ordered))
    head = [] if len(lines) == 1 else [f"{len(lines):,} mistakes in the config"]
    rest = [f"and {len(lines) - MAX_LISTED:,} more"] if len(lines) > MAX_LISTED else []
    return UserError("\n  ".join([*head, *lines[:MAX_LISTED], *rest]))
