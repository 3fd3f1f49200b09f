"""A benchmark's scenes as files: every split drawn once, with one file of labels for each way of labelling it."""

from __future__ import annotations

import io
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from apiece.config.scenes import SPLITS, BenchmarkFile, SplitSection
from apiece.errors import UserError
from apiece.files import locked, write_json, write_text
from apiece.progress import track
from apiece.types import Instance
from apiece_scenes.layouts import Family
from apiece_scenes.scene import Scene, SceneSettings, draw_labelled, unknown_families, usage
from apiece_scenes.sheet import SHEET_CELLS, contact_sheet
from apiece_scenes.write import VERSION, jsonl_object, png_bytes

COMPLETE = "complete.jsonl"
_ABOUT = "benchmark.json"


@dataclass(frozen=True, slots=True)
class SplitFiles:
    """The label files of one split under one way of labelling."""

    observed: Path
    complete: Path


@dataclass(frozen=True, slots=True)
class Prepared:
    """What `prepare` left: where, and how much was labelled.

    Attributes:
        folder: Of the benchmark.
        drawn: Splits that were drawn now; the others were there.
        counts: By split: scenes, objects, and labels by way of labelling.
    """

    folder: Path
    drawn: tuple[str, ...]
    counts: dict[str, dict[str, int]]


class _Drawn(NamedTuple):
    """A scene as a worker hands it back."""

    png: bytes
    family: Family
    complete: tuple[Instance, ...]
    observed: tuple[tuple[Instance, ...], ...]


def labelling_name(unlabelled: float, group_boxes: float) -> str:
    """Of a way of labelling: `u40_g05` for 40 % unlabelled and a 5 % chance of a group box."""
    return f"u{round(100 * unlabelled):02d}_g{round(100 * group_boxes):02d}"


def split_files(
    benchmark: BenchmarkFile, folder: Path, split: str, unlabelled: float, group_boxes: float
) -> SplitFiles:
    """Where the labels of a split lie.

    Raises:
        UserError: The benchmark is not labelled in this way.
    """
    for name, value, known in (
        ("unlabelled", unlabelled, benchmark.unlabelled),
        ("group_boxes", group_boxes, benchmark.group_boxes),
    ):
        if value not in known:
            raise UserError(f"{benchmark.name} has {name} {', '.join(map(str, known))}, found {value}")
    own = folder / split
    return SplitFiles(own / f"{labelling_name(unlabelled, group_boxes)}.jsonl", own / COMPLETE)


def prepare(benchmark: BenchmarkFile, folder: Path, workers: int = 1) -> Prepared:
    """Draw the splits of a benchmark that are not there yet.

    Args:
        benchmark: What is drawn.
        folder: Gets a folder a split: `images/`, `complete.jsonl`, one JSONL for each way of labelling, a contact sheet
            and `benchmark.json`, which says what it was drawn from.
        workers: Processes that draw; the files do not depend on it.

    Raises:
        UserError: Other scenes lie there, or the benchmark was made for other drawings.
    """
    if benchmark.drawings != VERSION:
        raise UserError(
            f"{benchmark.name} was made for version {benchmark.drawings} of the drawings, this package draws {VERSION}",
            fix="use the version of the package that the benchmark was made with",
        )
    if mistakes := unknown_families(benchmark.families):
        raise usage(mistakes)
    drawn, counts = [], {}
    for split in SPLITS:
        target, about = folder / split, _about(benchmark, split)
        if not target.exists():
            with locked(folder / f".{split}.lock", wait=True):
                if not target.exists():  # another process may have drawn it while this one waited
                    _draw_split(benchmark, split, target, workers)
                    drawn.append(split)
        counts[split] = _same(target, about)
    return Prepared(folder, tuple(drawn), counts)


def undrawn(folder: Path) -> list[str]:
    """The splits that are not there yet."""
    return [split for split in SPLITS if not (folder / split).exists()]


def _about(benchmark: BenchmarkFile, split: str) -> dict[str, Any]:
    """What decides the files of a split."""
    size: SplitSection = getattr(benchmark, split)
    return {
        "drawings": benchmark.drawings,
        "n": size.n,
        "seed": size.seed,
        "size": benchmark.size,
        "families": list(benchmark.families),
        "labellings": [labelling_name(u, g) for u in benchmark.unlabelled for g in benchmark.group_boxes],
    }


def _same(target: Path, about: dict[str, Any]) -> dict[str, int]:
    """The counts of a split that lies there already.

    Raises:
        UserError: It is another one.
    """
    file = target / _ABOUT
    fix = "name another folder, or remove this one: the scenes are drawn anew"
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
            SceneSettings(benchmark.size, tuple(Family(f) for f in benchmark.families), u, g)
            for u in benchmark.unlabelled
            for g in benchmark.group_boxes
        )
        about = _about(benchmark, split)
        names = ["complete", *about["labellings"]]
        lines: dict[str, list[str]] = {name: [] for name in names}
        counts: Counter[str] = Counter()
        shown: list[Scene] = []
        last = 0
        stream = _draw_all(about["n"], about["seed"], settings, workers)
        for index, scene in enumerate(track(stream, f"scenes {split}", total=about["n"])):
            (part / "images" / f"{index:06d}.png").write_bytes(scene.png)
            labels = [scene.complete, *scene.observed]
            for name, instances in zip(names, labels, strict=True):
                lines[name].append(_line(index, benchmark.size, instances, last))
                counts[name] += len(instances)
            last += max((instance.id or 0 for one in labels for instance in one), default=0)
            if index < SHEET_CELLS:
                image = Image.open(io.BytesIO(scene.png)).convert("RGB")
                shown.append(Scene(image, scene.family, scene.complete, scene.observed[-1]))
        for name in names:
            write_text(part / f"{name}.jsonl", "".join(line + "\n" for line in lines[name]))
        (part / "contact_sheet.png").write_bytes(png_bytes(contact_sheet(shown)))
        write_json(part / _ABOUT, {**about, "counts": dict(counts)})
        part.rename(target)
    except OSError as error:
        raise UserError(f"cannot write here: {error.strerror}", where=target, fix="choose another folder") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _line(index: int, size: int, instances: tuple[Instance, ...], last: int) -> str:
    """A scene's line; ids are numbered over the whole split, an instance's the same in every file."""
    objects = [jsonl_object(instance, last + (instance.id or 0)) for instance in instances]
    name = f"{index:06d}"
    line = {"id": name, "image": f"images/{name}.png", "width": size, "height": size, "objects": objects}
    return json.dumps(line, allow_nan=False, ensure_ascii=False)


def _draw_all(n: int, seed: int, settings: tuple[SceneSettings, ...], workers: int) -> Iterator[_Drawn]:
    draw = partial(_draw_one, seed, settings)
    if workers <= 1:
        yield from map(draw, range(n))
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(draw, range(n), chunksize=16)


def _draw_one(seed: int, settings: tuple[SceneSettings, ...], index: int) -> _Drawn:
    scenes = draw_labelled(seed, index, settings)
    first = scenes[0]
    return _Drawn(png_bytes(first.image), first.family, first.complete, tuple(s.observed for s in scenes))
