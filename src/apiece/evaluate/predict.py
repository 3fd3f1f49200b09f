"""A checkpoint on a split: questions, answers, files, figures."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from apiece.config.schema import GenerateSection
from apiece.data.jsonl import read_jsonl
from apiece.errors import UserError
from apiece.evaluate.answers import DEFAULT_POLICY, Answer, read_answer
from apiece.evaluate.detections import predictions_to_detections, samples_to_ground_truth
from apiece.evaluate.metrics import Metrics, ParseCounts, evaluate_detections
from apiece.files import atomic_open
from apiece.model.encode import PromptTokens, SampleEncoder
from apiece.model.load import load_model, load_text_side
from apiece.model.prompts import prompt_text
from apiece.progress import track
from apiece.rollout.generate import Engine, LocalEngine
from apiece.types import Sample

PREDICTIONS_FILE = "predictions.jsonl"


@dataclass(frozen=True)
class Predictor:
    """Asks a model about images and reads its answers.

    Attributes:
        encoder: Image and prompt to tokens.
        engine: Writes the answers.
        batch_size: Images asked about at once.
        policy: Name of the score policy.
    """

    encoder: SampleEncoder
    engine: Engine
    batch_size: int
    policy: str = DEFAULT_POLICY

    def answers(self, samples: Iterable[Sample]) -> Iterator[Answer]:
        """One answer per sample, in order, a batch at a time: any number of images streams through."""
        side = self.encoder.side
        for group in _batched(samples, self.batch_size):
            rollouts = self.engine.generate([self.encoder.question(s) for s in group])
            for sample, rollout in zip(group, rollouts, strict=True):
                yield read_answer(sample, rollout, side.tokenizer, side.vocab, self.policy)


def _batched(items: Iterable[Sample], size: int) -> Iterator[tuple[Sample, ...]]:
    iterator = iter(items)
    while group := tuple(itertools.islice(iterator, size)):
        yield group


def load_predictor(
    checkpoint: str,
    settings: GenerateSection,
    *,
    prompt: dict[str, Any] | None = None,
    device: str = "auto",
    seed: int = 0,
) -> tuple[Predictor, str | None]:
    """A predictor for a checkpoint, and a warning if the prompt is not the one it was trained under.

    Args:
        checkpoint: As `resolve_checkpoint` takes it.
        settings: Of generation.
        prompt: `{"name": ..., "text": ...}`; the checkpoint's own if `None`.
        device: `auto`, `cpu` or `cuda`.
        seed: Of sampling.
    """
    side = load_text_side(checkpoint)
    if "max_pixels" in side.card:
        side = side.with_max_pixels(side.card["max_pixels"])
    trained = side.card.get("prompt", {"name": "plain", "text": None})
    chosen = prompt or trained
    tokens = PromptTokens.of(side, prompt_text(chosen["name"], chosen.get("text")))
    where = "cuda" if device == "cuda" or (device == "auto" and torch.cuda.is_available()) else "cpu"
    model = load_model(checkpoint).to(where)
    warning = None
    if side.card.get("prompt_hash") not in (None, tokens.hash):
        warning = f"the checkpoint was trained under prompt {trained['name']!r}, it is asked under {chosen['name']!r}"
    encoder = SampleEncoder(side, tokens, model.config.text_config.max_position_embeddings)
    return Predictor(encoder, LocalEngine(model, side, settings, seed), settings.batch_size), warning


@contextmanager
def predictions_file(out: Path) -> Iterator[Any]:
    """`predictions.jsonl` in a folder; gives a function that writes an answer. Complete or absent."""
    with atomic_open(out / PREDICTIONS_FILE) as file:
        yield lambda answer: file.write(json.dumps(answer.record(), ensure_ascii=False) + "\n")


def score_answers(
    samples: Sequence[Sample], answers: Sequence[Answer], *, policy: str, min_score: float = 0.0
) -> Metrics:
    """All figures of a split from its answers."""
    truth = samples_to_ground_truth(samples)
    truth, detections = predictions_to_detections(truth, {a.sample.id: a.detections for a in answers})
    counts = ParseCounts.of((a.parsed, a.rollout.finish_reason) for a in answers)
    return evaluate_detections(truth, detections, policy=policy, parse=counts, min_score=min_score)


def evaluate_samples(
    predictor: Predictor, samples: Sequence[Sample], out: Path, *, min_score: float = 0.0
) -> tuple[Metrics, list[Answer]]:
    """Answer every sample, write `predictions.jsonl`, and score."""
    answers = []
    with predictions_file(out) as write:
        for answer in track(predictor.answers(samples), "evaluate", total=len(samples)):
            write(answer)
            answers.append(answer)
    return score_answers(samples, answers, policy=predictor.policy, min_score=min_score), answers


def read_split(data: Path) -> list[Sample]:
    """The samples of a JSONL; at least one."""
    samples = read_jsonl(data)
    if not samples:
        raise UserError("expected at least one image, found none", where=data)
    return samples
