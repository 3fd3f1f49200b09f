"""The figures of a run between two lines of metrics: means, speed, memory, and how steady the terms are."""

from __future__ import annotations

import resource
import time

import torch

from apiece.config.schema import Config
from apiece.monitor.telemetry import Telemetry
from apiece.train.step import StepResult


class Meter:
    """Collects steps and gives their figures.

    Values stay tensors until they are read, so that a GPU is not made to wait at every step.
    """

    def __init__(self, config: Config) -> None:
        self._batch_size, self._clip_norm = config.train.batch_size, config.optim.clip_norm
        self._telemetry = Telemetry(config.train.telemetry_window)
        self._results: list[StepResult] = []
        self.restart_clock()

    def restart_clock(self) -> None:
        """Leave out time that was not spent training."""
        self._since = time.perf_counter()

    def add(self, result: StepResult) -> None:
        """Count one step."""
        self._results.append(result)

    def read(self, rates: dict[str, float]) -> dict[str, float]:
        """The figures since the last reading, which start afresh.

        Args:
            rates: Learning rates by part.
        """
        rows, seconds = self._results, time.perf_counter() - self._since
        n = len(rows)
        values = [{k: float(v) for k, v in r.values.items()} for r in rows]
        counts = [{k: float(v) for k, v in r.counts.items()} for r in rows]
        norms = [float(r.grad_norm) for r in rows]
        for row, value, count in zip(rows, values, counts, strict=True):
            self._telemetry.add(value, {name: count[per] for name, per in row.per.items()})
        atoms = {f"loss/{k}": sum(float(r.atoms[k]) for r in rows) / n for k in rows[0].atoms}
        figures = {
            "loss/total": sum(atoms.values()),
            **atoms,
            **{f"raw/{k}": sum(v[k] for v in values) / n for k in values[0]},
            **self._telemetry.figures(),
            "grad_norm": sum(norms) / n,
            "clip_rate": sum(norm > self._clip_norm for norm in norms) / n,
            **{f"items/{k}": sum(c[k] for c in counts) / n for k in counts[0]},
            "items/collapsed": sum(r.num_collapsed for r in rows) / n,
            **{f"lr/{part}": rate for part, rate in rates.items()},
            "speed/samples_per_s": n * self._batch_size / seconds,
            "speed/tokens_per_s": sum(r.num_tokens for r in rows) / seconds,
            "padding_share": sum(r.padding_share for r in rows) / n,
            "memory/peak_mb": peak_memory_mb(),
        }
        self._results = []
        self.restart_clock()
        return figures


def brief(figures: dict[str, float]) -> str:
    """Loss and speed in a few words."""
    return f"loss {figures['loss/total']:.4f}  {figures['speed/samples_per_s']:.1f} samples/s"


def peak_memory_mb() -> float:
    """Most memory in use so far: the GPU's where there is one, else the process's, in MB."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
