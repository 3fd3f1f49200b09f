"""A handful of spoilt inputs for each target; `python tests/fuzz/run.py --minutes 10` goes on for longer."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from spoil import ODD, encode
from targets import COCO, RECORD, RESULTS, TRUTH, Target, check_lines, targets

NAMES = ("config", "jsonl", "coco", "detections", "answer text", "answer ids", "checkpoint", "run")


@pytest.mark.parametrize("name", NAMES)
def test_only_user_errors_come_out(name: str) -> None:
    target: Target = next(one for one in targets() if one.name == name)

    @given(target.inputs)
    @settings(max_examples=target.examples, deadline=None, suppress_health_check=list(HealthCheck))
    def check(given_input: Any) -> None:
        with tempfile.TemporaryDirectory() as folder:
            target.check(Path(folder), given_input)

    check()


def test_every_target_is_run() -> None:
    assert tuple(target.name for target in targets()) == NAMES


def test_what_is_spoilt_was_right(tmp_path: Path) -> None:
    """Else nothing behind the first check would ever be reached."""
    from apiece.data.coco import import_coco
    from apiece.data.jsonl import read_jsonl
    from apiece.evaluate.detections import load_coco_ground_truth, load_coco_results

    (tmp_path / "x.jsonl").write_bytes(encode(RECORD))
    assert len(read_jsonl(tmp_path / "x.jsonl")[0].objects) == 2
    (tmp_path / "gt.json").write_bytes(encode(TRUTH))
    (tmp_path / "dets.json").write_bytes(encode(RESULTS))
    assert len(load_coco_results(tmp_path / "dets.json", load_coco_ground_truth(tmp_path / "gt.json"))) == 2
    from PIL import Image

    for name in ("a.png", "b.png"):
        Image.new("RGB", (64, 48)).save(tmp_path / name)
    (tmp_path / "c.json").write_bytes(encode(COCO))
    assert not import_coco(tmp_path / "c.json", tmp_path).errors


def test_a_crash_would_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import targets as module

    def broken(*_: object, **__: object) -> None:
        raise KeyError("ours")

    monkeypatch.setattr(module, "check_jsonl", broken)
    with pytest.raises(KeyError, match="ours"):
        check_lines(tmp_path, encode(ODD[0]))
