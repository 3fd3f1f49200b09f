"""A ladder that is run: skips, resumes, refuses what has changed, and ends with a comparison and a page."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from ladders import write_ladder
from typer.testing import CliRunner

import apiece.cli.ladder  # noqa: F401  registers the command
from apiece.cli import app
from apiece.errors import UserError
from apiece.files import write_json
from apiece.study import jobs as work_module
from apiece.study import summary as summary_module
from apiece.study.jobs import Job, State, chosen_jobs, ladder_files, load_ladder, plan_jobs, work
from apiece.study.measure import do_job
from apiece.study.results import Result, pack_results, read_result
from apiece.train import loop


def jobs_of(file: Path) -> list[Job]:
    ladder = load_ladder(file)
    return plan_jobs(ladder, ladder_files(ladder))


def never(job: Job) -> bool:
    raise AssertionError(f"{job.name} was to be skipped")


def states(jobs: Sequence[Job]) -> list[State]:
    return [job.state()[0] for job in jobs]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Path:
    """The folder of a ladder that was run: two arms, two seeds, two steps."""
    root = tmp_path_factory.mktemp("ladder")
    file = write_ladder(root, tiny_checkpoint)
    progress = work(jobs_of(file), run=do_job)
    assert (len(progress.done), progress.left, progress.why) == (4, 0, None)
    return root


def test_every_arm_and_seed_leaves_a_result_and_is_skipped_then(finished: Path) -> None:
    jobs = jobs_of(finished / "ladder.yaml")
    assert [job.name for job in jobs] == ["two_seed0", "one_seed0", "two_seed1", "one_seed1"]
    progress = work(jobs, run=never)
    assert (progress.before, progress.done) == (4, ())
    result = read_result(jobs[1].result)
    assert (result.arm, result.seed, result.steps, result.references) == ("one", 0, 2, ("two",))
    assert result.test.images == 4 and result.panel.images == 2
    assert 0 < result.flops["of_reference"] < 1  # one pass costs less than two
    figures = json.loads(jobs[1].result.read_text())["figures"]
    assert {
        "f1/f1",
        "true/f1/f1",
        "coco/AP",
        "true/coco/AP",
        "true/count/truths",
        "speed/samples_per_s",
    } <= figures.keys()
    assert figures["f1/true"] == pytest.approx(figures["true/f1/f1"])
    assert "probes/a1/entropy" in figures and "window_var/last/bbox_geo/ciou" not in figures
    assert result.diagnosis["explanations"].keys() == {"averaging", "chimera", "labels"}
    assert jobs[1].result.stat().st_size < 45_000


def test_a_killed_run_goes_on_from_its_checkpoint(
    tmp_path: Path, tiny_checkpoint: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished / "data", tmp_path / "data")
    job = jobs_of(write_ladder(tmp_path, tiny_checkpoint))[0]
    real = loop.train_step

    def interrupting(*args: object, **kwargs: object) -> object:
        os.kill(os.getpid(), signal.SIGINT)
        return real(*args, **kwargs)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", interrupting)
        progress = work([job], run=do_job)
    assert (progress.why, progress.interrupted, progress.left) == ("interrupted in two_seed0", True, 1)
    assert (states([job]), job.step) == ([State.BEGUN], 1)
    progress = work([job], run=do_job)
    assert states([job]) == [State.DONE]
    steps = [json.loads(line)["step"] for line in (job.run / "metrics.jsonl").read_text().splitlines()]
    assert sorted(set(steps)) == [1, 2]
    whole = read_result(finished / "study" / "small" / "two_seed0.json")
    assert read_result(job.result).metrics == pytest.approx(
        {**whole.metrics, "speed/samples_per_s": pytest.approx(1, abs=1e3)}
    )


def test_a_run_that_no_ladder_began_is_left_alone(tmp_path: Path, tiny_checkpoint: Path, finished: Path) -> None:
    shutil.copytree(finished / "data", tmp_path / "data")
    job = jobs_of(write_ladder(tmp_path, tiny_checkpoint))[0]
    job.run.mkdir(parents=True)
    with pytest.raises(UserError, match="two_seed0: a run of this name exists that no ladder began"):
        do_job(job)


def test_a_changed_setting_is_named_and_refused_and_put_aside_when_asked(
    tmp_path: Path, tiny_checkpoint: Path, finished: Path
) -> None:
    for folder in ("data", "runs", "study"):
        shutil.copytree(finished / folder, tmp_path / folder)
    file = write_ladder(tmp_path, tiny_checkpoint)
    text = file.read_text()
    assert states(jobs_of(file)) == [State.DONE] * 4
    file.write_text(text.replace("train.batch_size=2", "train.batch_size=3"))
    jobs = jobs_of(file)
    assert states(jobs) == [State.CHANGED] * 4
    with pytest.raises(UserError, match=r"two_seed0: settings.train.batch_size: 2 then, 3 now(?s:.*)--redo"):
        work(jobs, run=never)
    told: list[str] = []
    done = work(jobs[:1], redo=True, run=lambda job: job.name == "two_seed0", tell=told.append)
    assert len(done.done) == 1
    aside = tmp_path / "runs" / "small" / "replaced" / "two_seed0-1"
    assert sorted(path.name for path in aside.iterdir()) == ["begun.json", "result.json", "run"]


def test_packed_results_count_as_done_until_a_new_one_lies_in_the_folder(
    tmp_path: Path, tiny_checkpoint: Path, finished: Path
) -> None:
    for folder in ("data", "study"):
        shutil.copytree(finished / folder, tmp_path / folder)
    file = write_ladder(tmp_path, tiny_checkpoint)
    stored = json.loads((tmp_path / "study" / "small" / "two_seed0.json").read_text())
    assert pack_results(tmp_path / "study" / "small") == tmp_path / "study" / "small.xz"
    jobs = jobs_of(file)
    assert not (tmp_path / "study" / "small").exists()
    assert states(jobs) == [State.DONE] * 4
    assert read_result(jobs[0].result).machine == stored["machine"]
    write_json(jobs[0].result, {**stored, "made_from": {**stored["made_from"], "seed": 9}})
    assert states(jobs) == [State.CHANGED, State.DONE, State.DONE, State.DONE]


def test_a_setting_that_there_was_not_yet_is_no_change(tmp_path: Path, tiny_checkpoint: Path, finished: Path) -> None:
    for folder in ("data", "study"):
        shutil.copytree(finished / folder, tmp_path / folder)
    job = jobs_of(write_ladder(tmp_path, tiny_checkpoint))[0]
    stored = json.loads(job.result.read_text())
    for key, state in (("optim.clip_norm", State.DONE), ("train.steps", State.CHANGED)):  # at its default; set
        del stored["made_from"]["settings"][key]
        job.result.write_text(json.dumps(stored))
        assert job.state()[0] is state


def test_one_that_fails_does_not_stop_the_others(tmp_path: Path, tiny_checkpoint: Path, finished: Path) -> None:
    shutil.copytree(finished / "data", tmp_path / "data")
    jobs = jobs_of(write_ladder(tmp_path, tiny_checkpoint))
    told: list[str] = []

    def breaking(job: Job) -> bool:
        if job.arm == "one":
            raise UserError("the loss is not finite")
        return True

    progress = work(jobs, run=breaking, tell=told.append)
    assert [job.name for job in progress.done] == ["two_seed0", "two_seed1"]
    assert [job.name for job, _ in progress.failed] == ["one_seed0", "one_seed1"]
    assert "[2/4] the loss is not finite" in told


def test_a_spent_budget_begins_nothing_more(tmp_path: Path, tiny_checkpoint: Path, finished: Path) -> None:
    shutil.copytree(finished / "data", tmp_path / "data")
    jobs = jobs_of(write_ladder(tmp_path, tiny_checkpoint))
    begun: list[str] = []

    def slow(job: Job) -> bool:
        begun.append(job.name)
        time.sleep(0.06)
        return True

    progress = work(jobs, budget_minutes=0.1 / 60, run=slow)
    assert begun == ["two_seed0"]
    assert (progress.why, progress.left) == ("0.00166667 minutes are spent", 4)


def test_another_start_is_a_change(tmp_path: Path, tiny_checkpoint: Path, finished: Path) -> None:
    for folder in ("data", "study"):
        shutil.copytree(finished / folder, tmp_path / folder)
    shutil.copytree(tiny_checkpoint, tmp_path / "start")
    weights = tmp_path / "start" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    state, what = jobs_of(write_ladder(tmp_path, tmp_path / "start"))[0].state()
    assert state is State.CHANGED
    assert [line.partition(":")[0] for line in what] == ["start.model.safetensors"]


def test_a_job_that_another_process_works_at_is_passed_over(
    tmp_path: Path, tiny_checkpoint: Path, finished: Path
) -> None:
    shutil.copytree(finished / "data", tmp_path / "data")
    jobs = jobs_of(write_ladder(tmp_path, tiny_checkpoint))
    inner: list[int] = []

    def meanwhile(job: Job) -> bool:
        inner.append(work(jobs[:1], run=never).elsewhere)
        return False

    work(jobs[:1], run=meanwhile)
    assert inner == [1]


def test_equal_compute_gives_the_cheaper_arm_more_steps(tmp_path: Path, tiny_checkpoint: Path, finished: Path) -> None:
    shutil.copytree(finished / "data", tmp_path / "data")
    file = write_ladder(tmp_path, tiny_checkpoint)
    text = file.read_text().replace("reference: two", "reference: two\nmatch: compute").replace("steps=2", "steps=40")
    file.write_text(text)
    two, one = jobs_of(file)[:2]
    assert two.config.train.steps == 40 < one.config.train.steps
    assert one.cost.of_reference == pytest.approx(1, abs=0.02)
    assert one.cost.step < two.cost.step


def test_the_command_ends_with_a_table_and_a_page(finished: Path) -> None:
    outcome = CliRunner().invoke(app, ["ladder", str(finished / "ladder.yaml")])
    assert outcome.exit_code == 0, outcome.output
    assert "against two" in outcome.output
    comparison = json.loads((finished / "runs" / "small" / "comparison.json").read_text())
    assert (comparison["a"], comparison["b"]) == ("two", "one")
    assert {"true/f1/f1", "coco/AP", "probes/drift"} <= {row["key"] for row in comparison["rows"]}
    assert (finished / "runs" / "small" / "report" / "index.html").is_file()


def test_list_says_what_there_is_to_do(finished: Path) -> None:
    outcome = CliRunner().invoke(app, ["ladder", str(finished / "ladder.yaml"), "--list", "--arm", "one"])
    lines = outcome.output.splitlines()
    assert [line.split()[:4] for line in lines[1:]] == [["one", "0", "done", "2"], ["one", "1", "done", "2"]]


def test_some_of_the_arms_are_compared_with_the_reference(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """... and nothing else is: the comparison of all takes minutes where there are many."""
    seen: list[tuple[str, ...]] = []
    real = summary_module.summarise

    def noting(results: Sequence[Result], *rest: Any, **options: Any) -> Any:
        seen.append(tuple(result.name for result in results))
        return real(results, *rest, **options)

    monkeypatch.setattr(summary_module, "summarise", noting)
    outcome = CliRunner().invoke(app, ["ladder", str(finished / "ladder.yaml"), "--arm", "one", "--seed", "1"])
    assert outcome.exit_code == 0, outcome.output
    assert seen == [("two_seed1", "one_seed1")]
    assert "nothing to do: all jobs already have results" in outcome.output
    assert "To rerun them, pass name=OTHER" in outcome.output


def test_settings_on_top_of_the_file(finished: Path) -> None:
    command = ["ladder", str(finished / "ladder.yaml"), "name=other", "seeds=[4]", "--list"]
    outcome = CliRunner().invoke(app, command)
    lines = outcome.output.splitlines()
    assert [line.split()[:4] for line in lines[1:]] == [["two", "4", "to", "do"], ["one", "4", "to", "do"]]


def test_an_arm_with_some_of_the_seeds(finished: Path) -> None:
    command = ["ladder", str(finished / "ladder.yaml"), "arms.one.seeds=[1]", "--list"]
    lines = CliRunner().invoke(app, command).output.splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [["two", "0"], ["two", "1"], ["one", "1"]]


@pytest.mark.parametrize(("seeds", "found"), [("[1, 4]", "4"), ("[]", "none")])
def test_an_arm_with_seeds_that_are_not_the_ladders(finished: Path, seeds: str, found: str) -> None:
    outcome = CliRunner().invoke(app, ["ladder", str(finished / "ladder.yaml"), f"arms.one.seeds={seeds}", "--list"])
    assert f"arms.one.seeds: name some of the ladder's (0, 1), found {found}" in str(outcome.exception)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a LADDER, or results to make a --summary of"),
        (["x.yaml", "--out", "y"], "only with --summary"),
        (["--summary", "x", "--redo"], "these do not go together: --summary, --redo"),
        (["--summary", "gone"], "gone: expected a folder of results, found none\n  fix: name a folder that"),
        (["gone.yaml"], "gone.yaml: config file not found"),
    ],
)
def test_a_wrong_command(arguments: list[str], message: str) -> None:
    outcome = CliRunner().invoke(app, ["ladder", *arguments])
    assert isinstance(outcome.exception, UserError)
    assert message in str(outcome.exception)


def test_an_arm_that_there_is_none_of(finished: Path) -> None:
    with pytest.raises(UserError, match=r"there is no arm three in this ladder\n  fix: arms: two, one"):
        chosen_jobs(jobs_of(finished / "ladder.yaml"), ["three"], [])


@pytest.mark.parametrize(("code", "asked"), [(0, True), (130, False)])
def test_a_job_in_a_process_of_its_own(finished: Path, monkeypatch: pytest.MonkeyPatch, code: int, asked: bool) -> None:
    monkeypatch.setattr(work_module, "get_context", lambda _: _Context(code))
    assert work_module.in_a_process(jobs_of(finished / "ladder.yaml")[0]) is asked


def test_a_job_that_fails_says_where(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work_module, "get_context", lambda _: _Context(1))
    with pytest.raises(UserError, match=r"two_seed0 failed \(exit code 1\)"):
        work_module.in_a_process(jobs_of(finished / "ladder.yaml")[0])


class _Context:
    """A process that ends with a code."""

    def __init__(self, code: int) -> None:
        self.exitcode = code

    def Process(self, **_: object) -> _Context:  # noqa: N802
        return self

    def start(self) -> None: ...

    def join(self) -> None: ...
