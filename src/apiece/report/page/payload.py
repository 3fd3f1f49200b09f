"""Data files of the page: scripts that hand packed bytes to a callback, since a page from disk may load nothing else.

A file is one call, `apiece.put("NAME", LENGTH, "TEXT")`. The text holds LENGTH bytes, 15 bits a character, in a file
of UTF-16: a fifth less than base64 weighs. The bytes are gzip of: length of the JSON (uint32, little-endian), the JSON,
and a blob. So nothing that a model wrote is ever part of the script itself.
"""

from __future__ import annotations

import base64
import codecs
import gzip
import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from apiece.records.record import Curve, finite

MAX_CELLS = 64
"""Of a curve, as docs/records.md says."""
WIDE = 40
"""A curve of more cells than this, of two bins or more each, is kept in cells twice as wide: a page is some 300 pixels
wide, and the cells of a wide curve are most of what a report weighs."""
LEVELS = 31
"""Steps of a cell's square root on the page: finer ones cannot be seen, and a byte of many levels hardly compresses."""
_FIRST = 0x3400
"""Character of the 15 bits 0: from here on, 32768 characters of UTF-16 are neither syntax nor half of a pair."""
_HEAD = np.dtype([("start", "<u2"), ("step", "<u2"), ("cells", "u1"), ("peak", "<u2")])
"""Of a curve: first bin, bins a cell, cells, mass of the greatest cell / 65535."""


def write_payload(folder: Path, name: str, value: Any, blob: bytes = b"") -> int:
    """Write `folder/NAME.js`; returns its bytes. Numbers that are not finite become `null`."""
    text = json.dumps(finite(value), allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode()
    packed = gzip.compress(struct.pack("<I", len(text)) + text + blob, compresslevel=9, mtime=0)
    path = folder / f"{name}.js"
    path.parent.mkdir(parents=True, exist_ok=True)
    script = f'apiece.put("{name}",{len(packed)},"{_as_text(packed)}");\n'.encode("utf-16-le")
    path.write_bytes(codecs.BOM_UTF16_LE + script)  # the mark tells browsers the encoding, whatever a server says
    return len(script)


def _as_text(data: bytes) -> str:
    bits = np.unpackbits(np.frombuffer(data, dtype=np.uint8))
    rows = np.pad(bits, (0, -len(bits) % 15)).reshape(-1, 15)
    units = _FIRST + rows.astype(np.uint32) @ (1 << np.arange(14, -1, -1, dtype=np.uint32))
    return units.astype("<u2").tobytes().decode("utf-16-le")


def pack_curves(curves: Sequence[Curve | None]) -> bytes:
    """Distributions for the blob: the heads of all, then the cells of all, a byte each, 0 to `LEVELS`.

    A curve that is not there, or that is none, has no cells.

    Shapes: N curves, 64 cells.
    """
    heads = np.zeros(len(curves), dtype=_HEAD)
    roots = np.zeros((len(curves), MAX_CELLS))
    for row, curve in enumerate(curves):
        cells = _cells(curve)
        if curve is not None and cells:
            heads[row] = curve["start"], curve["step"], len(cells), round(min(curve["peak"], 1.0) * 65535)
            roots[row, : len(cells)] = np.frombuffer(cells, dtype=np.uint8)
    mass = (roots / 255) ** 2
    wide = (heads["cells"] > WIDE) & (heads["step"] > 1)
    halved = mass[wide, ::2] + mass[wide, 1::2]
    top = halved.max(axis=1, initial=0)
    mass[wide] = 0
    mass[wide, : MAX_CELLS // 2] = halved / np.maximum(top, 1e-9)[:, None]
    heads["peak"][wide] = np.minimum(np.rint(heads["peak"][wide] * top), 65535)
    heads["step"][wide] *= 2
    heads["cells"][wide] = (heads["cells"][wide] + 1) // 2
    levels = np.rint(LEVELS * np.sqrt(mass)).astype(np.uint8)
    return heads.tobytes() + levels[np.arange(MAX_CELLS) < heads["cells"][:, None]].tobytes()


def _cells(curve: Curve | None) -> bytes:
    """The cells of a curve; none where it is not one."""
    if curve is None or not (
        0 <= curve["start"] < 65536 and 1 <= curve["step"] < 32768 and 0 <= curve["peak"] <= 1.001
    ):
        return b""
    try:
        cells = base64.b64decode(curve["values"], validate=True)
    except ValueError:
        return b""
    return cells if len(cells) <= MAX_CELLS else b""
