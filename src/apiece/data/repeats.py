"""Ids that a data file has twice, found in little memory: a quick pass over the file keeps eight bytes of each."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from apiece.types import Sample


class _Object(msgspec.Struct, gc=False):
    id: int | None = None


class _Record(msgspec.Struct, gc=False):
    image: str
    objects: list[_Object]
    id: str | None = None


_decode = msgspec.json.Decoder(_Record).decode


@dataclass(frozen=True, slots=True)
class Repeats:
    """Hashes (of this process) of all ids that appear more than once, and perhaps of a few others.

    Attributes:
        records: Of records.
        objects: Of objects.
    """

    records: frozenset[int]
    objects: frozenset[int]


def find_repeats(path: Path, parse: Callable[[bytes, int], Sample | None]) -> Repeats:
    """Find the ids that appear more than once in a data file.

    Args:
        path: The JSONL file.
        parse: The strict reader of a line, given its number, for lines that the quick one cannot read.
    """
    records, objects = array("q"), array("q")
    with open(path, "rb") as file:
        for number, raw in enumerate(file, 1):
            try:
                record = _decode(raw)
            except (msgspec.DecodeError, UnicodeError):
                sample = parse(raw, number)
                if sample is not None:
                    records.append(hash(sample.id))
                    objects.extend(hash(o.id) for o in sample.objects if o.id is not None)
                continue
            records.append(hash(record.image if record.id is None else record.id))
            objects.extend([hash(o.id) for o in record.objects if o.id is not None])
    return Repeats(_twice(records), _twice(objects))


def _twice(values: array[int]) -> frozenset[int]:
    ordered = np.sort(np.frombuffer(values, np.int64)) if values else np.zeros(0, np.int64)
    return frozenset(ordered[1:][ordered[1:] == ordered[:-1]].tolist())
