"""A benchmark's scenes as files: every split drawn once, with one file of labels for each way of labelling it."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from apiece.config.ladder import Share
from apiece.config.resolve import load_file
from apiece.config.schema import Count, PositiveCount, Section
from apiece.errors import UserError
from apiece.files import locked, write_json, write_text
from apiece.progress import track
from apiece_scenes.scene import SceneSettings, refuse
from apiece_scenes.write import VERSION, ContactSheet, draw_all, jsonl_line

SPLITS = ("train", "panel", "test")
COMPLETE = "complete.jsonl"
_ABOUT = "benchmark.json"


class SplitSection(Section):
    """One set of scenes."""

    n: PositiveCount
    """How many scenes."""
    seed: Count
    """Seed of the series; scene k is the same for any number of scenes."""


class BenchmarkFile(Section):
    """Scenes with complete truth, each labelled in several ways.

    The pictures of a split are drawn once. Next to the complete truth there is one file of labels for every share of
    unlabelled objects and every chance of a group box: they differ in nothing else.
    """

    name: str
    """Its name where figures are quoted."""
    drawings: PositiveCount
    """Version of the drawing code that it was made for; another version draws other scenes and is refused."""
    size: Annotated[int, Field(ge=64, le=1024)] = 192
    """Side of the images in pixels."""
    families: tuple[str, ...] = ("shelf", "stands", "street", "sparse")
    """Families of scenes, in turn."""
    train: SplitSection
    """Trained on."""
    panel: SplitSection
    """Looked at during training, and probed at the end."""
    test: SplitSection
    """Evaluated on, once, at the end."""
    unlabelled: tuple[Share, ...]
    """Mean shares of the crowd that an annotator leaves out."""
    group_boxes: tuple[Share, ...] = (0.0,)
    """Chances, for each row of a scene, that a run of labelled neighbours is written down as one box."""

    @model_validator(mode="after")
    def _different_seeds(self) -> Self:
        seeds = [self.train.seed, self.panel.seed, self.test.seed]
        if len(set(seeds)) < len(seeds):
            raise ValueError("train, panel and test must have seeds of their own, or they share scenes")
        if not self.unlabelled or not self.group_boxes:
            raise ValueError("unlabelled and group_boxes need at least one value each")
        return self


@dataclass(frozen=True, slots=True)
class SplitFiles:
    """The label files of one split under one way of labelling."""

    observed: Path
    complete: Path


def _labelling_name(unlabelled: float, group_boxes: float) -> str:
    """`u40_g05` for 40 % unlabelled and a 5 % chance of a group box."""
    return f"u{round(100 * unlabelled):02d}_g{round(100 * group_boxes):02d}"


def split_files(
    benchmark: BenchmarkFile, folder: Path, split: str, unlabelled: float, group_boxes: float
) -> SplitFiles:
    """Where the labels of a split lie; a `UserError` if the benchmark is not labelled in this way."""
    for name, value, known in (
        ("unlabelled", unlabelled, benchmark.unlabelled),
        ("group_boxes", group_boxes, benchmark.group_boxes),
    ):
        if value not in known:
            raise UserError(f"{benchmark.name} has {name} {', '.join(map(str, known))}, found {value}")
    own = folder / split
    return SplitFiles(own / f"{_labelling_name(unlabelled, group_boxes)}.jsonl", own / COMPLETE)


def prepare(
    benchmark: BenchmarkFile, folder: Path, workers: int = 1
) -> tuple[tuple[str, ...], dict[str, dict[str, int]]]:
    """Draw the missing splits of a benchmark.

    Args:
        benchmark: What is drawn.
        folder: Gets a folder a split: `images/`, `complete.jsonl`, one JSONL for each way of labelling, a contact sheet
            and `benchmark.json`, which says what it was drawn from.
        workers: Processes that draw; the files do not depend on it.

    Returns:
        The splits that were drawn now, and for every split how many labels it has by way of labelling.

    Raises:
        UserError: Other scenes lie there, or the benchmark was made for other drawings.
    """
    if benchmark.drawings != VERSION:
        raise UserError(
            f"{benchmark.name} was made for version {benchmark.drawings} of the drawings, this package draws {VERSION}",
            fix="use the version of the package that the benchmark was made with",
        )
    refuse(SceneSettings(benchmark.size, benchmark.families).mistakes())
    drawn, counts = [], {}
    for split in SPLITS:
        target, about = folder / split, _about(benchmark, split)
        if not target.exists():
            with locked(folder / f".{split}.lock", wait=True):
                if not target.exists():  # another process may have drawn it while this one waited
                    _draw_split(benchmark, split, target, workers)
                    drawn.append(split)
        counts[split] = _same(target, about)
    return tuple(drawn), counts


def ladder_data(
    file: Path, folder: Path, labelling: tuple[float, float], workers: int, say: Callable[[str], None]
) -> dict[str, SplitFiles]:
    """The splits of a benchmark under one way of labelling, for a ladder; drawn if they are missing.

    The entry point of the group `apiece.ladder_data`.

    Args:
        file: Describes the benchmark.
        folder: Holds a folder of the benchmark's name.
        labelling: The shares of unlabelled objects and of group boxes.
        workers: Processes that draw.
        say: Gets a line before and after drawing.
    """
    benchmark = load_file(file, BenchmarkFile)
    own = folder / benchmark.name
    files = {split: split_files(benchmark, own, split, *labelling) for split in SPLITS}  # refused before drawing
    if missing := [split for split in SPLITS if not (own / split).exists()]:
        scenes = sum(getattr(benchmark, split).n for split in missing)
        say(f"drawing {scenes:,} scenes of {benchmark.name} ({', '.join(missing)}), once: a minute or two")
    drawn, _ = prepare(benchmark, own, workers)
    if drawn:
        say(f"drew {', '.join(drawn)} of {benchmark.name} into {own}")
    return files


def _about(benchmark: BenchmarkFile, split: str) -> dict[str, Any]:
    """The settings that decide the files of a split."""
    size: SplitSection = getattr(benchmark, split)
    return {
        "drawings": benchmark.drawings,
        "n": size.n,
        "seed": size.seed,
        "size": benchmark.size,
        "families": list(benchmark.families),
        "labellings": [_labelling_name(u, g) for u in benchmark.unlabelled for g in benchmark.group_boxes],
    }


def _same(target: Path, about: dict[str, Any]) -> dict[str, int]:
    """The counts of a split that exists; a `UserError` if it was drawn from other settings."""
    file = target / _ABOUT
    fix = "name another folder, or remove this one: the scenes are drawn again"
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        counts = {str(name): int(count) for name, count in found.pop("counts").items()}
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise UserError(
            f"expected scenes of a benchmark, found none that can be read: {error}", where=file, fix=fix
        ) from error
    if found != about:
        differ = [f"{key}: {found.get(key)} here, {about[key]} wanted" for key in about if found.get(key) != about[key]]
        raise UserError(f"other scenes lie here: {'; '.join(differ)}", where=target, fix=fix)
    return counts


def _draw_split(benchmark: BenchmarkFile, split: str, target: Path, workers: int) -> None:
    """Draw a split under another name, and rename it when it is whole."""
    part = target.with_name(f".{split}.partial")
    shutil.rmtree(part, ignore_errors=True)
    try:
        (part / "images").mkdir(parents=True)
        settings = tuple(
            SceneSettings(benchmark.size, benchmark.families, u, g)
            for u in benchmark.unlabelled
            for g in benchmark.group_boxes
        )
        about = _about(benchmark, split)
        lines: dict[str, list[str]] = {name: [] for name in ("complete", *about["labellings"])}
        counts: Counter[str] = Counter()
        sheet = ContactSheet()
        last = 0  # ids are numbered over the whole split; an instance's is the same in every file
        stream = draw_all(about["n"], about["seed"], settings, workers)
        for index, drawn in enumerate(track(stream, f"scenes {split}", total=about["n"])):
            (part / "images" / f"{index:06d}.png").write_bytes(drawn.png)
            for name, instances in zip(lines, (drawn.complete, *drawn.observed), strict=True):
                lines[name].append(jsonl_line(index, benchmark.size, instances, last))
                counts[name] += len(instances)
            last += drawn.last_id()
            sheet.add(drawn)
        for name, found in lines.items():
            write_text(part / f"{name}.jsonl", "".join(found))
        sheet.write(part)
        write_json(part / _ABOUT, {**about, "counts": dict(counts)})
        part.rename(target)
    except OSError as error:
        raise UserError(f"cannot write here: {error.strerror}", where=target, fix="choose another folder") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
