"""Answers to scored detections, and their line in `predictions.jsonl`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from apiece.codec import Bins, Tokenizer, parse_ids
from apiece.codec.vocab import CoordVocab
from apiece.types import Detection, ParsedObject, ParseResult, Rollout, Sample

ScorePolicy = Callable[[Rollout, ParsedObject], float]


def coord_logprob(rollout: Rollout, item: ParsedObject) -> float:
    """exp of the mean log-probability of the four coordinate tokens, under the model's full softmax."""
    assert item.coord_positions is not None, "answers are parsed from ids, which gives the positions"
    return math.exp(float(rollout.logprobs[list(item.coord_positions)].mean()))


def constant(rollout: Rollout, item: ParsedObject) -> float:
    """1 for every box: all that an engine without log-probabilities can give."""
    return 1.0


SCORE_POLICIES: dict[str, ScorePolicy] = {"coord_logprob": coord_logprob, "constant": constant}
DEFAULT_POLICY = "coord_logprob"


@dataclass(frozen=True, slots=True)
class Answer:
    """One image with what the model said of it.

    Attributes:
        sample: The image and its labels.
        rollout: What was generated.
        parsed: What it says.
        detections: The kept records as boxes in pixels of the original image, with scores.
    """

    sample: Sample
    rollout: Rollout
    parsed: ParseResult
    detections: tuple[Detection, ...]

    def record(self) -> dict[str, Any]:
        """The line in `predictions.jsonl`."""
        width, height = self.sample.size_wh
        return {
            "id": self.sample.id,
            "image": str(self.sample.image),
            "width": width,
            "height": height,
            "finish_reason": str(self.rollout.finish_reason),
            "objects": [
                {
                    "desc": d.desc,
                    "bbox": [round(v, 3) for v in d.bbox_xyxy],
                    "bins": list(o.bins_xyxy),
                    "score": round(d.score, 6),
                }
                for d, o in zip(self.detections, self.parsed.objects, strict=True)
            ],
            "dropped": {str(k): v for k, v in self.parsed.dropped.items()},
            "text": self.rollout.text,
            "ids": self.rollout.ids.tolist(),
            "logprobs": [round(float(v), 5) for v in self.rollout.logprobs],
        }


def read_answer(
    sample: Sample, rollout: Rollout, tokenizer: Tokenizer, vocab: CoordVocab, policy: str = DEFAULT_POLICY
) -> Answer:
    """Parse a rollout strictly and score its boxes."""
    parsed = parse_ids(rollout.ids.tolist(), tokenizer, vocab)
    boxes = Bins(vocab.num_bins).to_pixels([o.bins_xyxy for o in parsed.objects], sample.size_wh).tolist()
    score = SCORE_POLICIES[policy]
    detections = tuple(
        Detection(o.desc, (b[0], b[1], b[2], b[3]), score(rollout, o))
        for o, b in zip(parsed.objects, boxes, strict=True)
    )
    return Answer(sample, rollout, parsed, detections)
