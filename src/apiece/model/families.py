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

from apiece.config.schema import Part
from apiece.data.collate import Prefix

# The parts of a model by the names of its parameters, and how many of each are trained.


def part_of(name: str) -> Part:
    """The part that a parameter or a module belongs to, by its name; alike in all supported families."""
    if "visual." in name:
        return Part.MERGER if "merger" in name else Part.VISION
    return Part.COORD if "embed_tokens" in name or "lm_head" in name else Part.LANGUAGE


def count_parameters(model: nn.Module) -> dict[Part, tuple[int, int]]:
    """By part: how many parameters are trained, and how many there are in all, adapters included."""
    counts = dict.fromkeys(Part, (0, 0))
    for name, parameter in model.named_parameters():
        part, count = part_of(name), parameter.numel()
        trained, total = counts[part]
        counts[part] = (trained + count * parameter.requires_grad, total + count)
    return counts


def describe_parameters(model: nn.Module) -> str:
    """One line: `trained: language 1.2 of 1720.6 M, coord ...; in all ... (0.2 %)`."""
    counts = count_parameters(model)
    trained, total = (sum(pair[i] for pair in counts.values()) for i in (0, 1))
    parts = [f"{part} {some / 1e6:.2f} of {every / 1e6:.2f} M" for part, (some, every) in counts.items() if some]
    share = 100 * trained / max(total, 1)
    return f"trained: {', '.join(parts)}; in all {trained / 1e6:.2f} of {total / 1e6:.2f} M ({share:.3g} %)"


# Rotary positions of a batch: always handed to the model, never left for it to find.
#
# Shapes: B samples, P prefix tokens, T answer tokens.


def rope_positions(model: Any, prefix: Prefix, num_answer: int) -> Tensor:
    """Three-axis rotary positions `[3, B, P + T]` of the prefix and `num_answer` text tokens behind it.

    They are always passed: the model drops to plain positions silently where it is left to find them by itself.
    """
    positions = family_of(model).rope_positions(model, prefix)
    start = positions.amax(dim=(0, 2)) + 1
    answer = start[:, None] + torch.arange(num_answer, device=start.device)
    return torch.cat([positions, answer.expand(3, -1, -1)], dim=2)


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
