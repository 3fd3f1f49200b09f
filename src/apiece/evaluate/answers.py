"""Answers to scored detections, and their line in `predictions.jsonl`."""

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

import numpy as np
from numpy.typing import NDArray

from apiece.boxes import FloatArray
from apiece.codec import Bins, Tokenizer, parse_ids
from apiece.codec.parse import desc_positions
from apiece.codec.vocab import CoordVocab
from apiece.errors import UserError, nearest
from apiece.files import read_json_object, write_json
from apiece.types import Detection, ParsedObject, ParseResult, Rollout, Sample

# Scores of boxes by named policies: how sure the model was of what it wrote, in the ways there are to say so.
#
# AP ranks by score, so its figure belongs to a policy. All that can be computed from an answer are, side by side; one
# of them gives the detections their score. Log-probabilities are those of the full softmax, as in the `Rollout`.
#
# Shapes: N objects of an answer.


Scores = Mapping[str, tuple[float, ...]]
"""Policy to the scores `[N]`; only the policies that can be computed for all N."""


class ScorePolicy(StrEnum):
    """How a box gets its score, in [0, 1]."""

    CONSTANT = "constant"
    """1 for every box: all that is left without log-probabilities."""
    COORD_LOGPROB = "coord_logprob"
    """exp of the mean log-probability of the four coordinate tokens."""
    COORD_MASS = "coord_mass"
    """Geometric mean over the four coordinates of the probability within `NEAR_BINS` bins of the bin written."""
    DESC_LOGPROB = "desc_logprob"
    """exp of the mean log-probability of the tokens of the name."""
    PRODUCT = "product"
    """`coord_logprob` times `desc_logprob`."""


DEFAULT_POLICY = ScorePolicy.COORD_LOGPROB


def chosen_policy(name: str) -> ScorePolicy:
    """The policy of a name.

    Raises:
        UserError: There is none.
    """
    if name not in list(ScorePolicy):
        known = ", ".join(ScorePolicy)
        raise UserError(f"unknown score policy '{name}'{nearest(name, list(ScorePolicy))}; known: {known}", exit_code=2)
    return ScorePolicy(name)


def score_objects(
    rollout: Rollout, objects: Sequence[ParsedObject], desc_positions: Sequence[Sequence[int]]
) -> dict[str, tuple[float, ...]]:
    """Scores of the objects of an answer by every policy that can be computed for all of them.

    Args:
        rollout: The answer.
        objects: What it says, read from ids.
        desc_positions: `[N]` positions of the tokens of each name.
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
    """The policy for the answers of a split: the one asked for if all have it, else `constant`.

    Scores of several policies in one ranking would mean nothing.
    """
    return asked if all(asked in scores for scores in answers) else str(ScorePolicy.CONSTANT)


def no_scores(asked: str, used: str) -> str:
    """What to tell where `common_policy` is not the one asked for."""
    return f"scores are {used}: not all answers have what {asked} needs (the engine keeps no log-probabilities)"


def split_scores(answers: Collection[Scores]) -> dict[str, FloatArray]:
    """The scores of all objects of all answers, in order, by every policy that all answers have."""
    return {
        str(policy): np.array([score for scores in answers for score in scores[policy]], dtype=np.float64)
        for policy in ScorePolicy
        if all(policy in scores for scores in answers)
    }


def _geometric_mean(logprobs: NDArray[np.float32]) -> float:
    """exp of the mean; NaN where one is NaN."""
    return math.exp(float(logprobs.mean())) if len(logprobs) else math.nan


@dataclass(frozen=True, slots=True)
class Answer:
    """One image with what the model said of it.

    Attributes:
        sample: The image and its labels.
        rollout: What was generated.
        parsed: What it says.
        detections: The kept records as boxes in pixels of the original image, with scores.
        policy: Which of `scores` they have.
        scores: Policy to a score for each detection; the policies that can be computed for all of them.
        desc_positions: Positions in the ids of the tokens of each detection's name.
    """

    sample: Sample
    rollout: Rollout
    parsed: ParseResult
    detections: tuple[Detection, ...]
    policy: str
    scores: Mapping[str, tuple[float, ...]] = field(repr=False)
    desc_positions: tuple[tuple[int, ...], ...] = field(repr=False)

    def under(self, policy: str) -> Answer:
        """The same answer with the scores of another policy that it has."""
        scored = zip(self.detections, self.scores[policy], strict=True)
        return replace(self, policy=policy, detections=tuple(replace(d, score=score) for d, score in scored))

    def record(self) -> dict[str, Any]:
        """The line in `predictions.jsonl`."""
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
            "logprobs": _numbers(self.rollout.logprobs, 5),
            "logprobs_masked": None if masked is None else _numbers(masked, 5),
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
            "near_mass": None if mass is None else _numbers(mass[coord], 6),
        }


def _numbers(values: NDArray[np.float32], digits: int) -> list[float | None]:
    """Rounded, `None` for what is not finite."""
    return [round(float(v), digits) if np.isfinite(v) else None for v in values]


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


# `predictions.jsonl` of a long run: written line by line under another name, so that nothing done is ever lost.
#
# While a run goes on, its answers are in `predictions.jsonl.part`; at the end the file takes its name. An interrupted
# run is gone on with under the same protocol (checkpoint, prompt, generation), which `protocol.json` keeps.


PREDICTIONS_FILE = "predictions.jsonl"
PART_FILE = "predictions.jsonl.part"
PROTOCOL_FILE = "protocol.json"

_FREE = {"batch_size", "device", "url"}
"""Settings that may change between a run and its resumption: they decide how fast, not what."""


def check_out(out: Path, *, resume: bool) -> None:
    """Raise a `UserError` unless a run may write to `out`: new or empty, or one to go on with."""
    if out.exists() and not out.is_dir():
        raise UserError("expected a folder, found a file", where=out, exit_code=2)
    if not out.exists() or not any(out.iterdir()):
        return
    has_run = (out / PROTOCOL_FILE).is_file()
    if resume and not has_run:
        raise UserError(
            f"there is no run to go on with: the folder is not empty and holds no {PROTOCOL_FILE}",
            where=out,
            fix="name the folder of an earlier run, or a new one",
            exit_code=2,
        )
    if not resume:
        fix = "choose another --out" + (", or add --resume to go on with the run in it" if has_run else "")
        raise UserError("the folder is not empty, and nothing in it is overwritten", where=out, fix=fix, exit_code=2)


class AnswerFile:
    """The answers of one run; made by `open_answers`.

    Attributes:
        done: Ids of the samples that are answered.
        objects: Objects in all answers.
        dropped: Records dropped from all answers.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.done: set[str] = set()
        self.objects = 0
        self.dropped = 0

    def write(self, answer: Answer) -> None:
        """Append an answer; once this returns, it survives the end of the process."""
        record = answer.record()
        try:
            self._file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            message = f"cannot write: {error.strerror}; what is done is kept"
            raise UserError(message, where=self._file.name, fix="free some space, then add --resume") from error
        self._count(record)

    def read_back(self) -> None:
        """Take up the lines of an earlier run; a last line that was cut off is dropped and done again.

        Raises:
            UserError: Another line is broken: to go on from there would lose what follows.
        """
        end = 0
        for number, raw in enumerate(self._file, 1):
            record = _record(raw)
            if record is None:
                if self._file.read(1):
                    where, fix = f"{self._file.name}:{number}", "delete this line; its photo is then done again"
                    raise UserError("expected an answer, found something else", where=where, fix=fix)
                break
            self._count(record)
            end += len(raw)
        self._file.seek(end)
        self._file.truncate()

    def _count(self, record: Mapping[str, Any]) -> None:
        self.done.add(record["id"])
        self.objects += len(record["objects"])
        self.dropped += sum(record["dropped"].values())


@contextmanager
def open_answers(out: Path, protocol: Mapping[str, Any], *, resume: bool) -> Iterator[AnswerFile]:
    """The answers in `out`: those of an earlier run first where `resume` is set, then what is written.

    When the block ends without an error, `predictions.jsonl` is complete. When it does not, what was written stays in
    `predictions.jsonl.part` for the next time.

    Raises:
        UserError: `out` may not be written to (`check_out`), or the earlier run had another protocol.
    """
    check_out(out, resume=resume)
    part, final, settings = out / PART_FILE, out / PREDICTIONS_FILE, out / PROTOCOL_FILE
    if settings.is_file():
        _require_same(settings, protocol)
    write_json(settings, protocol)
    if final.exists() and not part.exists():
        final.replace(part)
    with open(part, "r+b" if part.exists() else "w+b") as file:
        answers = AnswerFile(file)
        answers.read_back()
        yield answers
        os.fsync(file.fileno())
    part.replace(final)


def discard_run(out: Path, *, existed: bool) -> None:
    """Take away the files of a run that answered nothing, and its folder unless that `existed` before."""
    for name in (PREDICTIONS_FILE, PROTOCOL_FILE):
        (out / name).unlink(missing_ok=True)
    if not existed:
        out.rmdir()


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a `predictions.jsonl`, one at a time."""
    with open(path, encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def _record(raw: bytes) -> dict[str, Any] | None:
    """A complete line as a record, `None` for one that was cut off or is none."""
    if not raw.endswith(b"\n"):
        return None
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    match value:
        case {"id": str(), "width": int(), "height": int(), "objects": list(), "dropped": dict()}:
            return dict(value)
    return None


def _require_same(path: Path, protocol: Mapping[str, Any]) -> None:
    before = read_json_object(path, "the settings of a run", fix="choose a new folder")
    old, new = _settings(before), _settings(protocol)
    changed = [
        f"{key} was {old.get(key)!r}, is {new.get(key)!r}" for key in sorted(old | new) if old.get(key) != new.get(key)
    ]
    if changed:
        raise UserError(
            f"the run in this folder had other settings: {'; '.join(changed)}",
            where=path,
            fix="go on with the same settings, or choose a new folder",
            exit_code=2,
        )


def _settings(protocol: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Settings by dotted name, without those that may change."""
    flat: dict[str, Any] = {}
    for key, value in protocol.items():
        if isinstance(value, Mapping):
            flat |= _settings(value, f"{above}{key}.")
        elif key not in _FREE:
            flat[f"{above}{key}"] = value
    return flat
