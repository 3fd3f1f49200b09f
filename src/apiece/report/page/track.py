"""One sample through the steps of a run: its boxes for the page, and the details that are loaded when asked for.

Pieces are kept compressed, since a run of 40 dumps of 200 samples would not fit into memory as records.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, Generic, TypeVar

from apiece.codec.bins import Bins
from apiece.records.record import Curve, ObjectRow, PredictionRow, ProbePass, Probes, Record, finite
from apiece.report.page.payload import pack_curves
from apiece.report.palette import FATES, OUTCOMES

MAX_DESC, MAX_ANSWER = 2000, 6000
"""Characters shown; the raw records hold all."""
_OUTCOME = {name: number for number, name in enumerate(OUTCOMES)}
_FATE = {name: number for number, name in enumerate(FATES)}
UNKNOWN = -1
"""In place of an outcome, a fate or a target."""
K = TypeVar("K", bound=Hashable)


class Table(Generic[K]):
    """Distinct values, numbered as they come."""

    def __init__(self) -> None:
        self._numbers: dict[K, int] = {}

    def number(self, value: K) -> int:
        """The number of a value; a new one if it was not there."""
        return self._numbers.setdefault(value, len(self._numbers))

    @property
    def values(self) -> list[K]:
        """The values by number."""
        return list(self._numbers)


class SampleTrack:
    """A sample at every step of a run.

    Args:
        steps: How many dumps the run has.
        num_bins: Of the coordinate vocabulary.
    """

    def __init__(self, steps: int, num_bins: int) -> None:
        self._bins = Bins(num_bins)
        self._descs: Table[str] = Table()
        self._labels: Table[tuple[Any, ...]] = Table()
        self._hidden: Table[tuple[Any, ...] | None] = Table()
        self._boxes: list[bytes | None] = [None] * steps
        self._details: list[tuple[bytes, bytes] | None] = [None] * steps
        self._size_wh = (1, 1)

    def add(self, at: int, record: Record, line: int, picture: str | None) -> None:
        """Add the record of step number `at`; `line` and `picture` lead back to the dump."""
        self._size_wh = max(record["width"], 1), max(record["height"], 1)
        labels = tuple(self._label(row) for row in record["objects"])
        hidden = record["hidden"]
        boxes = {
            "l": self._labels.number(labels),
            "h": self._hidden.number(
                None if hidden is None else tuple((self._desc(row["desc"]), *_tenths(row["bbox"])) for row in hidden)
            ),
            "fate": [_FATE.get(row["fate"] or "", UNKNOWN) for row in record["objects"]],
            **self._prediction_columns(record["predictions"]),
            "counts": [
                *(record["counts"][key] for key in ("gt", "pred", "matched", "ignored")),
                *(_rounded(record["counts"][key], 4) for key in ("precision", "recall", "f1", "f1_true")),
            ],
            "end": record["answer"]["finish_reason"],
            "closed": record["answer"]["closed"],
            "dropped": list(record["answer"]["dropped"].items()),
        }
        self._boxes[at] = _squeezed(boxes)
        self._details[at] = _squeezed(_details(record, line, picture)), pack_curves(_curves(record))

    def boxes(self) -> dict[str, Any]:
        """What is drawn: loaded when the sample comes into sight."""
        labels = self._labels.values
        return {
            "descs": self._descs.values,
            "labels": [list(map(list, rows)) for rows in labels],
            "bins": [[self._label_bins(row) for row in rows] for rows in labels],
            "hidden": [None if rows is None else list(map(list, rows)) for rows in self._hidden.values],
            "steps": [None if piece is None else _loosened(piece) for piece in self._boxes],
        }

    def details(self) -> tuple[dict[str, Any], bytes]:
        """What a look at one box needs, loaded then: JSON and the blob of the curves, in the order of the steps."""
        heads = [None if pair is None else _loosened(pair[0]) for pair in self._details]
        return {"steps": heads}, b"".join(pair[1] for pair in self._details if pair is not None)

    def _desc(self, text: str) -> int:
        over = len(text) - MAX_DESC
        return self._descs.number(text if over <= 0 else f"{text[:MAX_DESC]} … ({over} more characters)")

    def _label(self, row: ObjectRow) -> tuple[float, ...]:
        return self._desc(row["desc"]), *_tenths(row["bbox"]), int(row["iscrowd"])

    def _label_bins(self, row: tuple[float, ...]) -> list[int]:
        _, x1, y1, x2, y2, _ = row
        box = (min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2))
        return [int(value) for value in self._bins.to_bins([box], self._size_wh)[0]]

    def _prediction_columns(self, rows: Sequence[PredictionRow]) -> dict[str, list[Any]]:
        """Predictions column by column, which compresses better than row by row."""
        return {
            "desc": [self._desc(row["desc"]) for row in rows],
            "box": [_tenths(row["bbox"]) for row in rows],
            "score": [_rounded(row["score"], 4) for row in rows],
            "outcome": [_OUTCOME.get(row["outcome"] or "", UNKNOWN) for row in rows],
            "target": [UNKNOWN if row["target"] is None else row["target"] for row in rows],
            "iou": [_rounded(row["iou"], 3) for row in rows],
            "covers": [[i, row["covers"]] for i, row in enumerate(rows) if row["covers"]],
            "twin": [i for i, row in enumerate(rows) if row["near_duplicate"]],
            "strip": [i for i, row in enumerate(rows) if row["strip"]],
        }


def _details(record: Record, line: int, picture: str | None) -> dict[str, Any]:
    rows, answer = record["predictions"], record["answer"]
    policies = list(dict.fromkeys(name for row in rows for name in row["scores"]))
    text = answer["text"]
    return {
        "line": line,
        "picture": picture,
        "bins": [row["bins"] for row in rows],
        "policies": policies,
        "scores": [[_rounded(row["scores"].get(name), 4) for row in rows] for name in policies],
        "text": text
        if len(text) <= MAX_ANSWER
        else f"{text[:MAX_ANSWER]} … ({len(text) - MAX_ANSWER} more characters)",
        "tokens": len(answer["ids"]),
        "curves": [int(row["slots"] is not None) for row in rows],
        "label_curves": [int(row["slots"] is not None) for row in record["objects"]],
        "probes": _probes(record["probes"]),
    }


def _curves(record: Record) -> list[Curve | None]:
    """The curves of a record in the blob's order: four of each prediction, then four of each pass of each label."""
    found: list[Curve | None] = []
    for prediction in record["predictions"]:
        if prediction["slots"] is not None:
            found += _four(prediction["slots"])
    for label in record["objects"]:
        if label["slots"] is not None:
            found += [*_four(label["slots"]["a1"]), *_four(label["slots"]["last"])]
    return found


def _four(curves: Sequence[Curve | None]) -> list[Curve | None]:
    return [*curves[:4], *[None] * (4 - len(curves))]


def _probes(probes: Probes | None) -> dict[str, Any] | None:
    if probes is None:
        return None
    slots, objects = probes["slots"], probes["objects"]
    return {
        "passes": probes["passes"],
        **{key: slots[key] for key in ("object", "coordinate", "target")},
        "drift": _all_rounded(slots["drift"], 1),
        "a1": _pass(slots["a1"]),
        "last": _pass(slots["last"]),
        "objects": objects["object"],
        "flip": [int(value) for value in objects["flip"]],
        "chimera": [int(value) for value in objects["chimera"]],
        "follow": [
            [
                *(row["object"], row["neighbour"], row["coordinate"]),
                *_all_rounded([row["near_neighbour"], row["near_own"], row["elsewhere"]], 2),
            ]
            for row in probes["follow"]
        ],
    }


def _pass(figures: ProbePass) -> dict[str, Any]:
    return {
        "argmax": figures["argmax"],
        "modes": figures["modes"],
        "entropy": _all_rounded(figures["entropy"], 1),
        "own": _all_rounded(figures["own_mass"], 2),
        "cross": _all_rounded(figures["cross_instance_mass"], 2),
        "gap": _all_rounded(figures["exp_argmax_gap"], 1),
    }


def _all_rounded(values: Iterable[float | None], digits: int) -> list[float | None]:
    return [_rounded(value, digits) for value in values]


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


def _tenths(box: Sequence[float]) -> tuple[float, ...]:
    return tuple(round(float(value), 1) for value in box)


def _squeezed(value: Any) -> bytes:
    return zlib.compress(json.dumps(finite(value), ensure_ascii=False, separators=(",", ":")).encode(), 1)


def _loosened(piece: bytes) -> Any:
    return json.loads(zlib.decompress(piece))
