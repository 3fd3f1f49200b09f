"""Answers to scored detections, and their line in `predictions.jsonl`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apiece.codec import Bins, Tokenizer, parse_ids
from apiece.codec.parse import desc_positions
from apiece.codec.vocab import CoordVocab
from apiece.evaluate.scores import DEFAULT_POLICY, common_policy, score_objects
from apiece.types import Detection, ParseResult, Rollout, Sample


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
