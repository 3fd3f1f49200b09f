"""The difference of two arms, its interval, and the verdict on it.

Images (or blocks of steps) are drawn with replacement, the same draws for both arms. Where an arm has several seeds,
they are drawn as well: those of both arms together where they are the same, as runs of one seed see the same batches.
Three corrections keep the intervals honest where little is known:

- a bootstrap of n units is too narrow by sqrt((n - 1) / n) and by the quantile of Student's t over that of the normal
  (Hesterberg 2015, "What Teachers Should Know About the Bootstrap", section 3.3); the same holds for seeds;
- seeds differ on a finite set of images even where they are equally good, which the draws of images already count: only
  the rest of the variance between seeds is added (the pigeonhole bootstrap counts it three times; Owen 2007). Where
  seeds are paired all of it is added: so few differences are too small a sample to subtract anything;
- the draws are centred on the difference, as AP of a bootstrap draw is biased upwards.

A verdict needs counted events on several units, no matter how narrow the interval is: a strip on the same two images in
both arms makes their rates differ by the denominators alone, in every draw. On fewer units than `LEAST_EVENTS` not even
a sign test could reach the level, if all of them pointed one way.

Shapes: S seeds of an arm, B draws, I units.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from scipy import stats

from apiece.boxes import FloatArray

LEVEL = 0.95
LEAST_UNITS = 2  # units (images, blocks of steps) for an interval: the spread of a single one is unknown
LEAST_EVENTS = 6  # units with a counted event in either arm, for a verdict: 2 / 2**6 < 1 - LEVEL < 2 / 2**5
_MOST_NAN = 0.5


class Verdict(StrEnum):
    """What a difference shows."""

    BETTER = "better"
    WORSE = "worse"
    HIGHER = "higher"
    LOWER = "lower"
    SAME = "same"
    CANNOT_TELL = "can't tell"


@dataclass(frozen=True, slots=True, eq=False)
class Drawn:
    """A figure of one arm."""

    point: FloatArray  # `[S]` its value for each seed; NaN where there was nothing to divide
    draws: FloatArray  # `[S, B]`
    part: FloatArray | None = None  # `[S, I]` what each unit adds to its numerator; `None` where it is no ratio of sums
    seeds: tuple[int, ...] | None = None  # `[S]` of the runs; `None` where one has none

    @property
    def value(self) -> float | None:
        """Mean over the seeds; `None` where one has no value."""
        return float(self.point.mean()) if np.isfinite(self.point).all() else None


@dataclass(frozen=True, slots=True)
class Difference:
    """B minus A, `None` where one has no value."""

    a: float | None
    b: float | None
    difference: float | None
    lo: float | None = None  # ends of the interval; `None` where too few units are known for one
    hi: float | None = None
    verdict: Verdict = Verdict.CANNOT_TELL
    # how many times as many units the interval needs to exclude zero, if the difference stays as it is; `None` where it
    # does so already, or never would
    growth: float | None = None


def compare_drawn(
    a: Drawn, b: Drawn, units: int, rng: np.random.Generator, *, higher_is_better: bool | None, interval: bool = True
) -> Difference:
    """Compare a figure between two arms in the same draws.

    Args:
        a: The figure in A.
        b: The figure in B.
        units: n, how many independent units (images, blocks of steps) the figure rests on.
        rng: Draws the seeds.
        higher_is_better: `None` where neither direction is.
        interval: False where none can be given.
    """
    if a.value is None or b.value is None:
        return Difference(a.value, b.value, None)
    difference = b.value - a.value
    image = b.draws.mean(0) - a.draws.mean(0) - difference
    known = np.isfinite(image)
    if np.array_equal(a.point, b.point) and np.array_equal(a.draws, b.draws, equal_nan=True):
        return Difference(a.value, b.value, difference, 0.0, 0.0, Verdict.SAME)
    if not interval or units < LEAST_UNITS or known.mean() < _MOST_NAN:
        return Difference(a.value, b.value, difference)
    image = (image - image[known].mean()) * math.sqrt(units / (units - 1))
    parts = [(float(image[known].var()), units - 1)]
    deviations = image
    pairs = _seed_by_seed(a, b)
    for arm, sign in ((b, 1), (a, -1)) if pairs is None else ((pairs, 1),):
        variance, drawn = _seed_part(arm, units, rng, whole=pairs is not None)
        if len(arm.point) > 1:
            parts.append((variance, len(arm.point) - 1))
            deviations = deviations + sign * drawn
    low, high = np.quantile(deviations[known], [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) * _widening(parts)
    lo, hi = difference + float(low), difference + float(high)
    if _events(a, b) < LEAST_EVENTS:
        return Difference(a.value, b.value, difference, lo, hi)
    verdict = _verdict(lo, hi, higher_is_better)
    growth = None
    if verdict is Verdict.CANNOT_TELL and difference:
        share = parts[0][0] / whole if (whole := sum(v for v, _ in parts)) else 1.0
        growth = _growth(abs(difference), (difference - lo) if difference > 0 else (hi - difference), share)
    return Difference(a.value, b.value, difference, lo, hi, verdict, growth)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure, `None` with nothing to divide, and its interval, `None` with too few units."""

    value: float | None
    lo: float | None
    hi: float | None
    units: int  # how many it rests on


def estimate(own: Drawn, units: int, rng: np.random.Generator) -> Estimate:
    """A figure of one arm that rests on n `units`, with the interval of its difference from zero."""
    nothing = Drawn(np.zeros(1), np.zeros((1, own.draws.shape[1])))
    found = compare_drawn(nothing, own, units, rng, higher_is_better=None)
    return Estimate(own.value, found.lo, found.hi, units)


def _seed_by_seed(a: Drawn, b: Drawn) -> Drawn | None:
    """B minus A of every seed, where both arms have the same ones."""
    if a.seeds is None or b.seeds is None or len(set(a.seeds)) < len(a.seeds) or sorted(a.seeds) != sorted(b.seeds):
        return None
    of_b = [b.seeds.index(seed) for seed in a.seeds]
    return Drawn(b.point[of_b] - a.point, b.draws[of_b] - a.draws)


def _events(a: Drawn, b: Drawn) -> float:
    """On how many units either arm has a counted event, in any seed; infinite where nothing is counted."""
    if a.part is None or b.part is None:
        return math.inf
    return float((a.part.any(0) | b.part.any(0)).sum())


def _seed_part(arm: Drawn, units: int, rng: np.random.Generator, *, whole: bool) -> tuple[float, FloatArray]:
    """What the choice of seeds adds: its variance (all of it if `whole`), and its deviation in every draw `[B]`."""
    seeds, draws = arm.draws.shape
    if seeds < 2:
        return 0.0, np.zeros(draws)
    deviation = arm.point - arm.point.mean()
    between = float(deviation @ deviation) / (seeds - 1)
    own = arm.draws - arm.draws.mean(0)
    by_image = float(np.nanvar(own, axis=1).mean()) * seeds / (seeds - 1) * units / (units - 1)
    pure = between if whole else max(0.0, between - by_image)
    times = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=draws)
    scale = math.sqrt(seeds / (seeds - 1) * pure / between) if between else 0.0
    return pure / seeds, scale * (times @ deviation) / seeds


def _widening(parts: list[tuple[float, int]]) -> float:
    """Student's t over the normal quantile, at the degrees of freedom of a sum of variances (Satterthwaite)."""
    below = sum(variance**2 / freedom for variance, freedom in parts)
    freedom = sum(variance for variance, _ in parts) ** 2 / below if below else math.inf
    quantile = (1 + LEVEL) / 2
    return float(stats.t.ppf(quantile, freedom) / stats.norm.ppf(quantile)) if math.isfinite(freedom) else 1.0


def _verdict(lo: float, hi: float, higher_is_better: bool | None) -> Verdict:
    if lo <= 0 <= hi:
        return Verdict.CANNOT_TELL
    if higher_is_better is None:
        return Verdict.HIGHER if lo > 0 else Verdict.LOWER
    return Verdict.BETTER if (lo > 0) == higher_is_better else Verdict.WORSE


def _growth(distance: float, half_width: float, share: float) -> float | None:
    """How many times the units would make `half_width` equal `distance`, if only that share of its square shrinks."""
    left = distance**2 - half_width**2 * (1 - share)
    return half_width**2 * share / left if left > 0 else None
