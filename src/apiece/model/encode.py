"""Samples to tokens and patches: what the data workers do."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from apiece.codec import Bins, answer_order, objects_to_bins
from apiece.codec.vocab import encode_plain
from apiece.config.schema import ObjectOrder
from apiece.data.augment import mirror, move_context, random_crop
from apiece.data.collate import EncodedSample
from apiece.data.images import open_image, require_size
from apiece.data.index import DataFile
from apiece.errors import UserError
from apiece.model.load import TextSide, reading
from apiece.model.prompt import chat_prompt, prompt_hash
from apiece.types import Instance, IntArray, Sample


@dataclass(frozen=True)
class PromptTokens:
    """The prompt's tokens before and after the image placeholder, and a hash that identifies the prompt."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    hash: str

    @classmethod
    def of(cls, side: TextSide, instruction: str) -> PromptTokens:
        """Apply the chat template to an instruction and cut at the one image placeholder."""
        fix = "copy chat_template.jinja from the original model again"
        with reading(side.path, "the chat template cannot be applied", fix):
            text = chat_prompt(side.tokenizer, instruction)
        ids = encode_plain(side.tokenizer, text)
        if ids.count(side.image_token_id) != 1:
            raise UserError(
                f"expected the chat template to write one image placeholder, found {ids.count(side.image_token_id)}",
                where=side.path,
                fix="use the model's own chat_template, and an instruction without special tokens",
            )
        cut = ids.index(side.image_token_id)
        return cls(tuple(ids[:cut]), tuple(ids[cut + 1 :]), prompt_hash(text))

    def prefix_ids(self, num_image_tokens: int, image_token_id: int) -> IntArray:
        """Ids `[P]` with the placeholder repeated once per image token."""
        return np.array([*self.before, *[image_token_id] * num_image_tokens, *self.after], dtype=np.int64)


@dataclass(frozen=True)
class Augmentation:
    """Random changes of training images; a function of (seed, sample, epoch)."""

    flip: bool = False
    scale_jitter: float = 0.0
    context_jitter: float = 0.0
    order: ObjectOrder = ObjectOrder.SORTED
    seed: int = 0

    def rng(self, sample_id: str, epoch: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, zlib.crc32(sample_id.encode()), epoch])


class TooLongError(UserError):
    """Image, prompt and answer together do not fit into the model's context."""


@dataclass(frozen=True)
class SampleEncoder:
    """Encodes samples for one model and prompt."""

    side: TextSide
    prompt: PromptTokens
    max_length: int  # longest prefix plus answer that the model takes
    load: Callable[..., Image.Image] = open_image

    def question(self, sample: Sample, image: Image.Image | None = None) -> EncodedSample:
        """Image and prompt alone, for generation; the image is opened unless given."""
        return self._prefix(sample, self.load(sample.image) if image is None else image)

    def training(self, sample: Sample, augment: Augmentation, epoch: int) -> EncodedSample:
        """Image, prompt and answer; fails with `TooLongError`, or if the image cannot be read or has another size than
        its boxes are for."""
        image = self.load(sample.image)
        require_size(sample, image.size)
        objects = list(sample.objects)
        rng = augment.rng(sample.id, epoch)
        if augment.flip and rng.random() < 0.5:
            image, objects = mirror(image, objects)
        if augment.scale_jitter:
            image, objects = random_crop(image, objects, augment.scale_jitter, rng)
        crowds = [o for o in objects if o.iscrowd]
        objects = [o for o in objects if not o.iscrowd]
        objects = [objects[i] for i in _written_order(objects, augment.order, rng)]
        written = objects_to_bins([o.bbox_xyxy for o in objects], [o.desc for o in objects], image.size, Bins())
        encoded = self._prefix(sample, image)
        answer = self.side.renderer.render(written)
        if augment.context_jitter:
            answer = move_context(answer, augment.context_jitter, Bins().num_bins, rng)
        length = len(encoded.prefix_ids) + len(answer.ids)
        if length > self.max_length:
            raise TooLongError(
                f"sample {sample.id} needs {length} tokens, the model takes {self.max_length}",
                where=sample.image,
                fix="lower data.max_objects or data.max_pixels",
            )
        return EncodedSample(
            encoded.sample_id,
            encoded.prefix_ids,
            encoded.pixel_values,
            encoded.grid_thw,
            answer,
            num_collapsed=len(objects) - len(written),
            shown=Sample(sample.id, sample.image, image.size, (*objects, *crowds)),
        )

    def lengths(self, records: DataFile) -> IntArray:
        """`[N]` approximate tokens of a data file's training samples without the prompt, from its index: nothing is
        read.

        Exact except for augmentation and boxes thinner than a bin.
        """
        # Sizes as one number each: a file of a million images has few different ones.
        wide = records.size_wh.astype(np.int64) @ [1 << 32, 1]
        sizes, which = np.unique(wide, return_inverse=True)
        image_tokens = np.array([self.side.images.num_tokens((int(s >> 32), int(s & 0xFFFFFFFF))) for s in sizes])
        name_tokens = np.array([len(self.side.renderer.piece(name)) for name in records.table.names], dtype=np.int64)
        answers = self.side.renderer.lengths(records.num_objects, records.sums_over_names(name_tokens))
        return image_tokens[which] + answers

    def _prefix(self, sample: Sample, image: Image.Image) -> EncodedSample:
        pixels, grid = self.side.images.encode(image)
        merge = self.side.images.processor.merge_size
        tokens = grid[0] * grid[1] * grid[2] // merge**2
        return EncodedSample(sample.id, self.prompt.prefix_ids(tokens, self.side.image_token_id), pixels, grid)


def written_objects(sample: Sample, order: ObjectOrder, seed: int = 0, epoch: int = 0) -> IntArray:
    """Which of a sample's objects its answer names, `[N]` indices in the order written; no crowd regions, nor boxes
    thinner than a bin."""
    kept = [i for i, o in enumerate(sample.objects) if not o.iscrowd]
    rng = Augmentation(seed=seed).rng(sample.id, epoch)
    chosen = [kept[i] for i in _written_order([sample.objects[i] for i in kept], order, rng)]
    boxes = Bins().to_bins([sample.objects[i].bbox_xyxy for i in chosen], sample.size_wh)
    return np.array(chosen, dtype=np.int64)[(boxes[:, 2:] > boxes[:, :2]).all(1)]


def _written_order(objects: list[Instance], order: ObjectOrder, rng: np.random.Generator) -> list[int]:
    if order is ObjectOrder.RANDOM:
        return [int(i) for i in rng.permutation(len(objects))]
    return answer_order([o.bbox_xyxy for o in objects], [o.desc for o in objects], order)
