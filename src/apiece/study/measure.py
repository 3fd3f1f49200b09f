"""One job in this process: train or resume, evaluate, probe, and write its result file."""

from __future__ import annotations

import json
import os
import platform
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

import numpy as np
import torch

from apiece.config.schema import Config
from apiece.dumps.beliefs import probe_ratios
from apiece.errors import UserError
from apiece.evaluate.detections import align_complete, load_complete, predictions_to_detections, samples_to_ground_truth
from apiece.evaluate.metrics import evaluate_detections
from apiece.evaluate.predict import Predictor, answer_split, evaluate_split, load_predictor, read_split
from apiece.files import write_json
from apiece.monitor.probing import Prober, ProbeSettings
from apiece.study.arms import dropped_ratio, evaluation_protocol
from apiece.study.diagnosis import diagnose
from apiece.study.jobs import Job
from apiece.study.results import TRUE, Counts, Result, count_split, write_result
from apiece.train.loop import train
from apiece.train.run import git_state

VARIANCES = "window_var/"
SPEED = "speed/samples_per_s"
_PROBED_AT_ONCE = 16


def do_job(job: Job) -> bool:
    """Do what is left of a job; false if it was interrupted: it resumes from there the next time."""
    job.run.parent.mkdir(parents=True, exist_ok=True)
    if not job.begun.is_file():
        if job.run.exists():
            raise UserError("a run of this name exists that no ladder began", where=job.run, fix="move it away")
        write_json(job.begun, {"made_from": job.made_from})
    if job.step < job.config.train.steps:
        resumed = job.run if job.run.exists() else None
        if not train(job.config, job.name, resume=resumed).finished:
            return False
    write_result(job.result, measure(job))
    return True


def measure(job: Job) -> Result:
    """Evaluate and probe a finished run."""
    started = time.perf_counter()
    predictor = load_predictor(str(job.run), job.config.generate, device=job.config.train.device)
    test, metrics, protocol = _evaluated(job, predictor)
    evaluated = time.perf_counter()
    panel, diagnosis = _probed(job, predictor)
    probed = time.perf_counter()
    rows = [json.loads(line) for line in (job.run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return Result(
        ladder=job.ladder,
        arms=job.arms,
        references=job.references,
        arm=job.arm,
        seed=job.seed,
        made_from=job.made_from,
        protocol={**protocol, "probes": job.made_from["probes"], "panel": job.made_from["data"]["panel"]},
        match=str(job.match),
        steps=job.config.train.steps,
        batch_size=job.config.train.batch_size,
        flops={"step": job.cost.step, "run": job.cost.run, "of_reference": job.cost.of_reference},
        telemetry=variances(rows, job.config),
        telemetry_window=job.config.train.telemetry_window,
        speed=_speed(rows),
        metrics=metrics,
        seconds={"evaluate": evaluated - started, "probe": probed - evaluated},
        machine={
            "platform": platform.platform(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "git": git_state(),
            "load": round(os.getloadavg()[0], 1),
        },
        test=test,
        panel=panel,
        diagnosis=diagnosis,
    )


def _evaluated(job: Job, predictor: Predictor) -> tuple[Counts, dict[str, float], dict[str, Any]]:
    """The test set by image, its figures (with those on complete truth under `true/`), what they depend on.

    The run's `test` folder then holds everything that `apiece evaluate` writes.
    """
    out, data, whole = job.run / "test", job.files.test, job.files.test_complete
    samples = read_split(data)
    labels = samples_to_ground_truth(samples)
    complete = None if whole is None else load_complete(whole, labels)[1]
    metrics, answers = evaluate_split(predictor, samples, out, data, whole, complete, pictures=0, resume=None)
    truth, detections = predictions_to_detections(labels, {a.sample.id: a.detections for a in answers})
    figures = _figures(metrics)
    if complete is not None:
        truth, complete = align_complete(complete, truth)  # with the classes that only answers name
        of_all = evaluate_detections(complete, detections, policy=metrics["score_policy"])
        figures |= {f"{TRUE}{key}": value for key, value in _figures(of_all).items()}
    by_id = {answer.sample.id: answer for answer in answers}
    in_order = [by_id[image.name] for image in truth.images]
    dropped = dropped_ratio([(len(a.detections), a.parsed.dropped.values()) for a in in_order])
    counts = count_split(truth, detections, complete, dropped=dropped, on_truth=True)
    return counts, figures, evaluation_protocol(metrics)


def _figures(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {key: value for key, value in metrics.items() if isinstance(value, int | float) and key != "schema"}


def _probed(job: Job, predictor: Predictor) -> tuple[Counts, dict[str, Any]]:
    """Beliefs at the labels of the panel, and what they say of long boxes there.

    The run has dumped beliefs under its own settings; the reference's make those of all arms comparable.
    """
    settings = replace(ProbeSettings.of(job.reference), seed=0, batch_size=_PROBED_AT_ONCE)
    samples = read_split(job.files.panel)
    prober = Prober(predictor.engine.model, predictor.encoder, settings)  # type: ignore[attr-defined]
    probes: dict[str, Any] = {
        sample.id: None if found is None else found.as_json()
        for sample, found in zip(samples, prober.iter_labels(samples), strict=True)
    }
    truth, complete = samples_to_ground_truth(samples), None
    if job.files.panel_complete is not None:
        truth, complete = load_complete(job.files.panel_complete, truth)
    answers = answer_split(predictor, samples, title="panel")
    truth, detections = predictions_to_detections(truth, {a.sample.id: a.detections for a in answers})
    if complete is not None:
        truth, complete = align_complete(complete, truth)
    found = diagnose(
        truth,
        detections,
        probes,
        policy=answers[0].policy,
        complete=complete,
        sigma=settings.sigma,
        training=job.files.train,
    )
    everything = truth if complete is None else complete
    objects: list[list[Any]] = [[{"desc": o.desc, "iscrowd": o.iscrowd} for o in sample.objects] for sample in samples]
    ratios = probe_ratios([(own, probes[sample.id]) for own, sample in zip(objects, samples, strict=True)])
    counts = Counts(everything.objects_per_image.astype(np.int64), ratios)
    return counts, {key: found[key] for key in ("verdict", "long_boxes", "explanations")}


def variances(rows: Sequence[Mapping[str, Any]], config: Config) -> dict[str, dict[int, float]]:
    """Variances of the geometry terms by step; those of the pass that carries the losses are named `last`.

    With one pass that is A1 itself, which then has both names.
    """
    last = f"a{config.stage2_ab.n_softctx_iter}"
    found: dict[str, dict[int, float]] = defaultdict(dict)
    for row in rows:
        for key, value in row.items():
            if not key.startswith(VARIANCES):
                continue
            which, _, name = key.removeprefix(VARIANCES).partition("/")
            if not name.startswith("bbox_geo"):
                continue
            for shown in dict.fromkeys((which if which == "a1" else None, "last" if which == last else which)):
                if shown is not None:
                    found[f"{VARIANCES}{shown}/{name}"][int(row["step"])] = float(value)
    return dict(found)


def _speed(rows: Sequence[Mapping[str, Any]]) -> float:
    """Samples a second in training: the mean over the logged lines but the first, in which everything starts."""
    seen = [float(row[SPEED]) for row in rows if SPEED in row]
    return 1 / fmean(1 / speed for speed in seen[1:] or seen)
