"""The form of a dump: what a record holds (docs/records.md), written strictly and read with every mistake named.

Records stay plain dictionaries of JSON, as the page shows them and other tools read them; the types here are what is
checked when one is read. Boxes are `xyxy` in pixels of the original image.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike
from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from apiece.boxes import FloatArray
from apiece.errors import UserError

# A distribution over the bins in a few bytes: at most 64 cells, each the square root of its mass in one byte.
#
# Shapes: K bins.


MAX_CELLS = 64
"""Bytes of a curve at most."""
LEVELS = 255
"""The byte of the greatest cell."""
TAIL = 1e-3
"""Cells below this share of the peak may be left out at both ends."""


def encode_curve(mass_K: ArrayLike) -> dict[str, Any] | None:
    """Pack a distribution, as docs/records.md describes it.

    Cells are as wide as they must be for `MAX_CELLS` to hold all that is not tail, and lie on a grid from bin 0.

    Args:
        mass_K: `[K]` masses, not negative.

    Returns:
        `start`, `step`, `peak` and `values`; `None` where there is no distribution (not finite, negative, or all 0).
    """
    mass = np.asarray(mass_K, dtype=np.float64)
    if mass.ndim != 1:
        raise ValueError(f"a distribution must have shape [K], got {list(mass.shape)}")
    if not np.isfinite(mass).all() or (mass < 0).any() or not mass.any():
        return None
    step = 0
    while True:
        step += 1
        cells = np.add.reduceat(mass, np.arange(0, len(mass), step))
        peak = cells.max()
        inside = np.flatnonzero(cells >= TAIL * peak)
        first, last = inside[0], inside[-1]
        if last - first < MAX_CELLS:
            break
    values = np.rint(LEVELS * np.sqrt(cells[first : last + 1] / peak)).astype(np.uint8)
    return {
        "start": int(first * step),
        "step": step,
        "peak": float(f"{peak:.6g}"),
        "values": base64.b64encode(values.tobytes()).decode("ascii"),
    }


def decode_curve(curve: Mapping[str, Any], num_bins: int) -> FloatArray:
    """The masses `[K]` of a packed distribution; each cell's mass is spread evenly over its bins.

    Raises:
        ValueError: It is not a curve over `num_bins` bins.
    """
    try:
        start, step, peak = int(curve["start"]), int(curve["step"]), float(curve["peak"])
        values = np.frombuffer(base64.b64decode(curve["values"], validate=True), dtype=np.uint8)
    except (KeyError, TypeError, ValueError, OverflowError, binascii.Error) as error:
        raise ValueError(f"not a curve: {error!r}") from error
    # The last cell may reach beyond the last bin.
    if not (start >= 0 and step >= 1 and start + (len(values) - 1) * step < num_bins and len(values) <= MAX_CELLS):
        raise ValueError(
            f"not a curve over {num_bins} bins: start {start}, step {step}, {len(values)} values (at most {MAX_CELLS})"
        )
    if not (np.isfinite(peak) and peak >= 0):
        raise ValueError(f"the peak of a curve must be a finite mass, got {peak}")
    mass_K = np.zeros(num_bins)
    for cell, mass in enumerate((values / LEVELS) ** 2 * peak):
        left, right = start + cell * step, min(start + (cell + 1) * step, num_bins)
        mass_K[left:right] = mass / (right - left)
    return mass_K


SCHEMA = 1
"""Of records and protocols; raised when old readers would misread new files."""

_OPEN = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)  # further keys are no mistake


@with_config(_OPEN)
class Curve(TypedDict):
    """A packed distribution (`apiece.records.curve`)."""

    start: int
    step: int
    peak: float
    values: str


@with_config(_OPEN)
class ObjectSlots(TypedDict):
    """Distributions at the four slots of a label, by pass."""

    a1: list[Curve | None]
    last: list[Curve | None]


@with_config(_OPEN)
class ObjectRow(TypedDict):
    """A label and what became of it."""

    desc: str
    bbox: list[float]
    iscrowd: bool
    area: float | None
    id: int | None
    fate: str | None
    slots: ObjectSlots | None


@with_config(_OPEN)
class HiddenRow(TypedDict):
    """Something that is there but not labelled."""

    desc: str
    bbox: list[float]


@with_config(_OPEN)
class AnswerRow(TypedDict):
    """What the model wrote."""

    ids: list[int]
    logprobs: list[float | None]
    text: str
    finish_reason: str
    closed: bool
    dropped: dict[str, int]


@with_config(_OPEN)
class PredictionRow(TypedDict):
    """A kept record of the answer, and what it is."""

    desc: str
    bbox: list[float]
    bins: list[int]
    span: list[int]
    score: float | None
    scores: dict[str, float | None]
    outcome: str | None
    target: int | None
    iou: float | None
    covers: list[int]
    near_duplicate: bool
    strip: bool
    slots: list[Curve | None] | None


@with_config(_OPEN)
class ClassCounts(TypedDict):
    """Counts of one class on one image."""

    gt: int
    pred: int
    matched: int


@with_config(_OPEN)
class CountsRow(TypedDict):
    """Counts and rates of one image; a rate with nothing to divide is 0."""

    gt: int
    pred: int
    matched: int
    ignored: int
    precision: float | None
    recall: float | None
    f1: float | None
    f1_true: float | None
    by_class: dict[str, ClassCounts]


@with_config(_OPEN)
class ProbePass(TypedDict):
    """Figures of one pass, one a slot."""

    argmax: list[int | None]
    entropy: list[float | None]
    modes: list[int | None]
    own_mass: list[float | None]
    cross_instance_mass: list[float | None]
    exp_argmax_gap: list[float | None]


@with_config(_OPEN)
class ProbeSlots(TypedDict):
    """Columns over the slots of the labels."""

    object: list[int]
    coordinate: list[int]
    target: list[int]
    a1: ProbePass
    last: ProbePass
    drift: list[float | None]


@with_config(_OPEN)
class ProbeObjects(TypedDict):
    """Columns over the labels."""

    object: list[int]
    flip: list[bool]
    chimera: list[bool]


@with_config(_OPEN)
class FollowRow(TypedDict):
    """Where the mass goes when a neighbour's x1, y1 stand in the input."""

    object: int
    neighbour: int
    coordinate: int
    near_neighbour: float | None
    near_own: float | None
    elsewhere: float | None


@with_config(_OPEN)
class Probes(TypedDict):
    """What the model believes at the labels' own slots."""

    passes: int
    slots: ProbeSlots
    objects: ProbeObjects
    follow: list[FollowRow]


@with_config(_OPEN)
class Record(TypedDict):
    """One sample of a dump."""

    schema: int
    step: int
    id: str
    image: str
    width: int
    height: int
    objects: list[ObjectRow]
    hidden: list[HiddenRow] | None
    answer: AnswerRow
    predictions: list[PredictionRow]
    counts: CountsRow
    probes: Probes | None


@with_config(_OPEN)
class Protocol(TypedDict):
    """What the records of a dump depend on."""

    schema: int
    step: int
    run: str
    data: str
    data_sha256: str
    complete: str | None
    complete_sha256: str | None
    prompt_hash: str
    max_pixels: int
    num_bins: int
    score_policy: str
    generate: dict[str, Any]
    seed: int
    probes: dict[str, Any] | None


_RECORD, _PROTOCOL = TypeAdapter(Record), TypeAdapter(Protocol)


class BrokenLineError(ValueError):
    """A line or file that is no record: half-written, no JSON, or a key is missing or of the wrong kind."""


def parse_record(text: str | bytes, where: str | Path) -> Record:
    """Read one line of a records file. A NaN in it, which strict JSON has no word for, becomes `None`.

    Args:
        text: The line.
        where: `file:line`, for messages.

    Raises:
        BrokenLineError: It is not a record.
        UserError: It is one of another schema.
    """
    value = _decode(text)
    _require_schema(value, where)
    _check(_RECORD, value)
    for row in (*value["objects"], *value["predictions"], *(value["hidden"] or ())):
        if len(row["bbox"]) != 4:
            raise BrokenLineError(f"expected a bbox of 4 numbers, found {len(row['bbox'])}")
    count = len(value["objects"])
    for row in value["predictions"]:
        if any(not 0 <= i < count for i in (*row["covers"], *([] if row["target"] is None else [row["target"]]))):
            raise BrokenLineError(f"a prediction points to an object that is not among the {count} of the record")
    return cast(Record, value)


def parse_protocol(text: str | bytes, where: str | Path) -> Protocol:
    """Read a `protocol.json`.

    Raises:
        BrokenLineError: It is not a protocol.
        UserError: It is one of another schema.
    """
    value = _decode(text)
    _require_schema(value, where)
    _check(_PROTOCOL, value)
    return cast(Protocol, value)


def json_line(value: Mapping[str, Any]) -> str:
    """A record as a line of strict JSON: numbers that are not finite become `null`, numpy's become plain ones."""
    return json.dumps(finite(value), allow_nan=False, ensure_ascii=False, separators=(",", ":")) + "\n"


def finite(value: Any) -> Any:
    """The same value in JSON's kinds, with `None` for NaN and infinity."""
    if isinstance(value, Mapping):
        return {str(key): finite(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [finite(child) for child in value]
    if isinstance(value, np.ndarray | np.generic):
        return finite(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def loads_finite(text: str | bytes) -> Any:
    """A JSON value in which NaN, infinity and numbers beyond a float are `None`."""
    return json.loads(text, parse_constant=lambda _: None, parse_int=_whole, parse_float=_fraction)


def _whole(digits: str) -> int | None:
    return int(digits) if len(digits) < 20 else None


def _fraction(digits: str) -> float | None:
    return value if math.isfinite(value := float(digits)) else None


def _decode(text: str | bytes) -> Any:
    try:
        value = loads_finite(text)
    except (ValueError, RecursionError) as error:
        raise BrokenLineError(f"not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise BrokenLineError("expected a JSON object")
    return value


def _require_schema(value: Mapping[str, Any], where: str | Path) -> None:
    found = value.get("schema")
    if found == SCHEMA:
        return
    if type(found) is int and found > SCHEMA:
        message, fix = f"found {found}: it was written by a newer apiece", "update apiece to read it"
    else:
        message = f"found {'none' if found is None else repr(found)}: it was written by an older apiece"
        fix = (
            "read it with the apiece that wrote it (RUN/manifest.json says which), or train the run again to dump anew"
        )
    raise UserError(f"expected a dump of schema {SCHEMA}, {message}", where=where, fix=fix)


def _check(adapter: TypeAdapter[Any], value: Any) -> None:
    try:
        adapter.validate_python(value)
    except ValidationError as error:
        first, more = error.errors()[0], error.error_count() - 1
        place = ".".join(map(str, first["loc"]))
        raise BrokenLineError(f"{place}: {first['msg']}{f', and {more} more' if more else ''}") from error
