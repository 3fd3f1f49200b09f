"""The comparison: paths to sources, sources to draws, draws to rows with verdicts.

Shapes: I images that count, B draws, S seeds of an arm.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apiece.boxes import FloatArray
from apiece.evaluate.ap import ap_of_draws, coco_matches
from apiece.evaluate.rates import Judged, image_ratios, judge
from apiece.progress import track
from apiece.stats.draws import DRAWS, image_draws, seeds_rng
from apiece.stats.interval import LEVEL, Difference, Drawn, compare_drawn
from apiece.stats.ratio import Ratio
from apiece.study.align import align, group_seeds, probes_in_common, require_comparable, require_two
from apiece.study.arms import Arm, Source, read_sources
from apiece.study.verdicts import (
    FIGURES,
    LEAST_BLOCKS,
    Changed,
    Comparison,
    Row,
    Side,
    disagreement,
    figure_of,
    lenient_draws,
    telemetry_draws,
)
from apiece.types import IntArray

CHANGED = 20
"""How many of the images that changed most are kept, each way."""
_AP = ("coco/AP", "coco/AP50")


@dataclass(frozen=True, slots=True, eq=False)
class _Drawn:
    """One source with every figure drawn.

    Attributes:
        source: Which.
        judged: Its predictions by name.
        point: Figure by key.
        draws: `[B]` by key.
        bearing: `[I]` by key: which images the figure rests on.
        parts: `[I]` by key, of ratios: what each image adds to the numerator.
        f1: `[I]` F1 of each image; 1 where there is nothing and nothing was said.
    """

    source: Source
    judged: Judged
    point: Mapping[str, float]
    draws: Mapping[str, FloatArray]
    bearing: Mapping[str, NDArray[np.bool_]]
    parts: Mapping[str, FloatArray]
    f1: FloatArray


def compare(
    arms: Sequence[Arm],
    *,
    draws: int = DRAWS,
    seed: int = 0,
    remarks: Sequence[str] = (),
    may_differ: Collection[str] = (),
) -> list[Comparison]:
    """Hold every arm against the first.

    Args:
        arms: Two or more.
        draws: B, bootstrap draws.
        seed: Equal seeds give equal intervals.
        remarks: What the reader should also be told.
        may_differ: Keys of the protocols that are what is asked about (`score_policy`); others must be equal.

    Raises:
        UserError: There are fewer than two arms, or their figures do not mean the same.
    """
    require_two(arms)
    sources = [source for arm in arms for source in arm.sources]
    require_comparable(sources, may_differ)
    aligned, lost = align(sources)
    counted = _counted(aligned)
    weights = image_draws(len(counted), draws, seed) if len(counted) else None
    probes, left_out = probes_in_common(aligned)
    told = (*remarks, *dict.fromkeys(remark for source in sources for remark in source.remarks), *lost, *left_out)
    if weights is None:
        weights = np.zeros((draws, 0), dtype=np.uint16)
        told = (*told, "no image has a label or a prediction: there is nothing to compare")
    drawn = iter([_draw(source, counted, weights, probes) for source in track(aligned, "compare")])
    groups = [(arm.name, tuple(next(drawn) for _ in arm.sources)) for arm in arms]
    return [_pair(groups[0], other, counted, told, draws, seed) for other in groups[1:]]


def compare_paths(
    paths: Sequence[Path],
    *,
    step: int | None = None,
    draws: int = DRAWS,
    seed: int = 0,
    may_differ: Collection[str] = (),
) -> list[Comparison]:
    """Compare the folders of runs, of dumps or of evaluations; those that differ in their seed alone are one arm.

    Args:
        paths: Two or more.
        step: Of the runs' dumps; the newest that all of them have if `None`.
        draws: Bootstrap draws.
        seed: Of the draws.
        may_differ: As of `compare`.

    Raises:
        UserError: A folder cannot be read, or the figures do not mean the same.
    """
    arms, told = group_seeds(read_sources(paths, step))
    return compare(arms, draws=draws, seed=seed, remarks=told, may_differ=may_differ)


def _counted(sources: Sequence[Source]) -> IntArray:
    """Numbers of the images that have a label or, in any source, a prediction; others say nothing of anyone."""
    truth, complete = sources[0].truth, sources[0].complete
    some = np.zeros(len(truth.images), dtype=bool)
    some[truth.image[~truth.iscrowd]] = True
    if complete is not None:
        some[complete.image[~complete.iscrowd]] = True
    for source in sources:
        some[source.detections.image[source.detections.score >= source.min_score]] = True
    return np.flatnonzero(some)


def _draw(source: Source, counted: IntArray, weights: NDArray[np.uint16], probes: set[str]) -> _Drawn:
    """Every figure of one source, in every draw."""
    truth, detections = source.truth, source.detections
    judged = judge(truth, detections, source.complete, min_score=source.min_score)
    ratios = image_ratios(truth, detections, judged, source.complete, min_score=source.min_score)
    if source.dropped is not None:
        ratios["parse/dropped"] = source.dropped
    ratios |= {key: source.probes[key] for key in source.probes if key in probes}
    of_all = ratios["f1/f1"]
    ratios = {key: Ratio(ratio.part[counted], ratio.whole[counted]) for key, ratio in ratios.items()}
    keys = list(ratios)
    floats = weights.astype(np.float64)
    part = floats @ np.stack([ratios[key].part for key in keys], axis=1)
    whole = floats @ np.stack([ratios[key].whole for key in keys], axis=1)
    values = np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)
    draws = {key: values[:, i] for i, key in enumerate(keys)}
    point = {key: ratios[key].value for key in keys}
    bearing = {key: ratios[key].whole > 0 for key in keys}
    f1 = ratios["f1/f1"]
    full = np.zeros((len(weights) + 1, len(truth.images)), dtype=np.uint16)
    full[:-1, counted], full[-1, counted] = weights, 1  # the last draw is every image once: the figure itself
    special = {"f1/lenient": lenient_draws(of_all, detections, judged.outcomes, full.astype(np.float64))}
    special |= zip(_AP, ap_of_draws(coco_matches(truth, detections), full), strict=True)
    for key, drawn in special.items():
        draws[key], point[key], bearing[key] = drawn[:-1], float(drawn[-1]), np.ones(len(counted), dtype=bool)
    bearing["f1/lenient"] = bearing["f1/f1"]
    by_image = np.divide(f1.part, f1.whole, out=np.ones(len(counted)), where=f1.whole > 0)
    parts = {key: ratios[key].part for key in keys}
    return _Drawn(source, judged, point, draws, bearing, parts, by_image)


def _pair(
    a: tuple[str, tuple[_Drawn, ...]],
    b: tuple[str, tuple[_Drawn, ...]],
    counted: IntArray,
    remarks: tuple[str, ...],
    draws: int,
    seed: int,
) -> Comparison:
    """One arm against another."""
    both = (*a[1], *b[1])
    keys = {key for drawn in both for key in drawn.point}
    ordered = [key for key in FIGURES if key in keys] + [key for key in both[0].point if key.startswith("probes/")]
    rows = []
    for key in ordered:
        bearing = np.any([drawn.bearing[key] for drawn in both if key in drawn.bearing], axis=0)
        in_a, in_b = (_stack(group, key) for group in (a[1], b[1]))
        better = figure_of(key).higher_is_better
        difference = compare_drawn(in_a, in_b, int(bearing.sum()), seeds_rng(seed, key), higher_is_better=better)
        if difference.a is not None or difference.b is not None:
            rows.append(_row(key, difference, int(bearing.sum()), len(counted)))
    steady, told = telemetry_draws(
        tuple(drawn.source for drawn in a[1]), tuple(drawn.source for drawn in b[1]), draws, seed
    )
    for key, variance in steady.items():
        enough = variance.blocks >= LEAST_BLOCKS
        difference = compare_drawn(
            variance.a, variance.b, variance.blocks, seeds_rng(seed, key), higher_is_better=False, interval=enough
        )
        rows.append(_row(key, replace(difference, growth=None), variance.blocks, 0))
    values = {row.key: row for row in rows}
    truth = both[0].source.truth
    return Comparison(
        a=a[0],
        b=b[0],
        runs=tuple((name, drawn.source) for name, group in (a, b) for drawn in group),
        rows=tuple(rows),
        changed=_changed(a[1], b[1], [truth.images[i].name for i in counted]),
        remarks=(*remarks, *told, *_seed_remarks(a, b), *_disagreement(values, a[1], b[1])),
        protocol={
            "draws": draws,
            "level": LEVEL,
            "unit": "images" if len(both) == 2 else "images and seeds",
            "images": len(counted),
            "images_without_label_or_prediction": len(truth.images) - len(counted),
            "seed": seed,
            **_shared(a[1][0].source, b[1][0].source),
        },
    )


def _shared(a: Source, b: Source) -> dict[str, Any]:
    """What both were made under; of what was let differ both values."""
    told: dict[str, Any] = {}
    for key, value in a.protocol.items():
        other = b.protocol.get(key)
        if value != other and None not in (value, other):
            told[key] = [value, other]
        else:
            told[key] = list(value) if isinstance(value, tuple) else value
    return told


def _stack(group: Sequence[_Drawn], key: str) -> Drawn:
    """A figure of all seeds of an arm."""
    nothing = np.full(len(group[0].draws["f1/f1"]), np.nan)
    return Drawn(
        np.array([drawn.point.get(key, float("nan")) for drawn in group]),
        np.stack([drawn.draws.get(key, nothing) for drawn in group]),
        np.stack([drawn.parts[key] for drawn in group]) if all(key in drawn.parts for drawn in group) else None,
        _seeds(group),
    )


def _seeds(group: Sequence[_Drawn]) -> tuple[int, ...] | None:
    """Of the runs of an arm; `None` where one is not known."""
    known = [drawn.source.seed for drawn in group if drawn.source.seed is not None]
    return tuple(known) if len(known) == len(group) else None


def _row(key: str, found: Difference, units: int, images: int) -> Row:
    more = None if found.growth is None else int(np.ceil(images * (found.growth - 1)))
    return Row(key, figure_of(key), found, units, None if more is None else max(more, 1))


def _changed(a: Sequence[_Drawn], b: Sequence[_Drawn], names: Sequence[str]) -> tuple[Changed, ...]:
    """The images whose F1 rose or fell most, from the best change to the worst."""
    in_a, in_b = (np.mean([drawn.f1 for drawn in group], axis=0) for group in (a, b))
    apart = in_b - in_a
    order = np.argsort(-apart, kind="stable")
    best = [i for i in order[:CHANGED].tolist() if apart[i] > 0]
    worst = [i for i in order[-CHANGED:].tolist() if apart[i] < 0]
    return tuple(Changed(names[i], float(in_a[i]), float(in_b[i]), float(apart[i])) for i in (*best, *worst))


def _seed_remarks(a: tuple[str, Sequence[_Drawn]], b: tuple[str, Sequence[_Drawn]]) -> list[str]:
    single = [name for name, group in (a, b) if len(group) == 1]
    if not single:
        return []
    who = " and ".join(single)
    verb = "is one run" if len(single) == 1 else "are one run each"
    return [f"{who} {verb}: the intervals do not say what another seed would give"]


def _disagreement(rows: Mapping[str, Row], a: Sequence[_Drawn], b: Sequence[_Drawn]) -> list[str]:
    f1, ap = rows.get("f1/f1"), rows.get("coco/AP")
    if f1 is None or ap is None:
        return []
    pairs = [(row.found.a, row.found.b) for row in (f1, ap)]
    values = [(x, y) for x, y in pairs if x is not None and y is not None]
    if len(values) < 2:
        return []
    sides = [[Side(drawn.source.detections, drawn.judged) for drawn in group] for group in (a, b)]
    told = disagreement(a[0].source.truth, sides[0], sides[1], values[0], values[1])
    return [" ".join(told)] if told else []


def comparison_json(comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """What `comparison.json` holds: one comparison, or for more than two arms one a pair."""
    if len(comparisons) == 1:
        return comparisons[0].as_json()
    blocks = [comparison.as_json() for comparison in comparisons]
    runs = list({run["path"] + str(run["step"]): run for block in blocks for run in block["runs"]}.values())
    return {"schema": blocks[0]["schema"], "runs": runs, "pairs": blocks}
