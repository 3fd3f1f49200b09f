"""A checkpoint that a server answers for: on photos and on a split, where what is done is kept if the server fails."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from apiece.config.schema import GenerateSection, PromptSection
from apiece.errors import UserError
from apiece.evaluate.answer_file import (
    PART_FILE,
    PREDICTIONS_FILE,
    PROTOCOL_FILE,
    check_out,
    open_answers,
    read_records,
)
from apiece.evaluate.answers import Answer, read_answer, under_one_policy
from apiece.evaluate.complete import load_complete
from apiece.evaluate.detections import samples_to_ground_truth
from apiece.evaluate.metrics import METRICS_FILE, Metrics, write_metrics
from apiece.evaluate.pictures import write_pictures
from apiece.evaluate.predict import (
    Predictor,
    data_protocol,
    how_asked,
    read_split,
    score_answers,
    write_coco_files,
)
from apiece.evaluate.scores import DEFAULT_POLICY, no_scores
from apiece.files import write_json
from apiece.model.load import context_length
from apiece.progress import progress_bar
from apiece.rollout.client import ServerSettings
from apiece.rollout.server import PhotoEncoder, ServerEngine
from apiece.types import FinishReason, Rollout, Sample

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
