"""What a plan is made from: a config, the files of its checkpoint but for the weights, and the lines of its data."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from apiece.config.schema import Config
from apiece.errors import UserError
from apiece.model.find import resolve_checkpoint
from apiece.model.prompts import prompt_text
from apiece.planning.lengths import Lengths, Measure
from apiece.planning.shapes import ModelShape
from apiece.planning.tokenizer import TextShape

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
