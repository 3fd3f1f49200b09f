"""How long the samples of a data file are in tokens: image, prompt, answer. Images are not opened."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from apiece.codec.render import BOX_OPEN, OPEN, RECORD_OPEN, Renderer
from apiece.data.jsonl import iter_records
from apiece.data.problems import remedy
from apiece.errors import UserError
from apiece.model.image import target_size
from apiece.planning.flops import Grid
from apiece.planning.shapes import VisionShape
from apiece.planning.work import Work
from apiece.types import Sample

SAMPLE_LINES = 20_000
"""Lines that are read of a data file: the figures of more differ by less than a percent."""


@dataclass(frozen=True, slots=True)
class Length:
    """One sample in tokens.

    Attributes:
        grid: Patches of its image.
        image: Image tokens.
        prompt: Tokens of the prompt around them.
        answer: Tokens of the answer, the end token included.
        names: Those of names among them.
        objects: Written in it.
        first_slot: Index of the first coordinate token in the answer; of the last token where there is none.
        size_wh: Pixels of the image as it is stored.
    """

    grid: Grid
    image: int
    prompt: int
    answer: int
    names: int
    objects: int
    first_slot: int
    size_wh: tuple[int, int]

    @property
    def prefix(self) -> int:
        """Image and prompt."""
        return self.image + self.prompt

    @property
    def total(self) -> int:
        """All tokens."""
        return self.prefix + self.answer


@dataclass(frozen=True, slots=True)
class Lengths:
    """The samples that are trained on.

    Attributes:
        each: Of those that were read.
        lines: How many were read.
        over: How many of them hold too many objects and are left out.
        whole: Whether that was the whole file.
    """

    each: tuple[Length, ...]
    lines: int
    over: int
    whole: bool

    def shrunk(self, vision: VisionShape, max_pixels: int) -> Lengths:
        """The same with images shrunk to another limit."""
        grids = [grid_of(one.size_wh, vision, max_pixels) for one in self.each]
        pairs = zip(self.each, grids, strict=True)
        each = tuple(replace(one, grid=g, image=g[1] * g[2] // vision.merge**2) for one, g in pairs)
        return replace(self, each=each)


def grid_of(size_wh: tuple[int, int], vision: VisionShape, max_pixels: int) -> Grid:
    """Patches of an image, as it enters the tower."""
    width, height = target_size(size_wh, vision.patch * vision.merge, max_pixels)
    return (1, height // vision.patch, width // vision.patch)


@dataclass(frozen=True, slots=True)
class Measure:
    """Counts the tokens of samples.

    Attributes:
        renderer: Of the tokenizer.
        vision: The tower: images are cut into its patches.
        prompt: Tokens of the prompt around the image.
        max_pixels: Images above are shrunk.
        max_objects: Images with more labels are left out.
    """

    renderer: Renderer
    vision: VisionShape
    prompt: int
    max_pixels: int
    max_objects: int

    def of(self, sample: Sample) -> Length:
        """One sample, without augmentation."""
        grid = grid_of(sample.size_wh, self.vision, self.max_pixels)
        names = [o.desc for o in sample.objects if not o.iscrowd]
        answer = self.renderer.num_tokens(names)
        lead = len(self.renderer.piece(OPEN + RECORD_OPEN)) + len(self.renderer.piece(BOX_OPEN))
        first = lead + len(self.renderer.piece(names[0])) if names else answer - 1
        return Length(
            grid=grid,
            image=grid[1] * grid[2] // self.vision.merge**2,
            prompt=self.prompt,
            answer=answer,
            names=sum(len(self.renderer.piece(name)) for name in names),
            objects=len(names),
            first_slot=first,
            size_wh=sample.size_wh,
        )

    def read(self, path: Path, most: int = SAMPLE_LINES) -> Lengths:
        """The first lines of a data file.

        Raises:
            UserError: The file is missing, a line is wrong, or there is nothing to train on.
        """
        each: list[Length] = []
        lines = over = 0
        records = _samples(path)
        for sample in itertools.islice(records, most):
            lines += 1
            if sum(not o.iscrowd for o in sample.objects) > self.max_objects:
                over += 1
            else:
                each.append(self.of(sample))
        whole = next(records, None) is None
        if not lines:
            raise UserError("expected one image a line, found an empty file", where=path)
        if not each:
            raise UserError(f"no image to train on: {lines} read, {over} above data.max_objects", where=path)
        return Lengths(tuple(each), lines, over, whole)


def _samples(path: Path) -> Iterator[Sample]:
    for line in iter_records(path):
        if line.errors:
            first = line.errors[0]
            fix = remedy(line.errors, path, f"see all with `apiece data check {path}`;")
            raise UserError(first.message, where=first.where, fix=fix)
        if line.sample is not None:
            yield line.sample


def micro_batches(
    lengths: Sequence[Length], batch: int, micro: int, window: int, seed: int, ranks: int
) -> list[list[Length]]:
    """The micro-batches of one pass over the samples, cut as training cuts them: from windows sorted by length.

    Args:
        lengths: Of all samples.
        batch: Samples of a step.
        micro: Samples of a micro-batch.
        window: Batches that are sorted together.
        seed: Of the run.
        ranks: Processes; each takes every so-many-th sample of a batch.
    """
    order = np.random.default_rng([seed, 0]).permutation(len(lengths))
    order = np.resize(order, -(-len(lengths) // batch) * batch)
    totals = np.array([one.image + one.answer for one in lengths])
    out = []
    for start in range(0, len(order), window * batch):
        part = order[start : start + window * batch]
        part = part[np.argsort(totals[part], kind="stable")]
        for at in range(0, len(part), batch):
            for rank in range(ranks):
                own = [lengths[i] for i in part[at : at + batch][rank::ranks]]
                out += [own[k : k + micro] for k in range(0, len(own), micro)]
    return out


def heaviest(lengths: Sequence[Length], micro: int) -> list[Length]:
    """The longest samples, as many as a micro-batch holds: some batch may be made of them."""
    ranked = sorted(lengths, key=lambda one: one.total, reverse=True)
    return list(itertools.islice(itertools.cycle(ranked[:micro]), micro))


def work_of(samples: Sequence[Length], answer_factor: float = 1.0) -> Work:
    """A micro-batch of these samples.

    Args:
        samples: B of them.
        answer_factor: How many times as long as the labels' the answers are.
    """
    prefix = max(one.prefix for one in samples)
    return Work(
        grids=tuple(one.grid for one in samples),
        prefix=prefix,
        answer=round(answer_factor * max(one.answer for one in samples)),
        text_rows=sum(one.answer - 4 * one.objects for one in samples),
        name_rows=sum(one.names for one in samples),
        slots=4 * sum(one.objects for one in samples),
        first_slot=min(one.first_slot for one in samples),
        padded=any(one.prefix < prefix for one in samples),
    )
