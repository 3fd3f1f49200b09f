"""Running mean and variance of per-step figures, and how much of the variance batch composition explains."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

import numpy as np


class Telemetry:
    """The last `window` values of every figure, each with the number of items that it is a mean over.

    A step with few objects gives a noisier mean, and crowded images give other values than empty ones: so beside the
    variance stands what is left of it after a linear regression on the number of items.
    """

    def __init__(self, window: int) -> None:
        self._rows: dict[str, deque[tuple[float, float]]] = {}
        self._window = window

    def add(self, values: Mapping[str, float], items: Mapping[str, float]) -> None:
        """Add one step.

        Args:
            values: Figure by name.
            items: How many items each figure is a mean over, by the same names.
        """
        for name, value in values.items():
            self._rows.setdefault(name, deque(maxlen=self._window)).append((value, items[name]))

    def state(self) -> dict[str, list[list[float]]]:
        """All that is remembered, as JSON."""
        return {name: [list(row) for row in rows] for name, rows in self._rows.items()}

    def restore(self, state: Mapping[str, Sequence[Sequence[float]]]) -> None:
        """Go on from what `state` gave."""
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
