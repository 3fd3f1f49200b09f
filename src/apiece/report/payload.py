"""One run as data files of the page: boxes and details by sample, counts for the grid, curves."""

from __future__ import annotations

import base64
import codecs
import gzip
import json
import math
import struct
import zlib
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from apiece.codec.bins import NUM_BINS, Bins
from apiece.dumps.folder import Dump, RunFolder
from apiece.dumps.form import Curve, ObjectRow, PredictionRow, ProbePass, Probes, Record, finite
from apiece.errors import UserError
from apiece.progress import track
from apiece.report.overlay import FATES, OUTCOMES

# Data files of the page: scripts that hand packed bytes to a callback, since a page from disk may load nothing else.
#
# A file is one call, `apiece.put("NAME", LENGTH, "TEXT")`. The text holds LENGTH bytes, 15 bits a character, in a
# file of UTF-16: a fifth less than base64 weighs. The bytes are gzip of: length of the JSON (uint32, little-endian),
# the JSON, and a blob. So nothing that a model wrote is ever part of the script itself.


MAX_CELLS = 64
"""Of a curve, as docs/records.md says."""
WIDE = 40
"""A curve of more cells than this, of two bins or more each, is kept in cells twice as wide: a page is some 300 pixels
wide, and the cells of a wide curve are most of what a report weighs."""
LEVELS = 31
"""Steps of a cell's square root on the page: finer ones cannot be seen, and a byte of many levels hardly compresses."""
_FIRST = 0x3400
"""Character of the 15 bits 0: from here on, 32768 characters of UTF-16 are neither syntax nor half of a pair."""
_HEAD = np.dtype([("start", "<u2"), ("step", "<u2"), ("cells", "u1"), ("peak", "<u2")])
"""Of a curve: first bin, bins a cell, cells, mass of the greatest cell / 65535."""


def write_payload(folder: Path, name: str, value: Any, blob: bytes = b"") -> int:
    """Write `folder/NAME.js`; returns its bytes. Numbers that are not finite become `null`."""
    text = json.dumps(finite(value), allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode()
    packed = gzip.compress(struct.pack("<I", len(text)) + text + blob, compresslevel=9, mtime=0)
    path = folder / f"{name}.js"
    path.parent.mkdir(parents=True, exist_ok=True)
    script = f'apiece.put("{name}",{len(packed)},"{_as_text(packed)}");\n'.encode("utf-16-le")
    path.write_bytes(codecs.BOM_UTF16_LE + script)  # the mark tells browsers the encoding, whatever a server says
    return len(script)


def _as_text(data: bytes) -> str:
    bits = np.unpackbits(np.frombuffer(data, dtype=np.uint8))
    rows = np.pad(bits, (0, -len(bits) % 15)).reshape(-1, 15)
    units = _FIRST + rows.astype(np.uint32) @ (1 << np.arange(14, -1, -1, dtype=np.uint32))
    return units.astype("<u2").tobytes().decode("utf-16-le")


def pack_curves(curves: Sequence[Curve | None]) -> bytes:
    """Distributions for the blob: the heads of all, then the cells of all, a byte each, 0 to `LEVELS`.

    A curve that is not there, or that is none, has no cells.

    Shapes: N curves, 64 cells.
    """
    heads = np.zeros(len(curves), dtype=_HEAD)
    roots = np.zeros((len(curves), MAX_CELLS))
    for row, curve in enumerate(curves):
        cells = _cells(curve)
        if curve is not None and cells:
            heads[row] = curve["start"], curve["step"], len(cells), round(min(curve["peak"], 1.0) * 65535)
            roots[row, : len(cells)] = np.frombuffer(cells, dtype=np.uint8)
    mass = (roots / 255) ** 2
    wide = (heads["cells"] > WIDE) & (heads["step"] > 1)
    halved = mass[wide, ::2] + mass[wide, 1::2]
    top = halved.max(axis=1, initial=0)
    mass[wide] = 0
    mass[wide, : MAX_CELLS // 2] = halved / np.maximum(top, 1e-9)[:, None]
    heads["peak"][wide] = np.minimum(np.rint(heads["peak"][wide] * top), 65535)
    heads["step"][wide] *= 2
    heads["cells"][wide] = (heads["cells"][wide] + 1) // 2
    levels = np.rint(LEVELS * np.sqrt(mass)).astype(np.uint8)
    return heads.tobytes() + levels[np.arange(MAX_CELLS) < heads["cells"][:, None]].tobytes()


def _cells(curve: Curve | None) -> bytes:
    """The cells of a curve; none where it is not one."""
    if curve is None or not (
        0 <= curve["start"] < 65536 and 1 <= curve["step"] < 32768 and 0 <= curve["peak"] <= 1.001
    ):
        return b""
    try:
        cells = base64.b64decode(curve["values"], validate=True)
    except ValueError:
        return b""
    return cells if len(cells) <= MAX_CELLS else b""


# One sample through the steps of a run: its boxes for the page, and the details that are loaded when asked for.
#
# Pieces are kept compressed, since a run of 40 dumps of 200 samples would not fit into memory as records.


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


# Curves of a run over its steps: the figures logged in training, and those counted from the dumps of the panel.


MAX_POINTS = 600
"""Of a curve on the page; of longer ones the lowest and the highest value of each stretch are kept."""
Points = dict[int, float | None]


@dataclass(slots=True)
class PanelCounter:
    """Sums over the panel at one step, and the rates that follow."""

    counts: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    fates: Counter[str] = field(default_factory=Counter)
    sums: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(lambda: [0.0, 0.0]))

    def add(self, record: Record) -> None:
        """Count one record."""
        self.counts.update({key: record["counts"][key] for key in ("gt", "pred", "matched", "ignored")})
        self.outcomes.update(row["outcome"] or "" for row in record["predictions"])
        self.fates.update(row["fate"] or "" for row in record["objects"] if not row["iscrowd"])
        self._mean("shape/near_duplicate", (row["near_duplicate"] for row in record["predictions"]))
        self._mean("shape/strip", (row["strip"] for row in record["predictions"]))
        self._mean("answer/unclosed", [not record["answer"]["closed"]])
        probes = record["probes"]
        if probes is None:
            return
        for name in ("a1", "last"):
            self._pass(name, probes["slots"][name])
        self._mean("probes/drift", probes["slots"]["drift"])
        # As `apiece compare` has them: of the objects that have a neighbour of their class, with whom to be confused.
        labels, rows = record["objects"], probes["objects"]
        names = Counter(row["desc"] for row in labels if not row["iscrowd"])
        many = {i for i, row in enumerate(labels) if names[row["desc"]] > 1}
        self._mean("probes/flip", (v for i, v in zip(rows["object"], rows["flip"], strict=False) if i in many))
        self._mean("probes/chimera", (v for i, v in zip(rows["object"], rows["chimera"], strict=False) if i in many))
        self._mean("probes/follow/near_neighbour", (row["near_neighbour"] for row in probes["follow"]))
        self._mean("probes/follow/near_own", (row["near_own"] for row in probes["follow"]))
        self._mean("probes/follow/elsewhere", (row["elsewhere"] for row in probes["follow"]))

    def figures(self) -> dict[str, float]:
        """Every rate that has something to divide by."""
        gt, predicted, matched = (self.counts[key] for key in ("gt", "pred", "matched"))
        judged = predicted - self.counts["ignored"]
        ratios = {
            "panel/f1": (2 * matched, judged + gt),
            "panel/precision": (matched, judged),
            "panel/recall": (matched, gt),
            "panel/boxes_per_label": (predicted, gt),
            **{f"rates/{name}": (self.outcomes[name], predicted) for name in OUTCOMES},
            **{f"misses/{name}": (self.fates[name], gt) for name in FATES if name != "matched"},
            **{key: (total, count) for key, (total, count) in self.sums.items()},
        }
        return {key: part / whole for key, (part, whole) in ratios.items() if whole}

    def _pass(self, name: str, figures: ProbePass) -> None:
        for key in ("own_mass", "cross_instance_mass", "exp_argmax_gap", "entropy", "modes"):
            self._mean(f"probes/{name}/{key}", figures[key])

    def _mean(self, key: str, values: Iterable[float | None]) -> None:
        known = [float(value) for value in values if value is not None]
        self.sums[key][0] += sum(known)
        self.sums[key][1] += len(known)


def logged_figures(rows: Sequence[Mapping[str, Any]]) -> dict[str, Points]:
    """Every figure of `metrics.jsonl` by name; a value that was not finite is a gap (`None`)."""
    found: dict[str, Points] = {}
    for row in rows:
        for key, value in row.items():
            if key != "step" and (value is None or isinstance(value, int | float)):
                finite = None if value is None or not math.isfinite(value) else float(value)
                found.setdefault(key, {})[row["step"]] = finite
    return found


def curve(points: Mapping[int, float | None]) -> list[list[float | None]]:
    """Steps and values of a figure, ascending, thinned to `MAX_POINTS`."""
    steps = sorted(points)
    if len(steps) > MAX_POINTS:
        steps = _thinned(steps, points)
    values = (points[step] for step in steps)
    return [[*steps], [None if value is None else float(f"{value:.5g}") for value in values]]


def _thinned(steps: list[int], points: Mapping[int, float | None]) -> list[int]:
    """The steps of the lowest and the highest value of each stretch, and both ends: spikes stay where they were."""
    width = -(-len(steps) * 2 // MAX_POINTS)
    kept = {steps[0], steps[-1]}
    for at in range(0, len(steps), width):
        stretch = [step for step in steps[at : at + width] if points[step] is not None]
        if stretch:
            kept |= {min(stretch, key=lambda s: points[s] or 0.0), max(stretch, key=lambda s: points[s] or 0.0)}
        else:
            kept.add(steps[at])
    return sorted(kept)


_OUTCOMES, _FATES = list(OUTCOMES), list(FATES)


@dataclass(slots=True)
class SampleFacts:
    """What the page's list of samples says of one.

    Attributes:
        id: Of the sample.
        image: As the record names it.
        size_wh: Of the photo.
        objects: Labels that are not crowd regions.
        classes: Names of labels and predictions.
        in_panel: Whether it is of the panel, not a failure elsewhere.
    """

    id: str
    image: Record
    size_wh: tuple[int, int]
    objects: int
    classes: set[str]
    in_panel: bool


@dataclass(slots=True)
class RunPages:
    """Everything that the page holds of a run, gathered dump by dump.

    Attributes:
        run: The run.
        samples: By id, the panel's first.
        gaps: What could not be shown, one sentence each.
        steps: Those of the dumps that could be read.
        protocol: Of the newest dump.
    """

    run: RunFolder
    samples: dict[str, SampleFacts] = field(default_factory=dict)
    gaps: list[str] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    protocol: dict[str, Any] = field(default_factory=dict)
    _tracks: dict[str, SampleTrack] = field(default_factory=dict)
    _grid: list[dict[str, list[Any]]] = field(default_factory=list)
    _classes: Table[str] = field(default_factory=Table)
    _figures: dict[str, Points] = field(default_factory=dict)

    def read(self) -> None:
        """Read all dumps, one at a time."""
        self.gaps += self.run.gaps
        for dump in track(self._dumps(), f"dumps of {self.run.name}", total=len(self.run.steps)):
            self.gaps += dump.gaps
            self.protocol = dict(dump.protocol)
            counter = PanelCounter()
            grid: dict[str, list[Any]] = {}
            panel = {record["id"] for record in dump.records}
            for line, record in enumerate(dump.records, 1):
                counter.add(record)
                self._add(dump, record, line, dump.pictures.get(record["id"]), grid, in_panel=True)
            for line, record in enumerate(dump.elsewhere, 1):
                if record["id"] not in panel:
                    self._add(dump, record, line, None, grid, in_panel=False)
            self._grid.append(grid)
            for key, value in counter.figures().items():
                self._figures.setdefault(key, {})[dump.step] = value

    def write(self, data: Path, name: str, numbers: Mapping[str, int]) -> None:
        """Write the data files of the run into `data/NAME`; samples are named by their number."""
        series = [
            [key, *curve(points)] for key, points in {**logged_figures(self.run.metrics), **self._figures}.items()
        ]
        write_payload(data, f"{name}/curves", {"series": series})
        grid = [{str(numbers[id_]): row for id_, row in rows.items()} for rows in self._grid]
        write_payload(data, f"{name}/grid", {"classes": self._classes.values, "steps": grid})
        for id_, sample in self._tracks.items():
            write_payload(data, f"{name}/boxes_{numbers[id_]:04d}", sample.boxes())
            write_payload(data, f"{name}/details_{numbers[id_]:04d}", *sample.details())

    def _dumps(self) -> Iterator[Dump]:
        """The dumps that can be read; the others are gaps."""
        for step in self.run.steps:
            try:
                dump = self.run.dump(step)
            except UserError as error:
                self.gaps.append(str(error))
                continue
            self.steps.append(step)
            yield dump

    def _add(
        self,
        dump: Dump,
        record: Record,
        line: int,
        picture: Path | None,
        grid: dict[str, list[Any]],
        *,
        in_panel: bool,
    ) -> None:
        id_ = record["id"]
        if id_ not in self._tracks:
            num_bins = dump.protocol["num_bins"]
            self._tracks[id_] = SampleTrack(len(self.run.steps), num_bins if num_bins > 1 else NUM_BINS)
            size_wh = record["width"], record["height"]
            labels = sum(not row["iscrowd"] for row in record["objects"])
            self.samples[id_] = SampleFacts(id_, record, size_wh, labels, set(), in_panel)
        facts = self.samples[id_]
        facts.in_panel = facts.in_panel or in_panel
        facts.classes |= {row["desc"] for row in (*record["objects"], *record["predictions"])}
        self._tracks[id_].add(len(self.steps) - 1, record, line, picture.name if picture else None)
        grid[id_] = self._grid_row(record)

    def _grid_row(self, record: Record) -> list[Any]:
        """F1, and how many predictions of each outcome and class, labels of each fate and class: flat triples."""
        outcomes = Counter((row["outcome"], row["desc"]) for row in record["predictions"])
        fates = Counter((row["fate"], row["desc"]) for row in record["objects"])
        f1 = record["counts"]["f1"]
        return [
            None if f1 is None else round(f1, 3),
            self._triples(outcomes, _OUTCOMES),
            self._triples(fates, _FATES),
        ]

    def _triples(self, counts: Counter[tuple[str | None, str]], names: list[str]) -> list[int]:
        known = ((names.index(name), desc, n) for (name, desc), n in counts.items() if name in names)
        return [value for name, desc, n in known for value in (name, self._classes.number(desc[:200]), n)]
