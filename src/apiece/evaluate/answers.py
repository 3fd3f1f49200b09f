"""Answers with scored boxes, and `predictions.jsonl`, the file that keeps them.

AP ranks boxes by score, so its figure belongs to a score policy. All policies that an answer allows are computed; one
of them gives the detections their score.

Shapes: N objects of an answer.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import IO, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from apiece.boxes import FloatArray
from apiece.codec import Bins, Tokenizer, parse_ids
from apiece.codec.parse import desc_positions
from apiece.codec.vocab import CoordVocab
from apiece.errors import UserError, nearest
from apiece.files import atomic_open, locked, read_json_object, write_json
from apiece.types import Detection, FinishReason, ParsedObject, ParseResult, Rollout, Sample

Scores = Mapping[str, tuple[float, ...]]  # policy to the scores `[N]`; only the policies that can be computed for all N


class ScorePolicy(StrEnum):
    """How a box gets its score, in [0, 1]."""

    CONSTANT = "constant"  # 1 for every box: all that is left without log-probabilities
    COORD_LOGPROB = "coord_logprob"  # exp of the mean log-probability of the four coordinate tokens
    COORD_MASS = "coord_mass"
    """Geometric mean over the four coordinates of the probability within `NEAR_BINS` bins of the bin written."""
    DESC_LOGPROB = "desc_logprob"  # exp of the mean log-probability of the tokens of the name
    PRODUCT = "product"  # `coord_logprob` times `desc_logprob`


DEFAULT_POLICY = ScorePolicy.COORD_LOGPROB


def chosen_policy(name: str) -> ScorePolicy:
    """The policy of that name, or a `UserError`."""
    if name not in list(ScorePolicy):
        known = ", ".join(ScorePolicy)
        raise UserError(f"unknown score policy '{name}'{nearest(name, list(ScorePolicy))}; known: {known}", exit_code=2)
    return ScorePolicy(name)


def score_objects(
    rollout: Rollout, objects: Sequence[ParsedObject], desc_positions: Sequence[Sequence[int]]
) -> dict[str, tuple[float, ...]]:
    """Scores of the objects of an answer by every policy that can be computed for all of them.

    The objects are read from ids; `desc_positions` `[N]` are those of the tokens of each name.
    """
    slots = [list(item.coord_positions or ()) for item in objects]
    coord = [_geometric_mean(rollout.logprobs[p]) for p in slots]
    desc = [_geometric_mean(rollout.logprobs[list(p)]) for p in desc_positions]
    scores = {
        ScorePolicy.CONSTANT: [1.0] * len(objects),
        ScorePolicy.COORD_LOGPROB: coord,
        ScorePolicy.DESC_LOGPROB: desc,
        ScorePolicy.PRODUCT: [a * b for a, b in zip(coord, desc, strict=True)],
    }
    if rollout.near_mass is not None or not objects:
        mass = rollout.logprobs if rollout.near_mass is None else rollout.near_mass  # the former for no object at all
        scores[ScorePolicy.COORD_MASS] = [float(mass[p].astype(np.float64).prod() ** (1 / len(p))) for p in slots]
    return {
        str(policy): tuple(min(v, 1.0) for v in scores[policy])
        for policy in ScorePolicy
        if policy in scores and not np.isnan(scores[policy]).any()
    }


def common_policy(answers: Collection[Scores], asked: str) -> str:
    """The one policy by which the answers of a split can be ranked: that asked for if all have it, else `constant`."""
    return asked if all(asked in scores for scores in answers) else str(ScorePolicy.CONSTANT)


def no_scores(asked: str, used: str) -> str:
    """The warning that `common_policy` is not the policy asked for."""
    return f"scores are {used}: not all answers have what {asked} needs (the engine keeps no log-probabilities)"


def split_scores(answers: Collection[Scores]) -> dict[str, FloatArray]:
    """The scores of all objects of all answers, in order, by every policy that all answers have."""
    return {
        str(policy): np.array([score for scores in answers for score in scores[policy]], dtype=np.float64)
        for policy in ScorePolicy
        if all(policy in scores for scores in answers)
    }


def _geometric_mean(logprobs: NDArray[np.float32]) -> float:
    return math.exp(float(logprobs.mean())) if len(logprobs) else math.nan


@dataclass(frozen=True, slots=True)
class Answer:
    """The model's answer about one image: the generated tokens, and `[N]` valid objects in them."""

    sample: Sample
    rollout: Rollout
    parsed: ParseResult
    detections: tuple[Detection, ...]  # `[N]` in pixels of the original image
    policy: str  # of the detections' scores
    scores: Scores = field(repr=False)
    desc_positions: tuple[tuple[int, ...], ...] = field(repr=False)  # `[N]` in the ids, of the tokens of each name

    def under(self, policy: str) -> Answer:
        """The same answer with the scores of another policy that it has."""
        scored = zip(self.detections, self.scores[policy], strict=True)
        return replace(self, policy=policy, detections=tuple(replace(d, score=score) for d, score in scored))

    def line(self) -> dict[str, Any]:
        """The line in `predictions.jsonl`, from which `read_answer` makes the same answer."""
        width, height = self.sample.size_wh
        masked = self.rollout.logprobs_masked
        return {
            "id": self.sample.id,
            "image": str(self.sample.image),
            "width": width,
            "height": height,
            "finish_reason": str(self.rollout.finish_reason),
            "score_policy": self.policy,
            "objects": [self._object(i) for i in range(len(self.detections))],
            "dropped": {str(k): v for k, v in self.parsed.dropped.items()},
            "text": self.rollout.text,
            "ids": self.rollout.ids.tolist(),
            "logprobs": _numbers(self.rollout.logprobs),
            "logprobs_masked": None if masked is None else _numbers(masked),
        }

    def _object(self, i: int) -> dict[str, Any]:
        detection, item = self.detections[i], self.parsed.objects[i]
        coord = list(item.coord_positions or ())
        mass = self.rollout.near_mass
        return {
            "desc": detection.desc,
            "bbox": [round(v, 3) for v in detection.bbox_xyxy],
            "bins": list(item.bins_xyxy),
            "score": round(detection.score, 6),
            "scores": {policy: round(scores[i], 6) for policy, scores in self.scores.items()},
            "desc_positions": list(self.desc_positions[i]),
            "coord_positions": coord,
            "near_mass": None if mass is None else _numbers(mass[coord]),
        }


def _numbers(values: NDArray[np.float32]) -> list[float | None]:
    """The fewest digits that give the same float32, so that figures from the file are exact; `None` for NaN."""
    return [float(str(v)) if np.isfinite(v) else None for v in values]


def read_answer(
    sample: Sample, rollout: Rollout, tokenizer: Tokenizer, vocab: CoordVocab, policy: str = DEFAULT_POLICY
) -> Answer:
    """Parse a rollout strictly and score its boxes: by `policy`, or by `constant` where it cannot be computed."""
    ids = rollout.ids.tolist()
    parsed = parse_ids(ids, tokenizer, vocab)
    boxes = Bins(vocab.num_bins).to_pixels([o.bins_xyxy for o in parsed.objects], sample.size_wh).tolist()
    names = tuple(desc_positions(ids, parsed.objects, tokenizer, vocab))
    scores = score_objects(rollout, parsed.objects, names)
    used = common_policy([scores], policy)
    detections = tuple(
        Detection(item.desc, (box[0], box[1], box[2], box[3]), score)
        for item, box, score in zip(parsed.objects, boxes, scores[used], strict=True)
    )
    return Answer(sample, rollout, parsed, detections, used, scores, names)


def under_one_policy(answers: Collection[Answer], policy: str) -> list[Answer]:
    """Answers that can be ranked together: all by `policy`, or all by `constant` where one of them lacks it."""
    used = common_policy([answer.scores for answer in answers], policy)
    return [answer if answer.policy == used else answer.under(used) for answer in answers]


PREDICTIONS_FILE = "predictions.jsonl"
PART_FILE = "predictions.jsonl.part"  # until the run is complete
PROTOCOL_FILE = "protocol.json"  # what the answers depend on: only the same settings may resume a run
LOCK_FILE = ".predictions.lock"
_FREE = {"batch_size", "device", "url"}  # may change on resume: they affect how fast answers come, not what they say


class ObjectLine(msgspec.Struct):
    """The part of an object in a line of `predictions.jsonl` that is read back."""

    desc: str
    bbox: tuple[float, float, float, float]
    score: float
    coord_positions: tuple[int, ...] = ()
    near_mass: list[float | None] | None = None


class AnswerLine(msgspec.Struct):
    """The part of a line of `predictions.jsonl` that is read back."""

    id: str
    width: int
    height: int
    finish_reason: FinishReason
    score_policy: str
    objects: list[ObjectLine]
    dropped: dict[str, int]
    text: str
    ids: list[int]
    logprobs: list[float | None]
    logprobs_masked: list[float | None] | None = None

    def rollout(self) -> Rollout:
        """The rollout; probability near a coordinate is known only where an object has it."""
        masked = None if self.logprobs_masked is None else _floats(self.logprobs_masked)
        mass = None
        for item in self.objects:
            if item.near_mass is not None:
                mass = np.full(len(self.ids), np.nan, dtype=np.float32) if mass is None else mass
                mass[list(item.coord_positions)] = _floats(item.near_mass)
        ids, logprobs = np.array(self.ids, dtype=np.int64), _floats(self.logprobs)
        return Rollout(self.id, ids, logprobs, self.text, self.finish_reason, mass, masked)


def _floats(values: Sequence[float | None]) -> NDArray[np.float32]:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float32)


_LINE = msgspec.json.Decoder(AnswerLine)


def read_lines(path: Path) -> Iterator[AnswerLine]:
    """The lines of a complete `predictions.jsonl`, one at a time."""
    with open(path, "rb") as file:
        yield from map(_LINE.decode, file)


def write_answers(out: Path, answers: Collection[Answer]) -> None:
    """Write the `predictions.jsonl` of finished answers atomically."""
    with atomic_open(out / PREDICTIONS_FILE) as file:
        for answer in answers:
            file.write(json.dumps(answer.line(), ensure_ascii=False) + "\n")


def check_out(out: Path, *, resume: bool) -> None:
    """Raise a `UserError` unless `out` is new or empty, or `resume` is set and it holds a run to resume."""
    if out.exists() and not out.is_dir():
        raise UserError("expected a folder, found a file", where=out, exit_code=2)
    if not out.exists() or not any(path.name != LOCK_FILE for path in out.iterdir()):
        return
    has_run = (out / PROTOCOL_FILE).is_file()
    if resume and not has_run:
        raise UserError(
            f"there is no run to resume: the folder is not empty and holds no {PROTOCOL_FILE}",
            where=out,
            fix="name the folder of an earlier run, or a new one",
            exit_code=2,
        )
    if not resume:
        fix = "choose another --out" + (", or add --resume to finish the run in it" if has_run else "")
        raise UserError("the folder is not empty, and nothing in it is overwritten", where=out, fix=fix, exit_code=2)


class AnswerFile:
    """The answers of one run; made by `open_answers`."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.done: set[str] = set()  # ids of the samples that are answered
        self.objects = self.dropped = 0  # valid objects in all answers, and dropped ones

    def write(self, answer: Answer) -> None:
        """Append an answer; once this returns, it survives the end of the process."""
        try:
            self._file.write(json.dumps(answer.line(), ensure_ascii=False).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            message = f"cannot write: {error.strerror}; finished answers are kept"
            raise UserError(message, where=self._file.name, fix="free some space, then add --resume") from error
        self._count(answer.sample.id, len(answer.detections), sum(answer.parsed.dropped.values()))

    def read_back(self) -> None:
        """Read the lines of an earlier run; a last line that was cut off is removed and answered again.

        Any other broken line is an error: resuming from there would lose the lines after it.
        """
        end = 0
        for number, raw in enumerate(self._file, 1):
            try:
                line = _LINE.decode(raw if raw.endswith(b"\n") else b"")
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                if self._file.read(1):
                    where, fix = f"{self._file.name}:{number}", "delete this line; its image is then answered again"
                    raise UserError("expected an answer, found something else", where=where, fix=fix) from error
                break
            self._count(line.id, len(line.objects), sum(line.dropped.values()))
            end += len(raw)
        self._file.seek(end)
        self._file.truncate()

    def _count(self, sample_id: str, objects: int, dropped: int) -> None:
        self.done.add(sample_id)
        self.objects += objects
        self.dropped += dropped


@contextmanager
def open_answers(out: Path, protocol: Mapping[str, Any], *, resume: bool | None) -> Iterator[AnswerFile]:
    """The answers in `out`: those of an earlier run, if it is resumed, then those that are written.

    If the block ends without an error, `predictions.jsonl` is complete. Otherwise its lines stay in
    `predictions.jsonl.part` for the next time.

    Args:
        out: Folder; made if missing.
        protocol: What the answers depend on.
        resume: `True` resumes the earlier run in `out`, `False` starts again, `None` resumes it if it has the same
            settings and starts again otherwise.
    """
    with locked(out / LOCK_FILE, wait=False) as held:
        if not held:
            raise UserError(
                "another process is writing answers to this folder",
                where=out,
                fix="wait until it ends, or choose another folder",
            )
        try:
            with _resumed(out, protocol, resume).open("r+b") as file:
                answers = AnswerFile(file)
                answers.read_back()
                yield answers
                os.fsync(file.fileno())
            (out / PART_FILE).replace(out / PREDICTIONS_FILE)
        finally:
            (out / LOCK_FILE).unlink()


def _resumed(out: Path, protocol: Mapping[str, Any], resume: bool | None) -> Path:
    """The part file to write to, with the lines of an earlier run if that is resumed."""
    part, final, settings = out / PART_FILE, out / PREDICTIONS_FILE, out / PROTOCOL_FILE
    changed = _changed(settings, protocol) if resume is not False and settings.is_file() else []
    if changed and resume:
        raise UserError(
            f"the run in this folder has other settings: {'; '.join(changed)}",
            where=settings,
            fix="resume with the same settings, or choose a new folder",
            exit_code=2,
        )
    if changed or resume is False:
        for earlier in (part, final):
            earlier.unlink(missing_ok=True)
    write_json(settings, protocol)
    if final.exists() and not part.exists():
        final.replace(part)
    part.touch()
    return part


def discard_run(out: Path, *, existed: bool) -> None:
    """Remove the files of a run that answered nothing, and its folder unless that `existed` before."""
    for name in (PREDICTIONS_FILE, PROTOCOL_FILE):
        (out / name).unlink(missing_ok=True)
    if not existed:
        out.rmdir()


def _changed(path: Path, protocol: Mapping[str, Any]) -> list[str]:
    """What differs between the settings in a file and the present ones, in words."""
    old, new = _flat(read_json_object(path, "the settings of a run", fix="choose a new folder")), _flat(protocol)
    keys = [key for key in sorted(old | new) if old.get(key) != new.get(key)]
    return [f"{key} was {old.get(key)!r}, is {new.get(key)!r}" for key in keys]


def _flat(protocol: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Settings by dotted name, without those that may change."""
    flat: dict[str, Any] = {}
    for key, value in protocol.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{above}{key}.")
        elif key not in _FREE:
            flat[f"{above}{key}"] = value
    return flat
