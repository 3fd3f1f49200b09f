"""Shapes: what is refused, and parameters of published sizes and of the embedded model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from published import NAMES, OTHER_NAMES, flat_config, published_config, write_published

from apiece.config.schema import Part
from apiece.errors import UserError
from apiece.model.families import count_parameters
from apiece.model.load import load_model
from apiece.planning.shapes import ModelShape

# Vision tower, mergers, language model, embedding and head.
PUBLISHED = {
    "2b": (306_242_560, 100_714_496, 1_409_410_048, 311_164_928),
    "4b": (306_242_560, 109_105_152, 3_633_511_936, 388_956_160),
    "8b": (415_891_440, 160_496_896, 6_946_075_648, 1_244_659_712),
    "2.5-3b": (631_975_680, 36_708_608, 2_774_773_760, 311_164_928),
    "2.5-7b": (631_975_680, 44_574_464, 6_525_621_760, 1_089_994_752),
}


@pytest.mark.parametrize("name", [*NAMES, *OTHER_NAMES])
def test_parameters_of_published_sizes(name: str) -> None:
    assert tuple(ModelShape.of(published_config(name)).parameters[part] for part in Part) == PUBLISHED[name]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "llava"}, "expected a model of type qwen3_vl, qwen2_5_vl, found 'llava'"),
        ({"text_config": {"hidden_size": "wide"}}, "config.json"),
        ({"vision_config": {"depth": -1.5}}, "config.json"),
    ],
)
def test_what_is_no_model_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**published_config("2b").to_dict(), **change}))
    with pytest.raises(UserError, match=message):
        ModelShape.read(tmp_path)


def test_a_config_without_a_section_for_the_language_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(flat_config("2.5-7b")))
    shape, published = ModelShape.read(tmp_path), ModelShape.of(published_config("2.5-7b"))
    assert shape.parameters == published.parameters
    assert shape.matrices == published.matrices
    assert (shape.query_width, shape.key_width, shape.windows) == (3584, 512, (8, 4))


def test_parameters_of_loaded_models(model_and_side: tuple[Any, Any]) -> None:
    model, _ = model_and_side
    shape = ModelShape.of(model.config)
    assert shape.parameters == {part: count for part, (_, count) in count_parameters(model).items()}
    tables = 1 if model.config.tie_word_embeddings else 2
    assert shape.coordinate_rows == 1000 * model.config.text_config.hidden_size * tables


def test_weights_are_not_needed(tmp_path: Path, tiny_checkpoint: Path) -> None:
    write_published("2b", tmp_path)
    assert ModelShape.read(tmp_path).text.vocab_size == 151_936
    assert ModelShape.read(tmp_path, rows=152_704).parameters[Part.COORD] == 152_704 * 2048
    whole = count_parameters(load_model(str(tiny_checkpoint)))
    assert ModelShape.read(tiny_checkpoint).parameters == {part: count for part, (_, count) in whole.items()}
