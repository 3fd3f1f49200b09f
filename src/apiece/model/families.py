"""The supported families of models, and everything that is particular to one of them.

The rest of the package asks for the language model, the layers of the vision tower and the features of images, and does
not know the family.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen3VLForConditionalGeneration

from apiece.config.schema import Part
from apiece.data.collate import Prefix


def part_of(name: str) -> Part:
    """The part that a parameter or a module belongs to, by its name; the same in all supported families."""
    if "visual." in name:
        return Part.MERGER if "merger" in name else Part.VISION
    return Part.COORD if "embed_tokens" in name or "lm_head" in name else Part.LANGUAGE


def count_parameters(model: nn.Module) -> dict[Part, tuple[int, int]]:
    """By part: parameters trained, and all of them, adapters included."""
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


class Family(NamedTuple):
    """One family of models."""

    name: str
    model_class: Any
    unsupported: Callable[[Any], str | None] = lambda config: None  # config -> a feature that would fail silently


def _sliding_window(config: Any) -> str | None:
    return "sliding-window attention in the language model" if config.text_config.use_sliding_window else None


# By `model_type` in `config.json`.
FAMILIES = {
    "qwen3_vl": Family("Qwen3-VL", Qwen3VLForConditionalGeneration),
    "qwen2_5_vl": Family("Qwen2.5-VL", Qwen2_5_VLForConditionalGeneration, _sliding_window),
}


# Where things are in a loaded model: the same in all families.


def language_of(model: Any) -> Any:
    """The language model, with `layers`, `norm` and `rotary_emb`."""
    return model.model.language_model


def vision_layers(model: Any) -> Sequence[nn.Module]:
    """The layers of the vision tower."""
    layers: Sequence[nn.Module] = model.model.visual.blocks
    return layers


def rope_positions(model: Any, prefix: Prefix, num_answer: int) -> Tensor:
    """Three-axis rotary positions `[3, B, P + T]` of P prefix tokens and `num_answer` text tokens after them.

    They are always passed to the model, which would otherwise silently fall back to plain positions.
    """
    positions: Tensor = model.model.get_rope_index(
        prefix.ids, prefix.image_mask.int(), image_grid_thw=prefix.grid_thw, attention_mask=prefix.mask.int()
    )[0]
    start = positions.amax(dim=(0, 2)) + 1
    answer = start[:, None] + torch.arange(num_answer, device=start.device)
    return torch.cat([positions, answer.expand(3, -1, -1)], dim=2)


class ImageFeatures(NamedTuple):
    """What a vision tower makes of a batch's images."""

    embeds_VD: Tensor  # replace the image tokens' embeddings
    deepstack: tuple[Tensor, ...] = ()  # `[V, D]` each, added to the hidden states after the first layers


def image_features(model: Any, prefix: Prefix) -> ImageFeatures:
    """Features of a batch's images."""

    def joined(features: Tensor | Sequence[Tensor]) -> Tensor:
        """The library gives them whole or split by image."""
        return features if isinstance(features, Tensor) else torch.cat(list(features))

    found = model.model.get_image_features(prefix.pixel_values, prefix.grid_thw, return_dict=True)
    deepstack = getattr(found, "deepstack_features", None) or ()
    return ImageFeatures(joined(found.pooler_output), tuple(map(joined, deepstack)))
