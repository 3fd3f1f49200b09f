"""The benchmarks run, their parts add up, and their floors count what torch counts."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from apiece.data.collate import EncodedSample, collate_prefix
from apiece.model.families import rope_positions
from apiece.model.load import load_model, load_text_side

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when a script of the folder is run."""
    monkeypatch.syspath_prepend(str(FOLDER))


def run(name: str, checkpoint: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    arguments = ["--quick", "--checkpoint", str(checkpoint), "--device", "cpu", "--json", str(out)]
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    runpy.run_path(str(FOLDER / name), run_name="__main__")
    report = json.loads(out.read_text())
    assert report["conditions"]["speed"]["flops"] > 0
    assert report["benchmark"] == Path(name).stem
    return report["results"]


@pytest.mark.slow
def test_train_step(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (row,) = run("train_step.py", tiny_checkpoint, tmp_path / "out.json", monkeypatch)
    assert row["arm"] == "stage1"
    assert min(row["samples_per_s"], row["tokens_per_s"], row["boxes_per_s"]) > 0
    assert 0 <= row["padding_share"] < 1
    parts = {part["part"]: part for part in row["parts"]}
    assert set(parts) == {"vision", "prefix", "answer", "head", "loss", "optimizer", "data", "other"}
    assert sum(part["share"] for part in parts.values()) == pytest.approx(1)
    assert all(part["ms"] > 0 for part in parts.values())
    assert {name for name, part in parts.items() if part["floor_ms"]} == {
        *("vision", "prefix", "answer", "head", "optimizer")
    }
    assert "where the time goes" in capsys.readouterr().out


@pytest.mark.slow
def test_generate(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = {row["arm"]: row for row in run("generate.py", tiny_checkpoint, tmp_path / "out.json", monkeypatch)}
    assert list(rows) == [
        *("hf", "hf_logprobs"),
        *("token", "forced_only", "forced", "forced_refill", "no_forced_logprobs"),
    ]
    hf, token = rows["hf"], rows["token"]
    # Every token but the last of an answer is fed, by us once; Hugging Face goes on with rows that have ended.
    assert token["forwards_per_object"] < token["tokens_per_object"] == hf["tokens_per_object"]
    assert hf["forwards_per_object"] >= token["forwards_per_object"]
    assert 0 < token["choices_per_object"] < token["tokens_per_object"]
    assert token["padding_share"] <= hf["padding_share"]
    # What is skipped is what is not chosen, but for the end token, whose log-probability is asked for.
    assert rows["forced_only"]["forwards_per_object"] <= token["choices_per_object"]
    assert rows["forced"]["forwards_per_object"] < rows["forced_only"]["forwards_per_object"]
    assert rows["forced_refill"]["forwards_per_object"] <= 7
    for row in rows.values():
        parts = {part["part"] for part in row["parts"]}
        assert parts == {"vision", "prefix", "answer", "head", "data", "other"}


@pytest.mark.slow
def test_channel_a(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = {row["arm"]: row for row in run("channel_a.py", tiny_checkpoint, tmp_path / "out.json", monkeypatch)}
    assert list(rows) == ["sft", "naive_n2", "naive_n4", "n1", "n2", "n4"]
    assert all(set(row) == {"case", "arm", "seconds", "peak_mb", "grad_diff", "flops"} for row in rows.values())
    assert all(row["seconds"] > 0 and row["peak_mb"] > 0 for row in rows.values())
    # The library rounds to float32 inside, in float64 too; tests/channels holds the channel to 1e-9 without that.
    assert all(rows[arm]["grad_diff"] < 1e-5 for arm in ("n1", "n2", "n4"))
    assert rows["naive_n4"]["flops"] == 2 * rows["naive_n2"]["flops"] == 4 * rows["sft"]["flops"]
    assert rows["n1"]["flops"] < rows["n2"]["flops"] < rows["n4"]["flops"] < rows["naive_n4"]["flops"]
    assert "ratios to sft" in capsys.readouterr().out


def test_channel_a_has_the_proportions_of_a_large_model() -> None:
    """The head 20 to 25 % of an ordinary forward pass; vision to language as in the 2B model (2.0 to 2.25 TFLOP)."""
    import channel_a  # the folder of the benchmarks is on the path only inside a test
    from common import counts_of

    model, batch = channel_a.narrow_model(torch.device("cpu")), channel_a.random_batch(640, 160, torch.device("cpu"))
    counts = counts_of(model)
    grids = [(int(t), int(h), int(w)) for t, h, w in batch.prefix.grid_thw.tolist()]
    vision, language, head = counts.vision(grids), 2 * counts.language(800, 0), counts.head(2 * 800)
    assert 0.2 <= head / (vision + language + head) <= 0.25
    assert vision / language == pytest.approx(2.0 / 2.25, rel=0.1)
    assert channel_a.flops_of("sft", model, batch) == pytest.approx(3 * (vision + language + head))
    assert channel_a.flops_of("n2", model, batch) < channel_a.flops_of("sft", model, batch)


def test_floors_count_what_torch_counts(tiny_checkpoint: Path) -> None:
    from common import counts_of  # the folder of the benchmarks is on the path only inside a test

    side, model = load_text_side(str(tiny_checkpoint)), load_model(str(tiny_checkpoint), attention="eager")
    pixels, grid = side.images.encode(Image.new("RGB", (96, 72)))
    text = list(side.renderer.piece("person"))
    num_image = grid[1] * grid[2] // side.images.processor.merge_size**2
    ids = np.array([*text, *[side.image_token_id] * num_image, *text, *text])
    prefix = collate_prefix([EncodedSample("s", ids, pixels, grid)], 0, side.image_token_id)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(
            input_ids=prefix.ids,
            position_ids=rope_positions(model, prefix, 0),
            pixel_values=prefix.pixel_values,
            image_grid_thw=prefix.grid_thw,
            mm_token_type_ids=prefix.image_mask.int(),
        )
    counts, length = counts_of(model), len(ids)
    config = model.config.text_config
    # Eager attention works on all pairs, the count on those that causality leaves; rotary angles are a small product.
    width = config.num_attention_heads * config.head_dim * config.num_hidden_layers
    pairs_not_needed = length * length - length * (length + 1) / 2
    expected = counts.vision([grid]) + counts.language(length, 0) + counts.head(length) + 4 * width * pairs_not_needed
    assert counter.get_total_flops() == pytest.approx(expected, rel=1e-3)
    assert counts.language(3, 7) == pytest.approx(counts.language(10, 0) - counts.language(7, 0))
