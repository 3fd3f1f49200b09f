"""Reads a run's folder: config, manifest, metrics and dumps. What is missing or broken is named in `gaps` and left out.

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

from apiece.dumps.form import BrokenLineError, DumpProtocol, Entry, loads_finite, parse_entry, parse_protocol
from apiece.errors import UserError

DUMPS = "dumps"
PROTOCOL_FILE = "protocol.json"
RECORDS_FILE = "records.jsonl"
ELSEWHERE_FILE = "elsewhere.jsonl"

_STEP = re.compile(r"step_(\d{6,})")

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
"""What is dumped at each step, as it stands in the manifest."""


@dataclass(frozen=True, slots=True)
class Dump:
    """One step of a run, as far as it can be read.

    Attributes:
        step: Optimizer steps done.
        entries: In the panel's order.
        elsewhere: Failures outside the panel.
        pictures: PNG by sample id, where one was drawn.
        gaps: What could not be read, one sentence each.
    """

    step: int
    folder: Path
    protocol: DumpProtocol
    entries: tuple[Entry, ...]
    elsewhere: tuple[Entry, ...]
    pictures: dict[str, Path]
    gaps: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RunFolder:
    """A run, read from its files.

    Attributes:
        config: `config.yaml`; empty where it is missing.
        manifest: `manifest.json`; empty where it is missing.
        metrics: Lines of `metrics.jsonl` in the order written; a step may have several (training, evaluation).
        steps: Steps with a complete dump, ascending.
        gaps: What could not be read, one sentence each.
    """

    path: Path
    config: dict[str, Any]
    manifest: dict[str, Any]
    metrics: tuple[dict[str, Any], ...]
    steps: tuple[int, ...]
    gaps: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def panel(self) -> Panel | None:
        """`None` for a run without monitoring."""
        panel = self.manifest.get("panel")
        return cast(Panel, panel) if isinstance(panel, dict) else None

    def series(self, key: str) -> list[tuple[int, float]]:
        """(step, value) of one figure of the metrics, without steps where it is absent or was not finite."""
        found = {line["step"]: line[key] for line in self.metrics if isinstance(line.get(key), int | float)}
        return sorted(found.items())

    def dump(self, step: int | None = None) -> Dump:
        """Read a dump, by default the newest; a `UserError` if there is none, or if it is of another schema."""
        if not self.steps:
            raise UserError(
                "expected dumps, found none",
                where=self.path / DUMPS,
                fix="set monitor.every_steps (and data.eval) in the config of the next run",
            )
        if step is None:
            step = self.steps[-1]
        if step not in self.steps:
            shown = ", ".join(
                map(str, self.steps if len(self.steps) <= 8 else (*self.steps[:4], "...", *self.steps[-3:]))
            )
            there = f"there are {len(self.steps)}: {shown}"
            raise UserError(f"no dump of step {step}; {there}", where=self.path / DUMPS)
        return read_dump(dump_folder(self.path, step))


def dump_folder(run: Path, step: int) -> Path:
    """`dumps/step_NNNNNN` of a run's folder."""
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
    panel = manifest.get("panel")
    ids = panel.get("ids") if isinstance(panel, dict) else []
    if not isinstance(ids, list) or not all(isinstance(entry, str) for entry in ids):
        gaps.append(f"{path / files[1]}: panel.ids: expected a list of ids; the panel is left out")
        manifest = {key: value for key, value in manifest.items() if key != "panel"}
    metrics = tuple(row for row in _objects(path / files[2], gaps) if isinstance(row.get("step"), int))
    return RunFolder(path, config, manifest, metrics, dumped_steps(path), tuple(gaps))


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
    entries = _entries(folder / RECORDS_FILE, gaps)
    elsewhere = _entries(folder / ELSEWHERE_FILE, gaps) if (folder / ELSEWHERE_FILE).exists() else ()
    return Dump(protocol["step"], folder, protocol, entries, elsewhere, _pictures(folder, entries), tuple(gaps))


def picture_name(number: int, sample_id: str) -> str:
    """File name of a picture: its number in the panel, and the id with `_` for what no file can be called."""
    return f"{number:04d}_{_safe(sample_id)}.png"


def find_image(entry: Entry, run: Path) -> Path | None:
    """The image file of an entry: its path as written, else relative to the run's folder; `None` if it is gone."""
    given = Path(entry["image"])
    return next((path for path in (given, run / given) if path.is_file()), None)


def _safe(sample_id: str) -> str:
    return re.sub(r"[^\w.-]+", "_", sample_id)[:60]


def _pictures(folder: Path, entries: Sequence[Entry]) -> dict[str, Path]:
    """PNG by sample id. Ids that give the same file name are distinguished by their order, which the numbers keep."""
    by_name: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("[0-9][0-9][0-9][0-9]_*.png")):
        by_name.setdefault(path.stem[5:], []).append(path)
    waiting = ((entry["id"], by_name.get(_safe(entry["id"]))) for entry in entries)
    return {sample_id: paths.pop(0) for sample_id, paths in waiting if paths}


def _entries(file: Path, gaps: list[str]) -> tuple[Entry, ...]:
    """The entries of a file; of an id that is there twice, the first."""
    found: dict[str, Entry] = {}
    for number, raw in _lines(file, gaps):
        try:
            entry = parse_entry(raw, f"{file}:{number}")
        except BrokenLineError as error:
            gaps.append(f"{file}:{number}: left out: {error}")
            continue
        if entry["id"] in found:
            gaps.append(f"{file}:{number}: left out: sample {entry['id']!r} is there already")
        else:
            found[entry["id"]] = entry
    return tuple(found.values())


def _objects(file: Path, gaps: list[str]) -> Iterator[dict[str, Any]]:
    """The objects of a JSONL file; a figure that is not finite is `None`."""
    for number, raw in _lines(file, gaps):
        try:
            value = loads_finite(raw)
        except (ValueError, RecursionError) as error:
            gaps.append(f"{file}:{number}: left out: not valid JSON ({error})")
            continue
        if isinstance(value, dict):
            yield value
        else:
            gaps.append(f"{file}:{number}: left out: expected a JSON object")


def _lines(file: Path, gaps: list[str]) -> Iterator[tuple[int, bytes]]:
    """Numbered lines that are not blank. A crash may cut the last line off: it is named in `gaps` and left out."""
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
        json.loads(rest)  # other tools may leave out the last line break
    except ValueError:
        gaps.append(f"{file}:{len(whole) + 1}: left out: the last line is half-written")
    else:
        yield len(whole) + 1, rest


def _mapping(file: Path, gaps: list[str]) -> dict[str, Any]:
    """A YAML or JSON file that holds a mapping; empty, with a gap, where it cannot be read."""
    try:
        text = file.read_text(encoding="utf-8")
        value = json.loads(text) if file.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        gaps.append(f"{file}: cannot be read: {error.strerror if isinstance(error, OSError) else error}")
        return {}
    if isinstance(value, dict):
        return value
    gaps.append(f"{file}: expected a mapping")
    return {}
