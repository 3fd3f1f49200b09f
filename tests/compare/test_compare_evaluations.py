"""Evaluations compared: the figures are those of `apiece evaluate`, the verdicts right, bad pairs refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apiece.errors import UserError
from apiece.evaluate.metrics import evaluate_detections
from apiece.files import file_hash
from apiece.stats.interval import Verdict
from apiece.study.arms import group_seeds, read_sources
from apiece.study.comparison import Comparison, compare, comparison_json
from apiece.study.tables import print_comparison
from apiece.types import Detection, Instance
from compared import Picture, book, shelves, split_of, write_evaluation


def compared(a: Path, b: Path, **options: Any) -> Comparison:
    arms, told = group_seeds(read_sources([a, b]))
    return compare(arms, draws=300, remarks=told, **options)[0]


def rows_of(comparison: Comparison) -> dict[str, Any]:
    return {row["key"]: row for row in comparison.as_json()["rows"]}


def evaluations(folder: Path, a: list[Picture], b: list[Picture], **of_b: Any) -> tuple[Path, Path]:
    return write_evaluation(folder / "a", a), write_evaluation(folder / "b", b, **of_b)


def test_values_are_those_of_evaluate(tmp_path: Path) -> None:
    a, b = shelves(30, 0.6), shelves(30, 0.8, seed=1)
    rows = rows_of(compared(*evaluations(tmp_path, a, b)))
    for side, pictures in (("a", a), ("b", b)):
        metrics = evaluate_detections(*split_of(pictures), policy="coord_logprob")
        shared = [key for key in rows if key in metrics]
        assert {"f1/f1", "f1/lenient", "coco/AP", "coco/AP50", "rates/duplicate", "shape/strip"} <= set(shared)
        for key in shared:
            assert rows[key][side] == pytest.approx(metrics[key], abs=1e-12), key
        labels = metrics["count/truths"]
        assert rows["miss_rate/missed"][side] == pytest.approx(metrics["misses/missed"] / labels)
        assert rows["count/per_image"][side] == pytest.approx(metrics["count/predictions"] / 30)


def test_a_better_run_is_better(tmp_path: Path) -> None:
    rows = rows_of(compared(*evaluations(tmp_path, shelves(40, 0.5, extra=2), shelves(40, 0.9, seed=1, extra=0.2))))
    better = ("f1/f1", "f1/precision", "f1/recall", "coco/AP", "coco/AP50", "rates/tp", "rates/background")
    for key in (*better, "miss_rate/missed"):
        assert rows[key]["verdict"] == "better", rows[key]
        assert rows[key]["more_images"] is None
    assert rows["f1/f1"]["lo"] < rows["f1/f1"]["difference"] < rows["f1/f1"]["hi"]
    assert rows["f1/f1"]["difference"] == pytest.approx(rows["f1/f1"]["b"] - rows["f1/f1"]["a"])
    assert rows["rates/background"]["difference"] < 0
    assert rows["f1/f1"]["n"] == 40


def test_the_other_way_round_the_signs_turn(tmp_path: Path) -> None:
    a, b = evaluations(tmp_path, shelves(40, 0.5), shelves(40, 0.9, seed=1))
    there, back = rows_of(compared(a, b)), rows_of(compared(b, a))
    assert (there["f1/f1"]["verdict"], back["f1/f1"]["verdict"]) == ("better", "worse")
    for key, row in there.items():
        assert back[key]["difference"] == pytest.approx(-row["difference"], abs=1e-12)
        assert back[key]["lo"] == pytest.approx(-row["hi"], abs=1e-12)


def test_equal_runs_are_the_same(tmp_path: Path) -> None:
    comparison = compared(*evaluations(tmp_path, shelves(20, 0.6), shelves(20, 0.6)))
    rows = rows_of(comparison).values()
    assert {(row["difference"], row["verdict"]) for row in rows} == {(0.0, "same")}
    assert comparison.changed == ()


def test_as_good_as_each_other_cannot_be_told(tmp_path: Path) -> None:
    row = rows_of(compared(*evaluations(tmp_path, shelves(20, 0.6), shelves(20, 0.6, seed=3))))["f1/f1"]
    assert row["verdict"] == "can't tell"
    assert row["lo"] <= 0 <= row["hi"]
    assert row["more_images"] >= 1


def test_seeded(tmp_path: Path) -> None:
    a, b = evaluations(tmp_path, shelves(20, 0.6), shelves(20, 0.7, seed=3))
    assert compared(a, b).as_json() == compared(a, b).as_json()
    assert compared(a, b, seed=1).as_json()["rows"] != compared(a, b).as_json()["rows"]


def test_images_with_nothing_count_nowhere(tmp_path: Path) -> None:
    crowd = Picture("crowd", (Instance("book", (0.0, 0.0, 50.0, 50.0), iscrowd=True),))
    empty = [Picture(f"empty{i}") for i in range(30)]
    a, b = shelves(20, 0.6), shelves(20, 0.7, seed=3)
    with_empty = compared(*evaluations(tmp_path / "1", [*a, crowd, *empty], [*b, crowd, *empty]))
    without = compared(*evaluations(tmp_path / "2", a, b))
    assert with_empty.as_json()["rows"] == without.as_json()["rows"]
    assert with_empty.protocol["images_without_label_or_prediction"] == 31


def test_a_wrong_box_on_an_empty_image_counts(tmp_path: Path) -> None:
    wrong = Picture("x", (), (Detection("book", book(0), 0.5),))
    comparison = compared(*evaluations(tmp_path, [*shelves(5, 1.0), Picture("x")], [*shelves(5, 1.0), wrong]))
    assert comparison.protocol["images"] == 6
    assert [(c.id, c.a, c.b, c.difference) for c in comparison.changed] == [("x", 1.0, 0.0, -1.0)]


def test_nothing_at_all(tmp_path: Path) -> None:
    comparison = compared(*evaluations(tmp_path, [Picture("x")], [Picture("x")]))
    assert "nothing to compare" in " ".join(comparison.remarks)
    assert all(row.found.verdict in (Verdict.SAME, Verdict.CANNOT_TELL) for row in comparison.rows)
    print_comparison(comparison)


def test_images_that_changed_most_both_ways(tmp_path: Path) -> None:
    base = shelves(10, 1.0, extra=0, shift=0.0)
    hit = Detection("book", book(0), 0.9)
    a = [replace(base[0], predictions=(hit,)), *base[1:]]
    b = [base[0], replace(base[1], predictions=()), *base[2:]]
    changed = compared(*evaluations(tmp_path, a, b)).changed
    assert [(c.id, c.difference > 0) for c in changed] == [("0000", True), ("0001", False)]
    assert changed[1].b == 0


def test_classes_that_one_alone_names(tmp_path: Path) -> None:
    a = shelves(10, 0.8)
    b = [replace(p, predictions=(*p.predictions, Detection("apple", book(2), 0.3))) for p in a]
    rows = rows_of(compared(*evaluations(tmp_path, a, b)))
    assert rows["f1/precision"]["verdict"] == "worse"
    assert rows["coco/AP"]["difference"] == 0  # a class without labels has no AP


def test_complete_truth_where_it_is_still_there(tmp_path: Path) -> None:
    base = shelves(20, 0.8)
    partly = [replace(p, labels=p.labels[: max(len(p.labels) // 2, 1)]) for p in base]
    file = tmp_path / "complete.jsonl"
    lines = [
        {"id": p.id, "image": f"{p.id}.png", "width": 400, "height": 200}
        | {"objects": [{"desc": "book", "bbox": list(o.bbox_xyxy)} for o in p.labels]}
        for p in base
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = {"complete": str(file), "complete_sha256": file_hash(file)}
    write_evaluation(tmp_path / "a", partly, **settings)
    write_evaluation(tmp_path / "b", partly, **settings)
    row = rows_of(compared(tmp_path / "a", tmp_path / "b"))["f1/true"]
    assert row["a"] > rows_of(compared(tmp_path / "a", tmp_path / "b"))["f1/f1"]["a"]
    file.write_text(file.read_text() + "\n")
    changed = compared(tmp_path / "a", tmp_path / "b")
    assert "f1/true" not in rows_of(changed)
    assert any("has changed since" in remark for remark in changed.remarks)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data_sha256": "e" * 64}, r"data \(SHA-256\): dddddddddddd\.\.\. and eeeeeeeeeeee\.\.\."),
        ({"prompt_hash": "bb"}, r"prompt \(hash\): aa and bb"),
        ({"max_pixels": 100}, "max_pixels: 50176 and 100"),
        ({"score_policy": "constant"}, "score policy: coord_logprob and constant\n.*or, .* add --score-policies"),
        ({"generate": {"temperature": 0.5}}, "generate.temperature: 0.0 and 0.5"),
        ({"min_score": 0.3}, "--min-score: 0.0 and 0.3"),
    ],
)
def test_other_protocols_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"cannot be compared, these differ: {message}") as caught:
        compared(*evaluations(tmp_path, shelves(3, 1), shelves(3, 1), **changes))
    assert caught.value.exit_code == 2


def test_score_policies_may_differ_where_they_are_what_is_asked(tmp_path: Path) -> None:
    """The same boxes under other scores: F1 stays, AP says which scores rank better; anything else is refused still."""
    rng = np.random.default_rng(0)

    def scored(informed: bool) -> list[Picture]:
        return [
            Picture(
                f"{k:04d}",
                (Instance("book", book(0)),),
                (
                    Detection("book", book(0), 0.9 if informed else float(rng.uniform())),
                    Detection("book", book(9), 0.1 if informed else float(rng.uniform())),
                ),
            )
            for k in range(40)
        ]

    pair = evaluations(tmp_path, scored(False), scored(True), score_policy="product")
    comparison = compared(*pair, may_differ=("score_policy",))
    rows = rows_of(comparison)
    assert rows["f1/f1"]["verdict"] == "same"
    assert rows["coco/AP"]["verdict"] == "better"
    assert comparison.as_json()["protocol"]["score_policy"] == ["coord_logprob", "product"]
    other = write_evaluation(tmp_path / "c", scored(True), score_policy="product", max_pixels=100)
    with pytest.raises(UserError, match=r"these differ: max_pixels: 50176 and 100\n"):
        compared(pair[0], other, may_differ=("score_policy",))


def test_seeds_under_other_scores_are_no_seeds_of_one_arm(tmp_path: Path) -> None:
    paths = evaluations(tmp_path, shelves(3, 1), shelves(3, 1), score_policy="product")
    sources = [replace(source, config={}, seed=i) for i, source in enumerate(read_sources(paths))]
    assert [len(arm.sources) for arm in group_seeds([*sources, replace(sources[0], seed=2)])[0]] == [2, 1]


def test_how_many_images_at_once_is_no_difference(tmp_path: Path) -> None:
    compared(*evaluations(tmp_path, shelves(3, 1), shelves(3, 1), generate={"batch_size": 2, "temperature": 0.0}))


def test_other_labels_under_one_hash_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the labels differ"):
        compared(*evaluations(tmp_path, shelves(3, 1), shelves(3, 1, labels_seed=5)))


def test_a_score_that_is_no_number_is_refused(tmp_path: Path) -> None:
    a, b = evaluations(tmp_path, shelves(3, 1), shelves(3, 1))
    results = json.loads((b / "results.json").read_text())
    results[0]["score"] = float("nan")
    (b / "results.json").write_text(json.dumps(results))
    with pytest.raises(UserError, match=r"detection 0: expected a finite number up to 1e.12 in score, found nan"):
        compared(a, b)


def test_half_an_evaluation_is_named(tmp_path: Path) -> None:
    a, b = evaluations(tmp_path, shelves(3, 1), shelves(3, 1))
    (b / "coco.json").unlink()
    with pytest.raises(UserError, match=r"found no coco\.json\n.*apiece evaluate CHECKPOINT"):
        compared(a, b)


def test_f1_and_ap_apart_are_explained(tmp_path: Path) -> None:
    """B drops half of its wrong boxes, which F1 sees, and its right boxes sit worse, which AP sees."""
    base = shelves(40, 1.0, extra=0, shift=0.0)
    wrong = [Detection("book", (x, 120.0, x + 9, 180.0), 0.01) for x in (10.0, 60.0, 110.0, 160.0, 210.0, 260.0)]

    def run(shift: float, extra: int) -> list[Picture]:
        return [
            replace(
                p,
                predictions=(
                    *(
                        Detection("book", (x1 + shift, y1, x2 + shift, y2), 0.9)
                        for x1, y1, x2, y2 in (o.bbox_xyxy for o in p.labels)
                    ),
                    *wrong[:extra],
                ),
            )
            for p in base
        ]

    comparison = compared(*evaluations(tmp_path, run(0.5, 6), run(3.0, 3)))
    rows = rows_of(comparison)
    assert (rows["f1/f1"]["verdict"], rows["coco/AP"]["verdict"]) == ("better", "worse")
    told = next(remark for remark in comparison.remarks if "while AP falls" in remark)
    assert f"background (240 to 120; with these as in A, F1 would be {rows['f1/f1']['a']:.4f})" in told
    assert f"mean IoU 0.920 to 0.600; with these as in A, AP would be {rows['coco/AP']['a']:.4f})" in told


def test_where_they_move_together_nothing_is_explained(tmp_path: Path) -> None:
    comparison = compared(*evaluations(tmp_path, shelves(20, 0.5), shelves(20, 0.9, seed=1)))
    assert not any("while AP" in remark for remark in comparison.remarks)


def test_more_than_two_are_held_against_the_first(tmp_path: Path) -> None:
    paths = [write_evaluation(tmp_path / name, shelves(10, f)) for name, f in (("a", 0.4), ("b", 0.6), ("c", 0.8))]
    arms, _ = group_seeds(read_sources(paths))
    found = comparison_json(compare(arms, draws=200))
    assert [(pair["a"], pair["b"]) for pair in found["pairs"]] == [("a", "b"), ("a", "c")]
    assert [run["name"] for run in found["runs"]] == ["a", "b", "c"]
    assert found["pairs"][0]["rows"][0]["a"] == found["pairs"][1]["rows"][0]["a"]
