"""Which runs are seeds of one arm."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import takewhile

from apiece.compare.source import Arm, Source
from apiece.errors import UserError


def group_seeds(sources: Sequence[Source]) -> tuple[tuple[Arm, ...], tuple[str, ...]]:
    """Put runs that differ in `seed` alone into one arm, in the order of the first of each.

    If all would be one arm, each stays an arm of its own: the difference between seeds is then what is asked for.

    Returns:
        The arms, and what the reader should be told.
    """
    arms: list[list[Source]] = []
    for source in sources:
        home = next((arm for arm in arms if _belongs(source, arm)), None)
        if home is None:
            arms.append([source])
        else:
            home.append(source)
    if len(arms) > 1:
        return _named(arms), tuple(
            f"{', '.join(source.name for source in arm)}: seeds of one arm, as they differ in their seed alone"
            for arm in arms
            if len(arm) > 1
        )
    remark = "these runs differ in their seed alone: what differs between them is what a seed does"
    return _named([[source] for source in sources]), (remark,) if len(sources) > 1 else ()


def _belongs(source: Source, arm: list[Source]) -> bool:
    known = source.config is not None and source.seed is not None
    return known and all(
        other.config == source.config
        and other.seed != source.seed
        and other.step == source.step
        and other.protocol.get("score_policy") == source.protocol.get("score_policy")
        for other in arm
    )


def _named(arms: list[list[Source]]) -> tuple[Arm, ...]:
    """Arms with names of their own: of the run, or what the names of its runs begin with."""
    names = [_common([source.name for source in arm]) for arm in arms]
    steps = {source.step for arm in arms for source in arm}
    named: list[Arm] = []
    for i, (name, arm) in enumerate(zip(names, arms, strict=True)):
        if names.count(name) > 1:
            parent = arm[0].path.resolve().parent.name
            name = f"{name}@{arm[0].step}" if len(steps) == len(arms) else f"{parent}/{name}"
        if name in (other.name for other in named):
            name = f"{name} ({i + 1})"
        named.append(Arm(name, tuple(arm)))
    return tuple(named)


def _common(names: list[str]) -> str:
    """What all names begin with, without a cut-off `_s` or `seed` at its end; the first name if nothing is left."""
    if len(names) == 1:
        return names[0]
    alike = "".join(column[0] for column in takewhile(lambda column: len(set(column)) == 1, zip(*names, strict=False)))
    return re.sub(r"(?i)([-_. ]+s|[-_. ]*seed)?[-_. ]*\d*$", "", alike, count=1) or names[0]


def require_two(arms: Sequence[Arm]) -> None:
    """Raise a `UserError` unless there are two arms or more, each with a name of its own."""
    if len(arms) < 2:
        raise UserError(
            f"expected two arms or more, found {len(arms)}",
            fix="apiece compare RUN_A RUN_B  or  apiece compare --arm A=RUN,RUN --arm B=RUN,RUN",
            exit_code=2,
        )
    names = [arm.name for arm in arms]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"expected a name of its own for each arm, found {', '.join(repeated)} again", exit_code=2)
