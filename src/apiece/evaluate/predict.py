"""A checkpoint on a split: questions, answers, files, figures."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from apiece.config.schema import GenerateSection, PromptSection
from apiece.data.collate import EncodedSample
from apiece.data.images import image_size, open_image, require_size
from apiece.data.jsonl import read_jsonl
from apiece.data.lines import ImageError
from apiece.data.photos import Photo
from apiece.errors import UserError
from apiece.evaluate.answers import (
    DEFAULT_POLICY,
    PART_FILE,
    PREDICTIONS_FILE,
    PROTOCOL_FILE,
    Answer,
    ScorePolicy,
    check_out,
    common_policy,
    discard_run,
    no_scores,
    open_answers,
    read_answer,
    read_records,
    split_scores,
    under_one_policy,
)
from apiece.evaluate.detections import (
    load_complete,
    predictions_to_detections,
    samples_to_ground_truth,
    to_coco,
    write_coco_results,
)
from apiece.evaluate.forms import GroundTruth
from apiece.evaluate.metrics import METRICS_FILE, Metrics, ParseCounts, evaluate_detections, write_metrics
from apiece.evaluate.pictures import write_pictures
from apiece.files import atomic_open, file_hash, write_json
from apiece.model.encode import PromptTokens, SampleEncoder
from apiece.model.load import TextSide, context_length, load_model, load_text_side, pick_device
from apiece.model.prompt import prompt_text
from apiece.progress import progress_bar, track
from apiece.report.draw import draw_predictions, save_png
from apiece.rollout.generate import Engine, LocalEngine, StreamingEngine
from apiece.rollout.grammar import grammar_of
from apiece.rollout.server import PhotoEncoder, ServerEngine, ServerSettings
from apiece.types import FinishReason, Rollout, Sample

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
                    fix="lower generate.batch_size (diagnose: --batch-size)",
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
    seed: int = 0,
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
        seed: Of sampling.
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
    predictor, warning = load_predictor(checkpoint, settings, prompt=prompt, device=device, seed=seed, policy=policy)
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


# A checkpoint that a server answers for: on photos and on a split, where what is done is kept if the server fails.


log = logging.getLogger("apiece")


def load_remote_predictor(
    checkpoint: str,
    settings: GenerateSection,
    server: ServerSettings,
    *,
    prompt: PromptSection | None = None,
    policy: str = DEFAULT_POLICY,
    warn: Callable[[str], None] = log.warning,
) -> Predictor:
    """A predictor whose answers a server writes; it is asked for its models here, and nothing else.

    Args:
        checkpoint: What the server is to serve: tokenizer, prompt and image size are read, weights are not.
        settings: Caps of an answer.
        server: Which server, and how it is asked.
        prompt: The checkpoint's own if `None`.
        policy: Name of the score policy.
        warn: Told if the prompt is not the one the checkpoint was trained under, or the server's prompts differ.

    Raises:
        UserError: No server answers, or it is not known which of its models is meant.
    """
    settings = settings.model_copy(update={"grammar": False})
    asked = how_asked(checkpoint, prompt)
    longest = context_length(checkpoint)
    if asked.warning:
        warn(asked.warning)
    engine = ServerEngine(asked.side, asked.instruction, settings, server, longest, warn)
    protocol = {
        **asked.protocol,
        "generate": settings.model_dump(mode="json"),
        "score_policy": str(policy),
        "server": {"url": engine.client.base, "model": engine.model},
    }
    return Predictor(PhotoEncoder(asked.side, asked.tokens, longest), engine, server.concurrency, policy, protocol)


def evaluate_on_server(
    checkpoint: str,
    data: Path,
    out: Path,
    server: ServerSettings,
    *,
    min_score: float = 0.0,
    settings: GenerateSection | None = None,
    prompt: PromptSection | None = None,
    pictures: int = 16,
    complete: Path | None = None,
    policy: str = DEFAULT_POLICY,
    resume: bool = False,
    overwrite: bool = False,
    warn: Callable[[str], None] = log.warning,
) -> Metrics:
    """Answer a split through a server and score it, into `out`: the files of `evaluate_checkpoint`, `protocol.json`.

    Answers are kept as they come: if the server fails, they are in `predictions.jsonl.part`, and with `resume` only the
    missing ones are asked for. Figures are made from the file, so they do not depend on where a run was interrupted.

    Args:
        checkpoint: What the server is to serve.
        data: JSONL of the split.
        out: New or empty folder, unless `resume` or `overwrite` is set.
        server: Which server, and how it is asked.
        min_score: Detections below it are left out of F1 and pictures.
        settings: Caps of an answer.
        prompt: The checkpoint's own if `None`.
        pictures: How many images are drawn.
        complete: Complete truth of the same images (COCO or JSONL), where it is known.
        policy: Name of the score policy.
        resume: Go on with the evaluation in `out`.
        overwrite: Begin again in a folder that is not empty.
        warn: As in `load_remote_predictor`; also told if the scores cannot follow `policy`.

    Raises:
        UserError: As the server's failures are told, or `out` may not be written to.
    """
    if not overwrite:
        check_out(out, resume=resume)
    samples = read_split(data)
    everything = load_complete(complete, samples_to_ground_truth(samples))[1] if complete else None
    settings = settings or GenerateSection()
    predictor = load_remote_predictor(checkpoint, settings, server, prompt=prompt, policy=policy, warn=warn)
    protocol = {**predictor.protocol, **data_protocol(data, complete)}
    if overwrite and not resume:
        _begin_again(out, protocol)
    answer_split(predictor, samples, out, protocol, resume=resume or overwrite)
    answers = read_answers(predictor, samples, out / PREDICTIONS_FILE)
    metrics = score_answers(samples, answers, policy=policy, min_score=min_score, complete=everything)
    answers = under_one_policy(answers, policy)
    if metrics["score_policy"] != policy:
        warn(no_scores(policy, metrics["score_policy"]))
    write_coco_files(samples, answers, out)
    write_pictures(answers, out, pictures, min_score=min_score)
    metrics["protocol"] = protocol
    write_metrics(out / METRICS_FILE, metrics)
    return metrics


def answer_split(
    predictor: Predictor, samples: list[Sample], out: Path, protocol: Mapping[str, Any], *, resume: bool
) -> None:
    """Have every sample answered that is not yet, into `predictions.jsonl`."""
    with open_answers(out, protocol, resume=resume) as file, progress_bar() as bar:
        strangers = file.done - {sample.id for sample in samples}
        assert not strangers, f"the same data has the same samples, found {sorted(strangers)[:3]}"
        left = [sample for sample in samples if sample.id not in file.done]
        task = bar.add_task("evaluate", total=len(samples), completed=len(file.done), note="")
        for answer in predictor.answers(left):
            file.write(answer)
            bar.update(task, completed=len(file.done), note=f"{file.objects} objects")


def read_answers(predictor: Predictor, samples: list[Sample], path: Path) -> list[Answer]:
    """The answers in a `predictions.jsonl`, in the order of the samples."""
    side, by_id = predictor.encoder.side, {}
    for record in read_records(path):
        ids = np.array(record["ids"], dtype=np.int64)
        known = [np.nan if value is None else value for value in record["logprobs"]]
        logprobs = np.array(known, dtype=np.float32)
        rollout = Rollout(record["id"], ids, logprobs, record["text"], FinishReason(record["finish_reason"]))
        by_id[rollout.sample_id] = rollout
    return [read_answer(s, by_id[s.id], side.tokenizer, side.vocab, predictor.policy) for s in samples]


def _begin_again(out: Path, protocol: Mapping[str, Any]) -> None:
    """Forget the answers of an earlier evaluation; its other files are replaced as they are written."""
    if out.exists() and not out.is_dir():
        raise UserError("expected a folder, found a file", where=out, exit_code=2)
    for name in (PREDICTIONS_FILE, PART_FILE):
        (out / name).unlink(missing_ok=True)
    write_json(out / PROTOCOL_FILE, protocol)


# Photos without labels: answers, COCO files and pictures, for any number of them.
#
# Photos stream: one batch is in memory at a time. One that cannot be read is named, and the rest is done.


OVERLAYS = "overlays"

_LONGEST_NAME = 200
"""Bytes; file systems take 255, and writing adds some."""


@dataclass(frozen=True, slots=True)
class PhotosDone:
    """What came of a run over photos.

    Attributes:
        images: Photos answered, those of an earlier run among them.
        resumed: How many of them an earlier run had answered.
        policy: Score policy of `results.json`: the predictor's, or `constant` where an answer lacks it.
        objects: In all of their answers.
        dropped: Records that could not be used.
        skipped: Photos that could not be read, a message each.
    """

    images: int
    resumed: int
    objects: int
    dropped: int
    skipped: tuple[str, ...]
    policy: str = DEFAULT_POLICY


def predict_photos(
    predictor: Predictor, photos: Sequence[Photo], out: Path, *, overlays: bool = True, resume: bool = False
) -> PhotosDone:
    """Answer photos into a folder: `predictions.jsonl`, `coco.json`, `results.json`, `overlays/`.

    Interrupted, it leaves what is done in `predictions.jsonl.part`; with `resume` only the rest is done.

    Args:
        predictor: Asks the model.
        photos: From `find_photos`.
        out: New or empty folder; with `resume`, that of an earlier run under the same protocol.
        overlays: Draw the boxes on each photo.
        resume: Go on with the run in `out`.

    Returns:
        What came of it. Where no photo could be read nothing is left in `out`, so that it is free for the next try.

    Raises:
        UserError: `out` may not be written to, or its run had other settings.
    """
    skipped: list[str] = []
    existed = out.is_dir()
    with open_answers(out, predictor.protocol, resume=resume) as answers, progress_bar() as bar:
        resumed = len(answers.done)
        left = [photo for photo in photos if photo.id not in answers.done]
        task = bar.add_task("predict", total=len(left), note="")
        for answer in predictor.answer_questions(_questions(predictor, left, skipped)):
            # The picture first: a photo that counts as done has one.
            if overlays:
                _draw(answer, out, skipped)
            answers.write(answer)
            count = len(answers.done) - resumed
            bar.update(task, completed=count + len(skipped), note=f"{answers.objects} objects")
        bar.update(task, completed=len(left))
    if not answers.done:
        discard_run(out, existed=existed)
        return PhotosDone(0, 0, 0, 0, tuple(skipped), predictor.policy)
    policy = write_coco(out, predictor.policy)
    return PhotosDone(len(answers.done), resumed, answers.objects, answers.dropped, tuple(skipped), policy)


def _questions(
    predictor: Predictor, photos: Sequence[Photo], skipped: list[str]
) -> Iterator[tuple[Sample, EncodedSample]]:
    """Photos as questions; those that cannot be read are told in `skipped`."""
    for photo in photos:
        name = os.fsencode(photo.path).decode("utf-8", "backslashreplace")
        if name != str(photo.path):
            skipped.append(f"{name}: the file's name is not UTF-8 text")
            continue
        try:
            image = open_image(photo.path)
        except ImageError as error:
            skipped.append(f"{error.where}: {error.message}")
            continue
        sample = Sample(photo.id, photo.path, image.size)
        yield sample, predictor.encoder.question(sample, image)


def _draw(answer: Answer, out: Path, skipped: list[str]) -> None:
    """The photo with its boxes. It is opened once more, so that a batch of decoded photos is never held in memory."""
    sample = answer.sample
    try:
        image = open_image(sample.image)
    except ImageError as error:
        skipped.append(f"{error.where}: no picture drawn: {error.message}")
        return
    save_png(out / OVERLAYS / overlay_name(sample.id), draw_predictions(image, answer.detections, title=sample.id))


def overlay_name(photo_id: str) -> str:
    """Path of a photo's picture below `overlays/`: its id and `.png`, shortened if no file can be called so."""
    folder, slash, name = photo_id.rpartition("/")
    if len(name.encode()) > _LONGEST_NAME:
        name = f"{name[:40]}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"
    return f"{folder}{slash}{name}.png"


def write_coco(out: Path, policy: str) -> str:
    """`coco.json` (images and categories, no annotations) and `results.json` from the `predictions.jsonl` in `out`.

    Image ids are 1, 2, ... in the order of the lines, category ids 1, 2, ... over the sorted names. Boxes are read line
    by line: memory grows only with the number of photos, by a line of `coco.json` each.

    Returns:
        The score policy of the results: `policy`, or `constant` where an answer with boxes lacks it.
    """
    images: list[dict[str, Any]] = []
    names: set[str] = set()
    policies: set[str] = set()
    for number, record in enumerate(read_records(out / PREDICTIONS_FILE), 1):
        images.append({"id": number, "file_name": record["id"], "width": record["width"], "height": record["height"]})
        names.update(item["desc"] for item in record["objects"])
        policies.update(record.get("score_policy", policy) for _ in record["objects"])
    used = policy if policies <= {policy} else str(ScorePolicy.CONSTANT)
    category = {name: number for number, name in enumerate(sorted(names), 1)}
    categories = [{"id": number, "name": name} for name, number in category.items()]
    write_json(out / COCO_FILE, {"images": images, "annotations": [], "categories": categories})
    with atomic_open(out / RESULTS_FILE) as file:
        separator = "[\n"
        for number, record in enumerate(read_records(out / PREDICTIONS_FILE), 1):
            for item in record["objects"]:
                x1, y1, x2, y2 = item["bbox"]
                row = {
                    "image_id": number,
                    "category_id": category[item["desc"]],
                    "bbox": [x1, y1, round(x2 - x1, 3), round(y2 - y1, 3)],
                    "score": item["score"] if used == policy else 1.0,
                }
                file.write(separator + json.dumps(row))
                separator = ",\n"
        file.write("[]\n" if separator == "[\n" else "\n]\n")
    return used
