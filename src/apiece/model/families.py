"""The families of models that are supported: what each is called, and where in it things are.

Everything that is particular to one stands here. The rest of the package asks for the language model, the layers of the
vision tower and the features of images, and does not know whose they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLForConditionalGeneration,
)

from apiece.data.collate import Prefix


@dataclass(frozen=True, slots=True)
class ImageFeatures:
    """What a vision tower makes of a batch's images.

    Attributes:
        embeds_VD: In place of the image tokens' embeddings.
        deepstack: `[V, D]` each, added to the hidden states behind the first layers; empty where a family has none.
    """

    embeds_VD: Tensor
    deepstack: tuple[Tensor, ...] = ()


@dataclass(frozen=True, slots=True)
class Family:
    """One family of models.

    Attributes:
        name: For people.
        model_class: Loads its checkpoints.
        language: Model -> language model, with `layers`, `norm` and `rotary_emb`.
        vision_layers: Model -> layers of the vision tower.
        image_features: Model, prefix -> features of its images.
        rope_positions: Model, prefix -> rotary positions `[3, B, P]`.
        unsupported: Config -> what of it would go wrong silently, or `None`.
    """

    name: str
    model_class: Any
    language: Callable[[Any], Any]
    vision_layers: Callable[[Any], Sequence[nn.Module]]
    image_features: Callable[[Any, Prefix], ImageFeatures]
    rope_positions: Callable[[Any, Prefix], Tensor]
    unsupported: Callable[[Any], str | None]


def _joined(features: Tensor | Sequence[Tensor]) -> Tensor:
    """Features of all images in one table, `[V, D]`; the library gives them whole or split by image."""
    return features if isinstance(features, Tensor) else torch.cat(list(features))


def _features(model: Any, prefix: Prefix) -> ImageFeatures:
    found = model.model.get_image_features(prefix.pixel_values, prefix.grid_thw, return_dict=True)
    return ImageFeatures(_joined(found.pooler_output))


def _features_with_deepstack(model: Any, prefix: Prefix) -> ImageFeatures:
    found = model.model.get_image_features(prefix.pixel_values, prefix.grid_thw, return_dict=True)
    return ImageFeatures(_joined(found.pooler_output), tuple(_joined(f) for f in found.deepstack_features))


def _three_axes(model: Any, prefix: Prefix) -> Tensor:
    positions: Tensor = model.model.get_rope_index(
        prefix.ids, prefix.image_mask.int(), image_grid_thw=prefix.grid_thw, attention_mask=prefix.mask.int()
    )[0]
    return positions


def _sliding_window(config: Any) -> str | None:
    return "sliding-window attention in the language model" if config.text_config.use_sliding_window else None


FAMILIES = {
    "qwen3_vl": Family(
        "Qwen3-VL",
        Qwen3VLForConditionalGeneration,
        lambda model: model.model.language_model,
        lambda model: model.model.visual.blocks,
        _features_with_deepstack,
        _three_axes,
        lambda config: None,
    ),
    "qwen2_5_vl": Family(
        "Qwen2.5-VL",
        Qwen2_5_VLForConditionalGeneration,
        lambda model: model.model.language_model,
        lambda model: model.model.visual.blocks,
        _features,
        _three_axes,
        _sliding_window,
    ),
}
"""By `model_type` in `config.json`."""


def family_of(model: Any) -> Family:
    """The family of a loaded model."""
    return FAMILIES[model.config.model_type]


def language_of(model: Any) -> Any:
    """The language model of a loaded model."""
    return family_of(model).language(model)
