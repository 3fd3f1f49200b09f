"""A result file: one arm and seed, with every figure, and per-image counts from which intervals can be made again."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apiece.errors import UserError
from apiece.evaluate.ap import CocoMatches, ap_of_draws, coco_matches
from apiece.evaluate.forms import Detections, GroundTruth
from apiece.evaluate.rates import image_ratios, judge
from apiece.files import write_json
from apiece.stats.ratio import CROWDING, Ratio, crowding_of_counts
from apiece.types import IntArray

# What is kept of every image, so that intervals can be made again without the run: sums, and the matches of AP.
#
# A figure is a sum over images divided by another one (`Ratio`), so its per-image parts are all that a bootstrap needs;
# AP needs what the protocol decided about each detection. Both go into a result file, packed: equal columns once.
#
# Shapes: I images, N detections, T IoU thresholds.


TRUE = "true/"
"""Begins the keys of figures that are judged on complete truth, where the plain key is judged on the labels."""
AP = ("coco/AP", "coco/AP50")
_WIDTHS = (np.uint8, np.uint16, np.uint32, np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """Images as figures see them.

    Attributes:
        objects: `[I]` how many objects each has: of the complete truth where it is known, else labels.
        ratios: Figures by key.
        ap: Matches of AP: by `""` for the labels, by `TRUE` for the complete truth.
    """

    objects: IntArray
    ratios: Mapping[str, Ratio]
    ap: Mapping[str, CocoMatches] = field(default_factory=dict)

    @property
    def images(self) -> int:
        """I."""
        return len(self.objects)

    def as_json(self) -> dict[str, Any]:
        """Packed."""
        pool = _Pool()
        ratios = {key: [pool.add(ratio.part), pool.add(ratio.whole)] for key, ratio in self.ratios.items()}
        ap = {
            prefix: {
                "image": pool.add(found.image),
                "category": pool.add(found.category),
                "found": pool.add(_bits(found.found)),
                "ignored": pool.add(_bits(found.ignored)),
                "labels": pool.add(found.labels),
                "thresholds": len(found.found),
            }
            for prefix, found in self.ap.items()
        }
        return {"objects": pool.add(self.objects), "ratios": ratios, "ap": ap, "arrays": pool.arrays}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], where: str = "") -> Split:
        """The same again.

        Raises:
            UserError: It is not what `as_json` gives.
        """
        try:
            arrays = [_unpacked(one) for one in data["arrays"]]
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
            return cls(arrays[data["objects"]].astype(np.int64), ratios, ap)
        except (KeyError, IndexError, TypeError, ValueError, zlib.error) as error:
            raise UserError(f"the counts of the images cannot be read: {error!r}", where=where) from error


def judged_split(
    truth: GroundTruth,
    detections: Detections,
    complete: GroundTruth | None = None,
    *,
    dropped: Ratio | None = None,
) -> Split:
    """Judge a split on its labels and, where it is known, on the complete truth.

    Args:
        truth: Labels.
        detections: Predictions, with their classes.
        complete: Everything that is there, with the images and classes of `truth`.
        dropped: Dropped records / records seen.
    """
    ratios = image_ratios(truth, detections, judge(truth, detections, complete), complete)
    if dropped is not None:
        ratios["parse/dropped"] = dropped
    ap = {"": coco_matches(truth, detections)}
    if complete is not None:
        of_all = image_ratios(complete, detections, judge(complete, detections))
        ratios |= {f"{TRUE}{key}": ratio for key, ratio in of_all.items()}
        ap[TRUE] = coco_matches(complete, detections)
    everything = truth if complete is None else complete
    return Split(everything.objects_per_image.astype(np.int64), ratios, ap)


class _Pool:
    """Arrays, each stored once."""

    def __init__(self) -> None:
        self.arrays: list[dict[str, Any]] = []
        self._known: dict[str, int] = {}

    def add(self, array: NDArray[Any]) -> int:
        """The number of an array among them."""
        packed = _packed(array)
        key = f"{packed['type']} {packed['shape']} {packed['zlib']}"
        if key not in self._known:
            self._known[key] = len(self.arrays)
            self.arrays.append(packed)
        return self._known[key]


def _packed(array: NDArray[Any]) -> dict[str, Any]:
    """Whole numbers in as few bytes as hold them, others in four bytes."""
    values = np.asarray(array)
    if np.array_equal(values, np.rint(values)):
        least, most = (int(values.min()), int(values.max())) if values.size else (0, 0)
        kind = next(k for k in _WIDTHS if np.iinfo(k).min <= least and most <= np.iinfo(k).max)
        values = np.rint(values).astype(kind)
    else:
        values = values.astype(np.float32)
    data = values.astype(values.dtype.newbyteorder("<")).tobytes()
    return {
        "type": values.dtype.newbyteorder("<").str,
        "shape": list(values.shape),
        "zlib": base64.b64encode(zlib.compress(data, 9)).decode(),
    }


def _unpacked(packed: Mapping[str, Any]) -> NDArray[Any]:
    data = zlib.decompress(base64.b64decode(packed["zlib"]))
    return np.frombuffer(data, dtype=np.dtype(packed["type"])).reshape(packed["shape"])


def _bits(flags_TN: NDArray[np.bool_]) -> IntArray:
    """`[N]` the flags of each column as one number."""
    weights = 1 << np.arange(len(flags_TN), dtype=np.int64)
    return weights @ flags_TN.astype(np.int64)


def _flags(bits_N: IntArray, thresholds: int) -> NDArray[np.bool_]:
    return ((bits_N.astype(np.int64)[None] >> np.arange(thresholds)[:, None]) & 1).astype(bool)


def same_images(splits: Sequence[Split]) -> bool:
    """Whether all are of as many images with as many objects each."""
    return all(np.array_equal(split.objects, splits[0].objects) for split in splits)


SCHEMA = 1
_DIGITS = 6


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """What became of one arm and seed.

    Attributes:
        ladder: Name of the ladder.
        arms: All arms of the ladder, in order.
        references: Arms that the others are held against.
        arm: Name of the arm.
        seed: Of the run.
        made_from: All that decided it.
        protocol: What its figures depend on beside the model: must be equal in all that is compared.
        match: `steps` or `compute`.
        steps: Of training.
        batch_size: Samples in a step.
        flops: `step`, `run` and `of_reference`.
        telemetry: Variances of the geometry terms by key: value by step.
        telemetry_window: Steps that each of them is taken over.
        speed: Samples a second in training.
        metrics: Flat figures of `metrics.json`, and under `true/` those on complete truth.
        seconds: `evaluate` and `probe`.
        machine: Where it was made.
        test: The test set.
        panel: The panel with its probes.
        diagnosis: What explains the long boxes on it: `verdict`, `long_boxes` and `explanations` of docs/diagnosing.md.
    """

    ladder: str
    arms: tuple[str, ...]
    references: tuple[str, ...]
    arm: str
    seed: int
    made_from: Mapping[str, Any]
    protocol: Mapping[str, Any]
    match: str
    steps: int
    batch_size: int
    flops: Mapping[str, float]
    telemetry: Mapping[str, Mapping[int, float]]
    telemetry_window: int
    speed: float
    metrics: Mapping[str, float]
    seconds: Mapping[str, float]
    machine: Mapping[str, Any]
    test: Split
    panel: Split
    diagnosis: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Of its file."""
        return f"{self.arm}_seed{self.seed}"

    @property
    def path(self) -> Path:
        """What tells its run from others, where they are compared step by step."""
        return Path(self.name)

    @property
    def step(self) -> int:
        """The last step of its run."""
        return self.steps


def values_of(split: Split, chosen: NDArray[np.bool_] | None = None) -> dict[str, float]:
    """Every figure of some images, all by default; those with nothing to divide are left out."""
    rows = np.ones(split.images, dtype=bool) if chosen is None else chosen
    found = {}
    for key, ratio in split.ratios.items():
        if whole := float(ratio.whole[rows].sum()):
            found[key] = float(ratio.part[rows].sum()) / whole
    for prefix, matches in split.ap.items():
        if matches.labels[rows].any():
            pair = ap_of_draws(matches, rows[None].astype(np.uint16))
            found |= {f"{prefix}{key}": float(value[0]) for key, value in zip(AP, pair, strict=True)}
    return found


def by_crowding(split: Split) -> dict[str, dict[str, float]]:
    """The same for the images of each row of `CROWDING`, by how many objects they have."""
    bucket = crowding_of_counts(split.objects)
    return {name: values_of(split, bucket == i) for i, name in enumerate(CROWDING) if (bucket == i).any()}


def write_result(path: Path, result: Result) -> None:
    """Write a result file; equal results give equal bytes."""
    test, panel = values_of(result.test), values_of(result.panel)
    crowded, probed = by_crowding(result.test), by_crowding(result.panel)
    write_json(
        path,
        {
            "schema": SCHEMA,
            "ladder": result.ladder,
            "arms": list(result.arms),
            "references": list(result.references),
            "arm": result.arm,
            "seed": result.seed,
            "match": result.match,
            "steps": result.steps,
            "batch_size": result.batch_size,
            "flops": dict(result.flops),
            "figures": _rounded({**result.metrics, **test, **panel, "speed/samples_per_s": result.speed}),
            "by_crowding": {name: _rounded({**crowded[name], **probed.get(name, {})}) for name in crowded},
            "telemetry_window": result.telemetry_window,
            "telemetry": {k: {str(s): _round(v) for s, v in row.items()} for k, row in result.telemetry.items()},
            "diagnosis": dict(result.diagnosis),
            "seconds": _rounded(result.seconds),
            "machine": dict(result.machine),
            "protocol": dict(result.protocol),
            "made_from": dict(result.made_from),
            "test": result.test.as_json(),
            "panel": result.panel.as_json(),
        },
    )


def read_result(path: Path) -> Result:
    """Read a result file.

    Raises:
        UserError: It is none, or of another version.
    """
    fix = "remove it and run its arm and seed again: apiece ladder LADDER.yaml"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["schema"] != SCHEMA:
            raise UserError(f"expected a result of version {SCHEMA}, found {data['schema']}", where=path, fix=fix)
        figures = data["figures"]
        return Result(
            ladder=data["ladder"],
            arms=tuple(data["arms"]),
            references=tuple(data["references"]),
            arm=data["arm"],
            seed=data["seed"],
            made_from=data["made_from"],
            protocol=data["protocol"],
            match=data["match"],
            steps=data["steps"],
            batch_size=data["batch_size"],
            flops=data["flops"],
            telemetry={k: {int(s): float(v) for s, v in row.items()} for k, row in data["telemetry"].items()},
            telemetry_window=data["telemetry_window"],
            speed=figures["speed/samples_per_s"],
            metrics=figures,
            seconds=data["seconds"],
            machine=data["machine"],
            test=Split.from_json(data["test"], str(path)),
            panel=Split.from_json(data["panel"], str(path)),
            diagnosis=data.get("diagnosis", {}),
        )
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", where=path) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"expected a result of `apiece ladder`, found something else: {error!r}", where=path, fix=fix
        ) from error


def _rounded(figures: Mapping[str, float]) -> dict[str, float]:
    return {key: _round(value) for key, value in figures.items()}


def _round(value: float) -> float:
    """To six digits that count: what is committed is to be read, and is no more certain than that."""
    return value if isinstance(value, int) else float(f"{value:.{_DIGITS}g}")
