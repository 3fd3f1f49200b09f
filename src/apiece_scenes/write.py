"""Scenes to files: PNG images, the two label files in COCO and JSONL form, the settings, and a contact sheet."""

from __future__ import annotations

import errno
import io
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from apiece.errors import UserError
from apiece.files import write_json, write_text
from apiece.progress import track
from apiece.types import Instance
from apiece_scenes.layouts import Family
from apiece_scenes.scene import ALL, Scene, SceneSettings, draw_labelled, scene_mistakes, usage
from apiece_scenes.sheet import SHEET_CELLS, contact_sheet
from apiece_scenes.sprites import CLASSES

VERSION = 1
"""Version of the drawings: raised when the same seed gives other scenes."""
_LABELS = ("complete", "observed")


@dataclass(frozen=True, slots=True)
class Written:
    """What `write_scenes` wrote.

    Attributes:
        out: The folder.
        scenes: Number of scenes of each family.
        complete: Number of instances in the complete truth, by family.
        observed: Number of labels in the observed file, by family (a group box counts as one).
    """

    out: Path
    scenes: dict[str, int]
    complete: dict[str, int]
    observed: dict[str, int]

    @property
    def contact_sheet(self) -> Path:
        return self.out / "contact_sheet.png"


class Drawn(NamedTuple):
    """A scene as a worker hands it back: the PNG file's bytes, and the labels under each of the settings."""

    png: bytes
    family: Family
    complete: tuple[Instance, ...]
    observed: tuple[tuple[Instance, ...], ...]

    def scene(self) -> Scene:
        """For a contact sheet: with the labels of the last settings."""
        image = Image.open(io.BytesIO(self.png)).convert("RGB")
        return Scene(image, self.family, self.complete, self.observed[-1])


def write_scenes(
    out: Path,
    n: int,
    *,
    seed: int = 0,
    size: int = 192,
    families: Sequence[str] = ALL,
    unlabelled: float = 0.0,
    group_boxes: float = 0.0,
    iscrowd_rows: float = 0.0,
    workers: int = 1,
) -> Written:
    """Draw `n` scenes into a folder. The bytes written depend on the arguments alone, not on `workers`.

    Args:
        out: New or empty folder. It gets `images/`, `complete.json` and `observed.json` (COCO), `complete.jsonl` and
            `observed.jsonl`, `scenes.json` (the settings) and `contact_sheet.png`. An instance has one annotation id
            in all of them.
        n: Number of scenes.
        seed: Seed of the series.
        size: See `SceneSettings`, as for all others.
        families: Families in turn.
        unlabelled: Mean share of the crowd left out of `observed`.
        group_boxes: Probability for each row.
        iscrowd_rows: Probability for each row.
        workers: Processes that draw. More than one needs a main module that can be imported.

    Raises:
        UserError: Settings are out of their range (all are listed), or the folder is not empty or cannot be written.
    """
    mistakes = scene_mistakes(size, families, unlabelled, group_boxes, iscrowd_rows)
    if n < 1:
        mistakes.append(f"the number of scenes must be at least 1, got {n}")
    if seed < 0:
        mistakes.append(f"seed must be 0 or more, got {seed}")
    if mistakes:
        raise usage(mistakes)
    settings = SceneSettings(size, tuple(Family(name) for name in families), unlabelled, group_boxes, iscrowd_rows)
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise UserError("expected a new or empty folder, found a file", where=out)
    if out.is_dir() and any(out.iterdir()):
        raise UserError("folder is not empty", where=out, fix="name a new folder; nothing is ever overwritten")
    existed = out.is_dir()
    partial_out = out / ".partial"  # a run that is cut off leaves no folder that looks finished
    try:
        (partial_out / "images").mkdir(parents=True)
        written = _write_all(partial_out, out, n, seed, settings, workers)
        for path in sorted(partial_out.iterdir()):
            path.rename(out / path.name)
        partial_out.rmdir()
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR):
            raise UserError(f"cannot write here: {error.strerror}", where=out, fix="choose another folder") from error
        raise
    finally:
        if partial_out.exists():
            shutil.rmtree(partial_out if existed else out)
    return written


def _write_all(folder: Path, out: Path, n: int, seed: int, settings: SceneSettings, workers: int) -> Written:
    book = _Book(settings.size)
    shown: list[Scene] = []
    for index, drawn in enumerate(track(draw_all(n, seed, (settings,), workers), "scenes", total=n)):
        (folder / "images" / f"{index:06d}.png").write_bytes(drawn.png)
        book.add(index, drawn)
        if index < SHEET_CELLS:
            shown.append(drawn.scene())
    for name in _LABELS:
        write_json(folder / f"{name}.json", book.coco(name), indent=None)
        write_text(folder / f"{name}.jsonl", "".join(line + "\n" for line in book.lines[name]))
    write_json(folder / "scenes.json", _parameters(n, seed, settings))
    (folder / "contact_sheet.png").write_bytes(png_bytes(contact_sheet(shown)))
    return Written(out, dict(book.scenes), dict(book.counts["complete"]), dict(book.counts["observed"]))


def draw_all(n: int, seed: int, settings: tuple[SceneSettings, ...], workers: int) -> Iterator[Drawn]:
    """Draw `n` scenes in order, each once, labelled under all of the settings; in `workers` processes."""
    draw = partial(_draw_one, seed, settings)
    if workers <= 1:
        yield from map(draw, range(n))
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(draw, range(n), chunksize=16)


def _draw_one(seed: int, settings: tuple[SceneSettings, ...], index: int) -> Drawn:
    scenes = draw_labelled(seed, index, settings)
    first = scenes[0]
    return Drawn(png_bytes(first.image), first.family, first.complete, tuple(s.observed for s in scenes))


def png_bytes(image: Image.Image) -> bytes:
    """An image as a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=3)
    return buffer.getvalue()


def _parameters(n: int, seed: int, settings: SceneSettings) -> dict[str, Any]:
    return {
        "version": VERSION,
        "n": n,
        "seed": seed,
        "size": settings.size,
        "families": [str(family) for family in settings.families],
        "unlabelled": settings.unlabelled,
        "group_boxes": settings.group_boxes,
        "iscrowd_rows": settings.iscrowd_rows,
    }


class _Book:
    """Gathers the label files scene by scene and numbers annotations over the whole set."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.images: list[dict[str, Any]] = []
        self.annotations: dict[str, list[dict[str, Any]]] = {name: [] for name in _LABELS}
        self.lines: dict[str, list[str]] = {name: [] for name in _LABELS}
        self.scenes: Counter[str] = Counter()
        self.counts: dict[str, Counter[str]] = {name: Counter() for name in _LABELS}
        self._last_id = 0

    def add(self, index: int, drawn: Drawn) -> None:
        """Enter one scene. Its ids 1, 2, ... become the next free ones, regions over rows included."""
        name = f"images/{index:06d}.png"
        image = {"id": index + 1, "file_name": name, "width": self.size, "height": self.size}
        self.images.append(image)
        self.scenes[drawn.family] += 1
        for kind, instances in (("complete", drawn.complete), ("observed", drawn.observed[0])):
            self.counts[kind][drawn.family] += len(instances)
            objects = []
            for instance in instances:
                number = self._last_id + (instance.id or 0)
                self.annotations[kind].append(_coco_annotation(instance, number, index + 1))
                objects.append(jsonl_object(instance, number))
            self.lines[kind].append(jsonl_line(index, self.size, objects))
        self._last_id += max((instance.id or 0 for instance in (*drawn.complete, *drawn.observed[0])), default=0)

    def coco(self, kind: str) -> dict[str, Any]:
        """The label file `kind` in COCO's form; every class is listed, seen or not."""
        return {
            "info": {"description": f"apiece scenes, {kind} labels", "version": str(VERSION)},
            "images": self.images,
            "annotations": self.annotations[kind],
            "categories": [{"id": number, "name": name} for number, name in enumerate(CLASSES, start=1)],
        }


def _coco_annotation(instance: Instance, number: int, image_id: int) -> dict[str, Any]:
    x1, y1, x2, y2 = instance.bbox_xyxy
    return {
        "id": number,
        "image_id": image_id,
        "category_id": CLASSES.index(instance.desc) + 1,
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": instance.area,
        "iscrowd": int(instance.iscrowd),
    }


def jsonl_line(index: int, size: int, objects: list[dict[str, Any]]) -> str:
    """A scene as a line of docs/data.md."""
    name = f"{index:06d}"
    line = {"id": name, "image": f"images/{name}.png", "width": size, "height": size, "objects": objects}
    return json.dumps(line, allow_nan=False, ensure_ascii=False)


def jsonl_object(instance: Instance, number: int) -> dict[str, Any]:
    """An instance as an object of docs/data.md."""
    keys: dict[str, Any] = {
        "desc": instance.desc,
        "bbox": list(instance.bbox_xyxy),
        "area": instance.area,
        "id": number,
    }
    if instance.iscrowd:
        keys["iscrowd"] = True
    return keys
