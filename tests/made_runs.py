"""Runs made by hand: valid dumps over real scenes, with predictions that get better from step to step."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from apiece.codec.bins import Bins
from apiece.dumps.form import SCHEMA, Curve, encode_curve, json_line
from apiece.evaluate.detections import predictions_to_detections, samples_to_ground_truth
from apiece.evaluate.rates import match_split
from apiece.outcomes import NONE, Fate, Outcome, label_outcomes
from apiece.types import Detection, Instance, Sample
from apiece_scenes.scene import Scene, SceneSettings, generate_scene

BINS = Bins()
HOSTILE = (
    "</script><img src=x onerror=\"document.title='owned'\">",
    "עברית ‮abc‬ 🦔",
    "<b>bold</b> &amp; ${7*7} {{7*7}}",
    "x" * 10_000,
)


HOSTILE_NAME = "<img src=x onerror=\"document.title='owned'\">"


@dataclass(frozen=True)
class Made:
    """What to make: `skill` at the last step in [0, 1]."""

    name: str = "a_only"
    samples: int = 6
    steps: tuple[int, ...] = (100, 200, 300)
    skill: float = 0.8
    seed: int = 0
    size: int = 192
    hostile: bool = False
    probes: bool = True


def make_run(parent: Path, made: Made | None = None) -> Path:
    """Write a run's folder; images lie beside it and are shared by runs of one parent."""
    made = made or Made()
    run = parent / made.name
    scenes = [
        generate_scene(5, i, SceneSettings(size=made.size, unlabelled=0.3, iscrowd_rows=0.1))
        for i in range(made.samples)
    ]
    images = [parent / "images" / f"{i:06d}.png" for i in range(made.samples)]
    for scene, image in zip(scenes, images, strict=True):
        image.parent.mkdir(parents=True, exist_ok=True)
        if not image.exists():
            scene.image.save(image)
    for number, step in enumerate(made.steps):
        skill = made.skill * (number + 1) / len(made.steps)
        records = [
            make_record(f"{i:06d}", image, scene, step, skill, np.random.default_rng([made.seed, i, step]), made)
            for i, (scene, image) in enumerate(zip(scenes, images, strict=True))
        ]
        write_dump(run, step, made.name, records)
    write_run_files(run, made)
    return run


def hostile_run(parent: Path) -> Path:
    """A run whose folder, config, samples and image files have names that would be markup in a page."""
    run = make_run(parent, Made("plain", samples=2, steps=(100, 200), hostile=True))
    (run / "config.yaml").write_text(
        yaml.safe_dump({"run": {"name": HOSTILE_NAME}, "objective": {HOSTILE_NAME: HOSTILE_NAME}}), encoding="utf-8"
    )
    (parent / "images" / "000000.png").rename(parent / "images" / f"{HOSTILE_NAME}.png")
    quoted = json.dumps(HOSTILE_NAME)[1:-1]
    for step in (100, 200):
        file = run / "dumps" / f"step_{step:06d}" / "records.jsonl"
        text = file.read_text(encoding="utf-8")
        text = text.replace("000000.png", f"{quoted}.png").replace('"id":"000000"', f'"id":"{quoted}"')
        assert text.count(quoted) >= 2
        file.write_text(text, encoding="utf-8")
    return run.rename(parent / HOSTILE_NAME.replace("/", ""))


def write_run_files(run: Path, made: Made) -> None:
    """Config, manifest and metrics, with one figure that was not finite."""
    run.mkdir(parents=True, exist_ok=True)
    anchor = 0.2 if "anchor" in made.name else 0.0
    (run / "config.yaml").write_text(
        f"run: {{name: {made.name}}}\nseed: {made.seed}\nobjective: {{a1_smoothl1_weight: {anchor}}}\n"
    )
    manifest = {"created": "2026-11-22T12:00:00+0000", "seed": made.seed, "git": {"commit": "0123456789abcdef"}}
    (run / "manifest.json").write_text(json.dumps(manifest))
    rng, lines = np.random.default_rng(made.seed), []
    for step in range(10, max(made.steps, default=100) + 1, 10):
        noise = rng.normal(1, 0.05, 4)
        down = 1 / (1 + step / 80)
        row: dict[str, Any] = {
            "step": step,
            "loss/total": (1 + 6 * down) * noise[0],
            "loss/a1/token_ce/struct": 0.5 * down * noise[1],
            "loss/last/bbox_geo/ciou": (0.3 + 0.6 * down) * noise[2],
            "loss/last/coord_reg/soft_ce": float("nan") if step == 150 else 5 * down * noise[3],
            "grad_norm": 2 * down * noise[1],
        }
        if step % 100 == 0:
            row |= {"eval/f1/f1": made.skill * (1 - down) * noise[2], "eval/coco/AP": 0.4 * made.skill * (1 - down)}
        lines.append(json.dumps(row) + "\n")
    (run / "metrics.jsonl").write_text("".join(lines))


def write_dump(run: Path, step: int, name: str, records: Sequence[dict[str, Any]]) -> Path:
    """Write `dumps/step_*/` with pictures of one pixel."""
    folder = run / "dumps" / f"step_{step:06d}"
    folder.mkdir(parents=True)
    protocol: dict[str, Any] = {
        **{"schema": SCHEMA, "step": step, "run": name, "data": "val.jsonl", "data_sha256": "0" * 64, "complete": None},
        **{"complete_sha256": None, "prompt_hash": "1", "max_pixels": 50176, "num_bins": 1000, "generate": {}},
        **{"score_policy": "coord_logprob", "seed": 0, "probes": None},
    }
    (folder / "protocol.json").write_text(json.dumps(protocol))
    (folder / "records.jsonl").write_text("".join(map(json_line, records)), encoding="utf-8")
    return folder


def make_record(
    id_: str, image: Path, scene: Scene, step: int, skill: float, rng: np.random.Generator, made: Made
) -> dict[str, Any]:
    """One record, its outcomes found by the package itself."""
    size_wh = scene.image.size
    labels, complete = scene.observed, scene.complete
    detections = _predict(complete, size_wh, skill, rng)
    if made.hostile:
        # The last ones get a text each: the model can write anything.
        for i, text in enumerate(HOSTILE[: len(detections)], -min(len(HOSTILE), len(detections))):
            detections[i] = Detection(text, detections[i].bbox_xyxy, detections[i].score)
    seen = {(x.desc, x.bbox_xyxy) for x in labels}
    hidden = [x for x in complete if (x.desc, x.bbox_xyxy) not in seen]
    sample = Sample(id_, image, size_wh, tuple(labels))
    truth, found = predictions_to_detections(samples_to_ground_truth([sample]), {id_: detections})
    unlabelled = samples_to_ground_truth([Sample(id_, image, size_wh, tuple(hidden))]).with_classes(truth.names)
    same_classes = unlabelled.names == truth.names
    match = match_split(truth, found)
    outcomes = label_outcomes(truth, found, match, unlabelled if same_classes else None)
    gt, matched = int((~truth.iscrowd).sum()), len(match.pairs)
    judged = len(detections) - len(match.ignored)
    fates = [None if f == NONE else Fate(f).label for f in outcomes.of_truth]
    return {
        **{"schema": SCHEMA, "step": step, "id": id_, "image": str(image), "width": size_wh[0], "height": size_wh[1]},
        "objects": [_object(i, x, fates[i], labels, size_wh, skill, rng, made) for i, x in enumerate(labels)],
        "hidden": [{"desc": x.desc, "bbox": list(x.bbox_xyxy)} for x in hidden],
        "answer": {
            **{"ids": [1, 2], "logprobs": [-0.1, -0.2], "finish_reason": "eos", "closed": True},
            **{"text": "".join(f'{{"desc": "{x.desc}"}}, ' for x in detections), "dropped": {"truncated": 1}},
        },
        "predictions": [
            {
                **{"desc": x.desc, "bbox": [round(v, 2) for v in x.bbox_xyxy], "span": [0, 1], "score": x.score},
                "bins": BINS.to_bins([x.bbox_xyxy], size_wh)[0].tolist(),
                "scores": {"constant": 1.0, "coord_logprob": x.score},
                "outcome": Outcome(outcomes.of_prediction[i]).label,
                "target": None if outcomes.target[i] == NONE else int(outcomes.target[i]),
                "iou": round(float(outcomes.iou[i]), 4),
                "covers": outcomes.covered[outcomes.covered[:, 0] == i, 1].tolist(),
                **{"near_duplicate": i % 7 == 3, "strip": False},
                "slots": _curves(x, labels, size_wh, skill, rng),
            }
            for i, x in enumerate(detections)
        ],
        "counts": {
            **{"gt": gt, "pred": len(detections), "matched": matched, "ignored": len(match.ignored)},
            **{"precision": matched / max(judged, 1), "recall": matched / max(gt, 1), "f1_true": None},
            "f1": 2 * matched / max(judged + gt, 1),
            "by_class": {},
        },
        "probes": _probes(labels, size_wh, rng) if made.probes else None,
    }


def _predict(
    complete: Sequence[Instance], size_wh: tuple[int, int], skill: float, rng: np.random.Generator
) -> list[Detection]:
    """What a model of some skill writes: boxes a little off, rows taken for one, copies, things that are not there."""
    side, out = max(size_wh), []
    row = sorted(complete, key=lambda x: x.bbox_xyxy)
    at = 0
    while at < len(row):
        taken = 1
        if rng.random() > 0.5 + skill / 2:
            taken = int(rng.integers(2, 5))
        members = [x for x in row[at : at + taken] if x.desc == row[at].desc]
        box = np.array([x.bbox_xyxy for x in members])
        hull = np.array([*box[:, :2].min(0), *box[:, 2:].max(0)])
        at += taken
        if rng.random() < 0.3 * (1 - skill):
            continue
        for _ in range(2 if rng.random() < 0.15 else 1):
            moved = np.clip(hull + rng.normal(0, side * 0.03 * (1.1 - skill), 4), 0, side)
            x1, y1, x2, y2 = *np.minimum(moved[:2], moved[2:] - 2), *np.maximum(moved[2:], moved[:2] + 2)
            desc = "dog" if rng.random() < 0.04 else row[at - taken].desc
            corners = (float(max(x1, 0)), float(max(y1, 0)), float(min(x2, size_wh[0])), float(min(y2, size_wh[1])))
            out.append(Detection(desc, corners, round(float(rng.beta(4, 2)), 4)))
    for _ in range(rng.poisson(2 * (1.2 - skill))):
        x, y = rng.uniform(0, side * 0.7, 2)
        out.append(Detection("book", (float(x), float(y), float(x + side * 0.2), float(y + side * 0.1)), 0.2))
    return out


def _object(
    i: int,
    instance: Instance,
    fate: str | None,
    labels: Sequence[Instance],
    size_wh: tuple[int, int],
    skill: float,
    rng: np.random.Generator,
    made: Made,
) -> dict[str, Any]:
    slots = None
    if made.probes and not instance.iscrowd:
        slots = {name: _curves(instance, labels, size_wh, skill, rng) for name in ("a1", "last")}
    return {
        **{"desc": instance.desc, "bbox": list(instance.bbox_xyxy), "iscrowd": instance.iscrowd, "id": i + 1},
        **{"area": instance.area, "fate": fate, "slots": slots},
    }


def _curves(
    box: Instance | Detection,
    labels: Sequence[Instance],
    size_wh: tuple[int, int],
    skill: float,
    rng: np.random.Generator,
) -> list[Curve | None]:
    """Beliefs at the four slots: mass at the own coordinate, some at neighbours' of the class, and a noisy floor."""
    own = BINS.to_bins([box.bbox_xyxy], size_wh)[0]
    others = [BINS.to_bins([x.bbox_xyxy], size_wh)[0] for x in labels if x.desc == box.desc][:4]
    bins, out = np.arange(BINS.num_bins), []
    for c in range(4):
        width = rng.uniform(3, 12 + 50 * (1 - skill))
        mass = np.exp(-(((bins - own[c]) / width) ** 2) / 2) / width
        for other in others:
            mass += (1 - skill) * rng.uniform(0, 1) * np.exp(-(((bins - other[c]) / width) ** 2) / 2) / width
        mass = mass * rng.lognormal(0, 0.4, len(bins)) + 1e-5
        out.append(encode_curve(mass / mass.sum()))
    return out


def _probes(labels: Sequence[Instance], size_wh: tuple[int, int], rng: np.random.Generator) -> dict[str, Any]:
    objects = [i for i, x in enumerate(labels) if not x.iscrowd]
    n = 4 * len(objects)
    target = [int(v) for i in objects for v in BINS.to_bins([labels[i].bbox_xyxy], size_wh)[0]]

    def one_pass() -> dict[str, list[float]]:
        own = rng.beta(5, 2, n)
        return {
            "argmax": [int(np.clip(t + rng.normal(0, 8), 0, 999)) for t in target],
            "entropy": rng.gamma(3, 0.8, n).tolist(),
            "modes": rng.integers(1, 4, n).tolist(),
            "own_mass": own.tolist(),
            "cross_instance_mass": ((1 - own) * rng.random(n)).tolist(),
            "exp_argmax_gap": rng.gamma(1, 6, n).tolist(),
        }

    return {
        "passes": 2,
        "slots": {
            **{"object": [i for i in objects for _ in range(4)], "coordinate": [0, 1, 2, 3] * len(objects)},
            **{"target": target, "a1": one_pass(), "last": one_pass(), "drift": rng.integers(0, 20, n).tolist()},
        },
        "objects": {
            "object": objects,
            "flip": (rng.random(len(objects)) < 0.2).tolist(),
            "chimera": (rng.random(len(objects)) < 0.15).tolist(),
        },
        "follow": [
            {
                **{"object": a, "neighbour": b, "coordinate": c},
                **{"near_neighbour": 0.6, "near_own": 0.1, "elsewhere": 0.3},
            }
            for a, b in pairwise(objects)
            for c in (2, 3)
            if labels[a].desc == labels[b].desc
        ],
    }
