"""The checkpoint that ships with the package: small, loadable as `tiny`, and better than chance by far."""

from __future__ import annotations

from pathlib import Path

from apiece.config.schema import GenerateSection
from apiece.data.jsonl import read_jsonl
from apiece.evaluate.predict import evaluate_samples, load_predictor
from apiece.model.find import resolve_checkpoint
from apiece_scenes import write_scenes


def test_it_fits_in_the_package() -> None:
    folder = resolve_checkpoint("tiny")
    assert sum(f.stat().st_size for f in folder.iterdir()) <= 8_000_000


def test_it_detects(tmp_path: Path) -> None:
    write_scenes(tmp_path / "s", 16, seed=9001)
    predictor, warning = load_predictor("tiny", GenerateSection(batch_size=16, max_objects=60), device="cpu")
    assert warning is None
    metrics, _ = evaluate_samples(predictor, read_jsonl(tmp_path / "s" / "complete.jsonl"), tmp_path / "out")
    assert metrics["f1/f1"] > 0.2
    assert metrics["parse/dropped"] < 0.05
