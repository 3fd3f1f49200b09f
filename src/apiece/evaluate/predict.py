"""A checkpoint on a split: questions, answers, files, figures."""

from __future__ import annotations

import itertools
import json
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch

from apiece.config.schema import GenerateSection, PromptSection
from apiece.data.collate import EncodedSample
from apiece.data.images import image_size, require_size
from apiece.data.jsonl import read_jsonl
from apiece.errors import UserError
from apiece.evaluate.answer_file import PREDICTIONS_FILE
from apiece.evaluate.answers import Answer, read_answer, under_one_policy
from apiece.evaluate.complete import load_complete
from apiece.evaluate.detections import (
    predictions_to_detections,
    samples_to_ground_truth,
    to_coco,
    write_coco_results,
)
from apiece.evaluate.forms import GroundTruth
from apiece.evaluate.metrics import METRICS_FILE, Metrics, ParseCounts, evaluate_detections, write_metrics
from apiece.evaluate.pictures import write_pictures
from apiece.evaluate.scores import DEFAULT_POLICY, common_policy, no_scores, split_scores
from apiece.files import atomic_open, file_hash, write_json
from apiece.model.device import pick_device
from apiece.model.encode import PromptTokens, SampleEncoder
from apiece.model.load import TextSide, load_model, load_text_side
from apiece.model.prompts import prompt_text
from apiece.progress import track
from apiece.rollout.generate import Engine, LocalEngine, StreamingEngine
from apiece.rollout.grammar import grammar_of
from apiece.types import Sample

COCO_FILE = "coco.json"
RESULTS_FILE = "results.json"
AHEAD = 4
"""Batches handed to the engine together: more keeps its places full, and an interrupted run loses more."""

T = TypeVar("T")
log = logging.getLogger("apiece")


@dataclass(frozen=True)
class Predictor:
    """Asks a model about images and reads its answers.

    Attributes:
        encoder: Image and prompt to tokens.
        engine: Writes the answers.
        batch_size: Images answered at once.
        policy: Name of the score policy.
        ahead: Batches that the engine is handed together: as answers end, their places go to waiting images.
        protocol: What the answers depend on, as JSON: checkpoint, prompt, generation. Kept beside the figures.
    """

    encoder: SampleEncoder
    engine: Engine
    batch_size: int
    policy: str = DEFAULT_POLICY
    protocol: Mapping[str, Any] = field(default_factory=dict)
    ahead: int = 1

    def answers(self, samples: Iterable[Sample]) -> Iterator[Answer]:
        """One answer per sample, in order, `ahead` batches at a time: any number of images streams through."""
        return self.answer_questions((sample, self.encoder.question(sample)) for sample in samples)

    def answer_questions(self, questions: Iterable[tuple[Sample, EncodedSample]]) -> Iterator[Answer]:
        """The same for images that are encoded already; `questions` is read `ahead` batches ahead at most, or as far as
        an engine that streams reads it.

        Raises:
            UserError: A batch does not fit into the device's memory.
        """
        side = self.encoder.side
        if isinstance(self.engine, StreamingEngine):
            yield from self._streamed(self.engine, questions)
            return
        for group in _batched(questions, self.batch_size * self.ahead):
            try:
                rollouts = self.engine.generate([question for _, question in group])
            except torch.OutOfMemoryError as error:
                count = min(len(group), self.batch_size)
                raise UserError(
                    f"{count} images at once do not fit into memory",
                    fix="lower --batch-size (in training: generate.batch_size)",
                ) from error
            for (sample, _), rollout in zip(group, rollouts, strict=True):
                yield read_answer(sample, rollout, side.tokenizer, side.vocab, self.policy)

    def _streamed(self, engine: StreamingEngine, questions: Iterable[tuple[Sample, EncodedSample]]) -> Iterator[Answer]:
        asked: deque[Sample] = deque()

        def noted() -> Iterator[EncodedSample]:
            for sample, question in questions:
                asked.append(sample)
                yield question

        side = self.encoder.side
        with closing(engine.stream(noted())) as rollouts:
            for rollout in rollouts:
                yield read_answer(asked.popleft(), rollout, side.tokenizer, side.vocab, self.policy)


def _batched(items: Iterable[T], size: int) -> Iterator[tuple[T, ...]]:
    iterator = iter(items)
    while group := tuple(itertools.islice(iterator, size)):
        yield group


def load_predictor(
    checkpoint: str,
    settings: GenerateSection,
    *,
    prompt: PromptSection | None = None,
    device: str = "auto",
    seed: int = 0,
    policy: str = DEFAULT_POLICY,
) -> tuple[Predictor, str | None]:
    """A predictor for a checkpoint, and a warning if the prompt is not the one it was trained under.

    Args:
        checkpoint: As `resolve_checkpoint` takes it.
        settings: Of generation.
        prompt: The checkpoint's own if `None`.
        device: `auto`, `cpu` or `cuda`.
        seed: Of sampling.
        policy: Name of the score policy.
    """
    where = pick_device(device)
    asked = how_asked(checkpoint, prompt)
    side = asked.side
    if settings.grammar:
        grammar_of(side.tokenizer, side.renderer, settings.labels)  # names that cannot be written are told of first
    model = load_model(checkpoint).to(where)
    encoder = SampleEncoder(side, asked.tokens, model.config.text_config.max_position_embeddings)
    protocol = {
        **asked.protocol,
        "generate": settings.model_dump(mode="json"),
        "seed": seed,
        "score_policy": str(policy),
        "device": where.type,
    }
    engine = LocalEngine(model, side, settings, seed)
    return Predictor(encoder, engine, settings.batch_size, policy, protocol, AHEAD), asked.warning


@dataclass(frozen=True)
class Asked:
    """How a checkpoint is asked, whatever engine writes the answers.

    Attributes:
        side: Its tokenizer and images, at the size it was trained at.
        instruction: The prompt.
        tokens: The same as tokens.
        protocol: Both, as JSON.
        warning: Told if it was trained under another prompt.
    """

    side: TextSide
    instruction: str
    tokens: PromptTokens
    protocol: Mapping[str, Any]
    warning: str | None


def how_asked(checkpoint: str, prompt: PromptSection | None = None) -> Asked:
    """The prompt and image size of a checkpoint; `prompt` instead of its own if given."""
    side = load_text_side(checkpoint)
    if "max_pixels" in side.card:
        side = side.with_max_pixels(side.card["max_pixels"])
    trained = side.card.get("prompt", {"name": "plain", "text": None})
    chosen = trained if prompt is None else prompt.model_dump(mode="json")
    instruction = prompt_text(chosen["name"], chosen.get("text"))
    tokens = PromptTokens.of(side, instruction)
    trained_hash = side.card.get("prompt_hash")
    warning = None
    if trained_hash not in (None, tokens.hash):
        warning = f"the checkpoint was trained under prompt {trained['name']!r}, it is asked under {chosen['name']!r}"
    protocol = {
        "checkpoint": checkpoint,
        "checkpoint_path": str(side.path),
        "step": side.card.get("step"),
        "prompt": chosen,
        "prompt_hash": tokens.hash,
        "trained_prompt_hash": trained_hash,
        "max_pixels": side.images.max_pixels,
    }
    return Asked(side, instruction, tokens, protocol, warning)


@contextmanager
def predictions_file(out: Path) -> Iterator[Any]:
    """`predictions.jsonl` in a folder; gives a function that writes an answer. Complete or absent."""
    with atomic_open(out / PREDICTIONS_FILE) as file:
        yield lambda answer: file.write(json.dumps(answer.record(), ensure_ascii=False) + "\n")


def score_answers(
    samples: Sequence[Sample],
    answers: Sequence[Answer],
    *,
    policy: str,
    min_score: float = 0.0,
    complete: GroundTruth | None = None,
) -> Metrics:
    """All figures of a split from its answers; by `policy`, or by `constant` where an answer lacks it."""
    answers = under_one_policy(answers, policy)
    scores = [answer.scores for answer in answers]
    truth = samples_to_ground_truth(samples)
    truth, detections = predictions_to_detections(truth, {a.sample.id: a.detections for a in answers})
    counts = ParseCounts.of((a.parsed, a.rollout.finish_reason) for a in answers)
    return evaluate_detections(
        truth,
        detections,
        policy=common_policy(scores, policy),
        scores=split_scores(scores),
        parse=counts,
        min_score=min_score,
        complete=complete,
    )


def evaluate_samples(
    predictor: Predictor,
    samples: Sequence[Sample],
    out: Path,
    *,
    min_score: float = 0.0,
    complete: GroundTruth | None = None,
) -> tuple[Metrics, list[Answer]]:
    """Answer every sample, write `predictions.jsonl`, and score.

    Returns:
        The figures, and the answers by the score policy that `score_policy` among the figures names: the predictor's,
        or `constant` where an answer lacks it.
    """
    answers: list[Answer] = []
    with predictions_file(out) as write:
        for answer in track(predictor.answers(samples), "evaluate", total=len(samples)):
            write(answer)
            answers.append(answer)
    metrics = score_answers(samples, answers, policy=predictor.policy, min_score=min_score, complete=complete)
    return metrics, under_one_policy(answers, predictor.policy)


def evaluate_checkpoint(
    checkpoint: str,
    data: Path,
    out: Path,
    *,
    min_score: float = 0.0,
    settings: GenerateSection | None = None,
    prompt: PromptSection | None = None,
    device: str = "auto",
    pictures: int = 16,
    complete: Path | None = None,
    policy: str = DEFAULT_POLICY,
    warn: Callable[[str], None] = log.warning,
) -> Metrics:
    """Answer a split and score it, into `out`.

    Writes `predictions.jsonl`, `coco.json` and `results.json` (COCO labels and results with the same figures),
    `pictures/`, `contact_sheet.png`, and last `metrics.json`.

    Args:
        checkpoint: As `resolve_checkpoint` takes it.
        data: JSONL of the split.
        out: Folder; files of an earlier evaluation are replaced.
        min_score: Detections below it are left out of F1 and pictures.
        settings: Of generation.
        prompt: The checkpoint's own if `None`.
        device: `auto`, `cpu` or `cuda`.
        pictures: How many images are drawn.
        complete: Complete truth of the same images (COCO or JSONL), where it is known.
        policy: Name of the score policy.
        warn: Told before anything is generated if the prompt is not the one the checkpoint was trained under, and after
            it if the scores cannot follow `policy`.

    Returns:
        What is in `metrics.json`: the figures, and under `protocol` what they depend on.
    """
    samples = read_split(data)
    everything = load_complete(complete, samples_to_ground_truth(samples))[1] if complete else None
    settings = settings or GenerateSection()
    predictor, warning = load_predictor(checkpoint, settings, prompt=prompt, device=device, policy=policy)
    if warning:
        warn(warning)
    metrics, answers = evaluate_samples(predictor, samples, out, min_score=min_score, complete=everything)
    if metrics["score_policy"] != policy:
        warn(no_scores(policy, metrics["score_policy"]))
    write_coco_files(samples, answers, out)
    write_pictures(answers, out, pictures, min_score=min_score)
    metrics["protocol"] = {**predictor.protocol, **data_protocol(data, complete)}
    write_metrics(out / METRICS_FILE, metrics)
    return metrics


def data_protocol(data: Path, complete: Path | None) -> dict[str, str]:
    """Which data figures were made on."""
    protocol = {"data": str(data), "data_sha256": file_hash(data)}
    return protocol | ({"complete": str(complete), "complete_sha256": file_hash(complete)} if complete else {})


def write_coco_files(samples: Sequence[Sample], answers: Sequence[Answer], out: Path) -> None:
    """`coco.json` (labels, and every class that was predicted) and `results.json`: scoring them gives equal figures."""
    truth, detections = predictions_to_detections(
        samples_to_ground_truth(samples), {a.sample.id: a.detections for a in answers}
    )
    files = {sample.id: sample.image.as_posix() for sample in samples}
    coco = to_coco(truth)
    for image, info in zip(coco["images"], truth.images, strict=True):
        image["file_name"] = files[info.name]
    write_json(out / COCO_FILE, coco)
    write_coco_results(out / RESULTS_FILE, truth, detections)


def read_split(data: Path) -> list[Sample]:
    """The samples of a JSONL; at least one.

    Raises:
        UserError: A line is wrong, or an image file is missing or not of the size in its line: better told now than in
            the middle of a long run, and a box in another frame would be scored as wrong without a word.
    """
    samples = read_jsonl(data)
    if not samples:
        raise UserError("expected at least one image, found none", where=data)
    for sample in samples:
        require_size(sample, image_size(sample.image), data)
    return samples
