"""The checkpoint that ships with the package: small, loadable as `tiny`, and better than chance by far."""

from __future__ import annotations

from pathlib import Path

from apiece.config.schema import GenerateSection
from apiece.data.jsonl import read_jsonl
from apiece.evaluate.predict import answer_split, load_predictor, score_answers
from apiece.model.find import resolve_checkpoint
from apiece_scenes.write import write_scenes


def test_it_fits_in_the_package() -> None:
    folder = resolve_checkpoint("tiny")
    assert sum(f.stat().st_size for f in folder.iterdir()) <= 8_000_000


def test_it_detects(tmp_path: Path) -> None:
    write_scenes(tmp_path / "s", 16, seed=9001)
    warned: list[str] = []
    settings = GenerateSection(batch_size=16, max_objects=60)
    predictor = load_predictor("tiny", settings, device="cpu", warn=warned.append)
    assert warned == []
    samples = read_jsonl(tmp_path / "s" / "complete.jsonl")
    metrics = score_answers(samples, answer_split(predictor, samples), policy=predictor.policy)
    assert metrics["f1/f1"] > 0.2
    assert metrics["parse/dropped"] < 0.05
