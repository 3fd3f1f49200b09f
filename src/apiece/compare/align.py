"""Whether runs may be compared at all, and the images and classes that they have in common.

Shapes: I images.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apiece.compare.source import Ratio, Source
from apiece.errors import UserError
from apiece.evaluate.complete import align_complete
from apiece.evaluate.forms import Detections, GroundTruth
from apiece.types import IntArray

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
                f"cannot be compared: {first.name} is {_kind(first)}, {other.name} {_kind(other)}",
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


def _kind(source: Source) -> str:
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
