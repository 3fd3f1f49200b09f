"""The embedded default: small, loaded by the ordinary code, and frugal with tokens."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch

import toy
from apiece.codec import render_text
from apiece.codec.vocab import encode_plain
from apiece.errors import UserError
from apiece.model.find import resolve_checkpoint
from apiece.model.load import load_model, load_text_side
from apiece.model.prompt import COCO_80
from apiece.model.tiny import build_tiny
from apiece_scenes.sprites import KINDS

SCENE_NAMES = sorted({"book", *KINDS})


def test_it_is_small(tiny_model, tiny_checkpoint) -> None:
    assert 2e6 <= sum(p.numel() for p in tiny_model.parameters()) <= 4e6
    assert sum(f.stat().st_size for f in tiny_checkpoint.iterdir()) < 17e6  # float32; 8 MB at half the precision
    assert not tiny_model.training
    assert tiny_model.dtype == torch.float32


def test_the_seed_decides_the_weights(tiny_model, tmp_path) -> None:
    count = build_tiny(tmp_path / "other", seed=1)
    assert count == sum(p.numel() for p in tiny_model.parameters())
    other = load_model(str(tmp_path / "other"), attention="sdpa").state_dict()
    mine = tiny_model.state_dict()
    name = "model.language_model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(other[name], mine[name])
    first = load_text_side(str(tmp_path / "other")).vocab.first_id
    embed = "model.language_model.embed_tokens.weight"
    scale = other[embed][:first].std() / mine[embed][:first].std()
    torch.testing.assert_close(other[embed][first:] / scale, mine[embed][first:], rtol=0.05, atol=0.005)


def test_coordinate_rows_are_ordinal(tiny_model, tiny_side) -> None:
    table = tiny_model.get_input_embeddings().weight.detach()
    rows = table[tiny_side.vocab.first_id : tiny_side.vocab.end_id]
    assert tiny_model.get_output_embeddings().weight.data_ptr() == table.data_ptr()
    gaps = torch.cdist(rows, rows)
    assert gaps.diagonal(1).max() < gaps.diagonal(100).min()
    assert float(rows.std()) == pytest.approx(float(table[: tiny_side.vocab.first_id].std()), rel=0.05)


def test_an_object_costs_about_ten_tokens(tiny_side) -> None:
    for desc in SCENE_NAMES:
        one, two = (len(encode_plain(tiny_side.tokenizer, render_text([(desc, (1, 2, 3, 4))] * n))) for n in (1, 2))
        assert two - one <= 10, desc
    assert len(encode_plain(tiny_side.tokenizer, render_text([]))) <= 3


@pytest.mark.parametrize("desc", SCENE_NAMES)
def test_a_name_of_the_scenes_is_one_token(tiny_side, desc) -> None:
    assert len(tiny_side.renderer.piece(desc)) == 1


def test_every_word_of_the_coco_names_is_one_token(tiny_side) -> None:
    for desc in COCO_80:
        assert len(tiny_side.renderer.piece(desc)) == len(desc.split()), desc


def test_any_text_survives_the_tokenizer(tiny_side) -> None:
    text = 'Ünïcode ☃ 😀 "quotes"\n\ttabs  spaces 0123'
    assert tiny_side.tokenizer.decode(encode_plain(tiny_side.tokenizer, text)) == text


def test_it_runs_on_an_image(tiny_model, tiny_side) -> None:
    batch = toy.batch(tiny_side, toy.TWO)
    out = tiny_model(
        input_ids=batch.prefix.ids,
        pixel_values=batch.prefix.pixel_values,
        image_grid_thw=batch.prefix.grid_thw,
        mm_token_type_ids=batch.prefix.image_mask.int(),
    )
    assert out.logits.shape[-1] == tiny_side.vocab.end_id == tiny_model.config.text_config.vocab_size
    assert torch.isfinite(out.logits).all()


def test_generation_ends_at_the_end_token(tiny_model, tiny_side) -> None:
    assert tiny_model.generation_config.eos_token_id == tiny_side.tokenizer.eos_token_id
    assert tiny_model.generation_config.pad_token_id == tiny_side.tokenizer.pad_token_id
    assert tiny_side.tokenizer.pad_token_id != tiny_side.tokenizer.eos_token_id


# Loading what is not there.


def copy_without(tiny_checkpoint, out, *names):
    out.mkdir()
    for file in tiny_checkpoint.iterdir():
        if file.name not in names:
            (out / file.name).symlink_to(file)
    return str(out)


@pytest.mark.parametrize("name", ["tokenizer.json", "preprocessor_config.json"])
def test_a_missing_file_is_named(tiny_checkpoint, tmp_path, name) -> None:
    broken = copy_without(tiny_checkpoint, tmp_path / "broken", name)
    with pytest.raises(UserError, match=rf"broken: {name} is missing from the checkpoint\n  fix: copy it from the"):
        load_text_side(broken)


def test_weights_must_be_safetensors(tiny_checkpoint, tmp_path) -> None:
    broken = copy_without(tiny_checkpoint, tmp_path / "broken", "model.safetensors")
    with pytest.raises(UserError, match=r"the checkpoint has no safetensors weights\n  fix: .*pickled weights"):
        load_model(broken)


@pytest.mark.parametrize(("card", "message"), [("{", "broken JSON"), ("[]", "expected .*a JSON object.*found a list")])
def test_a_broken_card_is_told(tiny_checkpoint, tmp_path, card, message) -> None:
    broken = copy_without(tiny_checkpoint, tmp_path / "broken", "apiece.json")
    (tmp_path / "broken" / "apiece.json").write_text(card)
    with pytest.raises(UserError, match=rf"apiece\.json: {message}"):
        load_text_side(broken)


def test_the_card_is_optional(tiny_checkpoint, tmp_path) -> None:
    assert load_text_side(copy_without(tiny_checkpoint, tmp_path / "bare", "apiece.json")).card == {}


def test_a_run_folder_stands_for_its_newest_whole_checkpoint(tmp_path) -> None:
    for step in ("step_000100", "step_000200", "step_000300"):
        (tmp_path / "checkpoints" / step / "model").mkdir(parents=True)
    for step in ("step_000100", "step_000200"):
        (tmp_path / "checkpoints" / step / "model" / "config.json").write_text("{}")
    assert resolve_checkpoint(str(tmp_path)) == tmp_path / "checkpoints" / "step_000200" / "model"


def test_the_embedded_tokenizer_is_the_one_trained_by_the_tool(tmp_path: Path) -> None:
    tool = runpy.run_path(str(Path(__file__).parents[2] / "tools" / "tiny_tokenizer.py"))
    tool["train_tiny_tokenizer"]().save_pretrained(tmp_path)
    for name in ("tokenizer.json", "chat_template.jinja"):
        assert (tmp_path / name).read_bytes() == (resolve_checkpoint("tiny") / name).read_bytes(), name
