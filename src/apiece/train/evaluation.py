"""Evaluation in the middle of training, with the engine and settings of `apiece evaluate`."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from apiece.channels.b_rollout import answering
from apiece.config.schema import Config
from apiece.data.records import open_records
from apiece.evaluate.answers import Answer, under_one_policy
from apiece.evaluate.forms import GroundTruth
from apiece.evaluate.metrics import METRICS_FILE, Metrics, write_metrics
from apiece.evaluate.predict import AHEAD, Predictor, predictions_file, score_answers
from apiece.evaluate.scores import DEFAULT_POLICY
from apiece.model.encode import SampleEncoder
from apiece.progress import track
from apiece.rollout.generate import LocalEngine
from apiece.train.distributed import World
from apiece.train.stop import StopFlag
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
    *,
    world: World | None = None,
    stop: StopFlag | None = None,
) -> tuple[dict[str, float], list[Answer]] | None:
    """Evaluate on the fixed subset into `eval/step_*/`; each process asks about its share, one writes.

    Args:
        run: The run's folder.
        step: Optimizer steps done.
        model: Whole, and left in the mode that it was in.
        encoder: Tokenizer, prompt and images.
        samples: The subset.
        config: Of the run.
        complete: Complete truth of (at least) the subset, where it is known.
        world: The processes, all of which must call this; this one alone if `None`.
        stop: Cuts it short.

    Returns:
        The figures that go to the metrics, and the answers; empty on processes that write no files. `None` where it
        was cut short.
    """
    world, stop = world or World(0, 1, model.device), stop or StopFlag()
    own = answered(model, encoder, samples[world.rank :: world.size], config, stop)
    if world.any(own is None) or own is None:
        return None
    shares = world.gather(own)
    if shares is None:
        return {}, []
    answers = in_order(shares)
    metrics, answers = write_scored(answers, samples, run / "eval" / f"step_{step:06d}", complete=complete)
    return {f"eval/{key}": float(metrics[key]) for key in LOGGED if key in metrics}, answers


def answered(
    model: Any, encoder: SampleEncoder, samples: Sequence[Sample], config: Config, stop: StopFlag
) -> list[Answer] | None:
    """The model's answers, in order; `None` where the process was asked to stop before it had them all."""
    engine = LocalEngine(model, encoder.side, config.generate, config.seed)
    predictor = Predictor(encoder, engine, config.generate.batch_size, ahead=AHEAD)
    answers: list[Answer] | None = None
    with stop.cutting(), answering(model):
        found = []
        for answer in track(predictor.answers(samples), "evaluate", total=len(samples)):
            stop.check()
            found.append(answer)
        answers = found
    return answers


def in_order(shares: Sequence[Sequence[Answer]]) -> list[Answer]:
    """What processes have answered of every so-manieth sample, in the order of the samples."""
    mixed = itertools.zip_longest(*shares)
    return [answer for row in mixed for answer in row if answer is not None]


def write_scored(
    answers: Sequence[Answer], samples: Sequence[Sample], out: Path, *, complete: GroundTruth | None
) -> tuple[Metrics, list[Answer]]:
    """Write answers and figures of a split; gives both, by the policy that all answers can follow."""
    with predictions_file(out) as write:
        for answer in answers:
            write(answer)
    metrics = score_answers(samples, answers, policy=DEFAULT_POLICY, complete=complete)
    write_metrics(out / METRICS_FILE, metrics)
    return metrics, under_one_policy(answers, DEFAULT_POLICY)
