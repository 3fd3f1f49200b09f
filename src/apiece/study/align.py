"""Whether runs may be compared at all, and the images and classes that they have in common.

Shapes: I images.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import replace
from itertools import takewhile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apiece.errors import UserError
from apiece.evaluate.detections import align_complete
from apiece.evaluate.forms import Detections, GroundTruth
from apiece.stats.ratio import Ratio
from apiece.study.arms import Arm, Source
from apiece.types import IntArray

# Which runs are seeds of one arm.


def group_seeds(sources: Sequence[Source]) -> tuple[tuple[Arm, ...], tuple[str, ...]]:
    """Put runs that differ in `seed` alone into one arm, in the order of the first of each.

    If all would be one arm, each stays an arm of its own: the difference between seeds is then what is asked for.

    Returns:
        The arms, and what the reader should be told.
    """
    arms: list[list[Source]] = []
    for source in sources:
        home = next((arm for arm in arms if _belongs(source, arm)), None)
        if home is None:
            arms.append([source])
        else:
            home.append(source)
    if len(arms) > 1:
        return _named(arms), tuple(
            f"{', '.join(source.name for source in arm)}: seeds of one arm, as they differ in their seed alone"
            for arm in arms
            if len(arm) > 1
        )
    remark = "these runs differ in their seed alone: what differs between them is what a seed does"
    return _named([[source] for source in sources]), (remark,) if len(sources) > 1 else ()


def _belongs(source: Source, arm: list[Source]) -> bool:
    known = source.config is not None and source.seed is not None
    return known and all(
        other.config == source.config
        and other.seed != source.seed
        and other.step == source.step
        and other.protocol.get("score_policy") == source.protocol.get("score_policy")
        for other in arm
    )


def _named(arms: list[list[Source]]) -> tuple[Arm, ...]:
    """Arms with names of their own: of the run, or what the names of its runs begin with."""
    names = [_common([source.name for source in arm]) for arm in arms]
    steps = {source.step for arm in arms for source in arm}
    named: list[Arm] = []
    for i, (name, arm) in enumerate(zip(names, arms, strict=True)):
        if names.count(name) > 1:
            parent = arm[0].path.resolve().parent.name
            name = f"{name}@{arm[0].step}" if len(steps) == len(arms) else f"{parent}/{name}"
        if name in (other.name for other in named):
            name = f"{name} ({i + 1})"
        named.append(Arm(name, tuple(arm)))
    return tuple(named)


def _common(names: list[str]) -> str:
    """What all names begin with, without a cut-off `_s` or `seed` at its end; the first name if nothing is left."""
    if len(names) == 1:
        return names[0]
    alike = "".join(column[0] for column in takewhile(lambda column: len(set(column)) == 1, zip(*names, strict=False)))
    return re.sub(r"(?i)([-_. ]+s|[-_. ]*seed)?[-_. ]*\d*$", "", alike, count=1) or names[0]


def require_two(arms: Sequence[Arm]) -> None:
    """Raise a `UserError` unless there are two arms or more, each with a name of its own."""
    if len(arms) < 2:
        raise UserError(
            f"expected two arms or more, found {len(arms)}",
            fix="apiece compare RUN_A RUN_B  or  apiece compare --arm A=RUN,RUN --arm B=RUN,RUN",
            exit_code=2,
        )
    names = [arm.name for arm in arms]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"expected a name of its own for each arm, found {', '.join(repeated)} again", exit_code=2)


_WORDS = {
    "data": "data (SHA-256)",
    "complete": "complete truth (SHA-256)",
    "panel": "panel",
    "prompt_hash": "prompt (hash)",
    "max_pixels": "max_pixels",
    "num_bins": "num_bins",
    "score_policy": "score policy",
    "min_score": "--min-score",
}
_LAST_PASS, _SIGMA = ("passes", "embed_mode", "temperature"), "sigma"
_NEAR = ("own_mass", "cross_instance_mass", "chimera", "near_neighbour", "near_own", "elsewhere")
"""Probe figures that depend on how near is near."""


def require_comparable(sources: Sequence[Source], may_differ: Collection[str] = ()) -> None:
    """Refuse sources whose figures do not mean the same.

    Args:
        sources: Two or more.
        may_differ: Keys of their protocols that are what is asked about.

    Raises:
        UserError: With every difference and its two values.
    """
    first = sources[0]
    for other in sources[1:]:
        if other.kind != first.kind:
            raise UserError(
                f"cannot be compared: {first.name} is {_kind_of_figure(first)}, {other.name} {_kind_of_figure(other)}",
                fix="compare runs with runs, or evaluations with evaluations",
                exit_code=2,
            )
        keys = [*first.protocol, *(key for key in other.protocol if key not in first.protocol)]
        lines = {
            key: f"{_WORDS.get(key, key)}: {_told(key, first.protocol.get(key), other.protocol.get(key))}"
            for key in keys
            if key not in may_differ
            and first.protocol.get(key) != other.protocol.get(key)
            and not (key == "complete" and None in (first.protocol.get(key), other.protocol.get(key)))
        }
        if lines:
            asked = (
                "; or, to ask which scores rank better, add --score-policies" if [*lines] == ["score_policy"] else ""
            )
            raise UserError(
                f"cannot be compared, these differ: {'; '.join(lines.values())}",
                where=f"{first.name} and {other.name}",
                fix="evaluate both on the same data, under the same settings (apiece evaluate RUN --data X.jsonl ...)"
                + asked,
                exit_code=2,
            )


def align(sources: Sequence[Source]) -> tuple[list[Source], tuple[str, ...]]:
    """The sources with the same images, in the same order, and with the same classes.

    Samples that one of them lacks (a line of its records was broken) are left out of all.

    Returns:
        The sources, and a remark where something was left out.

    Raises:
        UserError: No sample is in all, or the labels of one differ.
    """
    shared = set(sources[0].ids).intersection(*(source.ids for source in sources[1:]))
    lost = sorted(set().union(*(source.ids for source in sources)) - shared)
    if not shared:
        raise UserError("no sample is in all of them", where=_names(sources), exit_code=2)
    chosen = [_only(source, shared) if len(source.ids) > len(shared) else source for source in sources]
    classes = sorted(set().union(*(source.truth.names for source in chosen)))
    with_complete = all(source.complete is not None for source in chosen)
    truth = chosen[0].truth.with_classes(classes)
    complete = chosen[0].complete if with_complete else None
    if complete is not None:
        truth, complete = align_complete(complete, truth)
    number = {name: i for i, name in enumerate(truth.names)}
    aligned = []
    for source in chosen:
        of_class = np.array([number[name] for name in source.truth.names], dtype=np.int64)
        _require_same_labels(chosen[0], source, truth, of_class)
        detections = replace(source.detections, category=of_class[source.detections.category])
        aligned.append(replace(source, truth=truth, complete=complete, detections=detections))
    remarks = []
    if lost:
        some = ", ".join(lost[:5]) + (", ..." if len(lost) > 5 else "")
        remarks.append(f"{len(lost)} samples that are not in all of them are left out: {some}")
    if not with_complete and any(source.complete is not None for source in chosen):
        without = _names([source for source in chosen if source.complete is None])
        remarks.append(f"F1 on complete truth and `unlabelled` are left out: {without} was judged without it")
    return aligned, tuple(remarks)


def _require_same_labels(first: Source, source: Source, truth: GroundTruth, of_class: IntArray) -> None:
    own = source.truth
    same = source.ids == first.ids and len(own) == len(truth)
    if same:
        pairs = (
            (own.image, truth.image),
            (of_class[own.category], truth.category),
            (own.bbox_xywh, truth.bbox_xywh),
            (own.iscrowd, truth.iscrowd),
        )
        same = all(np.array_equal(a, b) for a, b in pairs)
    if not same:
        raise UserError(
            "cannot be compared: the labels differ",
            where=_names([first, source]),
            fix="evaluate both on the same data",
            exit_code=2,
        )


def _only(source: Source, names: set[str]) -> Source:
    """A source with some of its samples."""
    kept = np.array([name in names for name in source.ids])
    rows = source.detections.image
    detections = Detections(
        image=_renumbered(rows, kept),
        **{key: getattr(source.detections, key)[kept[rows]] for key in ("category", "bbox_xywh", "score")},
    )
    return replace(
        source,
        truth=_truth_of(source.truth, kept),
        complete=None if source.complete is None else _truth_of(source.complete, kept),
        detections=detections,
        dropped=None if source.dropped is None else _ratio_of(source.dropped, kept),
        probes={key: _ratio_of(ratio, kept) for key, ratio in source.probes.items()},
    )


def _truth_of(truth: GroundTruth, kept: NDArray[np.bool_]) -> GroundTruth:
    rows = kept[truth.image]
    return GroundTruth(
        images=tuple(image for image, keep in zip(truth.images, kept.tolist(), strict=True) if keep),
        categories=truth.categories,
        image=_renumbered(truth.image, kept),
        category=truth.category[rows],
        bbox_xywh=truth.bbox_xywh[rows],
        iscrowd=truth.iscrowd[rows],
        area=truth.area[rows],
    )


def _renumbered(image: IntArray, kept: NDArray[np.bool_]) -> IntArray:
    number = np.cumsum(kept) - 1
    return number[image[kept[image]]]


def _ratio_of(ratio: Ratio, kept: NDArray[np.bool_]) -> Ratio:
    return Ratio(ratio.part[kept], ratio.whole[kept])


def _told(key: str, a: Any, b: Any) -> str:
    """Two values of one setting, short."""
    if key == "panel":
        only_a, only_b = sorted(set(a) - set(b)), sorted(set(b) - set(a))
        if not only_a and not only_b:
            return "the same samples in another order"
        return f"{_some(only_a)} only in the first, {_some(only_b)} only in the second"
    return f"{_short(a)} and {_short(b)}"


def _some(ids: Sequence[str]) -> str:
    return f"{len(ids)} samples" + (f" ({', '.join(ids[:3])}{', ...' if len(ids) > 3 else ''})" if ids else "")


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 16 else f"{text[:12]}..."


def _kind_of_figure(source: Source) -> str:
    return "a run with dumps" if source.kind == "panel" else "an evaluation"


def _names(sources: Sequence[Source]) -> str:
    return ", ".join(source.name for source in sources)


def probes_in_common(sources: Sequence[Source]) -> tuple[set[str], tuple[str, ...]]:
    """Keys of the probe figures that mean the same in all sources, and why the others are left out."""
    have = [source.probes.keys() for source in sources]
    if not any(have):
        return set(), ()
    shared = set(have[0]).intersection(*have[1:])
    if not all(have):
        missing = ", ".join(source.name for source, keys in zip(sources, have, strict=True) if not keys)
        return set(), (f"probes are left out: none in {missing}",)
    remarks = []
    if len({_sigma(source) for source in sources}) > 1:
        shared = {key for key in shared if key.rpartition("/")[2] not in _NEAR}
        remarks.append("masses and chimeras are left out: the runs' target_sigma differ, and with it what is near")
    if differ := _differing(sources, _LAST_PASS):
        shared = {key for key in shared if key.startswith("probes/a1/") or key == "probes/flip"}
        remarks.append(f"probes of the last pass are left out, as these differ: {differ}")
    others = {key for source in sources for key in source.probe_protocol or {}} - {*_LAST_PASS, _SIGMA}
    if differ := _differing(sources, sorted(others)):
        remarks.append(f"probes were made under different settings: {differ}")
    return shared, tuple(remarks)


def _sigma(source: Source) -> Any:
    """Width of the training target, which says how near is near."""
    of_config = (source.config or {}).get("objective.coord_reg.config.target_sigma")
    return (source.probe_protocol or {}).get(_SIGMA, of_config)


def _differing(sources: Sequence[Source], keys: Sequence[str]) -> str:
    """Settings of the probes that differ, with their values; empty where none does."""
    values = {
        key: list(dict.fromkeys(str((source.probe_protocol or {}).get(key)) for source in sources)) for key in keys
    }
    return "; ".join(f"{key} {' and '.join(found)}" for key, found in values.items() if len(found) > 1)
