"""What a plan is made from: a config, the files of its checkpoint but for the weights, and the lines of its data."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from apiece.codec.render import BOX_OPEN, START, Renderer
from apiece.config.schema import Config
from apiece.data.jsonl import iter_lines
from apiece.data.lines import remedy
from apiece.errors import UserError
from apiece.model.find import resolve_checkpoint
from apiece.model.prompt import prompt_text, target_size
from apiece.planning.flops import Grid, Work
from apiece.planning.shapes import ModelShape, TextShape, VisionShape
from apiece.types import Sample

# How long the samples of a data file are in tokens: image, prompt, answer. Images are not opened.


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
        lead = len(self.renderer.piece(START)) + len(self.renderer.piece(BOX_OPEN))
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
    for line in iter_lines(path):
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


PAD_MULTIPLE = 128
"""`apiece model extend` pads the table to a multiple of this."""


@dataclass(frozen=True)
class Source:
    """A checkpoint and data, as shapes.

    Attributes:
        checkpoint: As the config names it.
        data: Path of the training data.
        shape: Of the model.
        measure: Counts the tokens of samples under the config.
        lengths: Of the samples.
        remarks: What was assumed where a file is missing or not made ready yet.
    """

    checkpoint: str
    data: Path
    shape: ModelShape
    measure: Measure
    lengths: Lengths
    remarks: tuple[str, ...]
    _shrunk: dict[int, Lengths] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, config: Config) -> Source:
        """Read what a config names.

        Raises:
            UserError: The checkpoint or the data is missing or wrong, or a sample does not fit the model.
        """
        if config.data.train is None:
            raise UserError("data.train is not set", where="config", fix="name the training JSONL: data.train=X.jsonl")
        folder, data = resolve_checkpoint(config.model.checkpoint), Path(config.data.train)
        shape, text = ModelShape.read(folder), TextShape.read(folder)
        remarks = []
        if not text.extended:
            rows = max(shape.language.vocabulary, -(-text.size // PAD_MULTIPLE) * PAD_MULTIPLE)
            shape = shape.with_rows(rows)
            planned = f"planned as after `apiece model extend`, with {rows:,} rows"
            remarks.append(f"the checkpoint has no coordinate tokens yet: {planned}")
        image_token, pixels = _image_token(folder), _pixels(folder)
        if pixels is None:
            remarks.append(
                "the checkpoint has no preprocessor_config.json: images are limited by data.max_pixels alone"
            )
        measure = Measure(
            renderer=text.renderer,
            vision=shape.vision,
            prompt=text.prompt_tokens(prompt_text(config.prompt.name, config.prompt.text), image_token),
            max_pixels=min(config.data.max_pixels, pixels or config.data.max_pixels),
            max_objects=config.data.max_objects,
        )
        lengths = measure.read(data)
        longest = max(one.total for one in lengths.each)
        if longest > shape.language.context:
            raise UserError(
                f"a sample needs {longest} tokens, the model takes {shape.language.context}",
                where=data,
                fix="lower data.max_objects or data.max_pixels",
            )
        if not lengths.whole:
            remarks.append(f"lengths are those of the first {lengths.lines:,} lines")
        return cls(config.model.checkpoint, data, shape, measure, lengths, tuple(remarks))

    def under(self, max_pixels: int) -> Lengths:
        """The lengths with images shrunk to another limit."""
        if max_pixels >= self.measure.max_pixels:
            return self.lengths
        if max_pixels not in self._shrunk:
            self._shrunk[max_pixels] = self.lengths.shrunk(self.measure.vision, max_pixels)
        return self._shrunk[max_pixels]


def _image_token(folder: Path) -> int:
    """Id of the placeholder that the image's features replace."""
    found = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("image_token_id")
    if not isinstance(found, int):
        fix = "copy config.json from the original model again"
        raise UserError(
            f"image_token_id: expected a token's id, found {found!r}", where=folder / "config.json", fix=fix
        )
    return found


def _pixels(folder: Path) -> int | None:
    """The checkpoint's own limit of an image's pixels; `None` where it says none."""
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return None
    try:
        limit = json.loads(path.read_text(encoding="utf-8"))["size"]["longest_edge"]
    except (ValueError, KeyError, TypeError):
        limit = None
    if not isinstance(limit, int):
        raise UserError(
            "expected a limit of pixels at size.longest_edge", where=path, fix="copy it from the original model"
        )
    return limit
