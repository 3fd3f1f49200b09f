"""Runs that train adapters: what they keep, resuming, ranks, and the ways back to an ordinary checkpoint."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import BOTH, LORA, small_config
from peft import PeftModel
from safetensors.torch import load_file
from test_train_loop import interrupt_at

from apiece.cli import main
from apiece.config.schema import GenerateSection
from apiece.data.jsonl import read_jsonl
from apiece.errors import UserError
from apiece.evaluate.predict import load_predictor
from apiece.model.load import load_model, read_shards
from apiece.model.lora import fingerprint
from apiece.rollout.generate import LocalEngine
from apiece.train.checkpoint import complete_checkpoints
from apiece.train.loop import train

LORA_BOTH = LORA | BOTH | {"stage2_ab__n_softctx_iter": 2}


@pytest.fixture
def scenes(finished_data: Path) -> Path:
    return finished_data


def folder(run: Path) -> Path:
    return complete_checkpoints(run)[-1] / "model"


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(folder(run) / "adapter_model.safetensors")


@pytest.fixture
def run(lora_run: Path) -> Path:
    return lora_run


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft's own
def test_a_run_is_evaluated_merged_and_read_by_plain_peft(
    run: Path,
    scenes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["apiece", "model", "merge", str(run), "--out", str(tmp_path / "merged")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code in (0, None)
    assert capsys.readouterr().out.startswith(f"wrote {tmp_path / 'merged'}: ")
    settings = GenerateSection(max_objects=4, max_new_tokens=60, labels=("book", "person"), temperature=1.0)
    samples = read_jsonl(scenes)[:4]
    said = []
    for checkpoint in (run, tmp_path / "merged"):
        warned: list[str] = []
        predictor = load_predictor(str(checkpoint), settings, device="cpu", warn=warned.append)
        assert warned == []
        said.append([a.rollout for a in predictor.answers(samples)])
    base = load_model(json.loads((folder(run) / "adapter_config.json").read_text())["base_model_name_or_path"])
    before = base.get_input_embeddings().weight.clone(), base.lm_head.weight.clone()
    plain = PeftModel.from_pretrained(base, folder(run)).base_model.model.eval()
    predictor = replace(predictor, engine=LocalEngine(plain, predictor.encoder.side, settings))
    said.append([a.rollout for a in predictor.answers(samples)])
    for one, two, three in zip(*said, strict=True):
        assert one.ids.tolist() == two.ids.tolist() == three.ids.tolist()
        torch.testing.assert_close(torch.tensor(two.logprobs), torch.tensor(three.logprobs), atol=1e-4, rtol=1e-4)
    # The coordinate rows of the merged checkpoint are not the base's, and its other rows are.
    first, bins = predictor.encoder.side.vocab.first_id, predictor.encoder.side.vocab.num_bins
    merged = load_model(str(tmp_path / "merged"))
    for after, table in zip((merged.get_input_embeddings().weight, merged.lm_head.weight), before, strict=True):
        changed = (after != table).any(1)
        assert changed[first : first + bins].all()
        assert not changed[:first].any() and not changed[first + bins :].any()


def test_what_a_run_with_adapters_leaves(run: Path) -> None:
    assert {p.name for p in folder(run).glob("*.safetensors")} == {"adapter_model.safetensors"}
    log = (run / "train.log").read_text()
    assert "trained: merger " in log and "vision" not in log.partition("in all")[0]
    card = json.loads((folder(run) / "apiece.json").read_text())
    assert card["base"]["fingerprint"] == fingerprint(Path(card["base"]["path"]))
    state = read_shards(folder(run).parent / "optimizer")
    assert all(".lora_" in name or ".rows/" in name for name in state)
    assert list((run / "eval").glob("step_*/metrics.json"))


@pytest.mark.slow
@pytest.mark.parametrize("changes", [LORA, LORA_BOTH], ids=["stage 1", "both channels"])
def test_resumed_run_ends_with_the_same_bits(
    tmp_path: Path,
    tiny_checkpoint: Path,
    scenes: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
) -> None:
    config = small_config(tmp_path, tiny_checkpoint, scenes, model__lora__dropout=0.2, data__flip=True, **changes)
    whole = train(config, "whole")
    with monkeypatch.context() as patch:
        interrupt_at(patch, 1)
        first = train(config, "parts")
    assert (first.step, first.finished) == (1, False)
    torch.manual_seed(9)  # another process would start from another state
    second = train(config, "parts", resume=first.run)
    before, after = weights(whole.run), weights(second.run)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)
    dropped = weights(train(small_config(tmp_path, tiny_checkpoint, scenes, **changes), "kept").run)
    assert any(not torch.equal(before[k], dropped[k]) for k in before)


def test_adapters_on_adapters_are_refused_and_merged_ones_trained_on(run: Path, scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"found adapters(?s:.*)apiece model merge {run} --out DIR"):
        train(small_config(tmp_path, run, scenes, **LORA), "again")
    # Without adapters the next stage trains all weights, from the merged ones.
    outcome = train(small_config(tmp_path, run, scenes, train__steps=3, train__batch_size=2), "whole")
    assert (folder(outcome.run) / "model.safetensors").is_file()


def test_freezing_in_a_run(tmp_path: Path, scenes: Path) -> None:
    config = small_config(tmp_path, Path("tiny"), scenes, model__freeze="[vision, language]", train__steps=3)
    outcome = train(config, "frozen")
    after = load_file(folder(outcome.run) / "model.safetensors")
    before = load_model("tiny").state_dict()
    changed = {n for n in after if not torch.equal(after[n], before[n])}
    assert changed and all("merger" in n or "embed_tokens" in n for n in changed)
