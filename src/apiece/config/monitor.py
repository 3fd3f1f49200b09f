"""The settings of dumps during training."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from apiece.config.section import Count, PositiveCount, Section


class PanelSection(Section):
    """The samples of `data.eval` that are dumped: chosen once, the same at every step."""

    size: Count = 16
    """How many are chosen, in equal shares of images with 1-5, 6-15 and 16+ labels (and a few with none)."""
    ids: tuple[str, ...] = ()
    """Sample ids that are in it beside those."""
    seed: Count = 0
    """Of the choice; not the run's seed, so that runs that differ in it show the same images."""
    from_run: Annotated[str | None, Field(alias="from")] = None
    """Folder of a run whose panel is taken over; its `data.eval` must be the same file."""


class MonitorSection(Section):
    """Dumps of a fixed panel during training, to be looked at with `apiece report` (docs/records.md)."""

    every_steps: PositiveCount | None = None
    """Steps between dumps; there is one before the first step and one at the end, too. None: no dumps."""
    panel: PanelSection = PanelSection()
    """What is dumped."""
    pictures: bool = True
    """Draw each sample of a dump as a PNG: labels left, predictions right."""
    probes: bool = True
    """Read what the model believes at the labels' coordinates."""
    elsewhere: Count = 16
    """How many broken answers of the evaluation of the same step are kept beside the panel, at most."""
