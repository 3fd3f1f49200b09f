"""A checkpoint on a split or on photos: questions, answers, files, figures."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from apiece.config.schema import GenerateSection, PromptSection
from apiece.data.collate import EncodedSample
from apiece.data.images import Photo, image_size, open_image, require_size
from apiece.data.jsonl import read_jsonl
from apiece.data.lines import ImageError
from apiece.errors import UserError
from apiece.evaluate.answers import (
    DEFAULT_POLICY,
    PART_FILE,
    PREDICTIONS_FILE,
    Answer,
    AnswerFile,
    ScorePolicy,
    check_out,
    common_policy,
    discard_run,
    no_scores,
    open_answers,
    read_answer,
    read_lines,
    split_scores,
    under_one_policy,
)
from apiece.evaluate.detections import (
    load_complete,
    predictions_to_detections,
    samples_to_ground_truth,
    to_coco,
    to_coco_results,
)
from apiece.evaluate.forms import GroundTruth
from apiece.evaluate.metrics import METRICS_FILE, Metrics, evaluate_detections, parse_figures
from apiece.evaluate.pictures import write_pictures
from apiece.files import atomic_open, file_hash, write_json
from apiece.model.encode import PromptTokens, SampleEncoder
from apiece.model.load import context_length, load_model, load_text_side, pick_device
from apiece.model.prompt import prompt_text
from apiece.progress import progress_bar, track
from apiece.report.draw import draw_predictions, save_png
from apiece.rollout.generate import Engine, LocalEngine, StreamingEngine
from apiece.rollout.grammar import grammar_of
from apiece.rollout.server import PhotoEncoder, ServerEngine, ServerSettings
from apiece.types import Sample

COCO_FILE = "coco.json"
RESULTS_FILE = "results.json"
AHEAD = 4  # batches handed to the engine together: more keeps its places full, and an interrupted run loses more

Questions = Iterable[tuple[Sample, EncodedSample]]
log = logging.getLogger("apiece")


@dataclass(frozen=True)
class Predictor:
    """Asks a model about images and reads its answers."""

    encoder: SampleEncoder
    engine: Engine  # in this process or through a server
    batch_size: int  # images answered at once
    policy: str = DEFAULT_POLICY
    # what the answers depend on, as JSON: checkpoint, prompt, generation
    protocol: Mapping[str, Any] = field(default_factory=dict)
    ahead: int = 1  # batches handed to the engine together: as answers end, waiting images take their places

    def answers(self, samples: Iterable[Sample]) -> Iterator[Answer]:
        """One answer per sample, in order, `ahead` batches at a time: any number of images streams through."""
        return self.answer_questions((sample, self.encoder.question(sample)) for sample in samples)

    def answer_questions(self, questions: Questions) -> Iterator[Answer]:
        """The same for images that are encoded already, read `ahead` batches (or a streaming engine's own) ahead."""
        side = self.encoder.side
        if isinstance(self.engine, StreamingEngine):
            yield from self._streamed(self.engine, questions)
            return
        iterator = iter(questions)
        while group := tuple(itertools.islice(iterator, self.batch_size * self.ahead)):
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

    def _streamed(self, engine: StreamingEngine, questions: Questions) -> Iterator[Answer]:
        asked: deque[Sample] = deque()

        def noted() -> Iterator[EncodedSample]:
            for sample, question in questions:
                asked.append(sample)
                yield question

        side = self.encoder.side
        with closing(engine.stream(noted())) as rollouts:
            for rollout in rollouts:
                yield read_answer(asked.popleft(), rollout, side.tokenizer, side.vocab, self.policy)


def load_predictor(
    checkpoint: str,
    settings: GenerateSection,
    *,
    server: ServerSettings | None = None,
    prompt: PromptSection | None = None,
    device: str = "auto",
    seed: int = 0,
    policy: str = DEFAULT_POLICY,
    warn: Callable[[str], None] = log.warning,
) -> Predictor:
    """A predictor for a checkpoint, in this process or behind a server.

    Args:
        checkpoint: As `resolve_checkpoint` takes it. With a server, only tokenizer, prompt and image size are read.
        settings: Of generation.
        server: Writes the answers; here it is only asked for its models.
        prompt: The checkpoint's own if `None`.
        device: `auto`, `cpu` or `cuda`.
        seed: Of sampling.
        policy: Name of the score policy.
        warn: Called if the prompt is not the one the checkpoint was trained under, or the server's prompts differ.
    """
    where = None if server else pick_device(device)
    side = load_text_side(checkpoint)
    if "max_pixels" in side.card:
        side = side.with_max_pixels(side.card["max_pixels"])
    trained = side.card.get("prompt", {"name": "plain", "text": None})
    chosen = trained if prompt is None else prompt.model_dump(mode="json")
    instruction = prompt_text(chosen["name"], chosen.get("text"))
    tokens = PromptTokens.of(side, instruction)
    trained_hash = side.card.get("prompt_hash")
    if trained_hash not in (None, tokens.hash):
        warn(f"the checkpoint was trained under prompt {trained['name']!r}, it is asked under {chosen['name']!r}")
    protocol = {
        "checkpoint": checkpoint,
        "checkpoint_path": str(side.path),
        "step": side.card.get("step"),
        "prompt": chosen,
        "prompt_hash": tokens.hash,
        "trained_prompt_hash": trained_hash,
        "max_pixels": side.images.max_pixels,
    }
    if server:
        settings = settings.model_copy(update={"grammar": False})
        longest = context_length(checkpoint)
        remote = ServerEngine(side, instruction, settings, server, longest, warn)
        protocol |= {
            "generate": settings.model_dump(mode="json"),
            "score_policy": str(policy),
            "server": {"url": remote.client.base, "model": remote.model},
        }
        return Predictor(PhotoEncoder(side, tokens, longest), remote, server.concurrency, policy, protocol)
    assert where is not None, "picked above"
    if settings.grammar:
        grammar_of(side.tokenizer, side.renderer, settings.labels)  # refuses names before a large model is loaded
    model = load_model(checkpoint).to(where)
    encoder = SampleEncoder(side, tokens, model.config.text_config.max_position_embeddings)
    protocol |= {
        "generate": settings.model_dump(mode="json"),
        "seed": seed,
        "score_policy": str(policy),
        "device": where.type,
    }
    engine = LocalEngine(model, side, settings, seed)
    return Predictor(encoder, engine, settings.batch_size, policy, protocol, AHEAD)


def answer_split(
    predictor: Predictor,
    samples: Sequence[Sample],
    out: Path | None = None,
    *,
    protocol: Mapping[str, Any] | None = None,
    resume: bool | None = True,
    each: Callable[[Answer], None] | None = None,
    title: str = "answers",
) -> list[Answer]:
    """Answer every sample of a split, in order.

    With `out`, each answer is written to `predictions.jsonl` at once, so that an interrupted run can be resumed, and
    the result is read from that file: it does not depend on whether there was an interruption.

    Args:
        predictor: Asks the model.
        samples: The split.
        out: Folder of `predictions.jsonl`; `None` keeps no file.
        protocol: What the answers depend on; the predictor's if `None`.
        resume: As in `open_answers`.
        each: Called with every answer, before it counts as done.
        title: Of the progress bar.
    """
    if out is None:
        answers = []
        for answer in track(predictor.answers(samples), title, total=len(samples)):
            if each is not None:
                each(answer)
            answers.append(answer)
        return answers
    with open_answers(out, predictor.protocol if protocol is None else protocol, resume=resume) as file:
        if file.done and resume is None:
            log.warning("%s: %d answers of an interrupted run are kept", out, len(file.done))
        left = [sample for sample in samples if sample.id not in file.done]
        questions = ((sample, predictor.encoder.question(sample)) for sample in left)
        _answer_into(file, predictor, questions, len(left), each, title)
    side = predictor.encoder.side
    rollouts = {line.id: line.rollout() for line in read_lines(out / PREDICTIONS_FILE)}
    assert rollouts.keys() == {sample.id for sample in samples}, "the protocol names the data"
    return [read_answer(s, rollouts[s.id], side.tokenizer, side.vocab, predictor.policy) for s in samples]


def _answer_into(
    file: AnswerFile,
    predictor: Predictor,
    questions: Questions,
    left: int,
    each: Callable[[Answer], None] | None,
    title: str,
) -> None:
    with progress_bar() as bar:
        total = len(file.done) + left
        task = bar.add_task(title, total=total, completed=len(file.done), note="")
        for answer in predictor.answer_questions(questions):
            if each is not None:
                each(answer)
            file.write(answer)
            bar.update(task, advance=1, note=f"{file.objects} objects")
        bar.update(task, completed=total)


def score_answers(
    samples: Sequence[Sample],
    answers: Sequence[Answer],
    *,
    policy: str,
    min_score: float = 0.0,
    complete: GroundTruth | None = None,
) -> Metrics:
    """All figures of a split from its answers, by `policy`, or by `constant` where an answer lacks it."""
    answers = under_one_policy(answers, policy)
    scores = [answer.scores for answer in answers]
    truth = samples_to_ground_truth(samples)
    truth, detections = predictions_to_detections(truth, {a.sample.id: a.detections for a in answers})
    return evaluate_detections(
        truth,
        detections,
        policy=common_policy(scores, policy),
        scores=split_scores(scores),
        parse=parse_figures((a.parsed, a.rollout.finish_reason) for a in answers),
        min_score=min_score,
        complete=complete,
    )


def evaluate_checkpoint(
    checkpoint: str,
    data: Path,
    out: Path,
    *,
    server: ServerSettings | None = None,
    settings: GenerateSection | None = None,
    prompt: PromptSection | None = None,
    device: str = "auto",
    seed: int = 0,
    policy: str = DEFAULT_POLICY,
    min_score: float = 0.0,
    complete: Path | None = None,
    pictures: int = 16,
    resume: bool | None = False,
    overwrite: bool = False,
    warn: Callable[[str], None] = log.warning,
) -> Metrics:
    """Answer a split and score it, into `out`; arguments that are not listed are those of `load_predictor`.

    Writes `protocol.json`, `predictions.jsonl` (as `answer_split` does), `coco.json` and `results.json` (COCO labels
    and results with the same figures), `pictures/`, `contact_sheet.png`, and last `metrics.json`.

    Args:
        data: JSONL of the split.
        out: Folder; made if missing.
        min_score: Detections below it are left out of F1 and pictures.
        complete: Complete truth of the same images (COCO or JSONL), where it is known.
        pictures: How many images are drawn.
        resume: Whether to resume the evaluation in `out`, as in `open_answers`.
        overwrite: Start again where an unfinished evaluation is in `out`, which else is refused.
        warn: As in `load_predictor`; also called if the scores cannot follow `policy`.

    Returns:
        The content of `metrics.json`: the figures, and under `protocol` what they depend on.
    """
    if resume:
        check_out(out, resume=True)
    elif resume is False and not overwrite and (out / PART_FILE).exists():
        raise UserError(
            "this folder holds an unfinished evaluation",
            where=out,
            fix="add --resume to finish it, or --overwrite to start again",
            exit_code=2,
        )
    samples = read_split(data)
    everything = load_complete(complete, samples_to_ground_truth(samples))[1] if complete else None
    predictor = load_predictor(
        checkpoint,
        settings or GenerateSection(),
        server=server,
        prompt=prompt,
        device=device,
        seed=seed,
        policy=policy,
        warn=warn,
    )
    metrics, _ = evaluate_split(
        predictor, samples, out, data, complete, everything, min_score=min_score, pictures=pictures, resume=resume,
        warn=warn,
    )  # fmt: skip
    return metrics


def evaluate_split(
    predictor: Predictor,
    samples: Sequence[Sample],
    out: Path,
    data: Path,
    complete: Path | None,
    everything: GroundTruth | None,
    *,
    min_score: float = 0.0,
    pictures: int = 16,
    resume: bool | None = False,
    warn: Callable[[str], None] = log.warning,
) -> tuple[Metrics, list[Answer]]:
    """`evaluate_checkpoint` with a loaded predictor and samples.

    Returns:
        The content of `metrics.json`; and the answers, by the score policy that it names.
    """
    policy = predictor.policy
    protocol = {**predictor.protocol, "data": str(data), "data_sha256": file_hash(data)}
    if complete:
        protocol |= {"complete": str(complete), "complete_sha256": file_hash(complete)}
    answers = answer_split(predictor, samples, out, protocol=protocol, resume=resume, title="evaluate")
    metrics = score_answers(samples, answers, policy=policy, min_score=min_score, complete=everything)
    answers = under_one_policy(answers, policy)
    if metrics["score_policy"] != policy:
        warn(no_scores(policy, metrics["score_policy"]))
    write_coco_files(samples, answers, out)
    write_pictures(answers, out, pictures, min_score=min_score)
    metrics["protocol"] = protocol
    write_json(out / METRICS_FILE, metrics)
    return metrics, answers


def write_coco_files(samples: Sequence[Sample], answers: Sequence[Answer], out: Path) -> None:
    """`coco.json` (labels, and every class that was predicted) and `results.json`: scoring them gives equal figures."""
    truth, detections = predictions_to_detections(
        samples_to_ground_truth(samples), {a.sample.id: a.detections for a in answers}
    )
    write_json(out / COCO_FILE, to_coco(truth, samples))
    write_json(out / RESULTS_FILE, to_coco_results(truth, detections), indent=None)


def read_split(data: Path) -> list[Sample]:
    """The samples of a JSONL, at least one.

    Every image file must exist and have the size in its line: a long run must not fail in the middle, and a box in
    another frame would silently be scored as wrong.
    """
    samples = read_jsonl(data)
    if not samples:
        raise UserError("expected at least one image, found none", where=data)
    for sample in samples:
        require_size(sample, image_size(sample.image), data)
    return samples


# Photos without labels: answers, COCO files and pictures, for any number of them, with one batch in memory at a time.

OVERLAYS = "overlays"
_LONGEST_NAME = 200  # bytes; file systems take 255, and writing adds some


@dataclass(frozen=True, slots=True)
class PhotosDone:
    """The result of a run over photos."""

    images: int  # photos answered, those of an earlier run included
    resumed: int  # of these, by an earlier run
    objects: int  # valid objects in all answers
    dropped: int
    skipped: tuple[str, ...]  # a message for each photo that could not be read
    # score policy of `results.json`: the predictor's, or `constant` where an answer lacks it
    policy: str = DEFAULT_POLICY


def predict_photos(
    predictor: Predictor, photos: Sequence[Photo], out: Path, *, overlays: bool = True, resume: bool = False
) -> PhotosDone:
    """Answer photos into a folder: `predictions.jsonl`, `coco.json`, `results.json`, and `overlays/` with the boxes.

    `out` is new or empty; with `resume`, the folder of an earlier run under the same protocol. Where no photo could be
    read, nothing is left in it, so that it is free for the next try.
    """
    check_out(out, resume=resume)
    skipped: list[str] = []
    existed = out.is_dir()
    with open_answers(out, predictor.protocol, resume=True) as file:
        resumed = len(file.done)
        left = [photo for photo in photos if photo.id not in file.done]
        # The picture comes first: a photo that counts as done must have one.
        draw = (lambda answer: _draw(answer, out, skipped)) if overlays else None
        questions = _questions(predictor, left, skipped)
        _answer_into(file, predictor, questions, len(left), draw, "predict")
    if not file.done:
        discard_run(out, existed=existed)
        return PhotosDone(0, 0, 0, 0, tuple(skipped), predictor.policy)
    policy = write_coco(out, predictor.policy)
    return PhotosDone(len(file.done), resumed, file.objects, file.dropped, tuple(skipped), policy)


def _questions(
    predictor: Predictor, photos: Sequence[Photo], skipped: list[str]
) -> Iterator[tuple[Sample, EncodedSample]]:
    """Photos as questions; `skipped` gets a message for each one that cannot be read."""
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
    """Draw a photo with its boxes. It is opened again, so that no batch of decoded photos is held in memory."""
    sample = answer.sample
    try:
        image = open_image(sample.image)
    except ImageError as error:
        skipped.append(f"{error.where}: no picture drawn: {error.message}")
        return
    save_png(out / OVERLAYS / overlay_name(sample.id), draw_predictions(image, answer.detections, title=sample.id))


def overlay_name(photo_id: str) -> str:
    """Path of a photo's picture below `overlays/`: its id and `.png`, shortened if it is too long for a file name."""
    folder, slash, name = photo_id.rpartition("/")
    if len(name.encode()) > _LONGEST_NAME:
        name = f"{name[:40]}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"
    return f"{folder}{slash}{name}.png"


def write_coco(out: Path, policy: str) -> str:
    """Write `coco.json` (images and categories) and `results.json` from the `predictions.jsonl` in `out`.

    Image ids are 1, 2, ... in the order of the lines, category ids 1, 2, ... over the sorted names. Boxes are read line
    by line: memory grows by a line of `coco.json` for each photo.

    Returns:
        The score policy of the results: `policy`, or `constant` where an answer with boxes lacks it.
    """
    images: list[dict[str, Any]] = []
    names: set[str] = set()
    used = policy
    for number, line in enumerate(read_lines(out / PREDICTIONS_FILE), 1):
        images.append({"id": number, "file_name": line.id, "width": line.width, "height": line.height})
        names.update(item.desc for item in line.objects)
        if line.objects and line.score_policy != policy:
            used = str(ScorePolicy.CONSTANT)
    category = {name: number for number, name in enumerate(sorted(names), 1)}
    categories = [{"id": number, "name": name} for name, number in category.items()]
    write_json(out / COCO_FILE, {"images": images, "annotations": [], "categories": categories})
    with atomic_open(out / RESULTS_FILE) as file:
        separator = "[\n"
        for number, line in enumerate(read_lines(out / PREDICTIONS_FILE), 1):
            for item in line.objects:
                x1, y1, x2, y2 = item.bbox
                row = {
                    "image_id": number,
                    "category_id": category[item.desc],
                    "bbox": [x1, y1, round(x2 - x1, 3), round(y2 - y1, 3)],
                    "score": item.score if used == policy else 1.0,
                }
                file.write(separator + json.dumps(row))
                separator = ",\n"
        file.write("[]\n" if separator == "[\n" else "\n]\n")
    return used
