"""Samples of noise images, for tests that run the tiny model; nothing is read from a disk."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from apiece.channels.a_soft_context import SoftContext
from apiece.config.schema import Stage2Section
from apiece.data.collate import Batch, EncodedSample, collate
from apiece.losses.compose import Objective
from apiece.model.encode import Augmentation, PromptTokens, SampleEncoder
from apiece.model.prefix import first_pass
from apiece.types import BoxXYXY, Instance, Sample

PLAIN = Augmentation()


def noise(path: Path) -> Image.Image:
    """The image that a path such as `a_48x72.png` stands for: noise drawn from the name, of the size in it."""
    width, height = (int(side) for side in path.stem.rpartition("_")[2].split("x"))
    rng = np.random.default_rng(zlib.crc32(path.name.encode()))
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def sample(name: str, size_wh: tuple[int, int], *objects: tuple[str, BoxXYXY]) -> Sample:
    width, height = size_wh
    instances = tuple(Instance(desc, box) for desc, box in objects)
    return Sample(name, Path(f"{name}_{width}x{height}.png"), size_wh, instances)


# Different prefix and answer lengths; one without objects.
NONE = sample("none", (24, 24))
ONE = sample("one", (72, 48), ("person", (3, 4, 30, 40)))
THREE = sample(
    "three", (48, 48), ("book", (0, 0, 12, 48)), ("book", (13, 0, 24, 48)), ("traffic light", (30, 5, 48, 20))
)
TWO = sample("two", (96, 72), ("car", (10, 21, 90, 61)), ("zebra", (1.5, 1, 30, 71)))
ALL = (NONE, ONE, THREE, TWO)


def encoder(side: Any, instruction: str = "Detect.") -> SampleEncoder:
    return SampleEncoder(side, PromptTokens.of(side, instruction), max_length=8192, load=noise)


def encode(side: Any, *samples: Sample) -> list[EncodedSample]:
    return [encoder(side).training(s, PLAIN, 0) for s in samples]


def batch(side: Any, *samples: Sample) -> Batch:
    return collate(encode(side, *samples), side.tokenizer.pad_token_id, side.image_token_id)


def answer_hidden(model: Any, batch: Batch) -> Tensor:
    """Hidden states `[B, T, D]` of the teacher-forced pass: row t predicts answer token t."""
    return first_pass(model, batch).hidden_BTD


def teacher_forced(model: Any, objective: Objective) -> SoftContext:
    """Stage-1's step: one pass with ground-truth tokens in the input."""
    return SoftContext(model, objective, Stage2Section(n_softctx_iter=1))
