"""A benchmark of generated scenes, described by one file: which scenes are drawn, and how well they are labelled."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from apiece.config.schema import Count, PositiveCount, Section

Share = Annotated[float, Field(ge=0, lt=1)]
SPLITS = ("train", "panel", "test")


class SplitSection(Section):
    """One set of scenes."""

    n: PositiveCount
    """How many scenes."""
    seed: Count
    """Scene k of a seed is the same for any number of scenes."""


class BenchmarkFile(Section):
    """Scenes with complete truth, each labelled in several ways.

    The pictures of a split are drawn once. Each has its complete truth and a file of labels for every share of
    unlabelled objects and every chance of a group box: they differ in nothing else.
    """

    name: str
    """Its name where figures are quoted."""
    drawings: PositiveCount
    """Version of the drawing code that it was made for; another version draws other scenes and is refused."""
    size: Annotated[int, Field(ge=64, le=1024)] = 192
    """Side of the images in pixels."""
    families: tuple[str, ...] = ("shelf", "stands", "street", "sparse")
    """Families of scenes, in turn."""
    train: SplitSection
    """Trained on."""
    panel: SplitSection
    """Looked at during training, and probed at the end."""
    test: SplitSection
    """Evaluated on, once, at the end."""
    unlabelled: tuple[Share, ...]
    """Mean shares of the crowd that an annotator leaves out."""
    group_boxes: tuple[Share, ...] = (0.0,)
    """Chances, for each row of a scene, that a run of labelled neighbours is written down as one box."""

    @model_validator(mode="after")
    def _different_seeds(self) -> Self:
        seeds = [self.train.seed, self.panel.seed, self.test.seed]
        if len(set(seeds)) < len(seeds):
            raise ValueError("train, panel and test must have seeds of their own, or they share scenes")
        if not self.unlabelled or not self.group_boxes:
            raise ValueError("unlabelled and group_boxes need at least one value each")
        return self
