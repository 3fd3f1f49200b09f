"""Evaluation in the middle of training, with the engine and settings of `apiece evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from apiece.config.schema import Config
from apiece.data.records import open_records
from apiece.evaluate.answers import Answer
from apiece.evaluate.forms import GroundTruth
from apiece.evaluate.metrics import write_metrics
from apiece.evaluate.predict import AHEAD, Predictor, evaluate_samples
from apiece.model.encode import SampleEncoder
from apiece.rollout.generate import LocalEngine
from apiece.types import Sample

LOGGED = (
    "coco/AP",
    "coco/AP50",
    "f1/f1",
    "f1/precision",
    "f1/recall",
    "f1/mean_iou",
    "f1/true",
    "parse/dropped",
    "parse/finish_eos",
)


def eval_subset(config: Config) -> list[Sample]:
    """A fixed choice of `eval.samples` samples of `data.eval`, in the order of the file; none without the file."""
    if config.data.eval is None:
        return []
    samples, size = open_records(Path(config.data.eval)), config.eval.samples
    if len(samples) <= size:
        return list(samples)
    chosen = np.random.default_rng([config.seed, 0xE7A1]).choice(len(samples), size, replace=False)
    return [samples[i] for i in sorted(chosen)]


def evaluate_step(
    run: Path,
    step: int,
    model: Any,
    encoder: SampleEncoder,
    samples: Sequence[Sample],
    config: Config,
    complete: GroundTruth | None = None,
) -> tuple[dict[str, float], list[Answer]]:
    """Evaluate on the fixed subset into `eval/step_*/`.

    Args:
        run: The run's folder.
        step: Optimizer steps done.
        model: Left in the mode that it was in.
        encoder: Tokenizer, prompt and images.
        samples: The subset.
        config: Of the run.
        complete: Complete truth of (at least) the subset, where it is known.

    Returns:
        The figures that go to the metrics, and the answers.
    """
    out = run / "eval" / f"step_{step:06d}"
    was_training = model.training
    model.eval()
    engine = LocalEngine(model, encoder.side, config.generate, config.seed)
    predictor = Predictor(encoder, engine, config.generate.batch_size, ahead=AHEAD)
    metrics, answers = evaluate_samples(predictor, samples, out, complete=complete)
    write_metrics(out / "metrics.json", metrics)
    model.train(was_training)
    return {f"eval/{key}": float(metrics[key]) for key in LOGGED if key in metrics}, answers
