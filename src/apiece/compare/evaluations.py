"""A folder that `apiece evaluate` wrote as something that can be compared."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from apiece.compare.dumps import arm_settings, dropped_ratio, generation
from apiece.compare.source import Source
from apiece.errors import UserError
from apiece.evaluate.answer_file import PREDICTIONS_FILE
from apiece.evaluate.complete import load_complete
from apiece.evaluate.detections import load_coco_ground_truth, load_coco_results, samples_to_ground_truth
from apiece.evaluate.forms import GroundTruth
from apiece.evaluate.metrics import METRICS_FILE
from apiece.files import file_hash
from apiece.records.folder import open_run
from apiece.types import Sample

COCO_FILE, RESULTS_FILE = "coco.json", "results.json"
FILES = (METRICS_FILE, COCO_FILE, RESULTS_FILE, PREDICTIONS_FILE)
_KEYS = {"image", "width", "height", "objects", "dropped"}
_FIX = "make one with: apiece evaluate CHECKPOINT --data X.jsonl --out DIR"


def evaluation_source(folder: Path) -> Source:
    """The labels, predictions and settings of an evaluation.

    Raises:
        UserError: A file of it is missing, or something in it cannot be scored.
    """
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"expected the folder of an evaluation ({', '.join(FILES)}), found no {', no '.join(missing)}",
            where=folder,
            fix=_FIX,
            exit_code=2,
        )
    metrics = _json((folder / METRICS_FILE).read_text(encoding="utf-8"), folder / METRICS_FILE)
    protocol = metrics.get("protocol")
    if not isinstance(protocol, dict):
        raise UserError(
            "expected `protocol`, found none: what the figures depend on is not known",
            where=folder / METRICS_FILE,
            fix=_FIX,
            exit_code=2,
        )
    answers = _answers(folder / PREDICTIONS_FILE)
    truth = _named(load_coco_ground_truth(folder / COCO_FILE), answers, folder)
    detections = load_coco_results(folder / RESULTS_FILE, truth)
    truth, complete, remarks = _complete(protocol, truth, folder.name)
    config = _config(protocol)
    rows = [answers[image.name] for image in truth.images]
    return Source(
        name=folder.resolve().name,
        path=folder,
        kind="evaluation",
        truth=truth,
        detections=detections,
        protocol={
            "data": protocol.get("data_sha256") or protocol.get("data"),
            "complete": protocol.get("complete_sha256"),
            "prompt_hash": protocol.get("prompt_hash"),
            "max_pixels": protocol.get("max_pixels"),
            "score_policy": metrics.get("score_policy"),
            "min_score": metrics.get("f1/min_score", 0.0),
            **generation(protocol.get("generate") or {}),
        },
        complete=complete,
        min_score=float(metrics.get("f1/min_score", 0.0)),
        dropped=dropped_ratio([(len(row["objects"]), row["dropped"]) for row in rows]),
        step=protocol.get("step"),
        seed=config.get("seed"),
        config=arm_settings(config),
        remarks=remarks,
    )


def _answers(path: Path) -> dict[str, dict[str, Any]]:
    """Lines of `predictions.jsonl` by sample id.

    Raises:
        UserError: A line is not an answer.
    """
    answers = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if not line.strip():
            continue
        row = _json(line, f"{path}:{number}")
        if not isinstance(row.get("id"), str) or not row.keys() >= _KEYS:
            raise UserError(f"expected an answer with id, {', '.join(sorted(_KEYS))}", where=f"{path}:{number}")
        answers[row["id"]] = row
    return answers


def _named(truth: GroundTruth, answers: Mapping[str, Mapping[str, Any]], folder: Path) -> GroundTruth:
    """The labels with sample ids in place of file names.

    Raises:
        UserError: The two files are not of one evaluation.
    """
    samples = [Sample(name, Path(row["image"]), (row["width"], row["height"])) for name, row in answers.items()]
    images = samples_to_ground_truth(samples).images
    if [image.id for image in images] != [image.id for image in truth.images]:
        raise UserError(
            f"{COCO_FILE} has {len(truth.images)} images, {PREDICTIONS_FILE} {len(images)}, and they are not the same",
            where=folder,
            fix=_FIX,
        )
    return replace(truth, images=images)


def _complete(
    protocol: Mapping[str, Any], truth: GroundTruth, name: str
) -> tuple[GroundTruth, GroundTruth | None, tuple[str, ...]]:
    """Labels, complete truth if the file that the evaluation names is still there and the same, and a remark if not."""
    named = protocol.get("complete")
    if not isinstance(named, str):
        return truth, None, ()
    path = Path(named)
    if not path.is_file():
        return truth, None, (f"{name}: F1 on complete truth is left out: {path} is not there",)
    if file_hash(path) != protocol.get("complete_sha256"):
        return truth, None, (f"{name}: F1 on complete truth is left out: {path} has changed since",)
    return (*load_complete(path, truth), ())


def _config(protocol: Mapping[str, Any]) -> Mapping[str, Any]:
    """Settings of the run whose checkpoint was evaluated, if it is still there: they tell which runs are seeds."""
    path = protocol.get("checkpoint_path")
    folders = Path(path).parents[:2] if isinstance(path, str) else ()
    run = next((folder for folder in folders if (folder / "config.yaml").is_file()), None)
    return {} if run is None else open_run(run).config


def _json(text: str, where: str | Path) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise UserError(f"expected JSON, found text that is not: {error}", where=where) from error
    if not isinstance(value, dict):
        raise UserError("expected a JSON object", where=where)
    return value
