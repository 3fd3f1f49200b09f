"""The input of a plan: the model's sizes, and the tokens of every sample as training's encoder counts them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from apiece.codec import CoordVocab, Renderer, coord_token
from apiece.codec.render import BOX_OPEN, OBJECT_OPEN, OPEN
from apiece.config.schema import Config
from apiece.data.index import DataFile
from apiece.model.encode import PromptTokens, SampleEncoder
from apiece.model.extend import PAD_MULTIPLE, add_coord_tokens
from apiece.model.find import resolve_checkpoint
from apiece.model.load import TextSide, read_image_processor, read_tokenizer
from apiece.model.prompt import ImageEncoder, prompt_text
from apiece.planning.flops import Grid, Work
from apiece.planning.shapes import ModelShape
from apiece.train.batches import BatchPlan, sample_lengths
from apiece.train.setup import training_samples
from apiece.types import IntArray

COUNTED = 64  # micro-batches whose FLOPs are averaged, at least


@dataclass(frozen=True, eq=False)
class Lengths:
    """Tokens of N samples."""

    grids: IntArray  # `[N, 2]` rows and columns of patches
    image: IntArray  # `[N]` image tokens
    prompt: int  # tokens of the prompt around them
    answer: IntArray  # `[N]` tokens of the answer, the end token included
    names: IntArray  # `[N]` answer tokens that name classes
    objects: IntArray  # `[N]`
    # `[N]` index of the first coordinate token in the answer; of the last token where there is none
    first_slot: IntArray

    @classmethod
    def of(cls, records: DataFile, encoder: SampleEncoder) -> Lengths:
        """From the index of a data file: no image is opened, and nothing is augmented."""
        images, renderer, table = encoder.side.images, encoder.side.renderer, records.table
        sizes, which = np.unique(records.size_wh, axis=0, return_inverse=True)
        shrunk = np.array([images.size_for((width, height)) for width, height in sizes.tolist()])
        cells = shrunk[which.reshape(-1), ::-1] // images.factor
        image, objects = cells.prod(axis=1), records.num_objects
        pieces = np.array([*(len(renderer.piece(name)) for name in table.names), 0], dtype=np.int64)
        answer = encoder.lengths(records) - image
        lead = len(renderer.piece(OPEN + OBJECT_OPEN)) + len(renderer.piece(BOX_OPEN))
        first_name = np.append(table.name, len(table.names))[table.first[records.rows]]
        return cls(
            grids=cells * images.processor.merge_size,
            image=image,
            prompt=len(encoder.prompt.before) + len(encoder.prompt.after),
            answer=answer,
            names=records.sums_over_names(pieces[:-1]),
            objects=objects,
            first_slot=np.where(objects > 0, lead + pieces[first_name], answer - 1),
        )

    @property
    def total(self) -> IntArray:
        """`[N]` image, prompt and answer."""
        return self.image + self.prompt + self.answer

    @cached_property
    def prefixes(self) -> Counter[tuple[Grid, int]]:
        """How many samples have an image of a grid and this many tokens before the answer."""
        grids = ((1, high, wide) for high, wide in self.grids.tolist())
        return Counter(zip(grids, (self.image + self.prompt).tolist(), strict=True))

    def work(self, rows: IntArray) -> Work:
        prefixes = self.image[rows] + self.prompt
        return Work(
            grids=tuple((1, high, wide) for high, wide in self.grids[rows].tolist()),
            prefix=int(prefixes.max()),
            answer=int(self.answer[rows].max()),
            text_rows=int((self.answer[rows] - 4 * self.objects[rows]).sum()),
            name_rows=int(self.names[rows].sum()),
            slots=4 * int(self.objects[rows].sum()),
            first_slot=int(self.first_slot[rows].min()),
            padded=bool((prefixes < prefixes.max()).any()),
        )

    def heaviest(self, micro: int) -> Work:
        """A micro-batch of the longest samples: a batch may be made of them."""
        return self.work(np.resize(np.argsort(-self.total, kind="stable")[:micro], micro))

    @lru_cache(maxsize=64)  # noqa: B019  lives as long as the command
    def sampled(self, batch: int, micro: int, ranks: int, *order: Any) -> list[Work]:
        """Some micro-batches of an epoch as training cuts it, light and heavy ones; `order`: as of `BatchPlan`."""
        batches = np.array(list(BatchPlan(self.image + self.answer, batch, *order).epoch(0)))
        # Each rank takes every `ranks`-th sample of a batch.
        cut = batches.reshape(len(batches), -1, ranks).swapaxes(1, 2).reshape(-1, micro)
        cut = cut[np.argsort(self.total[cut].sum(axis=1), kind="stable")]
        each = max(len(cut) // COUNTED, 1)
        return [self.work(rows) for rows in cut[each // 2 :: each]]


@dataclass(frozen=True, eq=False)
class PlanInput:
    """A checkpoint and data."""

    shape: ModelShape
    encoder: SampleEncoder
    records: DataFile  # the samples that are trained on
    dropped: int  # how many others hold too many objects
    remarks: tuple[str, ...]  # assumptions about a checkpoint that has not been extended yet

    @classmethod
    def of(cls, config: Config) -> PlanInput:
        """Read everything that a config names except weights and images."""
        folder, remarks = resolve_checkpoint(config.model.checkpoint), list[str]()
        tokenizer, shape = read_tokenizer(folder), ModelShape.read(folder)
        if coord_token(0) not in tokenizer.get_vocab():
            add_coord_tokens(tokenizer)
            rows = max(shape.text.vocab_size, -(-len(tokenizer) // PAD_MULTIPLE) * PAD_MULTIPLE)
            shape = ModelShape.read(folder, rows)
            planned = f"planned as after `apiece model extend`, with {rows:,} rows"
            remarks.append(f"the checkpoint has no coordinate tokens yet: {planned}")
        vocab = CoordVocab.of(tokenizer, where=config.model.checkpoint)
        images, renderer = ImageEncoder(read_image_processor(folder)), Renderer(tokenizer, vocab)
        side = TextSide(tokenizer, images, vocab, renderer, shape.config.image_token_id, {}, folder)
        side = side.with_max_pixels(config.data.max_pixels)
        records, dropped = training_samples(config, side)
        prompt = PromptTokens.of(side, prompt_text(config.prompt.name, config.prompt.text))
        encoder = SampleEncoder(side, prompt, shape.text.max_position_embeddings)
        sample_lengths(records, encoder)  # refuses what is too long for the model
        return cls(shape, encoder, records, dropped, tuple(remarks))

    @lru_cache(maxsize=64)  # noqa: B019  lives as long as the command
    def lengths(self, max_pixels: int) -> Lengths:
        """Tokens of the samples with images of at most this many pixels."""
        side = self.encoder.side.with_max_pixels(max_pixels)
        return Lengths.of(self.records, replace(self.encoder, side=side))
