"""When a run saves, what it saves besides the weights, and which checkpoints it keeps."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from apiece.errors import UserError
from apiece.files import write_json
from apiece.train.checkpoint import NotSavedError, complete_checkpoints, prune, save_checkpoint, step_of
from apiece.train.meter import Meter
from apiece.train.run import MetricsFile
from apiece.train.setup import Training
from apiece.train.stop import NonFiniteError, UpdateBrokenError, explained

NONFINITE = "nonfinite"
log = logging.getLogger("apiece")


def report_file(run: Path, step: int) -> Path:
    """What was not finite in a step."""
    return run / NONFINITE / f"step_{step:06d}.json"


@dataclass
class Saver:
    """Saves a run.

    Attributes:
        meter: Figures that are not written yet.
        metrics: Figures that are.
        skipped: Steps that were skipped because something was not finite.
    """

    run: Path
    training: Training
    meter: Meter
    metrics: MetricsFile
    skipped: list[int] = field(default_factory=list)
    _step_s: float = 0.0
    _warned: bool = False

    def save(self, step: int) -> None:
        """Write the checkpoint after `step` steps, then remove old ones; all processes must call this."""
        t = self.training
        self.metrics.sync()
        state = {"skipped": self.skipped, "meter": self.meter.state()}
        sharded, grace, since = t.config.train.sharded_checkpoints, t.config.train.grace_s, time.monotonic()
        save_checkpoint(self.run, step, t.model, t.data.side, t.optimizers, t.card, state, t.world, sharded=sharded)
        took = time.monotonic() - since
        if took + self._step_s > grace and not self._warned:
            self._warned = True
            log.warning(
                "a step (%.0f s) and a save (%.0f s) take longer than train.grace_s (%g): on a machine that is taken "
                "away, the steps since the last checkpoint may be lost",
                *(self._step_s, took, grace),
            )
        self.prune()

    def restore(self, state: dict[str, Any]) -> None:
        """Restore what `save` kept."""
        self.skipped[:] = state.get("skipped", [])
        if "meter" in state:
            self.meter.restore(state["meter"])

    def prune(self) -> None:
        """Remove all checkpoints but the newest, and the best where that is asked for."""
        train = self.training.config.train
        if not self.training.world.is_main:
            return
        steps = {step_of(folder) for folder in complete_checkpoints(self.run)}
        best = None if train.keep_best is None else self.metrics.best(f"eval/{train.keep_best}", steps)
        prune(self.run, train.keep_last, best)

    @contextmanager
    def step(self, step: int) -> Iterator[None]:
        """The block takes step number `step`, up to the end of its update.

        A step that is not finite is skipped while `train.skip_nonfinite` allows it: the block then ends without an
        error. After any other failure before the update, the step before is saved, so that nothing is lost.
        """
        world, since = self.training.world, time.monotonic()
        try:
            with explained(self.training.config):
                yield
            self._step_s = time.monotonic() - since
        except NonFiniteError as error:
            if world.is_main:
                write_json(report_file(self.run, step), self._report(step, error))
            allowed = self.training.config.train.skip_nonfinite
            if len(self.skipped) < allowed:
                self.skipped.append(step)
                log.warning("step %d is skipped (%d of %d): %s", step, len(self.skipped), allowed, error.message)
                return
            self._save_before(step, error)
        except (UpdateBrokenError, NotSavedError):
            raise
        except UserError as error:
            if world.size > 1:  # the others do not know
                raise
            self._save_before(step, error)

    def _save_before(self, step: int, error: UserError) -> None:
        """Save the step before and raise the error, with how to resume."""
        kept = f"nothing is lost: resume with apiece train --resume {self.run}"
        if step > 1:
            try:
                self.save(step - 1)
            except NotSavedError as second:
                log.warning("%s", second)
                kept = f"resume with apiece train --resume {self.run}"
        fix = f"{error.fix}; {kept}" if error.fix else kept
        if isinstance(error, NonFiniteError):
            fix = f"which samples and terms: {report_file(self.run, step)}; {fix}"
        raise UserError(
            f"step {step}: {error.message}", where=error.where, fix=fix, exit_code=error.exit_code
        ) from error

    def _report(self, step: int, error: NonFiniteError) -> dict[str, Any]:
        t = self.training
        return {
            "step": step,
            "seed": t.config.seed,
            "channel": t.channels.channel_of(step - 1),
            "world_size": t.world.size,
            "micro_batch_size": t.config.train.micro_batch_size,
            **error.found,
        }
