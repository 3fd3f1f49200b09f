"""Names of checkpoints: what they mean, and what is said of those that mean nothing; weights that were cut short."""

from __future__ import annotations

import shutil

import pytest

from apiece.errors import UserError
from apiece.model.find import resolve_checkpoint
from apiece.model.load import load_model, load_text_side


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("runs/mien", r"runs/mien: .*found nothing \(did you mean 'mine'\?\)\n  fix: in runs there are: mine, other$"),
        ("./mine", "mine: .*found nothing\n  fix: in . there are: runs$"),
        ("gone/deep/er", "found nothing\n  fix: there is no folder gone/deep here either"),
        ("runs/file.json", "runs/file.json: is a file, expected a checkpoint folder"),
        ("Qwen/nothing-here", "downloaded Hugging Face id; found nothing\n.*hf download Qwen/nothing-here"),
    ],
)
def test_a_name_that_means_nothing(tmp_path, monkeypatch, name: str, said: str) -> None:
    monkeypatch.chdir(tmp_path)
    for run in ("mine", "other"):
        (tmp_path / "runs" / run).mkdir(parents=True)
    (tmp_path / "runs" / "file.json").write_text("{}")
    with pytest.raises(UserError, match=said):
        resolve_checkpoint(name)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"model_type": ', "broken JSON: Expecting value in line 1, column 16\n  fix: copy config.json"),
        ("[]", "expected a model's settings .*found a list"),
        ('{"a": 1}', "expected a model of type qwen3_vl, qwen2_5_vl, found none"),
    ],
)
def test_a_broken_config_is_told_in_one_sentence(tmp_path, text: str, said: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=f"config.json: {said}") as caught:
        load_text_side(str(tmp_path))
    assert len(str(caught.value).splitlines()) == 2


def test_weights_cut_short_are_named(tmp_path) -> None:
    folder = tmp_path / "cut"
    shutil.copytree(resolve_checkpoint("tiny"), folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(
        UserError, match=r"model.safetensors: cut short or damaged weights: .*\n  fix: copy or download"
    ):
        load_model(str(folder))
