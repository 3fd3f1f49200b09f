"""What is kept of every image, so that intervals can be made again without the run: sums, and the matches of AP.

A figure is a sum over images divided by another one (`Ratio`), so its per-image parts are all that a bootstrap needs;
AP needs what the protocol decided about each detection. Both go into a result file, packed: equal columns once.

Shapes: I images, N detections, T IoU thresholds.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apiece.compare.figures import image_ratios, judge
from apiece.compare.source import Ratio
from apiece.errors import UserError
from apiece.evaluate.coco import CocoMatches, coco_matches
from apiece.evaluate.forms import Detections, GroundTruth
from apiece.types import IntArray

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
