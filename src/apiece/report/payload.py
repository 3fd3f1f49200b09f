"""One run as data files of the page: boxes and details by sample, counts for the grid, figures over the steps."""

from __future__ import annotations

import base64
import gzip
import json
import math
import zlib
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeVar

from apiece.codec.bins import NUM_BINS, Bins
from apiece.dumps.beliefs import probe_ratios
from apiece.dumps.folder import Dump, RunFolder
from apiece.dumps.form import (
    COUNTS,
    FOLLOW,
    LEVELS,
    PASS_FIGURES,
    PASSES,
    RATES,
    Curve,
    Entry,
    ObjectRow,
    PredictionRow,
    Probes,
    curve_cells,
    finite,
)
from apiece.errors import UserError
from apiece.progress import track
from apiece.report.draw import FATES, OUTCOMES

MAX_DESC, MAX_ANSWER = 2000, 6000
"""Characters shown; the entries of the dump hold all."""
MAX_POINTS = 600
"""Of a figure over the steps; of longer ones the lowest and the highest value of each stretch are kept."""
UNKNOWN = -1
"""In place of an outcome, a fate or a target."""
DIGITS = b"0123456789abcdefghijklmnopqrstuv"
"""Of a cell's square root on the page: finer steps cannot be seen, and more of them hardly compress."""
WIDE = 40
"""A curve of more cells than this, of two bins or more each, is kept in cells twice as wide: a page is some 300 pixels
wide, and the cells of a wide curve are most of what a report weighs."""
_DIGIT_OF = bytes(DIGITS[round(level * 31 / LEVELS)] for level in range(LEVELS + 1))
_DIGITS = {"argmax": 0, "modes": 0, "entropy": 1, "own_mass": 2, "cross_instance_mass": 2, "exp_argmax_gap": 1}
_OUTCOME = {name: number for number, name in enumerate(OUTCOMES)}
_FATE = {name: number for number, name in enumerate(FATES)}
Points = dict[int, float | None]
K = TypeVar("K", bound=Hashable)


def write_payload(folder: Path, name: str, value: Any) -> None:
    """Write `folder/NAME.js`: JSON, compressed, as base64 in a script, since a page from disk may load nothing else.

    So nothing that a model wrote is ever part of the script itself. Numbers that are not finite become `null`.
    """
    packed = base64.b64encode(gzip.compress(_json(value), compresslevel=9, mtime=0)).decode()
    path = folder / f"{name}.js"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'apiece.put("{name}","{packed}");\n', encoding="ascii")


def page_curve(curve: Curve | None) -> list[Any] | None:
    """A distribution for the page: first bin, bins a cell, mass of the greatest cell, and a digit of `DIGITS` a cell.

    A digit is the square root of the cell's mass, 31 for the greatest. `None` for what is no curve.
    """
    try:
        start, step, peak, cells = curve_cells(curve or {})
    except ValueError:
        return None
    if not cells or peak > 1.001:
        return None
    if len(cells) <= WIDE or step == 1:
        return [start, step, float(f"{peak:.3g}"), cells.translate(_DIGIT_OF).decode()]
    halves = zip_longest(cells[::2], cells[1::2], fillvalue=0)
    masses = [left * left + right * right for left, right in halves]
    top = max(masses) or 1
    digits = bytes(DIGITS[round(31 * math.sqrt(mass / top))] for mass in masses)
    return [start, 2 * step, float(f"{peak * top / LEVELS**2:.3g}"), digits.decode()]


class Numbers(dict[K, int]):
    """Distinct values, numbered as they come."""

    def __missing__(self, value: K) -> int:
        return self.setdefault(value, len(self))


class SampleTrack:
    """A sample at every step of a run: its boxes, and the details that the page loads when asked for.

    Steps are kept compressed, since a run of 40 dumps of 200 samples would not fit into memory.

    Args:
        steps: How many dumps the run has.
        num_bins: Of the coordinate vocabulary.
    """

    def __init__(self, steps: int, num_bins: int) -> None:
        self._bins = Bins(num_bins)
        self._descs: Numbers[str] = Numbers()
        self._labels: Numbers[tuple[Any, ...]] = Numbers()
        self._hidden: Numbers[tuple[Any, ...] | None] = Numbers()
        self._boxes: list[bytes | None] = [None] * steps
        self._details: list[bytes | None] = [None] * steps
        self._size_wh = (1, 1)

    def add(self, at: int, entry: Entry, line: int, picture: str | None) -> None:
        """Add the entry of step number `at`; `line` and `picture` lead back to the dump."""
        self._size_wh = max(entry["width"], 1), max(entry["height"], 1)
        labels = tuple(
            (self._desc(row["desc"]), *_tenths(row["bbox"]), int(row["iscrowd"])) for row in entry["objects"]
        )
        hidden, counts, answer = entry["hidden"], entry["counts"], entry["answer"]
        boxes = {
            "l": self._labels[labels],
            "h": self._hidden[
                None if hidden is None else tuple((self._desc(row["desc"]), *_tenths(row["bbox"])) for row in hidden)
            ],
            "fate": [_FATE.get(row["fate"] or "", UNKNOWN) for row in entry["objects"]],
            **self._prediction_columns(entry["predictions"]),
            "counts": [*(counts[key] for key in COUNTS), *_rounded((counts[key] for key in RATES), 4)],
            "end": answer["finish_reason"],
            "closed": answer["closed"],
            "dropped": list(answer["dropped"].items()),
        }
        self._boxes[at] = zlib.compress(_json(boxes), 1)
        self._details[at] = zlib.compress(_json(_details(entry, line, picture)), 1)

    def boxes(self) -> dict[str, Any]:
        """What is drawn: loaded when the sample comes into sight."""
        return {
            "descs": list(self._descs),
            "labels": list(self._labels),
            "bins": [[self._label_bins(row) for row in rows] for rows in self._labels],
            "hidden": list(self._hidden),
            "steps": list(map(_unpacked, self._boxes)),
        }

    def details(self) -> dict[str, Any]:
        """What a look at one box needs, loaded then."""
        return {"steps": list(map(_unpacked, self._details))}

    def _desc(self, text: str) -> int:
        return self._descs[_cut(text, MAX_DESC)]

    def _label_bins(self, row: tuple[float, ...]) -> list[int]:
        _, x1, y1, x2, y2, _ = row
        box = (min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2))
        return [int(value) for value in self._bins.to_bins([box], self._size_wh)[0]]

    def _prediction_columns(self, rows: Sequence[PredictionRow]) -> dict[str, list[Any]]:
        """Predictions column by column, which compresses better than row by row."""
        return {
            "desc": [self._desc(row["desc"]) for row in rows],
            "box": [_tenths(row["bbox"]) for row in rows],
            "score": _rounded((row["score"] for row in rows), 4),
            "outcome": [_OUTCOME.get(row["outcome"] or "", UNKNOWN) for row in rows],
            "target": [UNKNOWN if row["target"] is None else row["target"] for row in rows],
            "iou": _rounded((row["iou"] for row in rows), 3),
            "covers": [[i, row["covers"]] for i, row in enumerate(rows) if row["covers"]],
            "twin": [i for i, row in enumerate(rows) if row["near_duplicate"]],
            "strip": [i for i, row in enumerate(rows) if row["strip"]],
        }


def _details(entry: Entry, line: int, picture: str | None) -> dict[str, Any]:
    rows, answer = entry["predictions"], entry["answer"]
    policies = list(dict.fromkeys(name for row in rows for name in row["scores"]))
    return {
        "line": line,
        "picture": picture,
        "bins": [row["bins"] for row in rows],
        "policies": policies,
        "scores": [_rounded((row["scores"].get(name) for row in rows), 4) for name in policies],
        "text": _cut(answer["text"], MAX_ANSWER),
        "tokens": len(answer["ids"]),
        "curves": [row["slots"] and _four(row["slots"]) for row in rows],
        "label_curves": [_label_curves(row) for row in entry["objects"]],
        "probes": _probes(entry["probes"]),
    }


def _label_curves(row: ObjectRow) -> dict[str, Any] | None:
    slots = row["slots"]
    return None if slots is None else {name: _four(slots[name]) for name in PASSES}


def _four(curves: Sequence[Curve | None]) -> list[list[Any] | None]:
    return [*map(page_curve, curves[:4]), *[None] * (4 - len(curves))]


def _probes(probes: Probes | None) -> dict[str, Any] | None:
    if probes is None:
        return None
    slots, objects = probes["slots"], probes["objects"]
    return {
        "passes": probes["passes"],
        **{key: slots[key] for key in ("object", "coordinate", "target")},
        "drift": _rounded(slots["drift"], 1),
        **{name: {key: _rounded(slots[name][key], _DIGITS[key]) for key in PASS_FIGURES} for name in PASSES},
        "objects": objects["object"],
        "flip": [int(value) for value in objects["flip"]],
        "chimera": [int(value) for value in objects["chimera"]],
        "follow": [
            [row["object"], row["neighbour"], row["coordinate"], *_rounded((row[key] for key in FOLLOW), 2)]
            for row in probes["follow"]
        ],
    }


def _rounded(values: Iterable[float | None], digits: int) -> list[float | None]:
    return [None if value is None else round(value, digits) for value in values]


def _tenths(box: Sequence[float]) -> tuple[float, ...]:
    return tuple(round(float(value), 1) for value in box)


def _cut(text: str, most: int) -> str:
    over = len(text) - most
    return text if over <= 0 else f"{text[:most]} … ({over} more characters)"


def _json(value: Any) -> bytes:
    return json.dumps(finite(value), allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode()


def _unpacked(piece: bytes | None) -> Any:
    return None if piece is None else json.loads(zlib.decompress(piece))


def panel_figures(entries: Sequence[Entry]) -> dict[str, float]:
    """Rates over the panel at one step; those with nothing to divide are left out."""
    counts = {key: sum(entry["counts"][key] for entry in entries) for key in COUNTS}
    predictions = [row for entry in entries for row in entry["predictions"]]
    outcomes = Counter(row["outcome"] for row in predictions)
    fates = Counter(row["fate"] for entry in entries for row in entry["objects"] if not row["iscrowd"])
    gt, predicted, matched = (counts[key] for key in ("gt", "pred", "matched"))
    judged = predicted - counts["ignored"]
    ratios: dict[str, tuple[float, float]] = {
        "panel/f1": (2 * matched, judged + gt),
        "panel/precision": (matched, judged),
        "panel/recall": (matched, gt),
        "panel/boxes_per_label": (predicted, gt),
        **{f"rates/{name}": (outcomes[name], predicted) for name in OUTCOMES},
        **{f"misses/{name}": (fates[name], gt) for name in FATES if name != "matched"},
        "shape/near_duplicate": (sum(row["near_duplicate"] for row in predictions), len(predictions)),
        "shape/strip": (sum(row["strip"] for row in predictions), len(predictions)),
        "answer/unclosed": (sum(not entry["answer"]["closed"] for entry in entries), len(entries)),
    }
    probes = probe_ratios([(entry["objects"], entry["probes"]) for entry in entries])
    figures = {key: part / whole for key, (part, whole) in ratios.items() if whole}
    return figures | {key: ratio.value for key, ratio in probes.items()}


def logged_figures(lines: Sequence[Mapping[str, Any]]) -> dict[str, Points]:
    """Every figure of `metrics.jsonl` by name; a value that was not finite is a gap (`None`)."""
    found: dict[str, Points] = {}
    for line in lines:
        for key, value in line.items():
            if key != "step" and (value is None or isinstance(value, int | float)):
                number = None if value is None or not math.isfinite(value) else float(value)
                found.setdefault(key, {})[line["step"]] = number
    return found


def steps_and_values(points: Mapping[int, float | None]) -> list[list[float | None]]:
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


@dataclass(slots=True)
class SampleFacts:
    """What the page's list of samples says of one.

    Attributes:
        entry: Its first one.
        objects: Number of labels that are not crowd regions.
        classes: Names of labels and predictions.
        in_panel: Whether it belongs to the panel; otherwise it is a failure elsewhere.
    """

    entry: Entry
    objects: int
    classes: set[str]
    in_panel: bool


@dataclass(slots=True)
class RunPages:
    """Everything that the page holds of a run, gathered dump by dump.

    Attributes:
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
    _classes: Numbers[str] = field(default_factory=Numbers)
    _figures: dict[str, Points] = field(default_factory=dict)

    def read(self) -> None:
        """Read all dumps, one at a time."""
        self.gaps += self.run.gaps
        for dump in track(self._dumps(), f"dumps of {self.run.name}", total=len(self.run.steps)):
            self.gaps += dump.gaps
            self.protocol = dict(dump.protocol)
            self._grid.append({})
            for line, entry in enumerate(dump.entries, 1):
                self._add(dump, entry, line, in_panel=True)
            panel = {entry["id"] for entry in dump.entries}
            for line, entry in enumerate(dump.elsewhere, 1):
                if entry["id"] not in panel:
                    self._add(dump, entry, line, in_panel=False)
            for key, value in panel_figures(dump.entries).items():
                self._figures.setdefault(key, {})[dump.step] = value

    def write(self, data: Path, name: str, numbers: Mapping[str, int]) -> None:
        """Write the data files of the run into `data/NAME`; samples are named by their number."""
        figures = {**logged_figures(self.run.metrics), **self._figures}
        series = [[key, *steps_and_values(points)] for key, points in figures.items()]
        write_payload(data, f"{name}/curves", {"series": series})
        grid = [{str(numbers[id_]): row for id_, row in rows.items()} for rows in self._grid]
        write_payload(data, f"{name}/grid", {"classes": list(self._classes), "steps": grid})
        for id_, sample in self._tracks.items():
            write_payload(data, f"{name}/boxes_{numbers[id_]:04d}", sample.boxes())
            write_payload(data, f"{name}/details_{numbers[id_]:04d}", sample.details())

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

    def _add(self, dump: Dump, entry: Entry, line: int, *, in_panel: bool) -> None:
        id_, picture = entry["id"], dump.pictures.get(entry["id"]) if in_panel else None
        if id_ not in self._tracks:
            num_bins = dump.protocol["num_bins"]
            self._tracks[id_] = SampleTrack(len(self.run.steps), num_bins if num_bins > 1 else NUM_BINS)
            labels = sum(not row["iscrowd"] for row in entry["objects"])
            self.samples[id_] = SampleFacts(entry, labels, set(), in_panel)
        facts = self.samples[id_]
        facts.in_panel = facts.in_panel or in_panel
        facts.classes |= {row["desc"] for row in (*entry["objects"], *entry["predictions"])}
        self._tracks[id_].add(len(self.steps) - 1, entry, line, picture.name if picture else None)
        self._grid[-1][id_] = self._grid_row(entry)

    def _grid_row(self, entry: Entry) -> list[Any]:
        """F1, and how many predictions of each outcome and class, labels of each fate and class: flat triples."""
        outcomes = Counter((row["outcome"], row["desc"]) for row in entry["predictions"])
        fates = Counter((row["fate"], row["desc"]) for row in entry["objects"])
        (f1,) = _rounded([entry["counts"]["f1"]], 3)
        return [f1, self._triples(outcomes, _OUTCOME), self._triples(fates, _FATE)]

    def _triples(self, counts: Counter[tuple[str | None, str]], names: dict[str, int]) -> list[int]:
        known = ((names[name], desc, n) for (name, desc), n in counts.items() if name in names)
        return [value for name, desc, n in known for value in (name, self._classes[desc[:200]], n)]
