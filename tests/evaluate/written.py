"""An engine that writes given answers, and what is needed around it: no weights, no forward pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from apiece.codec import Bins, objects_to_bins
from apiece.codec.render import DescBins
from apiece.codec.vocab import decode_exact
from apiece.data.collate import EncodedSample
from apiece.evaluate.answers import Answer, under_one_policy
from apiece.evaluate.metrics import Metrics
from apiece.evaluate.predict import Predictor, answer_split, score_answers
from apiece.model.encode import PromptTokens, SampleEncoder
from apiece.model.load import TextSide, load_text_side
from apiece.types import FinishReason, Instance, Rollout, Sample


def bins_of(sample: Sample) -> list[DescBins]:
    """The labels of a sample as the records of a perfect answer."""
    objects = [o for o in sample.objects if not o.iscrowd]
    return objects_to_bins([o.bbox_xyxy for o in objects], [o.desc for o in objects], sample.size_wh, Bins())


@dataclass
class WrittenEngine:
    """Writes the records it was given, by sample id; nothing for others.

    Attributes:
        logprob: Of every token.
        stop_after: Batches until it is interrupted, as by Ctrl-C.
        batches: Sample ids of every batch so far.
    """

    side: TextSide
    records: Mapping[str, Sequence[DescBins]] = field(default_factory=dict)
    logprob: float = -0.5
    stop_after: int | None = None
    batches: list[list[str]] = field(default_factory=list)

    def generate(self, questions: Sequence[EncodedSample]) -> list[Rollout]:
        if self.stop_after is not None and len(self.batches) >= self.stop_after:
            raise KeyboardInterrupt
        self.batches.append([question.sample_id for question in questions])
        return [rollout(self.side, q.sample_id, self.records.get(q.sample_id, ()), self.logprob) for q in questions]


def rollout(side: TextSide, sample_id: str, records: Sequence[DescBins], logprob: float = -0.5) -> Rollout:
    """The canonical answer as if it had been generated."""
    ids = side.renderer.render(records).ids
    text = decode_exact(side.tokenizer, ids.tolist())
    return Rollout(sample_id, ids, np.full(len(ids), logprob, dtype=np.float32), text, FinishReason.EOS)


def written_predictor(
    checkpoint: Path, records: Mapping[str, Sequence[DescBins]] | None = None, *, batch_size: int = 2
) -> tuple[Predictor, WrittenEngine]:
    """A predictor whose answers are given."""
    side = load_text_side(str(checkpoint))
    encoder = SampleEncoder(side, PromptTokens.of(side, "Detect."), 8192)
    engine = WrittenEngine(side, records or {})
    return Predictor(encoder, engine, batch_size, protocol={"generate": {"batch_size": batch_size}, "seed": 0}), engine


def evaluated(predictor: Predictor, samples: Sequence[Sample], out: Path) -> tuple[Metrics, list[Answer]]:
    """Figures and answers of a split, all by one policy."""
    answers = answer_split(predictor, samples, out, resume=False)
    return score_answers(samples, answers, policy=predictor.policy), under_one_policy(answers, predictor.policy)


def save_photo(path: Path, size_wh: tuple[int, int] = (64, 48)) -> Path:
    """A photo of one colour; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size_wh, (90, 120, 60)).save(path)
    return path


def labelled(folder: Path, counts: Sequence[int]) -> list[Sample]:
    """A sample with each number of labels: cups in a row, and now and then a crowd region of people."""
    samples = []
    for number, count in enumerate(counts):
        image = save_photo(folder / f"{number}.png", (200, 100))
        objects = [Instance("cup", (8.0 * i, 10.0, 8.0 * i + 6, 40.0)) for i in range(count)]
        if number % 2:
            objects.append(Instance("person", (0.0, 50.0, 200.0, 100.0), iscrowd=True))
        samples.append(Sample(f"s{number}", image, (200, 100), tuple(objects)))
    return samples
