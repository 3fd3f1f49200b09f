"""Rules about several settings at once, and how a config is held against them.

A rule is a function of the whole config that returns what is wrong, or `None`; it is registered with the settings that
it reads. So the loader can leave out the rules about settings that are broken by themselves, and can say where each
of the values stands. `Config` holds itself against all rules when it is made, in Python as well as from a file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from apiece.config.describe import keys, section_of

Check = Callable[[Any], str | None]
"""Config -> what is wrong. (This module comes before `Config`, so it cannot name it.)"""


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule about several settings.

    Attributes:
        reads: Dotted paths of all settings that it looks at, the one to change first.
        check: Config -> what is wrong and how to mend it, or `None`.
    """

    reads: tuple[str, ...]
    check: Check


@dataclass(frozen=True, slots=True)
class Broken:
    """A rule that a config breaks: the settings, and what is wrong with them."""

    reads: tuple[str, ...]
    message: str


class RuleError(ValueError):
    """All rules that a config breaks; pydantic passes it on inside its own error."""

    def __init__(self, broken: tuple[Broken, ...]) -> None:
        self.broken = broken
        super().__init__("\n".join(f"{', '.join(one.reads)}: {one.message}" for one in broken))


RULES: list[Rule] = []


def rule(*reads: str) -> Callable[[Check], Check]:
    """Register a rule that reads the settings at these dotted paths."""

    def register(check: Check) -> Check:
        RULES.append(Rule(reads, check))
        return check

    return register


def no_effect(*paths: str, reads: str | tuple[str, ...], unless: Callable[[Any], bool], why: str) -> None:
    """Register a rule for each path: to change it is an error where it does nothing.

    Args:
        paths: Settings that matter only sometimes.
        reads: The setting, or settings, that decide whether they do.
        unless: Config -> whether they do.
        why: Why they do not, and what to change; goes between "has no effect" and "or set it back to its default".
    """

    def rule_for(path: str) -> Rule:
        def check(config: BaseModel) -> str | None:
            if not changed(config, path) or unless(config):
                return None
            default = default_at(type(config), path)
            return f"has no effect {why}, or set it back to its default ({'null' if default is None else default})"

        return Rule((path, *((reads,) if isinstance(reads, str) else reads)), check)

    RULES.extend(rule_for(path) for path in paths)


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


def changed(config: BaseModel, path: str) -> bool:
    """Whether the setting at a dotted path has another value than its default.

    This, and not whether someone wrote the key, is what a rule should ask: the config that a run writes down spells out
    every default, and must load again.
    """
    return bool(value_at(config, path) != default_at(type(config), path))


def check_rules(config: BaseModel) -> None:
    """Hold a config against all rules.

    Raises:
        RuleError: With every rule that it breaks.
    """
    broken = tuple(Broken(each.reads, message) for each in RULES if (message := each.check(config)) is not None)
    if broken:
        raise RuleError(broken)
