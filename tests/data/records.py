"""Small data files for tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

from apiece.data.lines import Problem
from apiece.types import BoxXYXY, Instance, Sample

DOG = {"desc": "dog", "bbox": [1, 2, 30, 40]}


def record(
    name: str = "a.jpg", size_wh: tuple[int, int] = (64, 48), objects: Any = (DOG,), **more: Any
) -> dict[str, Any]:
    """A valid record, unless `more` makes it otherwise."""
    return {"image": name, "width": size_wh[0], "height": size_wh[1], "objects": list(objects), **more}


def with_box(*bbox: Any, **more: Any) -> dict[str, Any]:
    """A record with one object with this box."""
    return record(objects=[{"desc": "dog", "bbox": list(bbox), **more}])


def with_desc(desc: Any) -> dict[str, Any]:
    """A record with one object of this name."""
    return record(objects=[{"desc": desc, "bbox": [1, 2, 30, 40]}])


def write_lines(path: Path, *lines: Any) -> Path:
    """Write records (or text, or bytes, as they are), one a line."""
    raw = [
        line if isinstance(line, bytes) else line.encode() if isinstance(line, str) else json.dumps(line).encode()
        for line in lines
    ]
    path.write_bytes(b"\n".join(raw) + b"\n")
    return path


def save_image(path: Path, size_wh: tuple[int, int] = (64, 48), mode: str = "RGB", **options: Any) -> Path:
    """A plain image file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size_wh, 1 if mode == "1" else None).save(path, **options)
    return path


def sample(path: Path, *boxes: BoxXYXY, size_wh: tuple[int, int] = (64, 48), desc: str = "dog") -> Sample:
    """A sample with boxes of one class."""
    return Sample(path.name, path, size_wh, tuple(Instance(desc, box) for box in boxes))


def kinds(problems: list[Problem]) -> list[str]:
    """Names of problems, in order."""
    return [str(problem.kind) for problem in problems]
