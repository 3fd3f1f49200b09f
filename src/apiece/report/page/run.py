"""One run as data files of the page: boxes and details by sample, counts for the grid, curves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from apiece.codec.bins import NUM_BINS
from apiece.errors import UserError
from apiece.progress import track
from apiece.records.folder import Dump, RunFolder
from apiece.records.record import Record
from apiece.report.page.figures import PanelCounter, Points, curve, logged_figures
from apiece.report.page.payload import write_payload
from apiece.report.page.track import SampleTrack, Table
from apiece.report.palette import FATES, OUTCOMES

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
