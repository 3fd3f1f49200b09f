"""Adapters on the tiny and the narrow model: nothing at first, plain peft reads them, merging keeps all of them."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from apiece.channels.answer import CoordRows
from apiece.config.schema import GenerateSection, LoraSection, Part
from apiece.errors import UserError
from apiece.model.extend import merge_checkpoint
from apiece.model.load import load_model, load_text_side, save_pretrained
from apiece.model.lora import adapter_weights, add_adapters, add_adapters_like, is_adapted, of_adapter, to_peft_name
from apiece.rollout.generate import LocalEngine
from toy import ALL, batch, encoder
from toy import answer_hidden as hidden_states

EVERYWHERE = (Part.VISION, Part.MERGER, Part.LANGUAGE)


@pytest.fixture(params=["tiny", "narrow"], ids=["tied", "untied"])
def checkpoint(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(f"{request.param}_checkpoint")


def adapted(checkpoint: Path, lora: LoraSection, *, trained: bool) -> tuple[Any, Any]:
    """Model and text side; `trained`: as if it had been, every adapter and coordinate row away from its start."""
    model, side = load_model(str(checkpoint), attention="sdpa"), load_text_side(str(checkpoint))
    add_adapters(model, lora, side.vocab.first_id, side.vocab.num_bins, seed=0)
    if trained:
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if of_adapter(name):
                    size = 0.1 if "magnitude" in name else 0.3
                    noise = torch.randn(parameter.shape, generator=generator)
                    parameter.add_(size * float(parameter.std().nan_to_num(1) + 0.05) * noise)
    return model.eval(), side


def logits(model: Any, side: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.lm_head(hidden_states(model, batch(side, *ALL)))


def answers(model: Any, side: Any) -> list[Any]:
    settings = GenerateSection(max_objects=3, temperature=1.0, labels=("book", "car"))  # what is drawn is seeded
    questions = [encoder(side).question(s) for s in ALL]
    return [one for drawn in LocalEngine(model, side, settings).generate_several(questions, 3) for one in drawn]


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_adapters_add_nothing_at_first(checkpoint: Path, dora: bool) -> None:
    lora = LoraSection(rank=3, dora=dora, targets=EVERYWHERE)
    model, side = adapted(checkpoint, lora, trained=False)
    torch.testing.assert_close(logits(model, side), logits(load_model(str(checkpoint)), side), rtol=0, atol=2e-5)


def test_only_the_parts_named_get_adapters(checkpoint: Path) -> None:
    model, _ = adapted(checkpoint, LoraSection(rank=2, targets=(Part.MERGER,)), trained=False)
    names = {n for n in adapter_weights(model) if ".lora_" in n}
    assert names and all("merger" in n for n in names)
    rows = {n for n in adapter_weights(model) if ".lora_" not in n}
    tied = model.config.tie_word_embeddings
    assert rows == {"model.language_model.embed_tokens.rows", *(() if tied else ("lm_head.rows",))}


def test_seeds_of_adapters(checkpoint: Path) -> None:
    lora, side = LoraSection(rank=2), load_text_side(str(checkpoint))
    made = []
    for seed in (0, 0, 1):
        model = load_model(str(checkpoint), attention="sdpa")
        state = torch.get_rng_state()
        add_adapters(model, lora, side.vocab.first_id, side.vocab.num_bins, seed)
        assert torch.equal(torch.get_rng_state(), state)
        made.append(adapter_weights(model))
    same = [all(torch.equal(made[0][n], one[n]) for n in made[0]) for one in made[1:]]
    assert same == [True, False]


def test_gradients_reach_rows_through_embedding_and_head(checkpoint: Path) -> None:
    """The gradient of the rows is that of the same rows of a whole table."""
    model, side = adapted(checkpoint, LoraSection(rank=2), trained=False)
    plain = load_model(str(checkpoint), attention="sdpa")
    given, first, bins = batch(side, *ALL), side.vocab.first_id, side.vocab.num_bins
    for one in (model, plain):
        out = one.lm_head(hidden_states(one, given)).log_softmax(-1)
        rows = CoordRows.of(one, first, bins)
        (out.square().mean() + (rows.head_KD * rows.table_KD.roll(1, 0)).mean()).backward()
    table = model.get_input_embeddings()
    expected = plain.get_input_embeddings().weight.grad[first : first + bins]
    torch.testing.assert_close(table.rows.grad, expected, rtol=1e-4, atol=1e-7)
    expected = plain.lm_head.weight.grad[first : first + bins]
    torch.testing.assert_close(model.lm_head.rows.grad, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft's own
@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_merged_and_plain_peft_say_what_the_adapters_say(tmp_path: Path, checkpoint: Path, dora: bool) -> None:
    model, side = adapted(checkpoint, LoraSection(rank=3, dora=dora, targets=EVERYWHERE), trained=True)
    base = load_model(str(checkpoint), attention="sdpa")
    save_pretrained(model, side.tokenizer, side.images.processor, tmp_path / "adapter", {"prompt_hash": "x"})
    plain = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "adapter").base_model.model.eval()
    merge_checkpoint(str(tmp_path / "adapter"), tmp_path / "merged", "float32")
    merged = load_model(str(tmp_path / "merged"), attention="sdpa")
    ours = logits(model, side)
    assert float((ours - logits(base, side)).abs().max()) > 0.1
    for other in (plain, merged):
        torch.testing.assert_close(logits(other, side), ours, rtol=1e-4, atol=1e-4)
    said = answers(model, side)
    assert any(side.vocab.first_id <= token < side.vocab.end_id for a in said for token in a.ids.tolist())
    for other in (plain, merged, load_model(str(tmp_path / "adapter"))):
        for mine, theirs in zip(said, answers(other, side), strict=True):
            assert mine.ids.tolist() == theirs.ids.tolist()
    # The coordinate rows of the merged model are the trained ones, and all other rows are the base's.
    first, last = side.vocab.first_id, side.vocab.end_id
    for after, before, rows in (
        (merged.get_input_embeddings().weight, base.get_input_embeddings().weight, model.get_input_embeddings().rows),
        (merged.lm_head.weight, base.lm_head.weight, model.lm_head.rows),
    ):
        assert torch.equal(after[first:last], rows)
        assert not torch.isclose(after[first:last], before[first:last]).all(1).any()
        assert torch.equal(after[:first], before[:first])
        assert torch.equal(after[last:], before[last:])
    assert (merged.lm_head.weight is merged.get_input_embeddings().weight) is base.config.tie_word_embeddings
    assert not is_adapted(merged)
    assert json.loads((tmp_path / "merged" / "apiece.json").read_text()) == {"prompt_hash": "x"}


def test_what_is_saved_is_small_and_complete(tmp_path: Path, checkpoint: Path) -> None:
    model, side = adapted(checkpoint, LoraSection(rank=2, dora=True), trained=True)
    save_pretrained(model, side.tokenizer, side.images.processor, tmp_path / "a")
    saved = load_file(tmp_path / "a" / "adapter_model.safetensors")
    own = {to_peft_name(name): tensor for name, tensor in adapter_weights(model).items()}
    assert saved.keys() == own.keys()
    assert all(torch.equal(tensor, own[name]) for name, tensor in saved.items())
    table = side.vocab.num_bins * model.config.text_config.hidden_size
    assert sum(t.numel() for n, t in saved.items() if "token_adapter" in n) == table * (
        1 if model.config.tie_word_embeddings else 2
    )
    assert not list((tmp_path / "a").glob("model*.safetensors"))
    again = load_model(str(checkpoint), attention="sdpa")
    add_adapters_like(again, model)
    assert adapter_weights(again).keys() == adapter_weights(model).keys()


def test_merging_in_bf16(tmp_path: Path, checkpoint: Path) -> None:
    model, side = adapted(checkpoint, LoraSection(rank=2), trained=True)
    save_pretrained(model, side.tokenizer, side.images.processor, tmp_path / "a")
    merge_checkpoint(str(tmp_path / "a"), tmp_path / "m", "bfloat16")
    merged = load_model(str(tmp_path / "m"), dtype="auto")
    assert {p.dtype for p in merged.parameters()} == {torch.bfloat16}
    rows = merged.get_input_embeddings().weight[side.vocab.first_id : side.vocab.end_id]
    assert torch.equal(rows, model.get_input_embeddings().rows.bfloat16())
    kept = {p.dtype for p in load_model(str(tmp_path / "a"), dtype="auto").parameters()}
    assert kept == {p.dtype for p in load_model(str(checkpoint), dtype="auto").parameters()}


@pytest.fixture
def saved(tmp_path: Path, tiny_checkpoint: Path) -> Path:
    model, side = adapted(tiny_checkpoint, LoraSection(rank=1), trained=True)
    save_pretrained(model, side.tokenizer, side.images.processor, tmp_path / "adapter")
    return tmp_path / "adapter"


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_another_base_is_refused_and_a_moved_one_named(tmp_path: Path, saved: Path, tiny_checkpoint: Path) -> None:
    from apiece.model.tiny import build_tiny

    build_tiny(tmp_path / "other", seed=1)
    with pytest.raises(UserError, match="other are not those that the adapter was trained on") as caught:
        merge_checkpoint(str(saved), tmp_path / "m", "float32", str(tmp_path / "other"))
    assert "--base" in str(caught.value)
    change(saved / "adapter_config.json", base_model_name_or_path=str(tmp_path / "gone"))
    with pytest.raises(UserError, match=r"the adapter's base is no longer at .*gone"):
        load_model(str(saved))
    merge_checkpoint(str(saved), tmp_path / "m", "float32", str(tiny_checkpoint))
    assert load_model(str(tmp_path / "m")) is not None


def test_what_is_no_adapter_is_not_merged(tmp_path: Path, tiny_checkpoint: Path) -> None:
    with pytest.raises(UserError, match="holds no adapter: its weights are whole already"):
        merge_checkpoint(str(tiny_checkpoint), tmp_path / "m", "float32")


def test_settings_of_an_adapter_import_nothing(saved: Path) -> None:
    change(saved / "adapter_config.json", megatron_config={"x": 1}, megatron_core="evil")
    with pytest.raises(UserError, match="names a module to import, which is never done"):
        load_model(str(saved))


def test_pickles_and_other_kinds_of_adapters_are_refused(saved: Path) -> None:
    (saved / "adapter_model.safetensors").rename(saved / "adapter_model.bin")
    (saved / "x.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"no adapter_model\.safetensors(?s:.*)pickled weights are never loaded"):
        load_model(str(saved))
    change(saved / "adapter_config.json", peft_type="PREFIX_TUNING")
    with pytest.raises(UserError, match="expected an adapter of type LORA, found PREFIX_TUNING"):
        load_model(str(saved))
    (saved / "adapter_config.json").write_text("{")
    with pytest.raises(UserError, match=r"adapter_config\.json: cannot be read"):
        load_model(str(saved))
