"""Runs of both channels: the schedule, resuming to the same bits, ranks, and answers equal to those of evaluation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import BOTH, small_config, small_scenes
from test_train_loop import interrupt_at, weights

from apiece.data.jsonl import read_jsonl
from apiece.losses.compose import Objective
from apiece.model.encode import Augmentation, PromptTokens, SampleEncoder
from apiece.model.load import load_model, load_text_side
from apiece.rollout.targets import JudgedAnswer, TargetBuilder
from apiece.train.batches import BatchPlan, micro_batches
from apiece.train.distributed import World
from apiece.train.loop import train
from apiece.train.setup import build_channels, rollout_seed
from apiece.train.watch import evaluate_step
from apiece.types import Rollout, Sample

CPU = World(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_scenes(tmp_path_factory.mktemp("scenes") / "s")


def lines(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("stop", "temperature"), [(1, 0.0), (2, 1.0)], ids=["greedy", "drawn"])
def test_resumed_run_of_both_channels_ends_with_the_same_bits(
    tmp_path: Path,
    tiny_checkpoint: Path,
    scenes: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop: int,
    temperature: float,
) -> None:
    changes = BOTH | {"train__steps": 4, "generate__temperature": temperature, "data__flip": True}
    config = small_config(tmp_path, tiny_checkpoint, scenes, **changes)
    whole = train(config, "whole")
    with monkeypatch.context() as patch:
        interrupt_at(patch, stop)
        first = train(config, "parts")
    assert (first.step, first.finished) == (stop, False)
    second = train(config, "parts", resume=first.run)
    before, after = weights(whole.run), weights(second.run)
    assert all(torch.equal(before[k], after[k]) for k in before)
    # The run was one of both channels, and its last step one of answers.
    assert ["b/f1" in line for line in lines(second.run)] == [False, True, False, True]


def test_figures_of_a_run_of_both_channels(two_channel_run: Path) -> None:
    run = two_channel_run
    assert len(lines(run)) == 2
    for line in lines(run):
        atoms = {k: v for k, v in line.items() if k.startswith("loss/") and k != "loss/total"}
        assert sum(atoms.values()) == pytest.approx(line["loss/total"], rel=1e-6)
        assert {k.split("/")[1] for k in atoms} == {"a1", "b"}
        # A mean over the line's steps, half of which have the term; the plain value is over those.
        geometry = "coord_reg/soft_ce"
        assert line[f"loss/b/{geometry}"] == pytest.approx(0.1 * line[f"raw/b/{geometry}"] / 2, rel=1e-6)
        assert line["b/step_share"] == 0.5
        assert line["b/labels_per_image"] > 0
        assert 0 <= line["b/precision"] <= 1
        assert line["b/generate_s"] > 0
        outcomes = [v for k, v in line.items() if k.startswith("b/outcome/")]
        assert sum(outcomes) == pytest.approx(1 if line["b/objects_per_answer"] else 0)


class Keeping(TargetBuilder):
    """Keeps the answers that it makes targets of."""

    answers: dict[str, Rollout] = {}  # noqa: RUF012  one for the test

    def build(self, rollout: Rollout, sample: Sample, num_prefix: int) -> JudgedAnswer:
        self.answers[sample.id] = rollout
        return super().build(rollout, sample, num_prefix)


def test_answers_of_training_are_those_of_evaluation(tmp_path: Path, scenes: Path) -> None:
    """Same weights, same settings: same tokens and log-probabilities, though the model trains and batches differ."""
    changes = BOTH | {
        "stage2_ab__b_ratio": 1.0,
        "generate__batch_size": 3,
        "generate__max_objects": 30,
        "generate__max_new_tokens": 400,
    }
    config = small_config(tmp_path, Path("tiny"), scenes, **changes, data__eval=scenes)
    side, samples = load_text_side("tiny"), read_jsonl(scenes)
    model = load_model("tiny").train()
    encoder = SampleEncoder(side, PromptTokens.of(side, "Detect."), 4096)
    objective = Objective(
        config.objective, config.stage2_ab.coord_decode_mode, side.vocab.first_id, side.vocab.num_bins
    )
    channels = build_channels(model, objective, encoder, config, CPU)
    channels.b.builder = Keeping(side.renderer, 60, 4096)  # type: ignore[union-attr]
    plan = BatchPlan([1] * len(samples), len(samples), 1, 0)
    one_step: Any = {"start": 0, "stop": 1, "rank": 0, "world": 1, "micro": 4, "workers": 0}
    stream = micro_batches(samples, encoder, Augmentation(), plan, **one_step, collated=lambda step: False)
    batches = next(stream)
    state = torch.get_rng_state()
    channels.prepare(0, batches)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    _, answers = evaluate_step(tmp_path, 0, model, encoder, samples, config)
    assert Keeping.answers.keys() == {s.id for s in samples}
    assert sum(len(a.parsed.objects) for a in answers) > 20
    for answer in answers:
        ours = Keeping.answers[answer.sample.id]
        assert ours.ids.tolist() == answer.rollout.ids.tolist()
        assert ours.finish_reason == answer.rollout.finish_reason
        np.testing.assert_allclose(ours.logprobs, answer.rollout.logprobs, atol=1e-4)


def test_seeds_of_rollouts_differ_by_step_and_run() -> None:
    seeds = {rollout_seed(seed, step) for seed in range(20) for step in range(20)}
    assert len(seeds) == 400
    assert rollout_seed(3, 7) == rollout_seed(3, 7)
