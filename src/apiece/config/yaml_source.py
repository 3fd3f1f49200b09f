"""YAML text -> a tree of values that each know the file and line they come from.

Only the scanner, parser and composer of PyYAML are used. What a plain word means is decided here, because PyYAML's own
rules (YAML 1.1) read `1e-4` as text, `no` as false and `012` as ten, and keep the last of two equal keys:

- numbers: `3`, `-2`, `1_000`, `0.5`, `.5`, `1e-4`; with a leading zero (`012`) it is text; they must be finite and an
  integer must fit 64 bits;
- `true` and `false` alone are booleans: `yes`, `no`, `on`, `off` are text;
- `null`, `~` and nothing at all are null;
- all else, and everything in quotes, is text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import yaml
from yaml.reader import ReaderError

from apiece.errors import UserError

Scalar = bool | int | float | str | None
KeyPath = tuple[str | int, ...]

MAX_DEPTH = 32
"""Levels of nesting; also what stops an alias that contains itself."""
MAX_NODES = 10_000
"""Values in one file, aliases written out: stops aliases of aliases from filling the memory."""

_NULL = {"", "~", "null", "Null", "NULL"}
_BOOL = {word: word.lower() == "true" for word in ("true", "True", "TRUE", "false", "False", "FALSE")}
_DIGITS = r"(0|[1-9][0-9]*(_[0-9]+)*)"
_INT = re.compile(rf"[-+]?{_DIGITS}")
_FLOAT = re.compile(rf"[-+]?({_DIGITS}(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a value was set: a file as the user would name it and a line (from 1), `command line` or `default`."""

    origin: str
    line: int | None = None

    def __str__(self) -> str:
        return self.origin if self.line is None else f"{self.origin}:{self.line}"


DEFAULT = Place("default")
COMMAND_LINE = Place("command line")


@dataclass(slots=True)
class Node:
    """A value as it was read; `source` is the line of its key if it has one, `text` a scalar as written, unquoted."""

    value: Scalar | list[Node] | dict[str, Node]
    source: Place
    text: str = ""

    def plain(self) -> Any:
        """The value without its sources: what `json` and pydantic take."""
        if isinstance(self.value, dict):
            return {key: child.plain() for key, child in self.value.items()}
        if isinstance(self.value, list):
            return [child.plain() for child in self.value]
        return self.value


@dataclass(frozen=True, slots=True)
class Mistake:
    """One mistake, to be reported together with all others."""

    source: Place
    path: KeyPath
    message: str

    def __str__(self) -> str:
        name = dotted(self.path)
        return f"{self.source}: {name}: {self.message}" if name else f"{self.source}: {self.message}"


def dotted(path: KeyPath) -> str:
    """`('optim', 'betas', 0)` -> `optim.betas.0`."""
    return ".".join(str(part) or "''" for part in path)


def resolve_plain(text: str) -> Scalar:
    """The value of a word without quotes; a `ValueError` for a number that no setting can take."""
    if text in _NULL:
        return None
    if text in _BOOL:
        return _BOOL[text]
    if _NOT_FINITE.fullmatch(text):
        raise ValueError(f"expected a finite number, found {text}")
    if _INT.fullmatch(text):
        if len(text) > 24 or not -(2**63) <= int(text) < 2**63:
            raise ValueError(f"expected a whole number that fits 64 bits, found {text[:24]}")
        return int(text)
    if _FLOAT.fullmatch(text):
        number = float(text)
        if not math.isfinite(number):
            raise ValueError(f"expected a finite number, found {text[:24]}")
        return number
    return text


class _Loader(yaml.BaseLoader):
    """PyYAML up to nodes, without tags and with a limit on nesting."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()
        mark: Any = event.start_mark
        if isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent) and event.tag is not None:
            raise yaml.MarkedYAMLError(problem=f"tags such as {event.tag} are not supported", problem_mark=mark)
        if self.depth > MAX_DEPTH:
            raise yaml.MarkedYAMLError(problem=f"more than {MAX_DEPTH} levels deep", problem_mark=mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


@dataclass(slots=True)
class _Builder:
    """Turns PyYAML's nodes into ours and collects what is wrong with single values."""

    locate: Callable[[int], Place]
    mistakes: list[Mistake]
    count: int = 0

    def source(self, node: yaml.Node) -> Place:
        return self.locate(node.start_mark.line + 1)

    def build(self, node: yaml.Node, source: Place, path: KeyPath, depth: int = 0) -> Node | None:
        """`node` as a tree; `None` where its value cannot be used and a mistake was noted."""
        self.count += 1
        if depth > MAX_DEPTH or self.count > MAX_NODES:
            many = f"more than {MAX_NODES:,} values, aliases written out"
            problem = many if depth <= MAX_DEPTH else "an alias contains itself, or aliases are nested too deep"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        if isinstance(node, yaml.MappingNode):
            return Node(self.mapping(node, path, depth), source)
        if isinstance(node, yaml.SequenceNode):
            items = [self.build(item, self.source(item), (*path, i), depth + 1) for i, item in enumerate(node.value)]
            return Node([item for item in items if item is not None], source)
        assert isinstance(node, yaml.ScalarNode)
        text: str = node.value
        if _SURROGATE.search(text):
            self.mistake(source, path, "the text holds half of a surrogate pair (\\ud800 to \\udfff)")
            return None
        try:
            return Node(resolve_plain(text) if node.style is None else text, source, text)
        except ValueError as error:
            self.mistake(source, path, str(error))
            return None

    def mapping(self, node: yaml.MappingNode, path: KeyPath, depth: int) -> dict[str, Node]:
        """The entries whose keys and values can be used."""
        entries: dict[str, Node] = {}
        first: dict[str, Place] = {}
        for key_node, value_node in node.value:
            source = self.source(key_node)
            if not isinstance(key_node, yaml.ScalarNode) or _SURROGATE.search(key_node.value):
                self.mistake(source, path, "a key must be a word, found a list, a mapping or broken text")
                continue
            key: str = key_node.value
            if key == "<<" and key_node.style is None:
                message = "merge keys (<<) are not supported; use `extends: FILE` at the top of the file"
                self.mistake(source, (*path, key), message)
            elif key in first:
                self.mistake(source, (*path, key), f"duplicate key, first set at {first[key]}")
            else:
                first[key] = source
                child = self.build(value_node, source, (*path, key), depth + 1)
                if child is not None:
                    entries[key] = child
        return entries

    def mistake(self, source: Place, path: KeyPath, message: str) -> None:
        self.mistakes.append(Mistake(source, path, message))


def read_yaml(text: str, locate: Callable[[int], Place], mistakes: list[Mistake], path: KeyPath = ()) -> Node | None:
    """Read one YAML document; `None` where it is empty, or nothing of it can be used.

    Args:
        text: The document; a `UserError` is raised if it is not YAML.
        locate: Line (from 1) -> its place.
        mistakes: Mistakes in single values (duplicate keys, NaN) are appended here; the values are left out.
        path: Where the document belongs in the config.
    """
    try:
        root = _Loader(text).get_single_node()
        return None if root is None else _Builder(locate, mistakes).build(root, locate(root.start_mark.line + 1), path)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        message = ", ".join(part for part in (error.context, error.problem) if part)
        tabs = "'\\t'" in message
        fix = "indent with spaces, not with tabs" if tabs else "mend the syntax; quote text that YAML misreads"
        where = locate(mark.line + 1 if mark else 1)
        raise UserError(f"broken YAML: {message}", where=str(where), fix=fix) from error
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        message = f"broken YAML: the character #x{ord(text[error.position]):04x} is not allowed"
        fix = "remove it, or write it as an escape in double quotes"
        raise UserError(message, where=str(locate(line)), fix=fix) from error
    except (ValueError, OverflowError) as error:
        # PyYAML turns an escape such as "\UFFFFFFFF" into a character without looking whether there is one.
        message = f"broken YAML: an escape stands for no character ({error})"
        raise UserError(message, where=str(locate(1)), fix="look at the \\U escapes") from error
