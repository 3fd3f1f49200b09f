"""Answers made by hand: what a model would have said, with the scores and distributions that go with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from apiece.codec import Bins, objects_to_bins
from apiece.codec.vocab import decode_exact
from apiece.evaluate.answers import Answer, read_answer
from apiece.model.load import TextSide
from apiece.types import BoxXYXY, FinishReason, Instance, Rollout, Sample

Said = Sequence[tuple[str, BoxXYXY]]


def answer(side: TextSide, sample: Sample, said: Said, *, cut: int | None = None, logprob: float = -0.5) -> Answer:
    """A canonical answer; only its first `cut` tokens, where it was cut off."""
    descs, boxes = [desc for desc, _ in said], [box for _, box in said]
    rendered = side.renderer.render(objects_to_bins(boxes, descs, sample.size_wh, Bins()))
    ids = rendered.ids[:cut]
    reason = FinishReason.EOS if cut is None else FinishReason.LENGTH
    logprobs = np.full(len(ids), logprob, dtype=np.float32)
    text = decode_exact(side.tokenizer, ids.tolist())
    return read_answer(sample, Rollout(sample.id, ids, logprobs, text, reason), side.tokenizer, side.vocab)


def shelf(name: str = "shelf", count: int = 4, folder: Path = Path()) -> Sample:
    """Books side by side, each 40 x 100 pixels, and a crowd region on the right."""
    books = [Instance("book", (40.0 * i, 50.0, 40.0 * i + 40, 150.0)) for i in range(count)]
    crowd = Instance("book", (400.0, 0.0, 500.0, 200.0), iscrowd=True)
    return Sample(name, folder / f"{name}.png", (500, 200), (*books, crowd))


def with_id(sample: Sample, name: str) -> Sample:
    return replace(sample, id=name)
