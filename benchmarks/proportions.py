"""Random weights in the proportions of Qwen3-VL 2B, but narrow, and batches of random images and answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import Qwen2_5_VLConfig, Qwen3VLConfig

from apiece.data.collate import Batch, EncodedSample, collate
from apiece.model.families import FAMILIES
from apiece.types import Encoded, Role, Slots

BINS, IMAGE_ID = 1000, 11
PROMPT_TEXT = 40


@dataclass(frozen=True)
class Proportions:
    """Sizes of a narrow model.

    Attributes:
        width: Of the language model; its MLP is three times as wide, as the 2B model's.
        layers: Of the language model.
        heads: Of queries; half as many of keys.
        vision_width: Of the tower; its MLP is four times as wide.
        depth: Of the tower.
        vocabulary: Rows of the table, the coordinate tokens last.
        deepstack: Blocks of the tower that are handed on as well; of Qwen2.5-VL, those that see the whole image.
        family: `qwen3_vl` or `qwen2_5_vl`.
    """

    width: int = 256
    layers: int = 7
    heads: int = 4
    vision_width: int = 96
    depth: int = 3
    vocabulary: int = 15_000
    deepstack: tuple[int, ...] = (0, 1)
    family: str = "qwen3_vl"

    @property
    def first_id(self) -> int:
        """Id of the coordinate token of bin 0."""
        return self.vocabulary - BINS

    def config(self) -> Any:
        """As the library takes it."""
        text: dict[str, Any] = {
            "vocab_size": self.vocabulary,
            "hidden_size": self.width,
            "intermediate_size": 3 * self.width,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.heads // 2,
            "head_dim": 64,
            "max_position_embeddings": 8192,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [12, 10, 10],
                "mrope_interleaved": True,
            },
            "tie_word_embeddings": True,
        }
        vision: dict[str, Any] = {
            "depth": self.depth,
            "hidden_size": self.vision_width,
            "intermediate_size": 4 * self.vision_width,
            "num_heads": self.vision_width // 32,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "out_hidden_size": self.width,
            "num_position_embeddings": 48**2,
            "deepstack_visual_indexes": list(self.deepstack),
        }
        config_class: Any = Qwen3VLConfig
        if self.family == "qwen2_5_vl":
            config_class = Qwen2_5_VLConfig
            del text["head_dim"], text["rope_parameters"]["mrope_interleaved"], vision["num_position_embeddings"]
            vision |= {"window_size": 64, "fullatt_block_indexes": vision.pop("deepstack_visual_indexes")}
        return config_class(
            text_config=text, vision_config=vision, image_token_id=IMAGE_ID, video_token_id=12,
            vision_start_token_id=13, vision_end_token_id=14, tie_word_embeddings=True,
        )  # fmt: skip

    def model(self, device: torch.device, attention: str = "sdpa") -> Any:
        """Random weights, in training mode."""
        torch.manual_seed(0)
        model = FAMILIES[self.family].model_class._from_config(self.config(), attn_implementation=attention)
        return model.to(device).train()


def random_batch(prefixes: Sequence[int], answers: Sequence[int], shape: Any, first_id: int) -> Batch:
    """Answers in which an object costs 25 tokens, as with Qwen's tokenizer: 2 of name, 4 coordinates, 19 of syntax.

    Args:
        prefixes: Tokens of image and prompt, for each sample.
        answers: Tokens of the answer, for each sample.
        shape: `config.vision_config` of the model.
        first_id: Id of the coordinate token of bin 0.
    """
    rng = np.random.default_rng(0)
    pairs = zip(prefixes, answers, strict=True)
    samples = [_sample(str(i), p, a, shape, first_id, rng) for i, (p, a) in enumerate(pairs)]
    return collate(samples, 0, IMAGE_ID)


def _sample(name: str, prefix: int, answer: int, shape: Any, first_id: int, rng: np.random.Generator) -> EncodedSample:
    rows = max(r for r in range(1, 33) if (prefix - PROMPT_TEXT) % r == 0)
    columns, merge = (prefix - PROMPT_TEXT) // rows, shape.spatial_merge_size
    record = [Role.STRUCT] * 6 + [Role.DESC] * 2 + [Role.STRUCT] * 5 + [Role.COORD, Role.STRUCT, Role.STRUCT] * 4
    objects = (answer - 4) // len(record)
    tail = answer - 1 - objects * len(record)
    roles = np.array([*(record * objects), *[Role.STRUCT] * tail, Role.EOS], dtype=np.int8)
    at = np.flatnonzero(roles == Role.COORD)
    ids = rng.integers(100, min(first_id, 600), answer)
    bins = np.sort(rng.integers(0, BINS, (objects, 2, 2)), axis=1).reshape(-1)
    bins += np.tile([0, 0, 1, 1], objects) * (bins < BINS - 1)
    ids[at] = first_id + bins
    prompt = np.full(prefix, 50)
    prompt[5 : 5 + rows * columns] = IMAGE_ID
    values = shape.in_channels * shape.temporal_patch_size * shape.patch_size**2
    pixels = rng.standard_normal((merge**2 * rows * columns, values)).astype(np.float32)
    encoded = Encoded(ids, roles, Slots(at, np.arange(len(at)) % 4, np.arange(len(at)) // 4, bins))
    return EncodedSample(name, prompt, pixels, (1, merge * rows, merge * columns), encoded)
