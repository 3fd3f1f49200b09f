"""The input of a diagnosis: a split with every box named, its probes, and figures of them with intervals.

Read from the newest dump of a run, or made by running a checkpoint over a split.

Shapes: I images, N predictions, M labels, O probed labels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from apiece.boxes import FloatArray, area, paired_intersection
from apiece.config.resolve import load_config
from apiece.config.schema import Config, GenerateSection, ObjectOrder
from apiece.data.check import same_class_overlaps
from apiece.dumps.beliefs import Column, belief_columns
from apiece.dumps.folder import dumped_steps, open_run
from apiece.errors import UserError, nearest
from apiece.evaluate.detections import (
    align_complete,
    hidden_instances,
    load_complete,
    predictions_to_detections,
    samples_to_ground_truth,
)
from apiece.evaluate.forms import Detections, GroundTruth
from apiece.evaluate.rates import counted_images, judge, strips
from apiece.files import file_hash
from apiece.match import pairs_in_groups
from apiece.outcomes import COVERED, NONE, Outcome, Outcomes
from apiece.progress import track
from apiece.stats.draws import ImageDraws
from apiece.stats.interval import Estimate
from apiece.stats.ratio import Ratio, mean_ratio, per_image
from apiece.study.arms import dump_source
from apiece.types import IntArray

if TYPE_CHECKING:
    from apiece.monitor.probing import ProbeSettings

ENOUGH_IMAGES = 10  # images with at least one of the items, below which a number decides nothing
_SAMPLES_AT_ONCE = 16  # probed together: their beliefs are a few MB each
Probes = Mapping[str, Mapping[str, Any] | None]


@dataclass(frozen=True, slots=True)
class Figure:
    """A number with its 95 % interval (`None` without one), and how many items in how many images it is made of."""

    value: float | None
    lo: float | None
    hi: float | None
    items: int
    images: int

    @classmethod
    def of(cls, found: Estimate, items: int) -> Self:
        return cls(found.value, found.lo, found.hi, items, found.units)

    def as_dict(self, digits: int = 5) -> dict[str, float | int | None]:
        ends = (None if x is None else round(x, digits) for x in (self.value, self.lo, self.hi))
        return {**dict(zip(("value", "lo", "hi"), ends, strict=True)), "items": self.items, "images": self.images}

    @property
    def interval(self) -> tuple[float, float] | None:
        """Both ends, where there are enough images to decide by them."""
        if self.lo is None or self.hi is None or self.images < ENOUGH_IMAGES:
            return None
        return self.lo, self.hi

    def above(self, limit: float) -> bool:
        """Whether the interval lies above `limit`, on enough images."""
        return self.interval is not None and self.interval[0] > limit

    def below(self, limit: float) -> bool:
        """Whether the interval lies below `limit`, on enough images."""
        return self.interval is not None and self.interval[1] < limit

    def text(self, unit: str = "", digits: int = 2, percent: bool = False) -> str:
        """`0.31 [0.25, 0.38]` with a unit, for sentences."""
        if self.value is None:
            return "unknown"

        def show(x: float) -> str:
            return f"{x:.1%}" if percent else f"{x:.{digits}f}"

        interval = "" if self.lo is None or self.hi is None else f" [{show(self.lo)}, {show(self.hi)}]"
        return f"{show(self.value)}{unit}{interval}"


def means(draws: ImageDraws, columns: Mapping[str, tuple[IntArray, ArrayLike]]) -> dict[str, Figure]:
    """The mean of each column: the image and the value of its items; NaN ones are left out."""
    values = {key: (image, np.asarray(value, dtype=np.float64)) for key, (image, value) in columns.items()}
    found = draws.estimates({key: mean_ratio(*column, draws.images) for key, column in values.items()})
    return {key: Figure.of(found[key], int(np.isfinite(value).sum())) for key, (_, value) in values.items()}


def mean(draws: ImageDraws, image: IntArray, value: ArrayLike) -> Figure:
    """Mean of items; NaN ones are left out."""
    return means(draws, {"": (image, value)})[""]


def quotient(draws: ImageDraws, image: IntArray, part: FloatArray, whole: FloatArray) -> Figure:
    """Sum of `part` over sum of `whole`; items of which one is NaN are left out."""
    known = np.isfinite(part) & np.isfinite(whole)
    ratio = Ratio(*(per_image(x[known], image[known], draws.images) for x in (part, whole)))
    return Figure.of(draws.estimates({"": ratio})[""], int(known.sum()))


def contrast(
    draws: ImageDraws, image: IntArray, value: ArrayLike, here: NDArray[np.bool_]
) -> tuple[Figure, Figure, Figure]:
    """Mean of the items that are `here`, of the others, and the first minus the second."""
    values = np.asarray(value, dtype=np.float64)
    sides = means(draws, {name: (image[rows], values[rows]) for name, rows in (("here", here), ("off", ~here))})
    ratios = [mean_ratio(image[rows], values[rows], draws.images) for rows in (~here, here)]
    items = sides["here"].items + sides["off"].items
    return sides["here"], sides["off"], Figure.of(draws.difference(*ratios), items)


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """The split behind a diagnosis, its outcomes and its beliefs."""

    truth: GroundTruth
    detections: Detections
    complete: GroundTruth | None  # all objects of the images, where they are known
    outcomes: Outcomes
    beliefs: Mapping[str, Column]  # probe figures by name; empty where none were run
    first: IntArray  # `[I]` first label of each image
    draws: ImageDraws
    long: NDArray[np.bool_]  # `[N]` predictions to be explained: `group`, and strips that are no true positive
    under_long: NDArray[np.bool_]  # `[M]` labels that one of them covers by half or more
    has_neighbour: NDArray[np.bool_]  # `[M]` labels with another of their class in the image; crowd regions are none
    # `[M]` labels that hold two or more of their own class, as in `apiece data check`; among all objects, where
    # they are known
    labelled_groups: NDArray[np.bool_]

    @classmethod
    def of(
        cls,
        truth: GroundTruth,
        detections: Detections,
        probes: Probes,
        complete: GroundTruth | None = None,
        seed: int = 0,
    ) -> Self:
        """Name every box and match the probes (`PROBES` of docs/reference/records.md by sample id) to the labels."""
        hidden = None
        if complete is not None:
            truth, complete = align_complete(complete, truth)
            hidden = hidden_instances(complete, truth)
        outcomes = judge(truth, detections, complete).outcomes
        harmless = np.isin(outcomes.of_prediction, (Outcome.TP, Outcome.IGNORED, NONE))
        long = (outcomes.of_prediction == Outcome.GROUP) | (strips(truth, detections) & ~harmless)
        group = truth.image * len(truth.categories) + truth.category
        alike = np.bincount(group[~truth.iscrowd], minlength=int(group.max(initial=0)) + 1)
        return cls(
            truth=truth,
            detections=detections,
            complete=complete,
            outcomes=outcomes,
            beliefs=belief_columns([probes.get(image.name) for image in truth.images]),
            first=np.searchsorted(truth.image, np.arange(len(truth.images))),
            draws=ImageDraws(counted_images(truth, detections, complete), seed=seed),
            long=long,
            under_long=_covered(truth, detections, np.flatnonzero(long)),
            has_neighbour=(alike[group] >= 2) & ~truth.iscrowd,
            labelled_groups=labelled_groups(truth, hidden),
        )

    def label_of(self, column: Column) -> IntArray:
        """The label of each value of a column, `[N]`."""
        return self.first[column.image] + column.object

    def belief(self, name: str, chosen: NDArray[np.bool_]) -> tuple[IntArray, FloatArray]:
        """Labels and values of a figure at the labels chosen `[M]`; nothing where no probes were run."""
        if name not in self.beliefs:
            return np.zeros(0, dtype=np.int64), np.zeros(0)
        label = self.label_of(self.beliefs[name])
        rows = chosen[label]
        return label[rows], self.beliefs[name].value[rows]

    def at_x2_y2(self, name: str, chosen: NDArray[np.bool_]) -> tuple[IntArray, FloatArray]:
        """Probed labels `[O]` among those chosen `[M]`, and their values `[O, 2]` at x2 and y2; NaN where unknown."""
        labels = np.unique(self.belief("flip", chosen)[0])
        values = np.full((len(labels), 2), np.nan)
        if name in self.beliefs:
            column = self.beliefs[name]
            label = self.label_of(column)
            rows = np.flatnonzero((column.coordinate >= 2) & np.isin(label, labels))
            values[np.searchsorted(labels, label[rows]), column.coordinate[rows] - 2] = column.value[rows]
        return labels, values


def labelled_groups(truth: GroundTruth, hidden: GroundTruth | None = None) -> NDArray[np.bool_]:
    """Which labels `[M]` hold two or more boxes of their own class, of the labels and of hidden objects if known."""
    parts = [truth] if hidden is None else [truth, hidden]
    boxes = np.concatenate([part.bbox_xyxy for part in parts])
    classes = len(truth.categories)
    group = np.concatenate([part.image * classes + part.category for part in parts])
    crowd = np.concatenate([part.iscrowd for part in parts])
    group[crowd] = -1 - np.flatnonzero(crowd)  # a crowd region holds many by its nature
    return same_class_overlaps(boxes, group).contained[: len(truth)] >= 2


def _covered(truth: GroundTruth, detections: Detections, rows: IntArray) -> NDArray[np.bool_]:
    """Which labels lie by half or more in one of the detections of `rows` of their class."""
    classes = len(truth.categories)
    objects = np.flatnonzero(~truth.iscrowd)
    found = np.zeros(len(truth), dtype=bool)
    boxes, truth_boxes, size = detections.bbox_xyxy, truth.bbox_xyxy, area(truth.bbox_xyxy)
    of_row = detections.image[rows] * classes + detections.category[rows]
    for p, t in pairs_in_groups(of_row, truth.image[objects] * classes + truth.category[objects]):
        label = objects[t]
        shared = paired_intersection(boxes[rows[p]], truth_boxes[label])
        found[label[(shared >= COVERED * size[label]) & (size[label] > 0)]] = True
    return found


@dataclass(frozen=True, slots=True, eq=False)
class Material:
    """A split, its predictions and the beliefs at its labels, before anything is named."""

    truth: GroundTruth
    detections: Detections
    complete: GroundTruth | None  # all objects of the images, where they are known
    probes: Probes  # `PROBES` of docs/reference/records.md by sample id
    policy: str  # name of the rule that the scores follow
    sigma: float  # width of the training target, bins
    training: Path | None  # JSONL that the model was trained on, as its run names it
    about: Mapping[str, Any]  # the source, for the JSON
    remarks: tuple[str, ...] = ()  # warnings for the user


@dataclass(frozen=True, slots=True)
class Request:
    """The options of `apiece diagnose`; with `None`, those of the run apply."""

    target: str  # folder of a run or of a checkpoint, a Hugging Face id, or `tiny`
    data: Path | None = None
    complete: Path | None = None
    samples: int | None = None  # at most this many images of the split, a fixed choice
    order: str | None = None  # in which labels are written when they are probed
    batch_size: int | None = None  # images at once
    max_objects: int | None = None  # of an answer
    device: str = "auto"


def reads_dump(request: Request) -> bool:
    """Whether a dump answers a request: the run has one, and nothing asked needs the model."""
    nothing_else = all(x is None for x in (request.data, request.complete, request.samples, request.order))
    return nothing_else and bool(dumped_steps(Path(request.target)))


def from_dump(path: Path) -> Material:
    """The newest dump of a run; a `UserError` if it cannot be read."""
    run = open_run(path)
    dump = run.dump()
    read = dump_source(run, dump, path)
    config = config_of(path)
    probes = {record["id"]: record["probes"] for record in dump.entries}
    remarks = list(dump.gaps)
    if not any(found is not None for found in probes.values()):
        remarks.append("the dump holds no probes: add --data to run the model")
    return Material(
        truth=read.truth,
        detections=read.detections,
        complete=read.complete,
        probes=probes,
        policy=dump.protocol["score_policy"],
        sigma=_sigma(dump.protocol["probes"], config),
        training=_training(config),
        about={"from": "dump", "path": str(dump.folder), "step": dump.step, "protocol": dict(dump.protocol)},
        remarks=tuple(remarks),
    )


def config_of(path: Path) -> Config | None:
    """The config of the run that a folder is, or lies in as its checkpoint; `None` without one."""
    for folder in (path, *path.resolve().parents[:3]):
        if (folder / "config.yaml").is_file() and (folder == path or folder.joinpath("checkpoints").is_dir()):
            return load_config(folder / "config.yaml").config
    return None


def from_model(
    request: Request, out: Path, warn: Callable[[str], None], tell: Callable[[str], None] = lambda _: None
) -> Material:
    """Answer and probe a split; the answers are written to `out/predictions.jsonl`.

    `warn` receives warnings, `tell` a line that names the output folder, before anything is generated.
    """
    from apiece.evaluate.predict import answer_split, load_predictor, read_split
    from apiece.monitor.probing import Prober

    config = config_of(Path(request.target))
    data, complete_path = _split(request, config)
    samples = read_split(data)
    if request.samples is not None and request.samples < len(samples):  # always the same ones, in the file's order
        rows = np.random.default_rng(0).choice(len(samples), request.samples, replace=False)
        samples = [samples[i] for i in sorted(rows)]
    truth = samples_to_ground_truth(samples)
    complete = None
    if complete_path is not None:
        truth, complete = load_complete(complete_path, truth)
    asked = {"batch_size": request.batch_size, "max_objects": request.max_objects}
    generate = GenerateSection() if config is None else config.generate
    generate = generate.model_copy(update={name: value for name, value in asked.items() if value is not None})
    predictor = load_predictor(request.target, generate, device=request.device, warn=warn)
    settings, remarks = _probe_settings(request, config, predictor.encoder.side.card)
    tell(f"{len(samples):,} images to answer and probe; answers and diagnosis go to {out}/")
    protocol = {
        **predictor.protocol,
        "data": str(data),
        "data_sha256": file_hash(data),
        "complete": None if complete_path is None else str(complete_path),
        "samples": len(samples),
        "probes": settings.protocol(),
    }
    # A finished diagnosis is replaced; the answers of an interrupted one are kept.
    resume = False if (out / "diagnosis.json").exists() else None
    answers = answer_split(predictor, samples, out, protocol=protocol, resume=resume)
    truth, detections = predictions_to_detections(truth, {a.sample.id: a.detections for a in answers})
    prober = Prober(predictor.engine.model, predictor.encoder, settings)  # type: ignore[attr-defined]
    probed = track(prober.iter_labels(samples), "probes", total=len(samples))
    probes = {s.id: None if found is None else found.as_json() for s, found in zip(samples, probed, strict=True)}
    if unfit := sum(found is None for found in probes.values()):
        remarks.append(f"{unfit} images have more labels than fit into the model's context: no probes of them")
    return Material(
        truth=truth,
        detections=detections,
        complete=complete,
        probes=probes,
        policy=answers[0].policy,
        sigma=settings.sigma,
        training=_training(config),
        about={
            "from": "model",
            "path": str(predictor.encoder.side.path),
            "step": predictor.protocol["step"],
            "protocol": protocol,
        },
        remarks=tuple(remarks),
    )


def _split(request: Request, config: Config | None) -> tuple[Path, Path | None]:
    """The JSONL and its complete truth: as asked for, else the run's own."""
    if request.data is not None:
        return request.data, request.complete
    if config is None or config.data.eval is None:
        raise UserError(
            "no split to diagnose on: " + ("its run has no data.eval" if config else "this is not the folder of a run"),
            where=request.target,
            fix="name one with --data X.jsonl",
            exit_code=2,
        )
    own = config.data.complete
    return Path(config.data.eval), request.complete or (Path(own) if own else None)


def _probe_settings(
    request: Request, config: Config | None, card: Mapping[str, Any]
) -> tuple[ProbeSettings, list[str]]:
    """Those of the run; without one, the order that the checkpoint's card names."""
    from apiece.monitor.probing import ProbeSettings

    settings = ProbeSettings() if config is None else ProbeSettings.of(config)
    remarks = []
    order = request.order or (None if config is not None else card.get("object_order"))
    if order is not None:
        if order not in list(ObjectOrder):
            raise UserError(
                f"unknown order '{order}'{nearest(order, list(ObjectOrder))}; known: {', '.join(ObjectOrder)}",
                exit_code=2,
            )
        settings = replace(settings, order=ObjectOrder(order))
    elif config is None:
        remarks.append(
            f"the checkpoint does not say in which order it writes objects; labels are probed {settings.order}"
            " (--object-order takes another)"
        )
    return replace(settings, batch_size=min(request.batch_size or _SAMPLES_AT_ONCE, _SAMPLES_AT_ONCE)), remarks


def _sigma(protocol: Mapping[str, Any] | None, config: Config | None) -> float:
    if protocol is not None and isinstance(protocol.get("sigma"), int | float):
        return float(protocol["sigma"])
    return 2.0 if config is None else config.objective.coord_reg.config.target_sigma


def _training(config: Config | None) -> Path | None:
    return None if config is None or config.data.train is None else Path(config.data.train)
