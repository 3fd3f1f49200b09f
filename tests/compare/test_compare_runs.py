"""Runs compared by their dumps: steps, seeds, probes, telemetry, and what is refused."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apiece.dumps.folder import open_run
from apiece.errors import UserError
from apiece.outcomes import Outcome
from apiece.study.arms import group_seeds, read_sources
from apiece.study.comparison import Comparison, compare
from apiece.types import Instance
from compared import book, record_of, shelves, write_evaluation, write_run
from made_runs import Made, make_run

CONFIG = "seed: {seed}\nrun:\n  name: {name}\noptim:\n  lr: {lr}\ntrain:\n  telemetry_window: 20\n"


def compared(*paths: Path, step: int | None = None) -> Comparison:
    arms, told = group_seeds(read_sources(paths, step))
    return compare(arms, draws=300, remarks=told)[0]


def rows_of(comparison: Comparison) -> dict[str, Any]:
    return {row["key"]: row for row in comparison.as_json()["rows"]}


def test_figures_are_those_of_the_records(tmp_path: Path) -> None:
    paths = [make_run(tmp_path, Made("a", skill=0.4)), make_run(tmp_path, Made("b", skill=0.9))]
    rows = rows_of(compared(*paths))
    for side, path in zip("ab", paths, strict=True):
        records = open_run(path).dump().entries
        gt, pred, matched, ignored = (
            sum(record["counts"][key] for record in records) for key in ("gt", "pred", "matched", "ignored")
        )
        assert rows["f1/f1"][side] == pytest.approx(2 * matched / (gt + pred - ignored))
        named = [row["outcome"] for record in records for row in record["predictions"]]
        for outcome in set(Outcome) - {Outcome.UNLABELLED, Outcome.BACKGROUND}:  # made runs keep no exact watch there
            assert rows[f"rates/{outcome.label}"][side] == pytest.approx(named.count(outcome.label) / len(named))
        fates = [row["fate"] for record in records for row in record["objects"] if row["fate"]]
        assert rows["miss_rate/near_miss"][side] == pytest.approx(fates.count("near_miss") / len(fates))
        entropy = [v for record in records if record["probes"] for v in record["probes"]["slots"]["a1"]["entropy"]]
        assert rows["probes/a1/entropy"][side] == pytest.approx(np.mean([v for v in entropy if v is not None]))
    assert rows["f1/f1"]["b"] > rows["f1/f1"]["a"]


def test_the_newest_step_that_all_have(tmp_path: Path) -> None:
    early, late = shelves(8, 0.3), shelves(8, 0.8)
    a = write_run(tmp_path / "a", {100: early, 200: late, 300: late})
    b = write_run(tmp_path / "b", {100: early, 200: early})
    assert [run["step"] for run in compared(a, b).as_json()["runs"]] == [200, 200]
    assert rows_of(compared(a, b, step=100))["f1/f1"]["verdict"] == "same"
    with pytest.raises(UserError, match=r"not all runs have a dump of step 300 \(.*a: 100, 200, 300; .*b: 100, 200\)"):
        compared(a, b, step=300)


def test_two_steps_of_one_run_by_their_folders(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", {100: shelves(30, 0.3), 200: shelves(30, 0.9)}, metrics=telemetry(0.1))
    comparison = compared(run / "dumps" / "step_000100", run / "dumps" / "step_000200")
    assert (comparison.a, comparison.b) == ("a@100", "a@200")
    assert rows_of(comparison)["f1/f1"]["verdict"] == "better"


def test_runs_without_a_common_dump(tmp_path: Path) -> None:
    a, b = write_run(tmp_path / "a", {100: shelves(2, 1)}), write_run(tmp_path / "b", {200: shelves(2, 1)})
    with pytest.raises(UserError, match="no dump of the same step") as caught:
        compared(a, b)
    assert caught.value.exit_code == 2
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "config.yaml").write_text("seed: 0\n")
    with pytest.raises(UserError, match=r"expected dumps, found none\n.*apiece evaluate"):
        compared(a, tmp_path / "c")


def seeds(folder: Path, arm: str, found: float, lr: float) -> list[Path]:
    return [
        write_run(
            folder / f"{arm}_s{seed}",
            {100: shelves(30, found, seed=seed + 10)},
            config=CONFIG.format(seed=seed, name=f"{arm}_s{seed}", lr=lr),
        )
        for seed in range(3)
    ]


def test_runs_that_differ_in_their_seed_are_one_arm(tmp_path: Path) -> None:
    paths = [*seeds(tmp_path, "baseline", 0.4, 1e-4), *seeds(tmp_path, "anchor", 0.8, 2e-4)]
    comparison = compared(*paths)
    assert (comparison.a, comparison.b) == ("baseline", "anchor")
    assert [(name, source.seed) for name, source in comparison.runs] == [
        (name, seed) for name in ("baseline", "anchor") for seed in range(3)
    ]
    assert comparison.protocol["unit"] == "images and seeds"
    row = rows_of(comparison)["f1/f1"]
    one_by_one = [rows_of(compared(paths[i], paths[3 + i]))["f1/f1"] for i in range(3)]
    assert row["difference"] == pytest.approx(np.mean([r["difference"] for r in one_by_one]))
    assert row["verdict"] == "better"
    assert not any("one run" in remark for remark in comparison.remarks)


def test_runs_that_differ_in_their_seed_alone_are_held_against_each_other(tmp_path: Path) -> None:
    comparison = compared(*seeds(tmp_path, "a", 0.5, 1e-4)[:2])
    assert (comparison.a, comparison.b) == ("a_s0", "a_s1")
    assert any("differ in their seed alone" in remark for remark in comparison.remarks)
    assert "a_s0 and a_s1 are one run each: the intervals do not say what another seed would give" in comparison.remarks


def test_panels_must_be_the_same(tmp_path: Path) -> None:
    pictures = shelves(5, 1)
    a, b = write_run(tmp_path / "a", {100: pictures}), write_run(tmp_path / "b", {100: pictures[:4]})
    with pytest.raises(UserError, match=r"panel: 1 samples \(0004\) only in the first, 0 samples only in the second"):
        compared(a, b)


def test_runs_and_evaluations_are_not_mixed(tmp_path: Path) -> None:
    a, b = write_run(tmp_path / "a", {100: shelves(5, 1)}), write_evaluation(tmp_path / "b", shelves(5, 1))
    with pytest.raises(UserError, match="cannot be compared: a is a run with dumps, b is an evaluation"):
        compared(a, b)


def test_a_broken_line_is_left_out_of_both_and_told(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", {100: shelves(6, 0.5)})
    b = write_run(tmp_path / "b", {100: shelves(6, 0.9, seed=1)})
    file = b / "dumps" / "step_000100" / "records.jsonl"
    file.write_text(file.read_text()[:-40])
    comparison = compared(a, b)
    assert comparison.protocol["images"] == 5
    told = " ".join(comparison.remarks)
    assert "half-written" in told
    assert "1 samples that are not in all of them are left out: 0005" in told
    rest = (
        write_run(tmp_path / "c", {100: shelves(6, 0.5)[:5]}),
        write_run(tmp_path / "d", {100: shelves(6, 0.9, seed=1)[:5]}),
    )
    assert comparison.as_json()["rows"] == compared(*rest).as_json()["rows"]


def test_a_prediction_without_a_score_is_refused(tmp_path: Path) -> None:
    a, b = (write_run(tmp_path / name, {100: shelves(3, 1)}) for name in "ab")
    file = b / "dumps" / "step_000100" / "records.jsonl"
    file.write_text(re.sub(r'"score": [0-9.]+', '"score": NaN', file.read_text(), count=1))
    with pytest.raises(UserError, match=r"prediction 0: expected a score, found none \(or NaN\)"):
        compared(a, b)


def test_hidden_instances_give_the_true_f1(tmp_path: Path) -> None:
    whole = shelves(12, 1.0, extra=0, shift=0.0)
    seen = [replace(p, labels=p.labels[:1], hidden=p.labels[1:]) for p in whole]
    fewer = [replace(p, predictions=p.predictions[:1]) for p in seen]
    a, b = write_run(tmp_path / "a", {100: fewer}), write_run(tmp_path / "b", {100: seen})
    rows = rows_of(compared(a, b))
    assert (rows["f1/f1"]["a"], rows["f1/f1"]["verdict"]) == (1.0, "worse")
    assert (rows["f1/true"]["b"], rows["f1/true"]["verdict"]) == (1.0, "better")
    assert rows["rates/unlabelled"]["verdict"] == "higher"


def test_crowd_regions_are_no_labels(tmp_path: Path) -> None:
    crowd = Instance("book", (0.0, 0.0, 400.0, 200.0), iscrowd=True)
    pictures = [replace(p, labels=(*p.labels, crowd)) for p in shelves(6, 1.0, shift=0.0)]
    a, b = (write_run(tmp_path / name, {100: pictures}) for name in "ab")
    assert rows_of(compared(a, b))["f1/f1"]["a"] == 1.0  # every extra box lies in the crowd


def test_probes(tmp_path: Path) -> None:
    pictures = shelves(30, 0.6)
    a = write_run(tmp_path / "a", {100: pictures}, probes={"entropy": 2.0, "own_mass": 0.5, "flip": True})
    b = write_run(tmp_path / "b", {100: pictures}, probes={"entropy": 1.0, "own_mass": 0.9})
    rows = rows_of(compared(a, b))
    assert (rows["probes/a1/entropy"]["verdict"], rows["probes/a1/entropy"]["higher_is_better"]) == ("lower", None)
    assert rows["probes/last/own_mass"]["verdict"] == "better"
    assert rows["probes/last/own_mass"]["difference"] == pytest.approx(0.4)
    alone = sum(len(p.labels) == 1 for p in pictures)
    assert alone  # a book alone has no neighbour to be taken for
    assert (rows["probes/flip"]["a"], rows["probes/flip"]["n"], rows["probes/flip"]["verdict"]) == (
        1.0,
        30 - alone,
        "better",
    )
    assert "probes/follow/near_own" not in rows


def test_probes_that_mean_different_things_are_left_out(tmp_path: Path) -> None:
    pictures = shelves(6, 0.6)
    a = write_run(tmp_path / "a", {100: pictures}, probes={"entropy": 2.0})
    b = write_run(tmp_path / "b", {100: pictures}, **{"probes": {"entropy": 1.0}})
    file = b / "dumps" / "step_000100" / "protocol.json"
    file.write_text(file.read_text().replace('"passes": 2', '"passes": 1'))
    comparison = compared(a, b)
    rows = rows_of(comparison)
    assert "probes/a1/entropy" in rows
    assert "probes/last/entropy" not in rows
    assert any("the last pass are left out, as these differ: passes 2 and 1" in remark for remark in comparison.remarks)
    c = write_run(tmp_path / "c", {100: pictures})
    assert "probes are left out: none in c" in compared(a, c).remarks


def test_masses_of_another_width_are_left_out(tmp_path: Path) -> None:
    pictures, protocol = shelves(6, 0.6), {"passes": 2, "sigma": 2.0, "object_order": "sorted"}
    a, b = (write_run(tmp_path / name, {100: pictures}, probes={"entropy": 2.0}) for name in "ab")
    for run, settings in ((a, protocol), (b, protocol | {"sigma": 4.0, "object_order": "random"})):
        file = run / "dumps" / "step_000100" / "protocol.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"probes": settings}))
    comparison = compared(a, b)
    assert {"probes/a1/entropy", "probes/last/entropy"} <= rows_of(comparison).keys()
    assert "probes/a1/own_mass" not in rows_of(comparison)
    assert "probes were made under different settings: object_order sorted and random" in comparison.remarks


def telemetry(spread: float, steps: int = 400, seed: int = 0) -> list[dict[str, Any]]:
    """Rows logged every 5 steps."""
    rng = np.random.default_rng(seed)
    key = "window_var/last/bbox_geo/ciou"
    return [{"step": s, "loss/total": 1.0, key: spread * float(rng.uniform(0.5, 1.5))} for s in range(5, steps + 1, 5)]


def test_a_steadier_loss_is_better(tmp_path: Path) -> None:
    pictures = shelves(6, 0.6)
    a = write_run(tmp_path / "a", {400: pictures}, metrics=telemetry(0.02))
    b = write_run(tmp_path / "b", {400: pictures}, metrics=telemetry(0.01, seed=1))
    row = rows_of(compared(a, b))["window_var/last/bbox_geo/ciou"]
    assert (row["group"], row["verdict"], row["n"]) == ("telemetry", "better", 10)  # 200 steps in windows of 20
    assert row["a"] == pytest.approx(0.02, rel=0.1)
    assert row["more_images"] is None


def test_a_short_run_has_no_interval_of_its_variances(tmp_path: Path) -> None:
    pictures = shelves(6, 0.6)
    a, b = (
        write_run(tmp_path / name, {60: pictures}, metrics=telemetry(spread, 60))
        for name, spread in (("a", 1), ("b", 2))
    )
    comparison = compared(a, b)
    row = rows_of(comparison)["window_var/last/bbox_geo/ciou"]
    assert (row["lo"], row["verdict"]) == (None, "can't tell")
    told = "variances have no interval: steps 35 to 60 hold 1 windows of 20 steps, 4 are needed"
    assert told in comparison.remarks


def test_no_folder_of_ours(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected the folder of a run, of a dump or of an evaluation"):
        compared(tmp_path, tmp_path)
    with pytest.raises(UserError, match="expected a folder, found none"):
        compared(tmp_path / "x", tmp_path)


def test_records_are_joined_by_id_not_by_place(tmp_path: Path) -> None:
    pictures = shelves(6, 0.6)
    a, b = (write_run(tmp_path / name, {100: pictures}) for name in "ab")
    file = b / "dumps" / "step_000100" / "records.jsonl"
    file.write_text("".join(json.dumps(record_of(p, 100)) + "\n" for p in reversed(pictures)))
    assert {row["verdict"] for row in rows_of(compared(a, b)).values()} == {"same"}
    assert book(0) == (0.0, 40.0, 12.0, 100.0)


def test_two_steps_of_one_run_share_their_telemetry(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", {200: shelves(6, 0.3), 400: shelves(6, 0.9)}, metrics=telemetry(0.02))
    dumps = sorted((run / "dumps").iterdir())
    assert not [key for key in rows_of(compared(*dumps)) if key.startswith("window_var/")]
