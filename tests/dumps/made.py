"""Runs and dumps made by hand, in the form of `apiece.dumps.form`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CURVE = {"start": 12, "step": 1, "peak": 0.21, "values": "/w=="}


def example_probes() -> dict[str, Any]:
    """Probes of one slot."""
    one_pass = {
        "argmax": [22],
        "entropy": [1.2],
        "modes": [1],
        "own_mass": [0.8],
        "cross_instance_mass": [0.1],
        "exp_argmax_gap": [2.5],
    }
    slots = {"object": [0], "coordinate": [0], "target": [23], "a1": one_pass, "last": one_pass, "drift": [0]}
    return {
        "passes": 2,
        "slots": slots,
        "objects": {"object": [0], "flip": [False], "chimera": [False]},
        "follow": [],
    }


def example_entry(sample_id: str = "000044", step: int = 300, **changes: Any) -> dict[str, Any]:
    """A record with every kind of row: a matched label, a crowd region, a hidden instance, a group box, probes."""
    return {
        "schema": 1,
        "step": step,
        "id": sample_id,
        "image": f"images/{sample_id}.png",
        "width": 192,
        "height": 192,
        "objects": [
            {
                "desc": "book",
                "bbox": [4.5, 124.5, 20.5, 181.0],
                "iscrowd": False,
                "area": 904.0,
                "id": 1,
                "fate": "matched",
                "slots": {"a1": [CURVE] * 4, "last": [CURVE, None, CURVE, CURVE]},
            },
            {
                "desc": "book",
                "bbox": [40, 120, 90, 181],
                "iscrowd": True,
                "area": None,
                "id": None,
                "fate": None,
                "slots": None,
            },
        ],
        "hidden": [{"desc": "book", "bbox": [38.0, 168.5, 73.5, 181.0]}],
        "answer": {
            "ids": [1, 2],
            "logprobs": [-0.1, -0.2],
            "text": "…",
            "finish_reason": "eos",
            "closed": True,
            "dropped": {"truncated": 1},
        },
        "predictions": [
            {
                "desc": "book",
                "bbox": [4.4, 124.0, 40.0, 181.0],
                "bins": [23, 645, 208, 942],
                "span": [12, 70],
                "score": 0.31,
                "scores": {"constant": 1.0, "coord_logprob": 0.31},
                "outcome": "group",
                "target": None,
                "iou": 0.0,
                "covers": [0],
                "near_duplicate": False,
                "strip": False,
                "slots": [CURVE] * 4,
            }
        ],
        "counts": {
            "gt": 1,
            "pred": 1,
            "matched": 0,
            "ignored": 0,
            "precision": 0.0,
            "recall": 0.0,
            "f1": 0.0,
            "f1_true": None,
            "by_class": {"book": {"gt": 1, "pred": 1, "matched": 0}},
        },
        "probes": example_probes(),
        **changes,
    }


def example_protocol(step: int = 300, **changes: Any) -> dict[str, Any]:
    """The protocol beside such records."""
    return {
        "schema": 1,
        "step": step,
        "run": "a_only",
        "data": "data/val.jsonl",
        "data_sha256": "0" * 64,
        "complete": None,
        "complete_sha256": None,
        "prompt_hash": "00",
        "max_pixels": 50176,
        "num_bins": 1000,
        "score_policy": "coord_logprob",
        "generate": {"temperature": 0.0},
        "seed": 0,
        "probes": None,
        **changes,
    }


def write_dump(run: Path, step: int, records: list[dict[str, Any]], **protocol: Any) -> Path:
    """The folder of a dump."""
    folder = run / "dumps" / f"step_{step:06d}"
    folder.mkdir(parents=True)
    (folder / "protocol.json").write_text(json.dumps(example_protocol(step, **protocol)), encoding="utf-8")
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    (folder / "records.jsonl").write_text(lines, encoding="utf-8")
    return folder


def write_run(run: Path, steps: tuple[int, ...] = (0, 300), ids: tuple[str, ...] = ("a", "b")) -> Path:
    """The folder of a run with dumps."""
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("seed: 0\noptim:\n  lr: 1.0e-05\n", encoding="utf-8")
    panel = {
        "seed": 0,
        "ids": list(ids),
        "named": [],
        "missing": [],
        "by_crowding": {"1-5": len(ids)},
        "data": "data/val.jsonl",
        "data_sha256": "0" * 64,
        "complete": None,
        "complete_sha256": None,
        "from": None,
    }
    (run / "manifest.json").write_text(json.dumps({"seed": 0, "panel": panel}), encoding="utf-8")
    rows = [{"step": 10, "loss/total": 2.0}, {"step": 20, "loss/total": 1.0}, {"step": 20, "eval/f1/f1": 0.25}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for step in steps:
        write_dump(run, step, [example_entry(name, step) for name in ids])
    return run
