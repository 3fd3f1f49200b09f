"""One job in this process: train or go on, evaluate, probe, and write its result file."""

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
from apiece.evaluate.predict import evaluate_checkpoint, load_predictor, read_split
from apiece.files import write_json
from apiece.monitor.probing import Prober, ProbeSettings
from apiece.study.arms import Source, evaluation_source
from apiece.study.diagnosis import diagnose
from apiece.study.jobs import Job
from apiece.study.results import TRUE, Result, Split, judged_split, write_result
from apiece.train.loop import train
from apiece.train.run import git_state
from apiece.types import Sample

VARIANCES = "window_var/"
SPEED = "speed/samples_per_s"
_PROBED_AT_ONCE = 16


def do_job(job: Job) -> bool:
    """Do what is left of a job; false if it was interrupted, and goes on from there the next time."""
    job.run.parent.mkdir(parents=True, exist_ok=True)
    if not job.begun.is_file():
        if job.run.exists():
            raise UserError("a run of this name is there that no ladder began", where=job.run, fix="move it away")
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
    source = _evaluated(job)
    test = judged_split(source.truth, source.detections, source.complete, dropped=source.dropped)
    evaluated = time.perf_counter()
    panel, diagnosis = _probed(job)
    probed = time.perf_counter()
    rows = [json.loads(line) for line in (job.run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return Result(
        ladder=job.ladder,
        arms=job.arms,
        references=job.references,
        arm=job.arm,
        seed=job.seed,
        made_from=job.made_from,
        protocol={
            **{key: value for key, value in source.protocol.items() if not isinstance(value, tuple)},
            "probes": job.made_from["probes"],
            "panel": job.made_from["data"]["panel"],
        },
        match=str(job.match),
        steps=job.config.train.steps,
        batch_size=job.config.train.batch_size,
        flops={"step": job.cost.step, "run": job.cost.run, "of_reference": job.cost.of_reference},
        telemetry=variances(rows, job.config),
        telemetry_window=job.config.train.telemetry_window,
        speed=_speed(rows),
        metrics=_metrics(source),
        seconds={"evaluate": evaluated - started, "probe": probed - evaluated},
        machine=_machine(),
        test=test,
        panel=panel,
        diagnosis=diagnosis,
    )


def _evaluated(job: Job) -> Source:
    """The test set, answered and read back as `apiece compare` reads it."""
    out = job.run / "test"
    evaluate_checkpoint(
        str(job.run),
        job.files.test,
        out,
        settings=job.config.generate,
        device=job.config.train.device,
        pictures=0,
        complete=job.files.test_complete,
    )
    return evaluation_source(out)


def _metrics(source: Source) -> dict[str, float]:
    """Flat figures of `metrics.json`, and those of AP on complete truth under `true/`."""
    stored = json.loads((source.path / "metrics.json").read_text(encoding="utf-8"))
    figures = {key: value for key, value in stored.items() if isinstance(value, int | float)}
    if source.complete is not None:
        of_all = evaluate_detections(source.complete, source.detections, policy=stored["score_policy"])
        figures |= {f"{TRUE}{key}": v for key, v in of_all.items() if isinstance(v, int | float)}
    return figures


def _probed(job: Job) -> tuple[Split, dict[str, Any]]:
    """Beliefs at the labels of the panel, under the reference's settings, and what they say of long boxes there.

    One ruler for all arms.
    """
    settings = replace(ProbeSettings.of(job.reference), seed=0, batch_size=_PROBED_AT_ONCE)
    predictor, _ = load_predictor(str(job.run), job.config.generate, device=job.config.train.device)
    samples = read_split(job.files.panel)
    prober = Prober(predictor.engine.model, predictor.encoder, settings)  # type: ignore[attr-defined]
    probes: dict[str, Any] = {
        sample.id: None if found is None else found.as_json()
        for sample, found in zip(samples, prober.iter_labels(samples), strict=True)
    }
    truth, complete = samples_to_ground_truth(samples), None
    if job.files.panel_complete is not None:
        truth, complete = load_complete(job.files.panel_complete, truth)
    answers = list(predictor.answers(samples))
    truth, detections = predictions_to_detections(truth, {a.sample.id: a.detections for a in answers})
    if complete is not None:
        truth, complete = align_complete(complete, truth)  # with the classes that only answers name
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
    split = Split(
        everything.objects_per_image.astype(np.int64),
        probe_ratios([(_objects(sample), probes[sample.id]) for sample in samples]),
    )
    return split, {key: found[key] for key in ("verdict", "long_boxes", "explanations")}


def _objects(sample: Sample) -> list[Any]:
    """What the probes' figures need to know of a sample's labels."""
    return [{"desc": o.desc, "iscrowd": o.iscrowd} for o in sample.objects]


def variances(rows: Sequence[Mapping[str, Any]], config: Config) -> dict[str, dict[int, float]]:
    """Variances of the geometry terms by step; those of the pass that carries the losses are named `last`.

    With one pass that is A1 itself, which then stands there under both names.
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
    """Samples a second in training, on average over the logged lines but the first, in which everything starts."""
    seen = [float(row[SPEED]) for row in rows if SPEED in row]
    return 1 / fmean(1 / speed for speed in seen[1:] or seen)


def _machine() -> dict[str, Any]:
    return {
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "git": git_state(),
        "load": round(os.getloadavg()[0], 1),
    }
