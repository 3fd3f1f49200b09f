"""A run's folder as data: config, manifest, metrics and dumps, with all that is missing or broken said and left out.

Everything after training (report, comparison, diagnosis, export) reads runs through this module.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, cast

import yaml

from apiece.dumps.form import BrokenLineError, Protocol, Record, loads_finite, parse_protocol, parse_record
from apiece.errors import UserError

DUMPS = "dumps"
PROTOCOL_FILE = "protocol.json"
RECORDS_FILE = "records.jsonl"
ELSEWHERE_FILE = "elsewhere.jsonl"

_STEP = re.compile(r"step_(\d{6,})")
Row = dict[str, Any]


Panel = TypedDict(
    "Panel",
    {
        "seed": int,
        "ids": list[str],
        "named": list[str],
        "missing": list[str],
        "by_crowding": dict[str, int],
        "data": str,
        "data_sha256": str,
        "complete": str | None,
        "complete_sha256": str | None,
        "from": str | None,
    },
)
"""What is dumped at each step, as the manifest says it."""


@dataclass(frozen=True, slots=True)
class Dump:
    """One step of a run, as far as it can be read.

    Attributes:
        step: Optimizer steps done.
        folder: Where it lies.
        protocol: What the records depend on.
        records: In the panel's order.
        elsewhere: Failures outside the panel.
        pictures: PNG by sample id, where one was drawn.
        gaps: What could not be read, one sentence each.
    """

    step: int
    folder: Path
    protocol: Protocol
    records: tuple[Record, ...]
    elsewhere: tuple[Record, ...]
    pictures: dict[str, Path]
    gaps: tuple[str, ...] = ()

    @property
    def by_id(self) -> dict[str, Record]:
        """Records of the panel by sample id."""
        return {record["id"]: record for record in self.records}


@dataclass(frozen=True, slots=True)
class RunFolder:
    """A run, read from its files.

    Attributes:
        path: Its folder.
        config: `config.yaml`, every setting spelled out; empty where it is missing.
        manifest: `manifest.json`; empty where it is missing.
        metrics: Rows of `metrics.jsonl` in the order written; a step may have several (training, evaluation).
        steps: Steps with a complete dump, ascending.
        gaps: What could not be read, one sentence each.
    """

    path: Path
    config: Row
    manifest: Row
    metrics: tuple[Row, ...]
    steps: tuple[int, ...]
    gaps: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Of the folder."""
        return self.path.resolve().name

    @property
    def panel(self) -> Panel | None:
        """The panel that the manifest names; `None` for a run without monitoring."""
        panel = self.manifest.get("panel")
        return cast(Panel, panel) if isinstance(panel, dict) else None

    def series(self, key: str) -> list[tuple[int, float]]:
        """(step, value) of one figure of the metrics; rows without it, or where it was not finite, left out."""
        found = {row["step"]: row[key] for row in self.metrics if isinstance(row.get(key), int | float)}
        return sorted(found.items())

    def dump(self, step: int | None = None) -> Dump:
        """Read a dump; the newest where no step is named.

        Raises:
            UserError: There is none, or it is of another schema.
        """
        if not self.steps:
            raise UserError(
                "expected dumps, found none",
                where=self.path / DUMPS,
                fix="set monitor.every_steps (and data.eval) in the config of the next run",
            )
        if step is None:
            step = self.steps[-1]
        if step not in self.steps:
            raise UserError(f"no dump of step {step}; there are {_some(self.steps)}", where=self.path / DUMPS)
        return read_dump(dump_folder(self.path, step))

    def dumps(self, steps: Sequence[int] | None = None) -> tuple[list[Dump], list[str]]:
        """All dumps that can be read (or those of `steps`), ascending, and a sentence for each that cannot."""
        found, gaps = [], []
        for step in self.steps if steps is None else steps:
            try:
                found.append(self.dump(step))
            except UserError as error:
                gaps.append(str(error))
        return found, gaps


def dump_folder(run: Path, step: int) -> Path:
    """Where the dump of a step lies."""
    return run / DUMPS / f"step_{step:06d}"


def dumped_steps(run: Path) -> tuple[int, ...]:
    """Steps with a complete dump, ascending; unfinished ones (`.part`) do not count."""
    names = (_STEP.fullmatch(path.name) for path in (run / DUMPS).glob("step_*") if path.is_dir())
    return tuple(sorted(int(name[1]) for name in names if name))


def open_run(path: Path) -> RunFolder:
    """Read a run's folder. What is missing or broken in it is a gap, not an error.

    Raises:
        UserError: It is not the folder of a run.
    """
    path = Path(path)
    if not path.is_dir():
        raise UserError("expected the folder of a run, found none", where=path, fix="name a folder such as runs/NAME")
    files = ("config.yaml", "manifest.json", "metrics.jsonl")
    if not any((path / name).exists() for name in (*files, DUMPS)):
        raise UserError(
            f"expected the folder of a run ({', '.join(files)}), found none of these files in it",
            where=path,
            fix="name a folder such as runs/NAME",
        )
    gaps: list[str] = []
    config = _mapping(path / files[0], gaps)
    manifest = _mapping(path / files[1], gaps)
    if isinstance(panel := manifest.get("panel"), dict) and not _are_texts(panel.get("ids")):
        gaps.append(f"{path / files[1]}: panel.ids: expected a list of ids; the panel is left out")
        manifest = {key: value for key, value in manifest.items() if key != "panel"}
    metrics = tuple(row for row in _rows(path / files[2], gaps) if isinstance(row.get("step"), int))
    return RunFolder(path, config, manifest, metrics, dumped_steps(path), tuple(gaps))


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, str) for entry in value)


def read_dump(folder: Path) -> Dump:
    """Read the folder of a dump; broken lines are left out and named in `gaps`.

    Raises:
        UserError: It has no readable protocol, or is of another schema.
    """
    file = folder / PROTOCOL_FILE
    try:
        protocol = parse_protocol(file.read_bytes(), file)
    except (OSError, BrokenLineError) as error:
        said = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"not the folder of a dump: {PROTOCOL_FILE} cannot be read: {said}", where=folder) from error
    gaps: list[str] = []
    records = _records(folder / RECORDS_FILE, gaps)
    elsewhere = _records(folder / ELSEWHERE_FILE, gaps) if (folder / ELSEWHERE_FILE).exists() else ()
    return Dump(protocol["step"], folder, protocol, records, elsewhere, _pictures(folder, records), tuple(gaps))


def picture_name(number: int, sample_id: str) -> str:
    """File name of a picture: its number in the panel, and the id with `_` for what no file can be called."""
    return f"{number:04d}_{_safe(sample_id)}.png"


def find_image(record: Record, run: Path) -> Path | None:
    """The image file of a record: as it was written down, else relative to the run's folder; `None` if it is gone."""
    given = Path(record["image"])
    return next((path for path in (given, run / given) if path.is_file()), None)


def _safe(sample_id: str) -> str:
    return re.sub(r"[^\w.-]+", "_", sample_id)[:60]


def _pictures(folder: Path, records: Sequence[Record]) -> dict[str, Path]:
    """PNG by sample id. Ids that are alike in file names are told apart by their order, which the numbers keep."""
    by_name: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("[0-9][0-9][0-9][0-9]_*.png")):
        by_name.setdefault(path.stem[5:], []).append(path)
    waiting = ((record["id"], by_name.get(_safe(record["id"]))) for record in records)
    return {sample_id: paths.pop(0) for sample_id, paths in waiting if paths}


def _records(file: Path, gaps: list[str]) -> tuple[Record, ...]:
    """The records of a file; of an id that is there twice, the first."""
    found: dict[str, Record] = {}
    for number, raw in _lines(file, gaps):
        try:
            record = parse_record(raw, f"{file}:{number}")
        except BrokenLineError as error:
            gaps.append(f"{file}:{number}: left out: {error}")
            continue
        if record["id"] in found:
            gaps.append(f"{file}:{number}: left out: sample {record['id']!r} is there already")
        else:
            found[record["id"]] = record
    return tuple(found.values())


def _rows(file: Path, gaps: list[str]) -> Iterator[Row]:
    """The rows of a JSONL file; a figure that is not finite is `None`."""
    for number, raw in _lines(file, gaps):
        try:
            row = loads_finite(raw)
        except (ValueError, RecursionError) as error:
            gaps.append(f"{file}:{number}: left out: not valid JSON ({error})")
            continue
        if isinstance(row, dict):
            yield row
        else:
            gaps.append(f"{file}:{number}: left out: expected a JSON object")


def _lines(file: Path, gaps: list[str]) -> Iterator[tuple[int, bytes]]:
    """Numbered lines that are not blank. A crash leaves a last line without its end, which is named and left out."""
    try:
        # Split at \n alone: a text of the model may hold U+2028, where `splitlines` would cut.
        *whole, rest = file.read_bytes().split(b"\n")
    except OSError as error:
        gaps.append(f"{file}: cannot be read: {error.strerror}")
        return
    yield from ((number, line) for number, line in enumerate(whole, 1) if line.strip())
    if not rest.strip():
        return
    try:
        json.loads(rest)  # a file of another tool may end without a line break
    except ValueError:
        gaps.append(f"{file}:{len(whole) + 1}: left out: the last line is half-written")
    else:
        yield len(whole) + 1, rest


def _mapping(file: Path, gaps: list[str]) -> Row:
    """A YAML or JSON file that holds a mapping; empty, and a gap, where it cannot be read."""
    try:
        text = file.read_text(encoding="utf-8")
        value = json.loads(text) if file.suffix == ".json" else yaml.safe_load(text)
    except OSError as error:
        gaps.append(f"{file}: cannot be read: {error.strerror}")
        return {}
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        gaps.append(f"{file}: cannot be read: {error}")
        return {}
    if not isinstance(value, dict):
        gaps.append(f"{file}: expected a mapping")
        return {}
    return value


def _some(steps: Sequence[int]) -> str:
    shown = ", ".join(map(str, steps if len(steps) <= 8 else (*steps[:4], "...", *steps[-3:])))
    return f"{len(steps)}: {shown}"
