"""A ladder, described by one file: arms x seeds, trained from one start and evaluated on the same images."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated, Self

from pydantic import Field, model_validator

from apiece.config.schema import Count, Section

Share = Annotated[float, Field(ge=0, lt=1)]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")


class Match(StrEnum):
    """What all arms have in common with the reference."""

    STEPS = "steps"
    COMPUTE = "compute"


class ScenesSection(Section):
    """One way of labelling a benchmark of generated scenes."""

    benchmark: str
    """Its file, or its name among the packaged configs."""
    unlabelled: Share = 0.0
    """Mean share of the crowd without a label: one of the benchmark's."""
    group_boxes: Share = 0.0
    """Chance of a group box, for each row: one of the benchmark's."""
    dir: str = "data"
    """Folder in which a folder of the benchmark's name holds its scenes."""


class LadderData(Section):
    """What all arms are trained, probed and evaluated on: generated scenes, or files."""

    scenes: ScenesSection | None = None
    """Generated scenes; they are drawn if they are not there."""
    train: str | None = None
    """Training JSONL, where there are no scenes."""
    panel: str | None = None
    """JSONL that is dumped during training and probed at the end; `test` by default."""
    panel_complete: str | None = None
    """Complete annotations of the panel, where they exist."""
    test: str | None = None
    """JSONL that every run is evaluated on, once, at its end."""
    test_complete: str | None = None
    """Complete annotations of the test set, where they exist."""

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        files = [self.train, self.panel, self.panel_complete, self.test, self.test_complete]
        if self.scenes is not None and any(file is not None for file in files):
            raise ValueError("name scenes or files, not both")
        if self.scenes is None and (self.train is None or self.test is None):
            raise ValueError("name scenes, or a train and a test file")
        return self


class ArmSection(Section):
    """One arm."""

    config: str
    """Its config: a file, or the name of a packaged config."""
    set: tuple[str, ...] = ()
    """Settings on top of it and of what all arms share, as `key=value`."""
    match: Match | None = None
    """Instead of the ladder's own."""
    seeds: tuple[Count, ...] | None = None
    """Some of the ladder's seeds, for an arm that is not compared; all by default."""


class LadderFile(Section):
    """A ladder. All paths are relative to the current folder."""

    name: str
    """Name of the folder of its runs and of its results."""
    start: str = "tiny"
    """The checkpoint that every run starts from."""
    data: LadderData
    """The data of all runs."""
    seeds: tuple[Count, ...] = (0, 1, 2)
    """Every arm is trained once with each."""
    reference: str
    """The arm that every other one is compared with, and whose steps or compute they match."""
    against: tuple[str, ...] = ()
    """Further arms that every other one is compared with."""
    match: Match = Match.STEPS
    """`steps`: all arms take the steps of their config; `compute`: an arm takes as many steps as the reference's
    arithmetic pays for."""
    shared: tuple[str, ...] = ()
    """Settings on top of every arm's config, as `key=value`."""
    arms: dict[str, ArmSection]
    """The arms by name, in the order in which they are run."""
    only: tuple[str, ...] = ()
    """The arms to run, where a ladder extends another one and needs only some of its arms; all by default."""
    dir: str = "runs"
    """Folder in which a folder of the ladder's name holds its runs."""
    results: str = "docs/study"
    """Folder in which a folder of the ladder's name holds one result file an arm and seed."""

    @model_validator(mode="after")
    def _names(self) -> Self:
        wrong = [name for name in (self.name, *self.arms) if not _NAME.fullmatch(name)]
        if wrong:
            raise ValueError(f"names are of letters, digits and _ . + -, found {', '.join(wrong)}")
        chosen = self.only or tuple(self.arms)
        for key, names in (("only", self.only), ("reference", (self.reference,)), ("against", self.against)):
            for name in names:
                if name not in self.arms:
                    raise ValueError(f"{key}: there is no arm '{name}'; arms: {', '.join(self.arms)}")
                if name not in chosen:
                    raise ValueError(f"{key}: '{name}' is not among `only`")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds: name each seed once, and at least one")
        for name, arm in self.arms.items():
            wrong = [str(seed) for seed in arm.seeds or () if seed not in self.seeds]
            if wrong or arm.seeds == ():
                known = ", ".join(map(str, self.seeds))
                raise ValueError(
                    f"arms.{name}.seeds: name some of the ladder's ({known}), found {', '.join(wrong) or 'none'}"
                )
        return self

    @property
    def chosen(self) -> dict[str, ArmSection]:
        """The arms that are run."""
        return {name: arm for name, arm in self.arms.items() if not self.only or name in self.only}
