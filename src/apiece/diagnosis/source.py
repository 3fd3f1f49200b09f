"""What is diagnosed: the newest dump of a run, read as it is, or a checkpoint that is run over a split."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from apiece.compare.dumps import dump_source
from apiece.config.load import load_config
from apiece.config.schema import Config, GenerateSection, ObjectOrder
from apiece.errors import UserError, nearest
from apiece.evaluate.complete import load_complete
from apiece.evaluate.detections import predictions_to_detections, samples_to_ground_truth
from apiece.evaluate.forms import Detections, GroundTruth
from apiece.files import file_hash
from apiece.progress import track
from apiece.records.folder import dumped_steps, open_run
from apiece.types import Sample

if TYPE_CHECKING:
    from apiece.monitor.probing import ProbeSettings

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
    probes = {record["id"]: record["probes"] for record in dump.records}
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
        yield sample.id, None if probes is None else probes.record()


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
