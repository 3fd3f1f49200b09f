"""The second family: extended, run, answered and trained like the first; others are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_forward import (  # noqa: F401  what holds for the first family holds for this one
    test_a_ragged_batch_is_each_sample_alone,
    test_losses_read_the_right_rows,
    test_positions_are_the_models_own,
    test_row_t_predicts_answer_token_t_as_in_a_plain_forward,
)

from apiece.config.schema import GenerateSection, LoraSection, Part
from apiece.errors import UserError
from apiece.model.extend import extend_checkpoint
from apiece.model.families import FAMILIES
from apiece.model.load import load_model, load_text_side
from apiece.model.lora import adapter_weights, add_adapters
from apiece.rollout.generate import LocalEngine
from narrow import without_coords, write_narrow
from toy import ALL, encoder


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A narrow random Qwen2.5-VL with coordinate tokens."""
    folder = tmp_path_factory.mktemp("qwen2_5")
    tokenizer = without_coords(tiny_checkpoint, folder)
    write_narrow(tokenizer, len(tokenizer), False, folder / "source", family="qwen2_5_vl")
    done = extend_checkpoint(str(folder / "source"), folder / "checkpoint")
    assert not done.tied
    return folder / "checkpoint"


@pytest.fixture(scope="module")
def model_and_side(checkpoint: Path) -> tuple[Any, Any]:
    return load_model(str(checkpoint), attention="sdpa"), load_text_side(str(checkpoint))


def test_it_is_what_it_says(model_and_side: tuple[Any, Any]) -> None:
    model, _ = model_and_side
    assert type(model).__name__ == "Qwen2_5_VLForConditionalGeneration"
    assert isinstance(model, FAMILIES["qwen2_5_vl"].model_class)


def test_answers_are_the_same_token_by_token_and_skipping(model_and_side: tuple[Any, Any]) -> None:
    model, side = model_and_side
    settings = GenerateSection(max_objects=2, temperature=1.0, labels=("book", "car"))
    questions = [encoder(side).question(s) for s in ALL]
    fast = LocalEngine(model, side, settings).generate(questions)
    slow = LocalEngine(model, side, settings, skip=False, refill=False).generate(questions)
    assert [r.ids.tolist() for r in fast] == [r.ids.tolist() for r in slow]
    for one, two in zip(fast, slow, strict=True):
        torch.testing.assert_close(torch.tensor(one.logprobs), torch.tensor(two.logprobs), atol=1e-4, rtol=1e-4)


def test_adapters_find_its_layers(checkpoint: Path) -> None:
    model, side = load_model(str(checkpoint), attention="sdpa"), load_text_side(str(checkpoint))
    add_adapters(model, LoraSection(rank=1, targets=tuple(Part)[:3]), side.vocab.first_id, side.vocab.num_bins, 0)
    names = {name.partition(".lora_")[0].rpartition(".")[2] for name in adapter_weights(model) if ".lora_" in name}
    assert names == {*"qkv proj q_proj k_proj v_proj o_proj gate_proj up_proj down_proj 0 2".split()}


def change(folder: Path, out: Path, **values: Any) -> Path:
    out.mkdir()
    (out / "config.json").write_text(json.dumps(json.loads((folder / "config.json").read_text()) | values))
    return out


def test_what_would_go_wrong_silently_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    text = json.loads((checkpoint / "config.json").read_text())["text_config"] | {"use_sliding_window": True}
    with pytest.raises(UserError, match="sliding-window attention in the language model is not supported"):
        load_model(str(change(checkpoint, tmp_path / "sliding", text_config=text)))


def test_another_family_is_refused_with_the_names_of_these(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        load_model(str(change(checkpoint, tmp_path / "other", model_type="llava", architectures=[])))
    assert "expected a model of type qwen3_vl, qwen2_5_vl, found 'llava'" in str(caught.value)
    assert "start from a checkpoint of Qwen3-VL or Qwen2.5-VL" in str(caught.value)
