"""Result files and their summary: what is packed comes back, and intervals are those of `apiece compare`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ladders import by_key, complete_of, made_result, nothing, result_of, source_of
from typer.testing import CliRunner

import apiece.cli.ladder  # noqa: F401  registers the command
from apiece.cli import app
from apiece.errors import UserError
from apiece.evaluate.ap import coco_scores
from apiece.evaluate.metrics import evaluate_detections
from apiece.evaluate.rates import image_ratios, judge
from apiece.study.arms import Arm
from apiece.study.comparison import compare
from apiece.study.results import (
    Counts,
    Result,
    count_split,
    pack_results,
    packed_counts,
    read_result,
    read_results,
    unpacked_counts,
    values_of,
    write_result,
)
from apiece.study.summary import Mean, summarise
from apiece.study.tables import brief, difference_text, number, put_in, to_markdown
from compared import Picture, shelves, split_of

SEEDS = (0, 1, 2)


def hiding(pictures: list[Picture]) -> list[Picture]:
    """The same with every third label taken away, but known to be there."""
    return [replace(p, labels=p.labels[::3] or p.labels, hidden=p.labels[1::3] + p.labels[2::3]) for p in pictures]


def arm(name: str, found: float, count: int = 30) -> dict[int, list[Picture]]:
    return {seed: hiding(shelves(count, found, seed=100 * seed + len(name))) for seed in SEEDS}


@pytest.fixture(scope="module")
def two_arms() -> dict[str, dict[int, list[Picture]]]:
    return {"a": arm("a", 0.5), "b": arm("bb", 0.6)}


@pytest.fixture(scope="module")
def results(two_arms: dict[str, dict[int, list[Picture]]]) -> list[Result]:
    return [result_of(pictures, name, seed) for name, seeds in two_arms.items() for seed, pictures in seeds.items()]


def back(split: Counts) -> Counts:
    """Through JSON."""
    return unpacked_counts(json.loads(json.dumps(packed_counts(split))))


def test_a_split_without_images_comes_back() -> None:
    split = back(count_split(*nothing()))
    assert split.images == 0
    assert values_of(split) == {}


def test_what_is_packed_comes_back(two_arms: dict[str, dict[int, list[Picture]]]) -> None:
    pictures = two_arms["a"][0]
    truth, detections = split_of(pictures)
    complete = complete_of(pictures, truth)
    split = count_split(truth, detections, complete, on_truth=True)
    again = back(split)
    assert split.ratios.keys() == again.ratios.keys()
    for key, ratio in split.ratios.items():
        np.testing.assert_allclose(again.ratios[key].part, ratio.part, rtol=1e-6)
        np.testing.assert_array_equal(again.ratios[key].whole, ratio.whole)
    for prefix, matches in split.ap.items():
        for name in ("image", "category", "found", "ignored", "labels"):
            np.testing.assert_array_equal(getattr(again.ap[prefix], name), getattr(matches, name))


def test_figures_are_those_of_metrics_json_on_both_truths(two_arms: dict[str, dict[int, list[Picture]]]) -> None:
    pictures = two_arms["a"][0]
    truth, detections = split_of(pictures)
    complete = complete_of(pictures, truth)
    assert complete is not None
    figures = values_of(back(count_split(truth, detections, complete, on_truth=True)))
    metrics = evaluate_detections(truth, detections, policy="x", complete=complete)
    for key in ("f1/f1", "f1/true", "rates/group", "rates/unlabelled", "shape/strip", "coco/AP", "coco/AP50"):
        assert figures[key] == pytest.approx(metrics[key], abs=1e-12), key
    assert figures["true/coco/AP"] == pytest.approx(coco_scores(complete, detections).figures["AP"], abs=1e-12)
    ratios = image_ratios(complete, detections, judge(complete, detections))
    assert figures["true/rates/background"] == pytest.approx(ratios["rates/background"].value)
    assert figures["true/f1/f1"] == figures["f1/true"]


def test_intervals_are_those_of_compare(
    two_arms: dict[str, dict[int, list[Picture]]], results: list[Result], tmp_path: Path
) -> None:
    for result in results:
        write_result(tmp_path / f"{result.name}.json", result)
    read = [read_result(tmp_path / f"{result.name}.json") for result in results]
    arms = [
        Arm(name, tuple(source_of(pictures, f"{name}{seed}", seed) for seed, pictures in seeds.items()))
        for name, seeds in two_arms.items()
    ]
    rows = by_key(compare(arms, draws=200)[0])
    summary = summarise(read, ["a"], draws=200)
    compared = 0
    for key, row in rows.items():
        if key == "f1/lenient":  # depends on scores, which are not kept
            continue
        found = summary.differences["a", "b", "all", key].found
        assert (found.verdict, found.difference) == (row.verdict, pytest.approx(row.difference, abs=1e-6)), key
        assert (found.lo, found.hi) == (pytest.approx(row.lo, abs=1e-5), pytest.approx(row.hi, abs=1e-5)), key
        assert summary.means["b", "all", key].value == pytest.approx(row.b, abs=1e-6)
        compared += 1
    assert compared > 20


def test_crowding_is_by_what_is_there(results: list[Result]) -> None:
    summary = summarise(results, ["a"], draws=100)
    objects = results[0].test.objects
    assert summary.images == {
        "all": 30, "1-5": int((objects <= 5).sum()), "6-15": int((objects > 5).sum()), "16+": 0,
    }  # fmt: skip
    whole, few, more = (summary.means["a", scope, "count/per_image"] for scope in ("all", "1-5", "6-15"))
    assert whole.value is not None and few.value is not None and more.value is not None
    assert 30 * whole.value == pytest.approx(summary.images["1-5"] * few.value + summary.images["6-15"] * more.value)
    assert ("a", "16+", "f1/f1") not in summary.means


def test_an_interval_of_an_arm_holds_its_value(results: list[Result]) -> None:
    summary = summarise(results, ["a"], draws=200)
    for (_, _, key), mean in summary.means.items():
        if mean.value is not None and mean.lo is not None and mean.hi is not None:
            assert mean.lo <= mean.value <= mean.hi, key
            assert mean.value == pytest.approx(np.mean(mean.by_seed))


def test_an_arm_is_the_same_as_itself(two_arms: dict[str, dict[int, list[Picture]]]) -> None:
    same = [result_of(two_arms["a"][seed], name, seed) for name in ("a", "b") for seed in SEEDS]
    found = summarise(same, ["a"], draws=100).differences["a", "b", "all", "true/f1/f1"].found
    assert (found.difference, found.lo, found.hi, str(found.verdict)) == (0, 0, 0, "same")


def test_one_seed_is_told(results: list[Result]) -> None:
    remarks = summarise([r for r in results if r.seed == 0], ["a"], draws=100).remarks
    assert any("one seed alone" in remark and "a, b" in remark for remark in remarks)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"protocol": {"data": "22"}}, "data: 11 then, 22 now"),
        ({"made_from": {"start": {"model.safetensors": "99"}, "data": {"test": "11"}, "probes": {}}}, "start.model"),
    ],
)
def test_what_cannot_be_compared_is_refused(results: list[Result], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"a_seed0 and b_seed0 cannot be compared, these differ: {message}"):
        summarise([results[0], replace(results[3], **changes)], ["a"])


def test_seeds_of_an_arm_that_differ_in_more_are_refused(results: list[Result]) -> None:
    other = replace(results[1], made_from={**results[1].made_from, "settings": {"train.steps": 7}})
    with pytest.raises(UserError, match="the seeds of a differ in more than their seed"):
        summarise([results[0], other, results[3]], ["a"])


def test_no_verdict_without_an_interval(two_arms: dict[str, dict[int, list[Picture]]]) -> None:
    single = [result_of(seeds[0][:1], name, 0) for name, seeds in two_arms.items()]
    text = to_markdown(summarise(single, ["a"], draws=100))
    rows = [line for line in text.split("### Against a")[1].splitlines() if line.startswith("| b ")]
    assert len(rows) == 4  # F1 and AP, shapes, probes, variances
    cells = [cell.strip() for row in rows[:2] for cell in row.strip("|").split("|")[1:]]
    assert all(cell.endswith(("(no interval)", "same", "-")) for cell in cells), cells
    assert any(cell.endswith("(no interval)") for cell in cells)


def test_the_tables_name_every_arm_and_their_difference(results: list[Result]) -> None:
    text = to_markdown(summarise(results, ["a"], draws=200))
    assert "| a | 0, 1, 2 | 100 x 4 | 2 | 1.00 | 11.0 |" in text
    summary = summarise(results, ["a"], draws=200)
    found = summary.differences["a", "b", "all", "true/f1/f1"].found
    assert found.difference is not None and found.lo is not None and found.hi is not None
    cells = [number(value, "true/f1/f1", sign=True) for value in (found.difference, found.lo, found.hi)]
    assert f"{cells[0]} [{cells[1]}, {cells[2]}] " in text


def test_explanations_are_counted_over_seeds(results: list[Result]) -> None:
    def said(verdict: str) -> dict[str, Any]:
        one = {"averaging": {"verdict": verdict}, "chimera": {"verdict": "supported"}}
        return {"verdict": ["chimera"], "long_boxes": {"value": 0.125}, "explanations": one}

    words = ("refuted", "can't tell", "refuted")
    explained = [replace(r, diagnosis=said(word)) for r, word in zip(results[:3], words, strict=True)]
    text = to_markdown(summarise([*explained, *results[3:]], ["a"], draws=100))
    assert "| a | 0.125 | refuted (2), can't tell (1) | supported (3) | chimera (3) |" in text
    assert "| b | - | | | |" in text
    assert "long boxes" not in to_markdown(summarise(results, ["a"], draws=100))


def test_telemetry_is_compared_step_by_step(results: list[Result]) -> None:
    key = "window_var/last/bbox_geo/ciou"
    louder = [replace(r, telemetry={key: {s: 3 * v for s, v in r.telemetry[key].items()}}) for r in results[3:]]
    summary = summarise([*results[:3], *louder], ["a"], draws=200)
    found = summary.differences["a", "b", "all", key].found
    assert str(found.verdict) == "worse" and found.lo is not None and found.lo > 0


def test_what_goes_with_group_boxes_over_arms(results: list[Result]) -> None:
    """Eight arms whose `drift` is higher the more group boxes they have, and whose entropy is the same."""
    summary = summarise(results, ["a"], draws=200)
    rows = summary.results["a"]
    rates = {f"arm{i}": i / 100 for i in range(8)}
    means = {}
    for arm, rate in rates.items():
        means[arm, "all", "rates/group"] = Mean(rate, None, None, (rate,))
        means[arm, "all", "probes/drift"] = Mean(rate**2, None, None, (rate**2,))
        means[arm, "all", "probes/a1/entropy"] = Mean(1.0, None, None, (1.0,))
    many = replace(summary, results=dict.fromkeys(rates, rows), means=means, differences={}, references=())
    text = to_markdown(many)
    assert "### What goes with group, over 8 arms" in text
    assert "| drift from a1 to last, bins | +1.00 [+1.00, +1.00] |" in text
    assert "| entropy, nats |" not in text.split("What goes with")[1]
    few = replace(many, results=dict.fromkeys(list(rates)[:7], rows))
    assert "What goes with" not in to_markdown(few)


def test_other_scores_of_the_same_boxes(results: list[Result]) -> None:
    """Differences are taken within a run, so that arms of different AP do not blur them."""
    scored = []
    for result, ap in zip(results, (0.2, 0.5, 0.8, 0.3, 0.6, 0.9), strict=True):
        other = {"coco/AP": ap, "coco_by_policy/coord_logprob/AP": ap, "coco_by_policy/product/AP": ap + 0.02}
        kept = {key: value for key, value in result.metrics.items() if not key.startswith("coco_by_policy/")}
        metrics = {**kept, **other, "coco_by_policy/constant/AP": ap - 0.1 if ap > 0.2 else ap + 0.01}
        scored.append(replace(result, metrics=metrics, protocol={**result.protocol, "score_policy": "coord_logprob"}))
    text = brief(summarise(scored, ["a"], draws=100)).split(
        "### AP under other scores than `coord_logprob`, over 6 runs"
    )
    assert [line for line in text[1].splitlines() if line.startswith("| `")] == [
        "| `product` | +0.0200 | +0.0200 | +0.0200 | 6 of 6 |",
        "| `constant` | -0.0817 | -0.100 | +0.0100 | 1 of 6 |",
    ]


def test_the_short_tables_have_the_headline_figures(results: list[Result]) -> None:
    summary = summarise(results, ["a"], draws=200)
    first, second = brief(summary).split("\n\n")
    assert [line.split(" | ")[:2] for line in first.splitlines()[2:]] == [["| a", "3"], ["| b", "3"]]
    assert second.splitlines()[0].startswith("| minus a | F1, complete truth | AP, complete truth | F1 | AP |")
    found = summary.differences["a", "b", "all", "f1/f1"]
    assert difference_text(found, "f1/f1") in second.splitlines()[2]


def test_tables_are_put_in_their_place(tmp_path: Path) -> None:
    page = tmp_path / "study.md"
    page.write_text("# Study\n<!-- ladder small -->\nold\n<!-- end small -->\nafter\n")
    text = put_in(page, "small", "new\n")
    assert text == "# Study\n<!-- ladder small -->\nnew\n<!-- end small -->\nafter\n"
    page.write_text(
        "<!-- ladder small brief -->\n<!-- end small -->\nwords\n<!-- ladder small -->\n<!-- end small -->\n"
    )
    text = put_in(page, "small", "all\n", "few\n")
    assert text == (
        "<!-- ladder small brief -->\nfew\n<!-- end small -->\nwords\n<!-- ladder small -->\nall\n<!-- end small -->\n"
    )
    with pytest.raises(UserError, match="expected a place for the tables of other, found none"):
        put_in(page, "other", "new\n")


def test_the_summary_command(results: list[Result], tmp_path: Path) -> None:
    for result in results:
        write_result(tmp_path / "small" / f"{result.name}.json", result)
    arguments = [
        "ladder",
        "--summary",
        str(tmp_path / "small"),
        "--out",
        str(tmp_path / "s.md"),
        "--json",
        str(tmp_path / "s.json"),
    ]
    outcome = CliRunner().invoke(app, arguments)
    assert outcome.exit_code == 0, outcome.output
    assert (tmp_path / "s.md").read_text().startswith("## small\n")
    stored = json.loads((tmp_path / "s.json").read_text())
    assert stored["differences"]["a"]["b"]["all"]["f1/f1"]["verdict"] in ("better", "can't tell")
    assert len(stored["arms"]["a"]["figures"]["all"]["f1/f1"]["by_seed"]) == 3


def test_ladders_side_by_side(results: list[Result], tmp_path: Path) -> None:
    for ladder in ("few", "many"):
        for result in results:
            write_result(tmp_path / ladder / f"{result.name}.json", replace(result, ladder=ladder))
    folders = [argument for name in ("few", "many") for argument in ("--summary", str(tmp_path / name))]
    outcome = CliRunner().invoke(app, ["ladder", *folders, "--out", str(tmp_path / "both.md")])
    assert outcome.exit_code == 0, outcome.output
    rows = [line.split("|")[1:3] for line in (tmp_path / "both.md").read_text().splitlines() if line.startswith("| ")]
    assert [[cell.strip() for cell in row] for row in rows[1:7]] == [
        ["few", "a"], ["few", "b"], ["", "b - a"], ["many", "a"], ["many", "b"], ["", "b - a"],
    ]  # fmt: skip


def test_side_by_side_are_the_arms_that_all_have(results: list[Result], tmp_path: Path) -> None:
    for result in results:
        write_result(tmp_path / "few" / f"{result.name}.json", replace(result, ladder="few"))
        write_result(tmp_path / "many" / f"{result.name}.json", replace(result, ladder="many"))
    third = replace(results[3], ladder="many", arm="c")
    write_result(tmp_path / "many" / f"{third.name}.json", third)
    folders = [argument for name in ("few", "many") for argument in ("--summary", str(tmp_path / name))]
    page = tmp_path / "study.md"
    page.write_text("<!-- ladder across brief -->\n<!-- end across -->\nafter\n")
    outcome = CliRunner().invoke(app, ["ladder", *folders, "--out", str(page)])
    assert outcome.exit_code == 0, outcome.output
    rows = [[cell.strip() for cell in line.split("|")[1:4]] for line in page.read_text().splitlines() if "|" in line]
    assert rows[2:] == [
        ["few", "a", "3"], ["few", "b", "3"], ["few", "b - a", ""],
        ["many", "a", "3"], ["many", "b", "3"], ["many", "b - a", ""],
    ]  # fmt: skip
    assert page.read_text().endswith("<!-- end across -->\nafter\n")


def test_ladders_without_a_common_arm_are_refused(results: list[Result], tmp_path: Path) -> None:
    for ladder, result in (("few", results[0]), ("many", results[3])):
        write_result(tmp_path / ladder / f"{result.name}.json", replace(result, ladder=ladder))
    folders = [argument for name in ("few", "many") for argument in ("--summary", str(tmp_path / name))]
    outcome = CliRunner().invoke(app, ["ladder", *folders])
    assert isinstance(outcome.exception, UserError)
    assert "these ladders have no arm in common" in str(outcome.exception)


def test_tables_of_some_arms(results: list[Result], tmp_path: Path) -> None:
    third = replace(results[3], arm="c")
    for result in (*results, third):
        write_result(tmp_path / "small" / f"{result.name}.json", result)
    command = ["ladder", "--summary", str(tmp_path / "small"), "--json", str(tmp_path / "s.json")]

    def arms(*words: str) -> list[str]:
        outcome = CliRunner().invoke(app, [*command, *words])
        assert outcome.exit_code == 0, outcome.output
        return list(json.loads((tmp_path / "s.json").read_text())["arms"])

    assert arms() == ["a", "b", "c"]
    assert arms("--arm", "c") == ["a", "c"]
    assert arms("--arm", "c", "--against", "b") == ["b", "c"]
    outcome = CliRunner().invoke(app, [*command, "--arm", "d"])
    assert outcome.exit_code
    assert isinstance(outcome.exception, UserError)
    assert "there are no results of: d" in str(outcome.exception)


@pytest.mark.parametrize("text", ["{", "{}", '{"schema": 1}', "[]"])
def test_a_broken_result_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "a_seed0.json").write_text(text)
    with pytest.raises(UserError, match=r"a_seed0.json: (expected a result of `apiece ladder`|broken JSON)"):
        read_result(tmp_path / "a_seed0.json")


def test_equal_results_give_equal_bytes(results: list[Result], tmp_path: Path) -> None:
    for name in ("x", "y"):
        write_result(tmp_path / name, made_result("a", 0, results[0].test))
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()


def test_packed_results_are_those_of_the_folder(results: list[Result], tmp_path: Path) -> None:
    for result in results:
        write_result(tmp_path / "small" / f"{result.name}.json", result)
    before = summarise(read_results(tmp_path / "small"), ["a"], draws=100).as_json()
    outcome = CliRunner().invoke(app, ["ladder", "--summary", str(tmp_path / "small"), "--pack"])
    assert outcome.exit_code == 0, outcome.output
    assert [path.name for path in tmp_path.iterdir()] == ["small.xz"]
    packed = (tmp_path / "small.xz").read_bytes()
    for path in (tmp_path / "small", tmp_path / "small.xz"):  # the folder's name stands for its packed file
        assert summarise(read_results(path), ["a"], draws=100).as_json() == before
    pack_results(tmp_path / "small")
    assert (tmp_path / "small.xz").read_bytes() == packed
    write_result(tmp_path / "small" / "b_seed0.json", replace(results[3], steps=7))
    assert [r.steps for r in read_results(tmp_path / "small")] == [100, 100, 100, 7, 100, 100]
    (tmp_path / "small.xz").write_bytes(packed[:-9])
    with pytest.raises(UserError, match=r"small.xz: expected the packed results of a ladder"):
        read_results(tmp_path / "small.xz")
