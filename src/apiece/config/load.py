"""Files and the command line -> one checked config that knows where each value was set, or every mistake.

A file may name one parent with `extends: FILE` (relative to itself); its settings go on top of the parent's, mappings
key by key. Settings of the command line go on top of all.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from apiece.config.describe import settings, show
from apiece.config.dump import values
from apiece.config.overrides import apply_override, merge
from apiece.config.schema import Config
from apiece.config.validate import setting_source, validate
from apiece.config.yaml_source import DEFAULT, Node, Problem, Source, dotted, read_yaml
from apiece.errors import UserError, nearest

M = TypeVar("M", bound=BaseModel)


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
