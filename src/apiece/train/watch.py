"""Evaluations and dumps in the middle of training: when, and with what."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from apiece.channels.b_rollout import answering
from apiece.config.schema import Config
from apiece.data.index import open_data
from apiece.data.jsonl import read_jsonl
from apiece.evaluate.answers import DEFAULT_POLICY, Answer, under_one_policy, write_answers
from apiece.evaluate.detections import load_complete, samples_to_ground_truth
from apiece.evaluate.forms import GroundTruth
from apiece.evaluate.metrics import METRICS_FILE
from apiece.evaluate.predict import AHEAD, Predictor, answer_split, score_answers
from apiece.files import write_json
from apiece.model.encode import SampleEncoder
from apiece.monitor.dump import Monitor
from apiece.monitor.panel import ChosenPanel, choose_panel, panel_again
from apiece.rollout.generate import LocalEngine
from apiece.train.distributed import World, whole_model
from apiece.train.run import MetricsFile, read_manifest
from apiece.train.stop import StopFlag
from apiece.types import Sample

LOGGED = (
    *("coco/AP", "coco/AP50", "f1/f1", "f1/precision", "f1/recall", "f1/mean_iou", "f1/true"),
    *("parse/dropped", "parse/finish_eos"),
)
"""Figures of an evaluation that go into the run's metrics."""


def eval_subset(config: Config) -> list[Sample]:
    """A fixed choice of `eval.samples` samples of `data.eval`, in file order; none without the file."""
    if config.data.eval is None:
        return []
    samples, size = open_data(Path(config.data.eval)), config.eval.samples
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
    """Evaluate after `step` steps on the fixed subset into `eval/step_*/`; each process answers its share, one writes.

    All processes of `world` must call this (this one alone if `None`). The model is whole, and left in its mode.
    `complete` is the complete truth of (at least) the subset, where it is known.

    Returns:
        The figures for the metrics, and the answers, both empty on processes that write no files; `None` if cut short.
    """
    world, stop = world or World(0, 1, model.device), stop or StopFlag()
    own = answered(model, encoder, samples[world.rank :: world.size], config, stop)
    if world.any(own is None) or own is None:
        return None
    shares = world.gather(own)
    if shares is None:
        return {}, []
    # Answers of all ranks, interleaved back into the order of the samples.
    answers = [answer for row in itertools.zip_longest(*shares) for answer in row if answer is not None]
    out = run / "eval" / f"step_{step:06d}"
    write_answers(out, answers)
    metrics = score_answers(samples, answers, policy=DEFAULT_POLICY, complete=complete)
    write_json(out / METRICS_FILE, metrics)
    figures = {f"eval/{key}": float(value) for key in LOGGED if (value := metrics.get(key)) is not None}
    return figures, under_one_policy(answers, DEFAULT_POLICY)


def answered(
    model: Any, encoder: SampleEncoder, samples: Sequence[Sample], config: Config, stop: StopFlag
) -> list[Answer] | None:
    """The model's answers, in order; `None` if the process was asked to stop before it had them all."""
    engine = LocalEngine(model, encoder.side, config.generate, config.seed)
    predictor = Predictor(encoder, engine, config.generate.batch_size, ahead=AHEAD)
    answers: list[Answer] | None = None
    with stop.cutting(), answering(model):
        answers = answer_split(predictor, samples, each=lambda _: stop.check(), title="evaluate")
    return answers


@dataclass(frozen=True, slots=True, eq=False)
class Watched:
    """What is evaluated and dumped during a run."""

    samples: tuple[Sample, ...]  # evaluated; none without `data.eval`
    panel: ChosenPanel | None = None  # dumped; `None` without monitoring
    complete: GroundTruth | None = None  # complete truth of all of these, where known

    @property
    def manifest(self) -> dict[str, Any]:
        return {} if self.panel is None else {"panel": self.panel.entry}


def what_to_watch(config: Config, resume: Path | None) -> Watched:
    """Choose what is watched, before anything of the run is written; every process chooses the same.

    A resumed run keeps its panel. Fails if no panel can be made, or the complete truth lacks an image.
    """
    samples = tuple(eval_subset(config))
    panel = None
    if config.monitor.every_steps is not None:
        panel = choose_panel(config) if resume is None else panel_again(config, read_manifest(resume))
    if config.data.complete is None:
        return Watched(samples, panel)
    # The whole split, not only what is looked at: where images are joined by their number, it must be the split's.
    split = samples_to_ground_truth(read_jsonl(Path(str(config.data.eval))))
    return Watched(samples, panel, load_complete(Path(config.data.complete), split)[1])


@dataclass(frozen=True, slots=True, eq=False)
class Watch:
    """Evaluates and dumps when a step is due. All processes must call it: each answers its share of the images."""

    run: Path
    config: Config
    encoder: SampleEncoder
    world: World
    watched: Watched
    monitor: Monitor | None
    stop: StopFlag

    def begin(self, start: int, model: Any, metrics: MetricsFile) -> None:
        """The dump before the first step, or what an interruption left undone at the step the run resumes from."""
        logged = self.world.any(metrics.has_evaluation(start))
        dumped = self.world.any(self.monitor is not None and self.world.is_main and self.monitor.has(start))
        dumps = self._dumps(start) and not dumped
        # A dump keeps failures of the evaluation at its step, so that is repeated, too.
        evaluates = start > 0 and self._evaluates(start) and (dumps or not logged)
        if not (evaluates or dumps):
            return
        self._look(start, model, None if logged else metrics, evaluates=evaluates, dumps=dumps)
        if self.monitor is not None:
            self.monitor.wait()  # the data workers are forked next, which a busy thread may not survive

    def due(self, step: int) -> bool:
        return self._evaluates(step) or self._dumps(step)

    def after(self, step: int, model: Any, metrics: MetricsFile) -> bool:
        """Evaluate and dump after a step if due; returns whether it was."""
        if due := self.due(step):
            self._look(step, model, metrics, evaluates=self._evaluates(step), dumps=self._dumps(step))
        return due

    def _look(self, step: int, model: Any, metrics: MetricsFile | None, *, evaluates: bool, dumps: bool) -> None:
        """Evaluate, then dump; left at once if the run is asked to stop, since it can be repeated."""
        with whole_model(model, self.config.model, self.world, everywhere=True) as whole:
            assert whole is not None, "every process asks about its share"
            answers: list[Answer] = []
            if evaluates:
                evaluated = evaluate_step(
                    self.run,
                    step,
                    whole,
                    self.encoder,
                    self.watched.samples,
                    self.config,
                    self.watched.complete,
                    world=self.world,
                    stop=self.stop,
                )
                if evaluated is None:
                    return
                figures, answers = evaluated
                if metrics is not None and self.world.is_main:
                    metrics.log(step, figures)
            if dumps and self.monitor is not None and not self.world.any(self.stop.now):
                self.monitor.dump(step, whole, answers, together=self.world)

    def _evaluates(self, step: int) -> bool:
        steps = self.config.train.steps
        return bool(self.watched.samples) and (step == steps or step % (self.config.eval.every_steps or steps) == 0)

    def _dumps(self, step: int) -> bool:
        every = self.config.monitor.every_steps
        return every is not None and (step == self.config.train.steps or step % every == 0)


@contextmanager
def watching(
    run: Path, start: int, config: Config, encoder: SampleEncoder, world: World, watched: Watched, stop: StopFlag
) -> Iterator[Watch]:
    """A watch; its end waits for the dump being written."""
    if watched.panel is None:
        yield Watch(run, config, encoder, world, watched, None, stop)
        return
    keep_from = start if world.is_main else None
    with Monitor(run, keep_from, config, watched.panel, encoder, watched.complete) as monitor:
        yield Watch(run, config, encoder, world, watched, monitor, stop)
