"""Shapes from config.json: what is refused, and that parameters are those of the model that the library builds."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from published import NAMES, OTHER_NAMES, flat_config, published_config, write_published

from apiece.config.schema import Part
from apiece.errors import UserError
from apiece.model.families import FAMILIES, part_of
from apiece.model.load import load_model
from apiece.planning.shapes import ModelShape


def counted(model: Any) -> dict[Part, int]:
    """Parameters by part, from the modules."""
    counts: Counter[Part] = Counter()
    for name, parameter in model.named_parameters():
        counts[part_of(name)] += parameter.numel()
    return dict(counts)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "llava"}, "expected a model of type qwen3_vl or qwen2_5_vl, found 'llava'"),
        ({"text_config": None}, "text_config is missing"),
        ({"vision_config": {}}, r"vision_config.depth: expected a whole number from 1, found None"),
        ({"text_config": {"num_attention_heads": "16"}}, "num_attention_heads: expected a whole number from 1"),
        ({"text_config": {"num_attention_heads": True}}, "num_attention_heads: expected a whole number from 1"),
        ({"text_config": {"num_attention_heads": 0}}, "num_attention_heads: expected a whole number from 1"),
    ],
)
def test_what_is_no_model_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ModelShape.of({**published_config("2b").to_dict(), **change})


@pytest.mark.parametrize("name", [*NAMES, *OTHER_NAMES])
def test_parameters_of_published_sizes(name: str) -> None:
    config = published_config(name)
    with torch.device("meta"):
        model = FAMILIES[config.model_type].model_class(config)
    shape = ModelShape.of(config.to_dict())
    assert shape.parameters() == counted(model)
    matrices = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear))
    assert sum(shape.matrices().values()) == matrices


@pytest.mark.parametrize(("name", "key"), [("2b", "deepstack_visual_indexes"), ("2.5-3b", "fullatt_block_indexes")])
def test_blocks_that_are_no_list_are_refused(name: str, key: str) -> None:
    config = published_config(name).to_dict()
    config["vision_config"][key] = 3
    with pytest.raises(UserError, match=f"vision_config.{key}: expected a list, found 3"):
        ModelShape.of(config)


def test_a_config_without_a_section_for_the_language_model() -> None:
    flat = flat_config("2.5-7b")
    assert ModelShape.of(flat) == ModelShape.of(published_config("2.5-7b").to_dict())
    with pytest.raises(UserError, match=r"qwen2_5_vl.hidden_size: expected a whole number from 1, found None"):
        ModelShape.of({k: v for k, v in flat.items() if k != "hidden_size"})


def test_parameters_of_loaded_models(model_and_side: tuple[Any, Any]) -> None:
    model, _ = model_and_side
    shape = ModelShape.of(model.config.to_dict())
    assert shape.parameters() == counted(model)
    tables = 1 if model.config.tie_word_embeddings else 2
    assert shape.coordinate_rows() == 1000 * model.config.text_config.hidden_size * tables


def test_weights_are_not_needed(tmp_path: Path, tiny_checkpoint: Path) -> None:
    config = write_published("2b", tmp_path)
    assert ModelShape.read(tmp_path) == ModelShape.of(config)
    assert ModelShape.read(tmp_path).with_rows(152704).language.vocabulary == 152704
    assert ModelShape.read(tiny_checkpoint).parameters() == counted(load_model(str(tiny_checkpoint)))
