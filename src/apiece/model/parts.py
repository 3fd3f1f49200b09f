"""The parts of a model by the names of its parameters, and how many of each are trained."""

from __future__ import annotations

from torch import nn

from apiece.config.lora import Part


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
