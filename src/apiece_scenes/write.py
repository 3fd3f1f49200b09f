"""Scenes to files: PNG images, the two label files in COCO and JSONL form, the settings, and a contact sheet."""

from __future__ import annotations

import errno
import io
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, ImageDraw

from apiece.errors import UserError
from apiece.files import write_json, write_text
from apiece.progress import track
from apiece.types import BoxXYXY, Instance
from apiece_scenes.layouts import Family
from apiece_scenes.scene import DEFAULTS, Scene, SceneSettings, draw_labelled, refuse
from apiece_scenes.sprites import CLASSES

VERSION = 1
"""Version of the drawings: raised when the same seed gives other scenes."""
_LABELS = ("complete", "observed")


@dataclass(frozen=True, slots=True)
class Written:
    """What `write_scenes` wrote, counted by family."""

    scenes: dict[str, int]
    complete: dict[str, int]  # instances
    observed: dict[str, int]  # labels; a group box is one


class Drawn(NamedTuple):
    """A scene as a worker hands it back: the PNG file's bytes, and the labels under each of the settings."""

    png: bytes
    family: Family
    complete: tuple[Instance, ...]
    observed: tuple[tuple[Instance, ...], ...]

    def last_id(self) -> int:
        return max((i.id or 0 for labels in (self.complete, *self.observed) for i in labels), default=0)

    def scene(self) -> Scene:
        """For a contact sheet: with the labels of the last settings."""
        image = Image.open(io.BytesIO(self.png)).convert("RGB")
        return Scene(image, self.family, self.complete, self.observed[-1])


def write_scenes(out: Path, n: int, settings: SceneSettings = DEFAULTS, *, seed: int = 0, workers: int = 1) -> Written:
    """Draw `n` scenes into a folder. The bytes written do not depend on `workers`.

    Args:
        out: New or empty folder. It gets `images/`, `complete.json` and `observed.json` (COCO), `complete.jsonl` and
            `observed.jsonl`, `scenes.json` (the settings) and `contact_sheet.png`. An instance has one annotation id
            in all of them.
        n: Number of scenes.
        settings: What is drawn, and how well it is labelled.
        seed: Seed of the series.
        workers: Processes that draw. More than one needs a main module that can be imported.

    Raises:
        UserError: Values are out of their range (all are listed), or the folder is not empty or cannot be written.
    """
    mistakes = settings.mistakes()
    if n < 1:
        mistakes.append(f"the number of scenes must be at least 1, got {n}")
    if seed < 0:
        mistakes.append(f"seed must be 0 or more, got {seed}")
    refuse(mistakes)
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise UserError("expected a new or empty folder, found a file", where=out)
    if out.is_dir() and any(out.iterdir()):
        raise UserError("folder is not empty", where=out, fix="name a new folder; nothing is ever overwritten")
    existed = out.is_dir()
    partial_out = out / ".partial"  # a run that is cut off leaves no folder that looks finished
    try:
        (partial_out / "images").mkdir(parents=True)
        written = _write_all(partial_out, n, seed, settings, workers)
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


def _write_all(folder: Path, n: int, seed: int, settings: SceneSettings, workers: int) -> Written:
    images: list[dict[str, Any]] = []
    annotations: dict[str, list[dict[str, Any]]] = {name: [] for name in _LABELS}
    lines: dict[str, list[str]] = {name: [] for name in _LABELS}
    counts: dict[str, Counter[str]] = {name: Counter() for name in ("scenes", *_LABELS)}
    sheet = ContactSheet()
    last = 0
    for index, drawn in enumerate(track(draw_all(n, seed, (settings,), workers), "scenes", total=n)):
        name = f"images/{index:06d}.png"
        (folder / name).write_bytes(drawn.png)
        images.append({"id": index + 1, "file_name": name, "width": settings.size, "height": settings.size})
        counts["scenes"][drawn.family] += 1
        for kind, instances in (("complete", drawn.complete), ("observed", drawn.observed[0])):
            counts[kind][drawn.family] += len(instances)
            annotations[kind] += [_coco_annotation(instance, last, index + 1) for instance in instances]
            lines[kind].append(jsonl_line(index, settings.size, instances, last))
        last += drawn.last_id()
        sheet.add(drawn)
    categories = [{"id": number, "name": name} for number, name in enumerate(CLASSES, start=1)]  # seen or not
    for kind in _LABELS:
        info = {"description": f"apiece scenes, {kind} labels", "version": str(VERSION)}
        coco = {"info": info, "images": images, "annotations": annotations[kind], "categories": categories}
        write_json(folder / f"{kind}.json", coco, indent=None)
        write_text(folder / f"{kind}.jsonl", "".join(lines[kind]))
    write_json(folder / "scenes.json", {"version": VERSION, "n": n, "seed": seed, **asdict(settings)})
    sheet.write(folder)
    return Written(*(dict(counts[name]) for name in ("scenes", *_LABELS)))


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
    return Drawn(_png_bytes(first.image), first.family, first.complete, tuple(s.observed for s in scenes))


def _png_bytes(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=3)
    return buffer.getvalue()


def _coco_annotation(instance: Instance, last: int, image_id: int) -> dict[str, Any]:
    x1, y1, x2, y2 = instance.bbox_xyxy
    return {
        "id": last + (instance.id or 0),
        "image_id": image_id,
        "category_id": CLASSES.index(instance.desc) + 1,
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": instance.area,
        "iscrowd": int(instance.iscrowd),
    }


def jsonl_line(index: int, size: int, instances: Sequence[Instance], last: int) -> str:
    """A scene as a line of a data file, whose object ids begin after `last`."""
    name = f"{index:06d}"
    objects: list[dict[str, Any]] = []
    for i in instances:
        keys = {"desc": i.desc, "bbox": list(i.bbox_xyxy), "area": i.area, "id": last + (i.id or 0)}
        objects.append(keys | ({"iscrowd": True} if i.iscrowd else {}))
    line = {"id": name, "image": f"images/{name}.png", "width": size, "height": size, "objects": objects}
    return json.dumps(line, allow_nan=False, ensure_ascii=False) + "\n"


_CELLS, _COLUMNS, _CELL, _GAP = 24, 6, 256, 6
_SOLID, _DASHED, _REGION = (0, 255, 70), (255, 60, 220), (255, 190, 0)


class ContactSheet:
    """The first scenes in rows of six: labelled green, unlabelled dashed magenta, boxes over rows orange."""

    def __init__(self) -> None:
        self._scenes: list[Scene] = []

    def add(self, drawn: Drawn) -> None:
        if len(self._scenes) < _CELLS:
            self._scenes.append(drawn.scene())

    def write(self, folder: Path) -> None:
        columns = min(_COLUMNS, len(self._scenes))
        rows = -(-len(self._scenes) // columns)
        sheet = Image.new("RGB", (columns * (_CELL + _GAP) + _GAP, rows * (_CELL + _GAP) + _GAP), (24, 24, 26))
        for k, scene in enumerate(self._scenes):
            place = (_GAP + (k % columns) * (_CELL + _GAP), _GAP + (k // columns) * (_CELL + _GAP))
            sheet.paste(_cell(scene), place)
        (folder / "contact_sheet.png").write_bytes(_png_bytes(sheet))


def _cell(scene: Scene) -> Image.Image:
    scale = _CELL / scene.image.width
    cell = scene.image.resize((_CELL, _CELL), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(cell)
    whole = {instance.id for instance in scene.complete}
    labelled = {instance.id for instance in scene.observed}
    for instance in scene.complete:
        if instance.id not in labelled:
            _dashed(draw, instance.bbox_xyxy, scale)
    for instance in scene.observed:
        color, width = (_SOLID, 1) if instance.id in whole else (_REGION, 3)
        draw.rectangle([value * scale for value in instance.bbox_xyxy], outline=color, width=width)
    return cell


def _dashed(draw: ImageDraw.ImageDraw, bbox_xyxy: BoxXYXY, scale: float) -> None:
    x1, y1, x2, y2 = (value * scale for value in bbox_xyxy)
    for start, end in (((x1, y1), (x2, y1)), ((x2, y1), (x2, y2)), ((x1, y2), (x2, y2)), ((x1, y1), (x1, y2))):
        length = max(abs(end[0] - start[0]), abs(end[1] - start[1]))
        for k in range(0, int(length), 6):
            a, b = k / length, min(1.0, (k + 3) / length)
            points = [(start[0] + (end[0] - start[0]) * t, start[1] + (end[1] - start[1]) * t) for t in (a, b)]
            draw.line(points, fill=_DASHED)
