"""What is diagnosed: the newest dump of a run, read as it is, or a checkpoint that is run over a split."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from apiece.boxes import FloatArray, area, paired_intersection
from apiece.config.resolve import load_config
from apiece.config.schema import Config, GenerateSection, ObjectOrder
from apiece.data.check import same_class_overlaps
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
from apiece.evaluate.rates import LEVEL, Bootstrap, match_split, strips
from apiece.files import file_hash
from apiece.match import pairs_in_groups
from apiece.outcomes import COVERED, NONE, Outcome, Outcomes, label_outcomes
from apiece.progress import track
from apiece.study.arms import dump_source
from apiece.types import IntArray, Sample

if TYPE_CHECKING:
    from apiece.monitor.probing import ProbeSettings


# Means and shares with their bootstrap intervals over images.
#
# A percentile interval of few images is too narrow, so below `FEWEST_IMAGES` images there is none: `lo` and `hi` are
# then `None`, and whoever decides by them cannot tell.
#
# Shapes: I images, N items, G groups, B draws.


FEWEST_IMAGES = 10
"""Images with at least one of the items, below which no interval is given."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One number and how sure it is.

    Attributes:
        value: `None` where there was nothing to divide.
        lo: Lower end of the 95 % interval.
        hi: Upper end.
        items: How many items it is made of.
        images: In how many images they are.
    """

    value: float | None
    lo: float | None
    hi: float | None
    items: int
    images: int

    def as_dict(self, digits: int = 5) -> dict[str, float | int | None]:
        """For JSON."""
        ends = (None if x is None else round(x, digits) for x in (self.value, self.lo, self.hi))
        return {**dict(zip(("value", "lo", "hi"), ends, strict=True)), "items": self.items, "images": self.images}

    def above(self, limit: float) -> bool:
        """The whole interval is above `limit`."""
        return self.lo is not None and self.lo > limit

    def below(self, limit: float) -> bool:
        """The whole interval is below `limit`."""
        return self.hi is not None and self.hi < limit

    def text(self, unit: str = "", digits: int = 2, percent: bool = False) -> str:
        """`0.31 [0.25, 0.38]` with a unit, for sentences."""
        if self.value is None:
            return "unknown"

        def show(x: float) -> str:
            return f"{x:.1%}" if percent else f"{x:.{digits}f}"

        interval = "" if self.lo is None or self.hi is None else f" [{show(self.lo)}, {show(self.hi)}]"
        return f"{show(self.value)}{unit}{interval}"


class Sampler:
    """Figures of one split, all with the same draws of its images."""

    def __init__(self, images: int, *, seed: int = 0) -> None:
        self.bootstrap = Bootstrap(images, seed=seed)
        self._weights = self.bootstrap.weights.astype(np.float64)

    def mean(self, image: IntArray, value: ArrayLike) -> Figure:
        """Mean of items; NaN ones are left out."""
        return self.ratio(image, value, np.ones(len(image)))

    def ratio(self, image: IntArray, part: ArrayLike, whole: ArrayLike) -> Figure:
        """Sum of `part` over sum of `whole`."""
        top, bottom, items, images = self._sums(image, part, whole)
        return self._figure(top, bottom, None, items, images)

    def difference(self, image: IntArray, value: ArrayLike, here: NDArray[np.bool_]) -> tuple[Figure, Figure, Figure]:
        """Mean of the items that are `here`, of the others, and the first minus the second."""
        values = np.asarray(value, dtype=np.float64)
        sides = [self._sums(image[rows], values[rows], np.ones(int(rows.sum()))) for rows in (here, ~here)]
        first, second = (self._figure(top, bottom, None, items, images) for top, bottom, items, images in sides)
        items, images = sides[0][2] + sides[1][2], min(sides[0][3], sides[1][3])
        apart = self._figure(sides[0][0], sides[0][1], (sides[1][0], sides[1][1]), items, images)
        return first, second, apart

    def means(self, image: IntArray, group: IntArray, value: ArrayLike, groups: int) -> list[Figure]:
        """The mean in each of G groups."""
        values = np.asarray(value, dtype=np.float64)
        order = np.argsort(group, kind="stable")
        bounds = np.searchsorted(group[order], np.arange(groups + 1))
        return [
            self.mean(image[order[bounds[g] : bounds[g + 1]]], values[order[bounds[g] : bounds[g + 1]]])
            for g in range(groups)
        ]

    def _sums(self, image: IntArray, part: ArrayLike, whole: ArrayLike) -> tuple[FloatArray, FloatArray, int, int]:
        """Sums of both for each image, `[I]`, and how many items and images are in them."""
        top, bottom = np.asarray(part, dtype=np.float64), np.asarray(whole, dtype=np.float64)
        known = np.isfinite(top) & np.isfinite(bottom)
        place, size = image[known], self.bootstrap.images
        sums = [np.bincount(place, weights=x[known], minlength=size).astype(np.float64) for x in (top, bottom)]
        return sums[0], sums[1], int(known.sum()), len(np.unique(place))

    def _figure(
        self,
        top: FloatArray,
        bottom: FloatArray,
        minus: tuple[FloatArray, FloatArray] | None,
        items: int,
        images: int,
    ) -> Figure:
        def share(a: FloatArray, b: FloatArray) -> FloatArray:
            return np.divide(a, b, out=np.full(np.shape(a), np.nan), where=b > 0)

        one = np.ones((1, len(top)))
        value = share(one @ top, one @ bottom)[0]
        if minus is not None:
            value -= share(one @ minus[0], one @ minus[1])[0]
        if not np.isfinite(value):
            return Figure(None, None, None, items, images)
        if images < FEWEST_IMAGES:
            return Figure(float(value), None, None, items, images)
        drawn = share(self._weights @ top, self._weights @ bottom)
        if minus is not None:
            drawn = drawn - share(self._weights @ minus[0], self._weights @ minus[1])
        drawn = drawn[np.isfinite(drawn)]
        lo, hi = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return Figure(float(value), float(lo), float(hi), items, images)


# Outcomes and probes of a split side by side, as columns: what a diagnosis reads.
#
# Shapes: I images, N predictions, M labels, O probed labels, S their slots (4 O), F rows of `follow`.


SLOT_FIGURES = ("entropy", "modes", "own_mass", "cross_instance_mass", "exp_argmax_gap")
PASSES = ("a1", "last")
FOLLOW = ("near_neighbour", "near_own", "elsewhere")


@dataclass(frozen=True, slots=True, eq=False)
class ProbeColumns:
    """Probes of a split; `label` is a row of the ground truth.

    Attributes:
        label: `[O]` the probed labels.
        slots: `a1/entropy`, ..., `last/exp_argmax_gap`, `drift` to `[O, 4]`.
        flip: `[O]`.
        chimera: `[O]`.
        follow_label: `[F]` whose x1, y1 were replaced.
        follow_coordinate: `[F]` 2 or 3.
        follow: `near_neighbour`, `near_own`, `elsewhere` to `[F]`.
    """

    label: IntArray
    slots: Mapping[str, FloatArray]
    flip: NDArray[np.bool_]
    chimera: NDArray[np.bool_]
    follow_label: IntArray
    follow_coordinate: IntArray
    follow: Mapping[str, FloatArray]

    @classmethod
    def of(cls, truth: GroundTruth, probes: Mapping[str, Mapping[str, Any] | None]) -> Self:
        """From `PROBES` of docs/records.md by sample id; a figure that is `null` there is NaN.

        Args:
            truth: Labels, in each image in the order of the data.
            probes: Images without any are left out.
        """
        first = np.searchsorted(truth.image, np.arange(len(truth.images)))
        images = [(int(first[i]), found) for i, image in enumerate(truth.images) if (found := probes.get(image.name))]
        label = [start + i for start, found in images for i in found["objects"]["object"]]
        place = {row: i for i, row in enumerate(label)}
        # Where each slot goes: a label that has no row among the objects has none here either.
        at = [
            (place.get(start + i, -1), c)
            for start, found in images
            for i, c in zip(found["slots"]["object"], found["slots"]["coordinate"], strict=True)
        ]
        row, coordinate = np.array(at, dtype=np.int64).reshape(-1, 2).T

        def slot_column(values: Iterable[Any]) -> FloatArray:
            column = np.full((len(label), 4), np.nan)
            column[row[row >= 0], coordinate[row >= 0]] = np.array(list(values), dtype=np.float64)[row >= 0]
            return column

        slots = {
            f"{which}/{figure}": slot_column(v for _, found in images for v in found["slots"][which][figure])
            for which in PASSES
            for figure in SLOT_FIGURES
        }
        follow = [(start, line) for start, found in images for line in found["follow"]]
        return cls(
            label=np.array(label, dtype=np.int64),
            slots={**slots, "drift": slot_column(v for _, found in images for v in found["slots"]["drift"])},
            flip=np.array([v for _, found in images for v in found["objects"]["flip"]], dtype=bool),
            chimera=np.array([v for _, found in images for v in found["objects"]["chimera"]], dtype=bool),
            follow_label=np.array([start + line["object"] for start, line in follow], dtype=np.int64),
            follow_coordinate=np.array([line["coordinate"] for _, line in follow], dtype=np.int64),
            follow={name: np.array([line[name] for _, line in follow], dtype=np.float64) for name in FOLLOW},
        )

    def objects(self, chosen: NDArray[np.bool_]) -> Self:
        """Those of some of the labels `[M]`."""
        rows, follow = chosen[self.label], chosen[self.follow_label]
        return replace(
            self,
            label=self.label[rows],
            slots={name: values[rows] for name, values in self.slots.items()},
            flip=self.flip[rows],
            chimera=self.chimera[rows],
            follow_label=self.follow_label[follow],
            follow_coordinate=self.follow_coordinate[follow],
            follow={name: values[follow] for name, values in self.follow.items()},
        )


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """All that a diagnosis is made from.

    Attributes:
        truth: Labels.
        detections: Predictions.
        complete: Everything that is on the images, where it is known.
        outcomes: Of both.
        probes: Of the labels; empty where none were run.
        long: `[N]` predictions to be explained: `group`, and strips that are no true positive.
        under_long: `[M]` labels that one of them covers by half or more.
        has_neighbour: `[M]` labels with another of their class in the image; crowd regions are none.
        labelled_groups: `[M]` labels that hold two or more of their own class, as in `apiece data check`; among what
            is there, where that is known.
    """

    truth: GroundTruth
    detections: Detections
    complete: GroundTruth | None
    outcomes: Outcomes
    probes: ProbeColumns
    long: NDArray[np.bool_]
    under_long: NDArray[np.bool_]
    has_neighbour: NDArray[np.bool_]
    labelled_groups: NDArray[np.bool_]

    @classmethod
    def of(
        cls,
        truth: GroundTruth,
        detections: Detections,
        probes: Mapping[str, Mapping[str, Any] | None],
        complete: GroundTruth | None = None,
    ) -> Self:
        """Name everything, and lay the probes beside it."""
        hidden = None
        if complete is not None:
            truth, complete = align_complete(complete, truth)
            hidden = hidden_instances(complete, truth)
        outcomes = label_outcomes(truth, detections, match_split(truth, detections), hidden)
        harmless = np.isin(outcomes.of_prediction, (Outcome.TP, Outcome.IGNORED, NONE))
        long = (outcomes.of_prediction == Outcome.GROUP) | (strips(truth, detections) & ~harmless)
        group = truth.image * len(truth.categories) + truth.category
        alike = np.bincount(group[~truth.iscrowd], minlength=int(group.max(initial=0)) + 1)
        return cls(
            truth=truth,
            detections=detections,
            complete=complete,
            outcomes=outcomes,
            probes=ProbeColumns.of(truth, probes),
            long=long,
            under_long=_covered(truth, detections, np.flatnonzero(long)),
            has_neighbour=(alike[group] >= 2) & ~truth.iscrowd,
            labelled_groups=labelled_groups(truth, hidden),
        )


def labelled_groups(truth: GroundTruth, hidden: GroundTruth | None = None) -> NDArray[np.bool_]:
    """Which labels `[M]` hold two or more boxes of their own class: among the labels, and what is hidden if known."""
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


Probes = Mapping[str, Mapping[str, Any] | None]
_SAMPLES_AT_ONCE = 16  # probed together: their beliefs are a few MB each


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """What a diagnosis is made from.

    Attributes:
        truth: Labels.
        detections: Predictions.
        complete: Everything that is on the images, where it is known.
        probes: `PROBES` of docs/records.md by sample id.
        policy: Name of the rule that the scores follow.
        sigma: Width of the training target, bins.
        training: JSONL that the model was trained on, as its run names it.
        about: Where all this is from, for the JSON.
        remarks: What the user should know of it.
    """

    truth: GroundTruth
    detections: Detections
    complete: GroundTruth | None
    probes: Probes
    policy: str
    sigma: float
    training: Path | None
    about: Mapping[str, Any]
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Request:
    """What the user asked for.

    Attributes:
        target: Folder of a run or of a checkpoint, a Hugging Face id, or `tiny`.
        data: JSONL of the split; the run's own if `None`.
        complete: Complete truth of the same images.
        samples: At most this many images of the split, a fixed choice.
        order: In which labels are written; as the model was trained if `None`.
        batch_size: Images at once; the run's if `None`.
        max_objects: Of an answer; the run's if `None`.
        device: `auto`, `cpu` or `cuda`.
    """

    target: str
    data: Path | None = None
    complete: Path | None = None
    samples: int | None = None
    order: str | None = None
    batch_size: int | None = None
    max_objects: int | None = None
    device: str = "auto"


def reads_dump(request: Request) -> bool:
    """Whether a request is answered from a dump: a run that has one, and nothing asked that needs the model."""
    nothing_else = all(x is None for x in (request.data, request.complete, request.samples, request.order))
    return nothing_else and bool(dumped_steps(Path(request.target)))


def from_dump(path: Path) -> Source:
    """The newest dump of a run.

    Raises:
        UserError: It cannot be read.
    """
    run = open_run(path)
    dump = run.dump()
    read = dump_source(run, dump, path)
    config = config_of(path)
    probes = {record["id"]: record["probes"] for record in dump.entries}
    remarks = list(dump.gaps)
    if not any(found is not None for found in probes.values()):
        remarks.append("the dump holds no probes: add --data to run the model")
    return Source(
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
) -> Source:
    """Answer and probe a split; the answers are written to `out/predictions.jsonl`.

    Args:
        request: What is asked for.
        out: Folder; made if missing.
        warn: Told what may be wrong.
        tell: Told where files go, before anything is generated.

    Raises:
        UserError: There is no split, or something in it or in the checkpoint cannot be read.
    """
    from apiece.evaluate.predict import load_predictor, predictions_file, read_split

    config = config_of(Path(request.target))
    data, complete_path = _split(request, config)
    samples = _chosen(read_split(data), request.samples)
    truth = samples_to_ground_truth(samples)
    complete = None
    if complete_path is not None:
        truth, complete = load_complete(complete_path, truth)
    predictor, warning = load_predictor(request.target, _generation(request, config), device=request.device)
    if warning:
        warn(warning)
    settings, remarks = _probe_settings(request, config, predictor.encoder.side.card)
    tell(f"{len(samples):,} images to answer and probe; answers and diagnosis go to {out}/")
    answers = []
    with predictions_file(out) as write:
        for answer in track(predictor.answers(samples), "answers", total=len(samples)):
            write(answer)
            answers.append(answer)
    truth, detections = predictions_to_detections(truth, {a.sample.id: a.detections for a in answers})
    probes = dict(_probed(predictor, settings, samples))
    unfit = sum(found is None for found in probes.values())
    if unfit:
        remarks.append(f"{unfit} images have more labels than fit into the model's context: no probes of them")
    return Source(
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
            "protocol": {
                **predictor.protocol,
                "data": str(data),
                "data_sha256": file_hash(data),
                "complete": None if complete_path is None else str(complete_path),
                "samples": len(samples),
                "probes": settings.protocol(),
            },
        },
        remarks=tuple(remarks),
    )


def _probed(predictor: Any, settings: ProbeSettings, samples: Sequence[Sample]) -> Iterator[tuple[str, Any]]:
    """Sample id and record of its probes; beliefs are dropped as soon as the figures are made."""
    from apiece.monitor.probing import Prober

    prober = Prober(predictor.engine.model, predictor.encoder, settings)
    found = track(prober.iter_labels(samples), "probes", total=len(samples))
    for sample, probes in zip(samples, found, strict=True):
        yield sample.id, None if probes is None else probes.as_json()


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


def _chosen(samples: list[Sample], count: int | None) -> list[Sample]:
    """At most `count` samples, always the same ones, in the order of the file."""
    if count is None or len(samples) <= count:
        return samples
    rows = np.random.default_rng(0).choice(len(samples), count, replace=False)
    return [samples[i] for i in sorted(rows)]


def _generation(request: Request, config: Config | None) -> GenerateSection:
    settings = config.generate if config is not None else GenerateSection()
    asked = {"batch_size": request.batch_size, "max_objects": request.max_objects}
    return settings.model_copy(update={name: value for name, value in asked.items() if value is not None})


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
