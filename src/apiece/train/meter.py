"""The figures of a run between two lines of metrics: means, speed, memory, and the variance of the terms."""

from __future__ import annotations

import ctypes
import resource
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import fields
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from apiece.config.schema import Config
from apiece.rollout.targets import KEYS
from apiece.rollout.targets import figures as written_figures
from apiece.train.distributed import World
from apiece.train.step import StepResult
from apiece.types import Per

# Running mean and variance of per-step figures, and how much of the variance batch composition explains.


class Telemetry:
    """The last `window` values of every figure, each with the number of items it is a mean over.

    A step with few objects gives a noisier mean, and crowded images give other values than empty ones: so next to the
    variance there is what is left of it after a linear regression on the number of items.
    """

    def __init__(self, window: int) -> None:
        self._rows: dict[str, deque[tuple[float, float]]] = {}
        self._window = window

    def add(self, values: Mapping[str, float], items: Mapping[str, float]) -> None:
        """Add one step; `items` says, by the same names, how many items each value is a mean over."""
        for name, value in values.items():
            self._rows.setdefault(name, deque(maxlen=self._window)).append((value, items[name]))

    def state(self) -> dict[str, list[list[float]]]:
        return {name: [list(row) for row in rows] for name, rows in self._rows.items()}

    def restore(self, state: Mapping[str, Sequence[Sequence[float]]]) -> None:
        self._rows = {
            name: deque(((value, items) for value, items in rows), maxlen=self._window) for name, rows in state.items()
        }

    def figures(self) -> dict[str, float]:
        """`window_mean/`, `window_var/` and `window_var_given_items/` of every figure with at least three values."""
        out = {}
        for name, rows in self._rows.items():
            if len(rows) < 3:
                continue
            value, count = np.array(rows, dtype=np.float64).T
            out[f"window_mean/{name}"] = float(value.mean())
            out[f"window_var/{name}"] = float(value.var(ddof=1))
            out[f"window_var_given_items/{name}"] = _residual_variance(value, count)
        return out


def _residual_variance(value: np.ndarray, count: np.ndarray) -> float:
    """Unbiased variance of `value` around its regression line on `count`; the plain variance if `count` is constant."""
    spread = ((count - count.mean()) ** 2).sum()
    if spread == 0:
        return float(value.var(ddof=1))
    slope = ((count - count.mean()) * (value - value.mean())).sum() / spread
    rest = value - value.mean() - slope * (count - count.mean())
    return float((rest**2).sum() / (len(value) - 2))


def give_back() -> None:
    """Return memory that the C library keeps after tensors are freed to the system; only the GNU one can.

    Steps differ in length, so freed pieces seldom fit again, and a process on a CPU grows for hundreds of steps: after
    four steps of Channel-B, 840 of 1,510 MB were free.
    """
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)


class Meter:
    """Collects steps and gives their figures. Values stay tensors until read, so that a GPU need not wait at every
    step."""

    def __init__(self, config: Config, world: World) -> None:
        self._world = world
        self._batch_size, self._clip_norm = config.train.batch_size, config.optim.clip_norm
        self._telemetry = Telemetry(config.train.telemetry_window)
        self._results: list[StepResult] = []
        self._tallies: list[dict[str, float]] = []
        self.restart_clock()

    def restart_clock(self) -> None:
        """Leave out the time until now, which was not spent training."""
        self._since = time.perf_counter()

    @property
    def empty(self) -> bool:
        return not self._results

    def add(self, result: StepResult, tally: Mapping[str, float]) -> None:
        """Count one step; `tally` is what the model wrote for it on this process, if it wrote anything."""
        self._results.append(result)
        if tally:
            self._tallies.append({**tally, "update_s": result.seconds, "steps": 1.0})

    def state(self) -> dict[str, Any]:
        """What a resumed run needs, as JSON; all processes must call this."""
        counts = [[tally[key] for key in KEYS] for tally in self._tallies]
        if counts:
            sums = torch.tensor(counts, dtype=torch.float64, device=self._world.device)
            counts = self._world.sum(sums).tolist()
        return {
            "telemetry": self._telemetry.state(),
            "steps": [{f.name: _as_json(getattr(r, f.name)) for f in fields(r)} for r in self._results],
            "tallies": [dict(zip(KEYS, row, strict=True)) for row in counts],
            "seconds": time.perf_counter() - self._since,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state` gave, on any number of processes."""
        self._telemetry.restore(state["telemetry"])
        self._results = [_from_json(row) for row in state["steps"]]
        # They are sums over all processes, so one process has them.
        share = 1.0 if self._world.is_main else 0.0
        self._tallies = [{key: share * value for key, value in tally.items()} for tally in state["tallies"]]
        self._since = time.perf_counter() - state["seconds"]

    def read(self, rates: dict[str, float]) -> dict[str, float]:
        """The figures since the last reading; all processes must call this.

        Losses are means over all steps, so that they add up; raw values are means over the steps that have them.

        Args:
            rates: Learning rates by part.
        """
        rows, seconds = self._results, time.perf_counter() - self._since
        n = len(rows)
        values = [{k: float(v) for k, v in r.values.items()} for r in rows]
        counts = [{k: float(v) for k, v in r.counts.items()} for r in rows]
        norms = [float(r.grad_norm) for r in rows]
        tokens = [float(r.num_tokens) for r in rows]
        for row, value, count in zip(rows, values, counts, strict=True):
            self._telemetry.add(value, {name: count[per] for name, per in row.per.items()})
        names = dict.fromkeys(k for r in rows for k in r.atoms)
        atoms = {f"loss/{k}": sum(float(r.atoms[k]) for r in rows if k in r.atoms) / n for k in names}
        figures = {
            "loss/total": sum(atoms.values()),
            **atoms,
            **{f"raw/{k}": fmean(v[k] for v in values if k in v) for k in dict.fromkeys(k for v in values for k in v)},
            **self._telemetry.figures(),
            "grad_norm": sum(norms) / n,
            "clip_rate": sum(norm > self._clip_norm for norm in norms) / n,
            **{f"items/{k}": sum(c[k] for c in counts) / n for k in counts[0]},
            "items/collapsed": sum(float(r.num_collapsed) for r in rows) / n,
            **{f"lr/{part}": rate for part, rate in rates.items()},
            "speed/samples_per_s": n * self._batch_size / seconds,
            "speed/tokens_per_s": sum(tokens) / seconds,
            "padding_share": sum(1 - t / float(r.num_places) for t, r in zip(tokens, rows, strict=True)) / n,
            "memory/peak_mb": peak_memory_mb(),
            **self._written(n),
        }
        self._results, self._tallies = [], []
        self.restart_clock()
        return figures

    def _written(self, steps: int) -> dict[str, float]:
        """The figures of Channel-B's steps over all processes; none where there were none."""
        if not self._tallies:
            return {}
        counts = [sum(t[key] for t in self._tallies) for key in KEYS]
        sums = self._world.sum(torch.tensor(counts, dtype=torch.float64, device=self._world.device)).tolist()
        return {"b/step_share": len(self._tallies) / steps, **written_figures(dict(zip(KEYS, sums, strict=True)))}


def _as_json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _as_json(item) for key, item in value.items()}
    return float(value) if isinstance(value, Tensor) else value


def _from_json(row: Mapping[str, Any]) -> StepResult:
    def tensors(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: tensors(item) for key, item in value.items()}
        return torch.tensor(value, dtype=torch.float64)

    plain = {
        "per": {key: Per(value) for key, value in row["per"].items()},
        "counts": {Per(key): tensors(value) for key, value in row["counts"].items()},
        "seconds": row["seconds"],
    }
    return StepResult(**{key: tensors(value) for key, value in row.items() if key not in plain}, **plain)


def peak_memory_mb() -> float:
    """Peak memory so far: the GPU's where there is one, else the process's."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
