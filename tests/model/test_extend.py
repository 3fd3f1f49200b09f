"""Adding coordinate tokens: old weights bit-equal, new rows ordinal, and the result loads like any checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, Qwen3VLForConditionalGeneration

from apiece.codec import parse_ids
from apiece.errors import UserError
from apiece.model.extend import extend_checkpoint
from apiece.model.load import load_model, load_text_side
from apiece.model.prompt import COCO_80
from narrow import WIDTH, without_coords, write_narrow
from planning.published import NAMES, published_config


def check_extended(source: Path, out: Path, used: int, rows_before: int, rows_after: int, tied: bool) -> None:
    """Compare a checkpoint with its extension.

    Args:
        used: Entries of the source's tokenizer; its other rows are padding.
    """
    old = load_model(str(source), attention="sdpa", dtype="auto").state_dict()
    model = load_model(str(out), attention="sdpa", dtype="auto")
    new = model.state_dict()
    assert old.keys() == new.keys()
    tables = ["model.language_model.embed_tokens.weight", "lm_head.weight"]
    for name, before in old.items():
        assert new[name].dtype == before.dtype == torch.bfloat16, name
        if name not in tables:
            assert torch.equal(new[name], before), name
    assert torch.equal(new[tables[0]], new[tables[1]]) is tied
    for name in tables:
        before, after = old[name], new[name]
        assert before.shape == (rows_before, WIDTH)
        assert after.shape == (rows_after, WIDTH)
        assert torch.equal(after[:used], before[:used]), name
        # Padding behind the coordinate tokens stays what it was.
        assert torch.equal(after[used + 1000 : rows_before], before[used + 1000 :]), name
        check_rows(after[used : used + 1000].float(), before[:used].float())
    assert model.config.text_config.vocab_size == rows_after
    assert model.config.tie_word_embeddings is tied
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) is tied


def check_rows(rows: torch.Tensor, existing: torch.Tensor) -> None:
    """Coordinate rows are as spread out as the old ones around the same mean, distinct, and near their neighbours."""
    spread = float((existing - existing.mean(0)).std())
    assert float((rows - existing.mean(0)).pow(2).mean().sqrt()) == pytest.approx(spread, rel=0.05)
    gaps = torch.cdist(rows, rows)
    assert float((gaps + torch.eye(len(rows)) * 9).min()) > 0
    assert float(gaps.diagonal(1).max()) < float(gaps.diagonal(100).min())


def check_side(source: Path, out: Path, used: int) -> None:
    """The tokenizer is the source's with the coordinate tokens behind; an answer can be written and read."""
    before, side = AutoTokenizer.from_pretrained(source), load_text_side(str(out))
    assert len(before) == used
    assert side.vocab.first_id == used
    assert len(side.tokenizer) == used + 1000
    assert before.get_vocab().items() <= side.tokenizer.get_vocab().items()
    assert side.tokenizer.chat_template == before.chat_template
    assert side.tokenizer.eos_token_id == before.eos_token_id
    objects = [(desc, (0, 1, 998, 999)) for desc in COCO_80]
    for desc in COCO_80:
        side.renderer.check_desc(desc)
    read = parse_ids(side.renderer.render(objects).ids.tolist(), side.tokenizer, side.vocab)
    assert [(o.desc, o.bins_xyxy) for o in read.objects] == objects


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("spare", [0, 100, 1200], ids=["unpadded", "padded", "room for all"])
def test_extend(tiny_checkpoint, tmp_path, tied, spare) -> None:
    tokenizer = without_coords(tiny_checkpoint, tmp_path)
    source, out = tmp_path / "source", tmp_path / "out"
    used = len(tokenizer)
    write_narrow(tokenizer, used + spare, tied, source)
    done = extend_checkpoint(str(source), out)
    rows_after = max(used + spare, -(-(used + 1000) // 128) * 128)
    assert (done.out, done.first_id, done.rows_before, done.rows_after, done.tied) == (
        out,
        used,
        used + spare,
        rows_after,
        tied,
    )
    check_extended(source, out, used, used + spare, rows_after, tied)
    check_side(source, out, used)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_extend_weights_in_several_files(tiny_checkpoint, tmp_path, tied) -> None:
    tokenizer = without_coords(tiny_checkpoint, tmp_path)
    source, out, used = tmp_path / "source", tmp_path / "out", len(tokenizer)
    write_narrow(tokenizer, used, tied, source)
    model = load_model(str(source), dtype="auto")
    (source / "model.safetensors").unlink()
    model.save_pretrained(source, max_shard_size="40KB")
    shards = sorted(source.glob("model-*.safetensors"))
    assert len(shards) > 2
    extend_checkpoint(str(source), out)
    check_extended(source, out, used, used, -(-(used + 1000) // 128) * 128, tied)
    shards[1].unlink()
    with pytest.raises(UserError, match=f"1 of {len(shards)} files of weights are missing: {shards[1].name}"):
        extend_checkpoint(str(source), tmp_path / "again")
    (source / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(UserError, match="is no index of weights"):
        extend_checkpoint(str(source), tmp_path / "again")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_extend_the_published_shapes(tiny_checkpoint, tmp_path, name) -> None:
    """Layers, heads, deep-stack levels, tied or separate tables as published; only widths are narrowed."""
    tokenizer = without_coords(tiny_checkpoint, tmp_path)
    source, out, used = tmp_path / "source", tmp_path / "out", len(tokenizer)
    write_narrow(tokenizer, used, True, source)
    config = published_config(name)
    text, vision = config.text_config, config.vision_config
    text.vocab_size, text.hidden_size, text.intermediate_size, text.head_dim = used, WIDTH, 16, 8
    text.rope_parameters = text.rope_parameters | {"mrope_section": [2, 1, 1]}
    vision.hidden_size, vision.intermediate_size, vision.num_heads, vision.out_hidden_size = 16, 16, 2, WIDTH
    model = Qwen3VLForConditionalGeneration(config).to(torch.bfloat16)
    (source / "model.safetensors").unlink()
    model.save_pretrained(source)
    done = extend_checkpoint(str(source), out)
    assert done.tied is (name != "8b")
    check_extended(source, out, used, used, done.rows_after, done.tied)
    again = load_model(str(out)).config
    assert (again.text_config.num_hidden_layers, again.vision_config.depth) == (text.num_hidden_layers, vision.depth)
    assert again.vision_config.deepstack_visual_indexes == vision.deepstack_visual_indexes


@pytest.mark.real_data
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.slow
def test_extend_with_the_real_tokenizer(shared_data, tmp_path, tied) -> None:
    tokenizer = AutoTokenizer.from_pretrained(shared_data / "qwen3-tokenizer")
    source, out = tmp_path / "source", tmp_path / "out"
    write_narrow(tokenizer, 151_936, tied, source)  # as published: 151,669 entries, padded
    done = extend_checkpoint(str(source), out)
    assert (done.first_id, done.rows_before, done.rows_after, done.tied) == (151_669, 151_936, 152_704, tied)
    check_extended(source, out, 151_669, 151_936, 152_704, tied)
    check_side(source, out, 151_669)


def test_what_exists_is_not_overwritten(tiny_checkpoint, tmp_path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError) as caught:
        extend_checkpoint(str(tiny_checkpoint), tmp_path / "out")
    assert str(caught.value) == (
        f"{tmp_path / 'out'}: the output exists already and is not overwritten\n  fix: choose a new folder"
    )


def test_extended_once_is_enough(tiny_checkpoint, tmp_path) -> None:
    with pytest.raises(UserError) as caught:
        extend_checkpoint(str(tiny_checkpoint), tmp_path / "out")
    assert str(caught.value) == (
        f"{tiny_checkpoint}: the checkpoint has coordinate tokens already\n  fix: use it as it is"
    )
    assert not (tmp_path / "out").exists()


def test_another_model_is_refused(tmp_path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    with pytest.raises(UserError) as caught:
        extend_checkpoint(str(source), tmp_path / "out")
    assert str(caught.value) == (
        f"{source}/config.json: expected a model of type qwen3_vl, qwen2_5_vl, found 'qwen2'\n"
        "  fix: start from a checkpoint of Qwen3-VL or Qwen2.5-VL"
    )


def test_a_folder_without_a_checkpoint_is_refused(tmp_path) -> None:
    with pytest.raises(UserError, match=r"the folder holds no checkpoint \(no config\.json\)"):
        extend_checkpoint(str(tmp_path), tmp_path / "out")
    with pytest.raises(
        UserError, match=r"nowhere: expected a checkpoint folder, a run folder, `tiny`, or a downloaded"
    ):
        extend_checkpoint("nowhere", tmp_path / "out")
