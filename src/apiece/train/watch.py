"""Looking at the model in the middle of training: evaluations and dumps, when and with what."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apiece.config.schema import Config
from apiece.data.jsonl import read_jsonl
from apiece.errors import UserError
from apiece.evaluate.answers import Answer
from apiece.evaluate.complete import load_complete
from apiece.evaluate.detections import samples_to_ground_truth
from apiece.evaluate.forms import GroundTruth
from apiece.model.encode import SampleEncoder
from apiece.monitor.dump import Monitor
from apiece.monitor.panel import ChosenPanel, choose_panel, panel_again
from apiece.train.distributed import World
from apiece.train.evaluation import eval_subset, evaluate_step
from apiece.train.run import Metrics
from apiece.train.sharding import whole_model
from apiece.types import Sample


@dataclass(frozen=True, slots=True, eq=False)
class Watched:
    """What is looked at during a run.

    Attributes:
        samples: Evaluated; none without `data.eval`.
        panel: Dumped; `None` without monitoring, and on processes that write no files.
        complete: Complete truth of all of these, where it is known; as the panel, where files are written.
    """

    samples: tuple[Sample, ...]
    panel: ChosenPanel | None = None
    complete: GroundTruth | None = None


def what_to_watch(config: Config, resume: Path | None, world: World) -> Watched:
    """Choose what is looked at, before anything of the run is written.

    Args:
        config: Of the run.
        resume: Folder of the run that goes on; its panel stays.
        world: The processes.

    Raises:
        UserError: The panel cannot be had, or the complete truth lacks an image.
    """
    samples = tuple(eval_subset(config))
    if not world.is_main:
        return Watched(samples)
    panel = None
    if config.monitor.every_steps is not None:
        panel = choose_panel(config) if resume is None else panel_again(config, read_manifest(resume))
    if config.data.complete is None:
        return Watched(samples, panel)
    # The whole split, not only what is looked at: where images are joined by their number, it must be the split's.
    split = samples_to_ground_truth(read_jsonl(Path(str(config.data.eval))))
    return Watched(samples, panel, load_complete(Path(config.data.complete), split)[1])


def read_manifest(run: Path) -> dict[str, Any]:
    """A run's `manifest.json`.

    Raises:
        UserError: It cannot be read.
    """
    file = run / "manifest.json"
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"the run's manifest cannot be read: {error}", where=file) from error
    if not isinstance(manifest, dict):
        raise UserError("expected a JSON object", where=file)
    return manifest


@dataclass(frozen=True, slots=True, eq=False)
class Watch:
    """Evaluates and dumps when a step is due. All processes must call it, as a sharded model is gathered for it."""

    run: Path
    config: Config
    encoder: SampleEncoder
    world: World
    watched: Watched
    monitor: Monitor | None

    def begin(self, start: int, model: Any) -> None:
        """The dump before the first step, or one that a crash after the checkpoint has left undone."""
        if not self._dumps(start):
            return
        with whole_model(model, self.config.model, self.world) as whole:
            if whole is not None and self.monitor is not None and not self.monitor.has(start):
                self.monitor.dump(start, whole)
                self.monitor.wait()  # the data workers are forked next, which a busy thread may not survive

    def after(self, step: int, model: Any, metrics: Metrics) -> bool:
        """Evaluate and dump after a step, where it is due; tells whether anything was."""
        evaluates, dumps = self._evaluates(step), self._dumps(step)
        if not (evaluates or dumps):
            return False
        with whole_model(model, self.config.model, self.world) as whole:
            if whole is not None:
                answers: list[Answer] = []
                if evaluates:
                    samples, complete = self.watched.samples, self.watched.complete
                    figures, answers = evaluate_step(
                        self.run, step, whole, self.encoder, samples, self.config, complete
                    )
                    metrics.log(step, figures)
                if dumps and self.monitor is not None:
                    self.monitor.dump(step, whole, answers)
        return True

    def _evaluates(self, step: int) -> bool:
        steps = self.config.train.steps
        return bool(self.watched.samples) and (step == steps or step % (self.config.eval.every_steps or steps) == 0)

    def _dumps(self, step: int) -> bool:
        every = self.config.monitor.every_steps
        return every is not None and (step == self.config.train.steps or step % every == 0)


@contextmanager
def watching(
    run: Path, start: int, config: Config, encoder: SampleEncoder, world: World, watched: Watched
) -> Iterator[Watch]:
    """A watch; its end waits for the dump that is being written."""
    if watched.panel is None:
        yield Watch(run, config, encoder, world, watched, None)
        return
    with Monitor(run, start, config, watched.panel, encoder, watched.complete) as monitor:
        yield Watch(run, config, encoder, world, watched, monitor)
