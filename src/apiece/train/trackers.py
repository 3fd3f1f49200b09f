"""Where figures go besides `metrics.jsonl`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from apiece.errors import UserError


class Tracker(Protocol):
    """Takes the figures of a run. `metrics.jsonl` is the truth; a tracker shows it elsewhere."""

    def start(self, run: Path, config: Mapping[str, Any]) -> None:
        """Called once, before the first step, with the run's folder and its config."""

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Called with the figures of a step."""

    def close(self) -> None:
        """Called at the end, also after an error."""


class TensorBoard:
    """Scalars for TensorBoard, in `RUN/tensorboard`."""

    def start(self, run: Path, config: Mapping[str, Any]) -> None:
        """Open the event file."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UserError(
                "train.trackers names tensorboard, which is not installed",
                where="config",
                fix="pip install 'apiece[tensorboard]', or take it out of train.trackers",
            ) from error
        self._writer = SummaryWriter(str(run / "tensorboard"))

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Write every figure as a scalar."""
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close the event file."""
        self._writer.close()


TRACKERS: dict[str, type[Tracker]] = {"tensorboard": TensorBoard}
