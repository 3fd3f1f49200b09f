"""A good record and photos to spoil: 64 x 48 pixels, one dog."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from cases import Make, write, write_lines
from PIL import Image

DOG = {"desc": "dog", "bbox": [10, 10, 40, 30]}


def photo(name: str = "a.png", size_wh: tuple[int, int] = (64, 48), mode: str = "RGB", **options: Any) -> Make:
    """An image file in the format of its ending."""

    def make(folder: Path) -> None:
        (path := folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new(mode, size_wh).save(path, **options)

    return make


def photo_bytes(kind: str = "PNG", size_wh: tuple[int, int] = (64, 48)) -> bytes:
    """The content of an image file."""
    Image.radial_gradient("L").resize(size_wh).convert("RGB").save(stream := io.BytesIO(), kind)
    return stream.getvalue()


def record(**changes: Any) -> dict[str, Any]:
    """The good record with some keys changed; `None` leaves one out."""
    good = {"id": "a", "image": "a.png", "width": 64, "height": 48, "objects": [DOG]}
    return {key: value for key, value in (good | changes).items() if value is not None}


def dog(**changes: Any) -> dict[str, Any]:
    """The good record, its object changed."""
    return record(objects=[{key: value for key, value in (DOG | changes).items() if value is not None}])


def data(*records: Any, name: str = "x.jsonl") -> tuple[Make, ...]:
    """A data file of some records, and their photo."""
    return (write_lines(name, *records), photo())


def text_data(text: str | bytes, name: str = "x.jsonl") -> tuple[Make, ...]:
    """A data file of this text, and its photo."""
    return (write(name, text), photo())
