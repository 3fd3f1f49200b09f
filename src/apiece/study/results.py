"""One run as counts by image, from which every figure, draw and interval follows, and the file that keeps them.

A figure is a sum over images divided by another one (`Ratio`), so its parts by image are all that a bootstrap needs; AP
needs what the protocol decided about each detection. Keys that `metrics.json` has as well mean the same here
(docs/reference/metrics.md). Shapes: I images, N detections, T IoU thresholds, B draws.
"""

from __future__ import annotations

import base64
import json
import lzma
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from apiece.boxes import FloatArray
from apiece.errors import UserError
from apiece.evaluate.ap import CocoMatches, ap_of_draws, coco_matches
from apiece.evaluate.forms import Detections, GroundTruth
from apiece.evaluate.rates import Judged, image_ratios, judge
from apiece.files import atomic_open, read_json, write_json
from apiece.outcomes import MISSES, Outcome
from apiece.stats.ratio import CROWDING, Ratio, crowding_of_counts
from apiece.types import IntArray

AP = ("coco/AP", "coco/AP50")
TRUE = "true/"  # begins the keys of figures judged on complete truth; the plain key is judged on the labels


@dataclass(frozen=True, slots=True)
class Figure:
    """What a figure is called, the heading it stands under, and which direction is better (`None`: neither)."""

    label: str
    group: str
    higher_is_better: bool | None = None


F1_AND_AP, OUTCOMES, MISSED, SHAPE, PROBES, TELEMETRY = GROUPS = (
    "F1 and AP",
    "outcomes",
    "misses",
    "shape",
    "probes",
    "telemetry",
)
_NEUTRAL = (Outcome.IGNORED, Outcome.UNLABELLED)
_PROBES: dict[str, tuple[str, bool | None]] = {
    "entropy": ("entropy, nats", None),
    "modes": ("modes", None),
    "own_mass": ("mass near its own", True),
    "cross_instance_mass": ("mass near another", False),
    "exp_argmax_gap": ("mean to argmax, bins", None),
    "flip": ("flipped to a neighbour", False),
    "chimera": ("mixed of several instances", False),
    "drift": ("drift from a1 to last, bins", None),
    "near_neighbour": ("the neighbour's box", True),
    "near_own": ("its own box", False),
    "elsewhere": ("elsewhere", None),
}


def _outcome(outcome: Outcome) -> Figure:
    better = None if outcome in _NEUTRAL else outcome is Outcome.TP
    return Figure(outcome.label.replace("_", " "), OUTCOMES, better)


FIGURES: dict[str, Figure] = {
    "f1/f1": Figure("F1", F1_AND_AP, True),
    "f1/lenient": Figure("F1, lenient", F1_AND_AP, True),
    "f1/true": Figure("F1 on complete truth", F1_AND_AP, True),
    "f1/precision": Figure("precision", F1_AND_AP, True),
    "f1/recall": Figure("recall", F1_AND_AP, True),
    "f1/mean_iou": Figure("mean IoU of the matched", F1_AND_AP, True),
    "coco/AP": Figure("AP", F1_AND_AP, True),
    "coco/AP50": Figure("AP50", F1_AND_AP, True),
    **{f"rates/{outcome.label}": _outcome(outcome) for outcome in Outcome},
    "count/per_image": Figure("predictions per image", OUTCOMES),
    "parse/dropped": Figure("dropped records", OUTCOMES, False),
    **{f"miss_rate/{fate.label}": Figure(fate.label.replace("_", " "), MISSED, False) for fate in MISSES},
    "rates/merged": Figure("share of misses in groups", MISSED),
    "shape/near_duplicate": Figure("near-duplicates", SHAPE, False),
    "shape/strip": Figure("strips", SHAPE, False),
}


def figure_of(key: str) -> Figure:
    """The figure of a key; also of probes (`probes/...`), telemetry (`window_var/...`) and `true/...`."""
    if key.startswith(TRUE):
        figure = figure_of(key.removeprefix(TRUE))
        return replace(figure, label=f"{figure.label}, complete truth")
    if key in FIGURES:
        return FIGURES[key]
    family, _, rest = key.partition("/")
    if family == "probes":
        context, _, name = rest.rpartition("/")
        label, better = _PROBES[name]
        return Figure(f"{context}: {label}" if context else label, PROBES, better)
    assert family == "window_var", f"unknown figure {key}"
    return Figure(f"variance of {rest}", TELEMETRY, False)


class Side(NamedTuple):
    """The predictions of a run, and what each of them is."""

    detections: Detections
    judged: Judged


@dataclass(frozen=True, slots=True, eq=False)
class Counts:
    """Images as figures see them."""

    objects: IntArray  # `[I]` how many objects each has: of the complete truth where it is known, else labels
    ratios: Mapping[str, Ratio]  # figures by key
    # matches of AP: by `""` for the labels, by `TRUE` for the complete truth
    ap: Mapping[str, CocoMatches] = field(default_factory=dict)
    side: Side | None = None  # the predictions themselves, where they are at hand: `f1/lenient` needs their scores

    @property
    def images(self) -> int:
        return len(self.objects)


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """One run as it is compared."""

    name: str
    path: Path  # folder of the run, of one of its dumps, or of an evaluation
    step: int | None
    seed: int | None
    counts: tuple[Counts, ...]  # of the images that it was judged on, and of further ones that it was probed on
    # variances by key (`window_var/...`): value by step
    telemetry: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    telemetry_window: int | None = None  # steps that each of them is taken over


def count_split(
    truth: GroundTruth,
    detections: Detections,
    complete: GroundTruth | None = None,
    *,
    min_score: float = 0.0,
    dropped: Ratio | None = None,
    on_truth: bool = False,
) -> Counts:
    """Judge a split on its labels and, where it is known and `on_truth`, on the complete truth as well (under `TRUE`).

    `complete` has the images and classes of `truth`. Detections below `min_score` are left out of all but AP.
    """
    judged = judge(truth, detections, complete, min_score=min_score)
    ratios = image_ratios(truth, detections, judged, complete, min_score=min_score)
    if dropped is not None:
        ratios["parse/dropped"] = dropped
    ap = {"": coco_matches(truth, detections)}
    if complete is not None and on_truth:
        of_all = image_ratios(complete, detections, judge(complete, detections))
        ratios |= {f"{TRUE}{key}": ratio for key, ratio in of_all.items()}
        ap[TRUE] = coco_matches(complete, detections)
    everything = truth if complete is None else complete
    return Counts(everything.objects_per_image.astype(np.int64), ratios, ap, Side(detections, judged))


def lenient_draws(ratio: Ratio, side: Side, weights: FloatArray, *, block: int = 1 << 22) -> FloatArray:
    """`f1/lenient` of every draw `[B]`: the median score of the true positives is that of the draw.

    Args:
        ratio: The one of `f1/f1`.
        weights: `[B, I]` how often each image is in each draw.
        block: At most so many draws times detections are in memory at a time.
    """
    detections, outcomes = side.detections, side.judged.outcomes
    found, doubtful = (outcomes.predictions(o) for o in (Outcome.TP, Outcome.BACKGROUND))
    found = found[np.argsort(detections.score[found])]
    doubtful = doubtful[np.argsort(-detections.score[doubtful])]
    score, rising = detections.score[found], -detections.score[doubtful]
    result = np.empty(len(weights))
    size = max(block // max(len(found) + len(doubtful), 1), 1)
    for start in range(0, len(weights), size):
        drawn = weights[start : start + size]
        whole, left_out = drawn @ ratio.whole, np.zeros(len(drawn))
        if len(found) and len(doubtful):
            passed = np.cumsum(drawn[:, detections.image[found]], axis=1)
            total = passed[:, -1]
            middle = [
                score[np.minimum((passed <= place[:, None]).sum(1), len(score) - 1)]
                for place in ((total - 1) // 2, total // 2)
            ]
            confident = np.searchsorted(rising, -(middle[0] + middle[1]) / 2, side="right")
            above = np.cumsum(drawn[:, detections.image[doubtful]], axis=1)
            left_out = np.where(confident > 0, above[np.arange(len(drawn)), np.maximum(confident - 1, 0)], 0.0)
            left_out = np.where(total > 0, left_out, 0.0)
        rest = whole - left_out
        result[start : start + size] = np.divide(
            drawn @ ratio.part, rest, out=np.full(len(drawn), np.nan), where=rest > 0
        )
    return result


SCHEMA = 1
PACKED = ".xz"
"""Ends the name of the one file that stands for a folder of results: `docs/study/NAME.xz` for `docs/study/NAME/`."""
_DIGITS = 6
_WIDTHS = (np.uint8, np.uint16, np.uint32, np.int64)
_SPLITS = ("test", "panel")
_FIX = "remove it and run its arm and seed again: apiece ladder LADDER.yaml"
_RESULTS = "name a folder that `apiece ladder LADDER.yaml` has put results into, docs/study/NAME by default"


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """The outcome of one arm and seed."""

    ladder: str
    arms: tuple[str, ...]  # all arms of the ladder, in order
    references: tuple[str, ...]  # arms that the others are compared with
    arm: str
    seed: int
    made_from: Mapping[str, Any]  # settings, hashes of data and start: all that decided it
    protocol: Mapping[str, Any]  # what its figures depend on besides the model: must be equal in all that is compared
    match: str  # `steps` or `compute`
    steps: int
    batch_size: int
    flops: Mapping[str, float]  # `step`, `run` and `of_reference`
    telemetry: Mapping[str, Mapping[int, float]]  # variances of the geometry terms by key: value by step
    telemetry_window: int  # steps that each of them is taken over
    speed: float  # samples a second in training
    metrics: Mapping[str, float]  # flat figures of `metrics.json`, and under `true/` those on complete truth
    seconds: Mapping[str, float]  # `evaluate` and `probe`
    machine: Mapping[str, Any]
    test: Counts
    panel: Counts
    # `verdict`, `long_boxes` and `explanations` (docs/guides/diagnosing.md) on the panel
    diagnosis: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.arm}_seed{self.seed}"

    @property
    def measured(self) -> Measured:
        counts = (self.test, self.panel)
        return Measured(
            self.name, Path(self.name), self.steps, self.seed, counts, self.telemetry, self.telemetry_window
        )


def values_of(counts: Counts, chosen: NDArray[np.bool_] | None = None) -> dict[str, float]:
    """Every figure of some images, all by default; those with nothing to divide are left out."""
    rows = np.ones(counts.images, dtype=bool) if chosen is None else chosen
    found = {}
    for key, ratio in counts.ratios.items():
        if whole := float(ratio.whole[rows].sum()):
            found[key] = float(ratio.part[rows].sum()) / whole
    for prefix, matches in counts.ap.items():
        if matches.labels[rows].any():
            pair = ap_of_draws(matches, rows[None].astype(np.uint16))
            found |= {f"{prefix}{key}": float(value[0]) for key, value in zip(AP, pair, strict=True)}
    return found


_PLAIN = (
    *("ladder", "arms", "references", "arm", "seed", "match", "steps", "batch_size", "flops", "telemetry_window"),
    *("seconds", "machine", "protocol", "made_from"),
)
"""What a result file holds as it is."""


def write_result(path: Path, result: Result) -> None:
    """Write a result file; equal results give equal bytes."""
    test, panel = values_of(result.test), values_of(result.panel)
    crowded, probed = _by_crowding(result.test), _by_crowding(result.panel)
    write_json(
        path,
        {
            "schema": SCHEMA,
            **{name: getattr(result, name) for name in _PLAIN},
            "seconds": _rounded(result.seconds),
            "figures": _rounded({**result.metrics, **test, **panel, "speed/samples_per_s": result.speed}),
            "by_crowding": {name: _rounded({**crowded[name], **probed.get(name, {})}) for name in crowded},
            "telemetry": {key: _rounded(row) for key, row in result.telemetry.items()},
            "diagnosis": dict(result.diagnosis),
            "test": packed_counts(result.test),
            "panel": packed_counts(result.panel),
        },
    )


def _by_crowding(counts: Counts) -> dict[str, dict[str, float]]:
    """`values_of` the images of each row of `CROWDING`."""
    bucket = crowding_of_counts(counts.objects)
    return {name: values_of(counts, bucket == i) for i, name in enumerate(CROWDING) if (bucket == i).any()}


def read_result(path: Path) -> Result:
    """A result from its own file, else from the packed file of its folder; a `UserError` without one."""
    if (data := stored_result(path)) is None:
        raise UserError("cannot be read: no such file", where=path)
    return _result(data, path)


def read_results(path: Path) -> list[Result]:
    """All results of a folder and of its packed file, `NAME.xz`; where both have one, that of the folder.

    `path` is the folder or the packed file; a `UserError` if there are no results, or one cannot be read.
    """
    folder = path.with_name(path.name.removesuffix(PACKED)) if path.is_file() else path
    packed = _packed_file(folder)
    if not folder.is_dir() and not packed.is_file():
        raise UserError("expected a folder of results, found none", where=path, fix=_RESULTS, exit_code=2)
    stored = {name: (data, packed) for name, data in _unpacked_results(folder).items()}
    stored |= {file.stem: (read_json(file, fix=_FIX), file) for file in sorted(folder.glob("*_seed*.json"))}
    if not stored:
        raise UserError("expected result files (ARM_seedS.json), found none", where=path, fix=_RESULTS, exit_code=2)
    return [_result(*stored[name]) for name in sorted(stored)]


def stored_result(path: Path) -> Any:
    """The JSON of a result, from its own file or the packed one; `None` where there is neither."""
    if path.is_file():
        return read_json(path, fix=_FIX)
    return _unpacked_results(path.parent).get(path.stem)


def pack_results(folder: Path) -> Path:
    """Put all results of a folder into its packed file, and remove their own files; equal results give equal bytes.

    The packed file is xz: a line of JSON (results by name, arrays without their bytes), then the bytes of the arrays,
    place by place, as the same array of all runs compresses best.
    """
    read_results(folder)  # what cannot be read is named before anything is removed
    files = sorted(folder.glob("*_seed*.json"))
    results = {**_unpacked_results(folder), **{file.stem: read_json(file, fix=_FIX) for file in files}}
    results = {name: results[name] for name in sorted(results)}
    blobs = []
    for array in _arrays_by_place(results):
        blobs.append(_bytes(array))
        array.pop("zlib", None), array.pop("raw", None)
    text = json.dumps(results, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    packed = _packed_file(folder)
    with atomic_open(packed, "wb") as file:
        file.write(lzma.compress(text.encode() + b"\n" + b"".join(blobs), preset=9))
    _read_pack.cache_clear()
    for path in files:
        path.unlink()
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
    return packed


def _packed_file(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}{PACKED}")


def _unpacked_results(folder: Path) -> dict[str, Any]:
    """JSON of all packed results of a folder by name; the bytes of arrays are under `raw`."""
    packed = _packed_file(folder)
    return _read_pack(packed, packed.stat().st_mtime_ns) if packed.is_file() else {}


@lru_cache(maxsize=4)
def _read_pack(packed: Path, _changed: int) -> dict[str, Any]:
    try:
        text, _, blob = lzma.decompress(packed.read_bytes()).partition(b"\n")
        results: dict[str, Any] = json.loads(text)
        at = 0
        for array in _arrays_by_place(results):
            size = np.dtype(array["type"]).itemsize * int(np.prod(array["shape"]))
            array["raw"] = blob[at : at + size]
            at += size
    except (lzma.LZMAError, EOFError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"expected the packed results of a ladder, found something else: {error!r}", where=packed
        ) from error
    return results


def _arrays_by_place(results: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The first array of all results, the second of all, ..."""
    for split in _SPLITS:
        columns = [result[split]["arrays"] for result in results.values()]
        for place in range(max(map(len, columns), default=0)):
            yield from (arrays[place] for arrays in columns if place < len(arrays))


def _result(data: Any, path: Path) -> Result:
    try:
        if data["schema"] != SCHEMA:
            raise UserError(f"expected a result of version {SCHEMA}, found {data['schema']}", where=path, fix=_FIX)
        figures = data["figures"]
        plain = {name: data[name] for name in _PLAIN}
        return Result(
            **{**plain, "arms": tuple(data["arms"]), "references": tuple(data["references"])},
            telemetry={k: {int(s): float(v) for s, v in row.items()} for k, row in data["telemetry"].items()},
            speed=figures["speed/samples_per_s"],
            metrics=figures,
            test=unpacked_counts(data["test"], path),
            panel=unpacked_counts(data["panel"], path),
            diagnosis=data.get("diagnosis", {}),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"expected a result of `apiece ladder`, found something else: {error!r}", where=path, fix=_FIX
        ) from error


def _rounded(figures: Mapping[Any, float]) -> dict[str, float]:
    """To six significant digits: people read result files, and no figure is more certain than that."""
    return {str(k): v if isinstance(v, int) else float(f"{v:.{_DIGITS}g}") for k, v in figures.items()}


def packed_counts(counts: Counts) -> dict[str, Any]:
    """Counts as JSON: names of figures with the numbers of their arrays, each of which is stored once."""
    numbers: dict[str, int] = {}
    arrays: list[dict[str, Any]] = []

    def add(array: NDArray[Any]) -> int:
        packed = _packed(array)
        key = f"{packed['type']} {packed['shape']} {packed['zlib']}"
        if key not in numbers:
            numbers[key] = len(arrays)
            arrays.append(packed)
        return numbers[key]

    ratios = {key: [add(ratio.part), add(ratio.whole)] for key, ratio in counts.ratios.items()}
    ap = {
        prefix: {
            "image": add(found.image),
            "category": add(found.category),
            "found": add(_bits(found.found)),
            "ignored": add(_bits(found.ignored)),
            "labels": add(found.labels),
            "thresholds": len(found.found),
        }
        for prefix, found in counts.ap.items()
    }
    return {"objects": add(counts.objects), "ratios": ratios, "ap": ap, "arrays": arrays}


def unpacked_counts(data: Mapping[str, Any], where: Path | str = "") -> Counts:
    """The reverse of `packed_counts`; a `UserError` if the JSON is something else."""
    try:
        arrays = [
            np.frombuffer(_bytes(one), dtype=np.dtype(one["type"])).reshape(one["shape"]) for one in data["arrays"]
        ]
        ratios = {
            key: Ratio(arrays[part].astype(np.float64), arrays[whole].astype(np.float64))
            for key, (part, whole) in data["ratios"].items()
        }
        ap = {
            prefix: CocoMatches(
                image=arrays[row["image"]].astype(np.int64),
                category=arrays[row["category"]].astype(np.int64),
                found=_flags(arrays[row["found"]], row["thresholds"]),
                ignored=_flags(arrays[row["ignored"]], row["thresholds"]),
                labels=arrays[row["labels"]].astype(np.int64),
            )
            for prefix, row in data["ap"].items()
        }
        return Counts(arrays[data["objects"]].astype(np.int64), ratios, ap)
    except (KeyError, IndexError, TypeError, ValueError, zlib.error) as error:
        raise UserError(f"the counts of the images cannot be read: {error!r}", where=where) from error


def _packed(array: NDArray[Any]) -> dict[str, Any]:
    """Whole numbers in as few bytes as hold them, others in four bytes."""
    values = np.asarray(array)
    if np.array_equal(values, np.rint(values)):
        least, most = (int(values.min()), int(values.max())) if values.size else (0, 0)
        kind = next(k for k in _WIDTHS if np.iinfo(k).min <= least and most <= np.iinfo(k).max)
        values = np.rint(values).astype(kind)
    else:
        values = values.astype(np.float32)
    values = values.astype(values.dtype.newbyteorder("<"))
    data = base64.b64encode(zlib.compress(values.tobytes(), 9)).decode()
    return {"type": values.dtype.newbyteorder("<").str, "shape": list(values.shape), "zlib": data}


def _bytes(packed: Mapping[str, Any]) -> bytes:
    """The bytes of an array, from a result file (`zlib`) or a packed one (`raw`)."""
    raw: bytes | None = packed.get("raw")
    return zlib.decompress(base64.b64decode(packed["zlib"])) if raw is None else raw


def _bits(flags_TN: NDArray[np.bool_]) -> IntArray:
    """`[N]` the flags of each column as one number."""
    weights = 1 << np.arange(len(flags_TN), dtype=np.int64)
    return weights @ flags_TN.astype(np.int64)


def _flags(bits_N: IntArray, thresholds: int) -> NDArray[np.bool_]:
    return ((bits_N.astype(np.int64)[None] >> np.arange(thresholds)[:, None]) & 1).astype(bool)


def same_images(counts: Sequence[Counts]) -> bool:
    """Whether all are of as many images with as many objects each."""
    return all(np.array_equal(one.objects, counts[0].objects) for one in counts)
