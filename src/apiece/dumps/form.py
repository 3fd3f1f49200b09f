"""The form of a dump: what an entry and its protocol hold, written strictly and read with every mistake named.

The only place that knows it: the tables of docs/reference/records.md are `form_reference()`. Entries stay plain
dictionaries of JSON, as other tools read them; the types here are checked when one is read.

Shapes: K bins.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_args, get_origin, get_type_hints

import numpy as np
from numpy.typing import ArrayLike
from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict, is_typeddict

from apiece.boxes import FloatArray
from apiece.errors import UserError

SCHEMA = 1
"""Of entries and protocols; raised when old readers would misread new files."""
MAX_CELLS = 64
"""Bytes of a curve at most."""
LEVELS = 255
"""The byte of the greatest cell."""
TAIL = 1e-3
"""Cells below this share of the peak may be left out at both ends."""


@with_config(ConfigDict(extra="allow", strict=True, allow_inf_nan=False))  # further keys are no mistake
class _Open(TypedDict):
    """The settings that all types below inherit."""


class Curve(_Open):
    """A distribution over the bins in few bytes: byte i is the mass of the bins from `start + i*step` up to, but not
    including, `start + (i+1)*step`, as `round(255 * sqrt(mass / peak))`. Mass outside is below 1/1000 of the peak in
    every cell."""

    start: Annotated[int, "first bin"]
    step: Annotated[int, "bins a cell"]
    peak: Annotated[float, "the greatest mass of a cell"]
    values: Annotated[str, "base64 of at most 64 bytes"]


class ObjectSlots(_Open):
    """Distributions at a label's own four slots (x1, y1, x2, y2), by pass."""

    a1: Annotated[list[Curve | None], "with the true coordinates in the input"]
    last: Annotated[list[Curve | None], "with the model's own beliefs in the input"]


class ObjectRow(_Open):
    """A label, and what became of it; in the order of the data file."""

    desc: Annotated[str, "class name"]
    bbox: list[float]
    iscrowd: bool
    area: Annotated[float | None, "as in the data file"]
    id: Annotated[int | None, "as in the data file"]
    fate: Annotated[str | None, "`matched`, `merged`, `misclassified`, `near_miss`, `missed`; `null`: a crowd region"]
    slots: Annotated[ObjectSlots | None, "`null` for crowd regions and where no probe was run"]


class HiddenRow(_Open):
    """Something that is there but not labelled."""

    desc: str
    bbox: list[float]


class AnswerRow(_Open):
    """What the model wrote."""

    ids: Annotated[list[int], "tokens"]
    logprobs: Annotated[list[float | None], "one a token"]
    text: str
    finish_reason: Annotated[str, "`eos`, or why it ended without an end"]
    closed: Annotated[bool, "whether the list of objects was closed"]
    dropped: Annotated[dict[str, int], "objects that could not be read, counted by reason"]


class PredictionRow(_Open):
    """A kept object of the answer, and what it is; in the order written."""

    desc: Annotated[str, "class name"]
    bbox: list[float]
    bins: Annotated[list[int], "the four coordinates as written"]
    span: Annotated[list[int], "its characters in `answer.text`: start, end"]
    score: Annotated[float | None, "by the score policy of `protocol.json`"]
    scores: Annotated[dict[str, float | None], "by policy; one that could not be computed is absent"]
    outcome: Annotated[str | None, "what it is (metrics.md), such as `tp` or `duplicate`"]
    target: Annotated[int | None, "the label that it is judged by: an index into `objects`"]
    iou: Annotated[float | None, "with that label"]
    covers: Annotated[list[int], "labels that a group box covers"]
    near_duplicate: Annotated[bool, "a near copy of an earlier one"]
    strip: Annotated[bool, "long and flat: over 8 times as long as wide, on over 1 % of the image"]
    slots: Annotated[list[Curve | None] | None, "beliefs as it was written; `null` where they were not kept"]


class ClassCounts(_Open):
    """Counts of one class on one image."""

    gt: int
    pred: int
    matched: int


class CountsRow(_Open):
    """Counts and rates of one image; a rate with nothing to divide is `null`."""

    gt: Annotated[int, "labels that are not crowd regions"]
    pred: Annotated[int, "predictions"]
    matched: int
    ignored: Annotated[int, "predictions inside crowd regions"]
    precision: float | None
    recall: float | None
    f1: float | None
    f1_true: Annotated[float | None, "against the complete truth; `null` without one"]
    by_class: dict[str, ClassCounts]


class ProbePass(_Open):
    """Figures of one pass, one a slot (diagnosing.md defines them)."""

    argmax: Annotated[list[int | None], "most likely bin"]
    entropy: Annotated[list[float | None], "nats"]
    modes: Annotated[list[int | None], "local maxima of mass"]
    own_mass: Annotated[list[float | None], "0 to 1"]
    cross_instance_mass: Annotated[list[float | None], "0 to 1"]
    exp_argmax_gap: Annotated[list[float | None], "bins"]


class ProbeSlots(_Open):
    """Columns over the slots of the labels."""

    object: Annotated[list[int], "index into `objects` of the entry"]
    coordinate: Annotated[list[int], "0 to 3: x1, y1, x2, y2"]
    target: Annotated[list[int], "true bin"]
    a1: ProbePass
    last: ProbePass
    drift: Annotated[list[float | None], "bins between the `argmax` of the two passes"]


class ProbeObjects(_Open):
    """Columns over the labels; both flags are `false` for an object without a neighbour of its class."""

    object: Annotated[list[int], "index into `objects` of the entry"]
    flip: list[bool]
    chimera: list[bool]


class FollowRow(_Open):
    """Where the mass goes when a neighbour's x1, y1 stand in the input. None for objects without a neighbour of their
    class, nor where both boxes share the coordinate."""

    object: Annotated[int, "index into `objects` of the entry"]
    neighbour: Annotated[int, "the same, of the neighbour"]
    coordinate: Annotated[int, "2 or 3: x2 or y2"]
    near_neighbour: Annotated[float | None, "mass, 0 to 1"]
    near_own: Annotated[float | None, "mass, 0 to 1"]
    elsewhere: Annotated[float | None, "mass, 0 to 1"]


class Probes(_Open):
    """What the model believes at the labels' own slots: in the teacher-forced pass `a1`, and in the `last` pass, whose
    context is the model's own beliefs."""

    passes: int
    slots: ProbeSlots
    objects: ProbeObjects
    follow: list[FollowRow]


class Entry(_Open):
    """One sample of a dump: a line of `records.jsonl` or `elsewhere.jsonl`. Boxes are x1, y1, x2, y2 in pixels of the
    original image. Numbers are finite; what could not be computed is `null`, never NaN."""

    schema: Annotated[int, "1; raised when old readers would misread new files"]
    step: Annotated[int, "optimizer steps done"]
    id: Annotated[str, "of the sample"]
    image: Annotated[str, "path, absolute or relative to the run's folder"]
    width: int
    height: int
    objects: list[ObjectRow]
    hidden: Annotated[list[HiddenRow] | None, "`null` without a complete truth"]
    answer: AnswerRow
    predictions: list[PredictionRow]
    counts: CountsRow
    probes: Annotated[Probes | None, "`null` where none were run"]


class DumpProtocol(_Open):
    """`protocol.json`: what the entries of a dump depend on."""

    schema: Annotated[int, "as in an entry"]
    step: int
    run: Annotated[str, "name of the run's folder"]
    data: Annotated[str, "file of the panel's labels"]
    data_sha256: str
    complete: Annotated[str | None, "file of the complete truth"]
    complete_sha256: str | None
    prompt_hash: str
    max_pixels: int
    num_bins: int
    score_policy: Annotated[str, "the policy of `score`"]
    generate: Annotated[dict[str, Any], "as in the config"]
    seed: int
    probes: Annotated[dict[str, Any] | None, "settings of the probes; `null` where none were run"]


PassFigure = Literal["argmax", "entropy", "modes", "own_mass", "cross_instance_mass", "exp_argmax_gap"]
PASS_FIGURES: tuple[PassFigure, ...] = get_args(PassFigure)
"""Figures of a slot, once for each pass."""
PASSES: tuple[Literal["a1", "last"], ...] = ("a1", "last")
FOLLOW: tuple[Literal["near_neighbour", "near_own", "elsewhere"], ...] = ("near_neighbour", "near_own", "elsewhere")
COUNTS: tuple[Literal["gt", "pred", "matched", "ignored"], ...] = ("gt", "pred", "matched", "ignored")
RATES: tuple[Literal["precision", "recall", "f1", "f1_true"], ...] = ("precision", "recall", "f1", "f1_true")

_TYPES: tuple[Any, ...] = (
    *(DumpProtocol, Entry, ObjectRow, ObjectSlots, HiddenRow, AnswerRow, PredictionRow, CountsRow, ClassCounts),
    *(Probes, ProbeSlots, ProbePass, ProbeObjects, FollowRow, Curve),
)


def form_reference() -> str:
    """The form of a dump as Markdown: a table for each type of object in it."""
    return "\n".join(line for kind in _TYPES for line in _type_reference(kind))


def _type_reference(kind: Any) -> Iterator[str]:
    yield from (f"### {kind.__name__}", " ".join(kind.__doc__.split()), "", "| key | value | |", "|---|---|---|")
    for key, hint in get_type_hints(kind, include_extras=True).items():
        of, note = get_args(hint) if get_origin(hint) is Annotated else (hint, "")
        yield f"| `{key}` | {_shown(of)} | {note} |"
    yield ""


def _shown(hint: Any) -> str:
    """A type in JSON's words."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is list:
        return f"list of {_shown(inner[0])}" if not get_args(inner[0]) else f"list of ({_shown(inner[0])})"
    if origin is dict:
        return "object" if inner[1] is Any else f"object of {_shown(inner[1])}"
    if inner:
        return " or ".join(map(_shown, inner))
    if is_typeddict(hint):
        return f"[{hint.__name__}](#{hint.__name__.lower()})"
    words = {int: "integer", float: "number", str: "string", bool: "boolean", type(None): "`null`"}
    return words[hint]


def encode_curve(mass_K: ArrayLike) -> Curve | None:
    """Pack a distribution.

    Cells are as wide as they must be for `MAX_CELLS` to hold all that is not tail, and lie on a grid from bin 0.

    Args:
        mass_K: `[K]` masses, not negative.

    Returns:
        `None` where there is no distribution (not finite, negative, or all 0).
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
    packed = base64.b64encode(values.tobytes()).decode("ascii")
    return {"start": int(first * step), "step": step, "peak": float(f"{peak:.6g}"), "values": packed}


def curve_cells(curve: Mapping[str, Any]) -> tuple[int, int, float, bytes]:
    """First bin, bins a cell, greatest mass and the cells of a curve that was read.

    Raises:
        ValueError: It is not a curve.
    """
    try:
        start, step, peak = int(curve["start"]), int(curve["step"]), float(curve["peak"])
        cells = base64.b64decode(curve["values"], validate=True)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"not a curve: {error!r}") from error
    if not (start >= 0 and step >= 1 and len(cells) <= MAX_CELLS):
        raise ValueError(f"not a curve: start {start}, step {step}, {len(cells)} values (at most {MAX_CELLS})")
    if not (math.isfinite(peak) and peak >= 0):
        raise ValueError(f"the peak of a curve must be a finite mass, got {peak}")
    return start, step, peak, cells


def decode_curve(curve: Mapping[str, Any], num_bins: int) -> FloatArray:
    """The masses `[K]` of a packed distribution; each cell's mass is spread evenly over its bins.

    Raises:
        ValueError: It is not a curve over `num_bins` bins.
    """
    start, step, peak, cells = curve_cells(curve)
    # The last cell may reach beyond the last bin.
    if start + (len(cells) - 1) * step >= num_bins:
        raise ValueError(f"not a curve over {num_bins} bins: start {start}, step {step}, {len(cells)} values")
    mass_K = np.zeros(num_bins)
    for cell, root in enumerate(cells):
        left, right = start + cell * step, min(start + (cell + 1) * step, num_bins)
        mass_K[left:right] = (root / LEVELS) ** 2 * peak / (right - left)
    return mass_K


_ENTRY, _PROTOCOL = TypeAdapter(Entry), TypeAdapter(DumpProtocol)


class BrokenLineError(ValueError):
    """A line or file that is no entry or protocol: half-written, no JSON, a key missing or of the wrong kind."""


def parse_entry(text: str | bytes, where: str | Path) -> Entry:
    """Read a line of a dump. A NaN in it, which strict JSON has no word for, becomes `None`.

    Raises:
        BrokenLineError: It is not an entry.
        UserError: It is of another schema; the message names `where`, a `file:line`.
    """
    entry = cast(Entry, _parsed(_ENTRY, text, where))
    for row in (*entry["objects"], *entry["predictions"], *(entry["hidden"] or ())):
        if len(row["bbox"]) != 4:
            raise BrokenLineError(f"expected a bbox of 4 numbers, found {len(row['bbox'])}")
    count = len(entry["objects"])
    for row in entry["predictions"]:
        if any(not 0 <= i < count for i in (*row["covers"], *([] if row["target"] is None else [row["target"]]))):
            raise BrokenLineError(f"a prediction points to an object that is not among the {count} of the entry")
    if entry["probes"] is not None:
        _check_columns(entry["probes"], count)
    return entry


def _check_columns(probes: Probes, count: int) -> None:
    """Refuse probes whose columns differ in length, or that point to objects that are not there."""
    slots, objects = probes["slots"], probes["objects"]
    columns: list[tuple[Mapping[str, Any], tuple[str, ...]]] = [
        (slots, ("object", "coordinate", "target", "drift")),
        *((slots[name], PASS_FIGURES) for name in PASSES),
    ]
    lengths = {len(rows[key]) for rows, keys in columns for key in keys}
    if len(lengths) > 1 or len({len(objects[key]) for key in ("object", "flip", "chimera")}) > 1:
        raise BrokenLineError("the columns of its probes differ in length")
    if any(not 0 <= i < count for i in (*slots["object"], *objects["object"])):
        raise BrokenLineError(f"a probe points to an object that is not among the {count} of the entry")


def parse_protocol(text: str | bytes, where: str | Path) -> DumpProtocol:
    """Read a `protocol.json`; errors are those of `parse_entry`."""
    return cast(DumpProtocol, _parsed(_PROTOCOL, text, where))


def json_line(value: Mapping[str, Any]) -> str:
    """An object as a line of strict JSON: numbers that are not finite become `null`, numpy's become plain ones."""
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


def _parsed(adapter: TypeAdapter[Any], text: str | bytes, where: str | Path) -> Any:
    try:
        value = loads_finite(text)
    except (ValueError, RecursionError) as error:
        raise BrokenLineError(f"not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise BrokenLineError("expected a JSON object")
    _require_schema(value.get("schema"), where)
    try:
        adapter.validate_python(value)
    except ValidationError as error:
        first, more = error.errors()[0], error.error_count() - 1
        place = ".".join(map(str, first["loc"]))
        raise BrokenLineError(f"{place}: {first['msg']}{f', and {more} more' if more else ''}") from error
    return value  # as it was read: the validated copy has numbers of other kinds and keys in another order


def _require_schema(found: Any, where: str | Path) -> None:
    if found == SCHEMA:
        return
    if type(found) is int and found > SCHEMA:
        message, fix = f"found {found}: it was written by a newer apiece", "update apiece to read it"
    else:
        message = f"found {'none' if found is None else repr(found)}: it was written by an older apiece"
        fix = "read it with the apiece that wrote it (RUN/manifest.json says which), or train the run again"
    raise UserError(f"expected a dump of schema {SCHEMA}, {message}", where=where, fix=fix)
