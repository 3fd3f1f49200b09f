"""`apiece ladder`: arms x seeds from one start, one run after another, and their tables."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from apiece.cli import app
from apiece.cli.options import Settings
from apiece.errors import INTERRUPTED, UserError

if TYPE_CHECKING:
    from apiece.config.ladder import LadderFile
    from apiece.study.jobs import Job
    from apiece.study.results import Result
    from apiece.study.summary import Summary

_FORMS = "apiece ladder LADDER.yaml  or  apiece ladder --summary RESULTS --out FILE.md"

Only = typer.Option(metavar="NAME", help="Only this arm, to run or in the tables; may be repeated.")
OnlySeed = typer.Option(metavar="S", help="Only this seed; may be repeated.")
Budget = typer.Option(min=0, help="Start no run that would end after this.")
Redo = typer.Option(
    "--redo", help="Rerun jobs whose results come from other settings, data or start; the old results are kept aside."
)
Results = typer.Option(
    help="Folder of results, or its packed file: make their tables, instead of running. Given again: side by side."
)
Against = typer.Option(metavar="ARM", help="With `--summary`: compare the others with this one.")
Tables = typer.Option("--out", "-o", help="With `--summary`: Markdown file, or one with a place for the tables.")
Pack = typer.Option("--pack", help="With `--summary`: put the folder's results into one file, FOLDER.xz.")


@app.command(short_help="Train, judge and compare a set of configs x seeds.")
def ladder(
    file: Annotated[Path | None, typer.Argument(metavar="LADDER", help="YAML file.")] = None,
    overrides: Settings = None,
    arm: Annotated[list[str] | None, Only] = None,
    seed: Annotated[list[int] | None, OnlySeed] = None,
    list_: Annotated[bool, typer.Option("--list", help="List jobs with their state and cost; run nothing.")] = False,
    prepare: Annotated[bool, typer.Option("--prepare", help="Draw the scenes that are missing; run nothing.")] = False,
    redo: Annotated[bool, Redo] = False,
    budget_minutes: Annotated[float | None, Budget] = None,
    summary: Annotated[list[Path] | None, Results] = None,
    against: Annotated[list[str] | None, Against] = None,
    out: Annotated[Path | None, Tables] = None,
    json: Annotated[Path | None, typer.Option("--json", help="With `--summary`: all figures as JSON.")] = None,
    pack: Annotated[bool, Pack] = False,
    workers: Annotated[int, typer.Option(min=1, help="Processes that draw scenes.")] = 1,
) -> None:
    """Train every arm with every seed from one start, judge all on the same images, and compare them.

    One run after another, each in a process of its own. Every run leaves one result file, small enough to be
    committed, from which all tables and intervals can be made without the run; `--pack` puts those of a ladder into
    one. Finished jobs are skipped, and an interrupted ladder resumes where it stopped, even in the middle of a run.
    Give the command twice for two runs at once: they share the work.

    Examples:

    `apiece ladder ladders/seed_section_5 --list`

    `OMP_NUM_THREADS=1 apiece ladder ladders/seed_section_5 --arm baseline --arm n1 --budget-minutes 60`

    `apiece ladder ladders/seed_section_5 name=sparse data.scenes.unlabelled=0.6 'seeds=[0]'`

    `apiece ladder --summary docs/study/seed_section_5 --out docs/study/seed_section_5.md`
    """
    if (file is None) == (not summary):
        raise UserError("name a LADDER, or results to make a --summary of", fix=_FORMS, exit_code=2)
    if summary:
        idle = {"--seed": seed, "--list": list_, "--prepare": prepare, "--redo": redo}
        if given := [name for name, value in idle.items() if value]:
            raise UserError(f"these do not go together: --summary, {', '.join(given)}", fix=_FORMS, exit_code=2)
        if pack:
            from apiece.study.results import pack_results

            for folder in summary:
                typer.echo(f"packed {folder} into {pack_results(folder)}")
        else:
            _summarise(summary, arm or [], against or [], out, json)
        return
    if against or out or json or pack:
        raise UserError("only with --summary: --against, --out, --json, --pack", fix=_FORMS, exit_code=2)
    assert file is not None, "checked above"
    from apiece.study.jobs import chosen_jobs, ladder_files, load_ladder, plan_jobs

    asked = load_ladder(file, overrides or [])
    files = ladder_files(asked, workers, typer.echo)
    if prepare:
        for name, path in files.named().items():
            typer.echo(f"{name:<15} {path}")
        return
    jobs = plan_jobs(asked, files)
    chosen = chosen_jobs(jobs, arm or [], seed or [])
    if list_:
        _list(chosen)
        return
    compared = chosen_jobs(jobs, [asked.reference, *arm] if arm else [], seed or [])
    _run(asked, chosen, compared, redo, budget_minutes)


def _run(asked: LadderFile, chosen: list[Job], compared: list[Job], redo: bool, budget_minutes: float | None) -> None:
    from apiece.study.jobs import work

    progress = work(chosen, redo=redo, budget_minutes=budget_minutes, tell=typer.echo)
    if progress.why is not None:
        typer.echo(f"stopped: {progress.why}; {progress.left} to do; the same command resumes")
        raise typer.Exit(INTERRUPTED if progress.interrupted else 0)
    if progress.elsewhere:
        typer.echo(f"done here; {progress.elsewhere} are being run elsewhere, {progress.left} are not done yet")
    if chosen and progress.before == len(chosen):
        typer.echo(
            f"nothing to do: all jobs already have results in {chosen[0].results}. To rerun them, pass name=OTHER"
        )
    _finish(asked, compared)
    if progress.failed:
        names = ", ".join(job.name for job, _ in progress.failed)
        message = f"{len(progress.failed)} of {len(chosen)} failed: {names}; the errors are above"
        raise UserError(message, fix="correct the cause and give the same command again: finished jobs are skipped")


def _list(jobs: list[Job]) -> None:
    """Print the state and the cost of every job."""
    from apiece.printed import stdout_console, table
    from apiece.study.jobs import State

    made = table("arm", "seed", "state", "steps", "GFLOP a step", "of reference")
    changed = []
    for job in jobs:
        state, what = job.state()
        changed += [f"{job.name}: {one}" for one in what[:3]]
        cost = job.cost
        how_far = f"{state}, step {job.step}" if state is State.BEGUN else str(state)
        figures = (str(job.config.train.steps), f"{cost.step / 1e9:,.0f}", f"{cost.of_reference:.2f}")
        made.add_row(job.arm, str(job.seed), how_far, *figures)
    stdout_console().print(made)
    for line in changed:
        typer.echo(line)


def _finish(asked: LadderFile, jobs: list[Job]) -> None:
    """Compare the arms that are done: tables on stdout, `comparison.json` and a page."""
    from apiece.files import write_json
    from apiece.study.comparison import comparison_json
    from apiece.study.jobs import State
    from apiece.study.results import read_result
    from apiece.study.summary import comparisons, summarise
    from apiece.study.tables import print_summary, write_page

    done = [job for job in jobs if job.state()[0] is State.DONE]
    arms = {job.arm for job in done}
    if asked.reference not in arms or len(arms) < 2:
        typer.echo("nothing to compare yet: the reference and another arm are needed")
        return
    references = [name for name in (asked.reference, *asked.against) if name in arms]
    found = summarise([read_result(job.result) for job in done], references, arms=list(asked.arms))
    print_summary(found)
    folder = Path(asked.dir) / asked.name
    comparison = comparison_json(comparisons(found, asked.reference))
    write_json(folder / "comparison.json", comparison)
    built = write_page(done, comparison, folder / "report")
    typer.echo(f"\nresults: {done[0].results}; comparison: {folder / 'comparison.json'}")
    if built is not None:
        typer.echo(f"page: {built.page}")
    typer.echo(f"tables: apiece ladder --summary {done[0].results} --out {done[0].results}.md")


def _summarise(folders: list[Path], arms: list[str], against: list[str], out: Path | None, json: Path | None) -> None:
    """Make tables of results; of several ladders, only of the arms that all of them have."""
    from apiece.files import write_json, write_text
    from apiece.study.results import read_results
    from apiece.study.tables import across, across_brief, brief, print_summary, put_in, to_markdown

    results = [read_results(folder) for folder in folders]
    shared = set.intersection(*({result.arm for result in one} for one in results))
    where = ", ".join(map(str, folders))
    if not shared:
        message = "these ladders have no arm in common, so there is nothing to compare"
        raise UserError(message, where=where, fix="make the tables of each of them alone", exit_code=2)
    if unknown := sorted({*arms, *against} - shared):
        fix = f"name some of {', '.join(sorted(shared))}"
        raise UserError(f"there are no results of: {', '.join(unknown)}", where=where, fix=fix, exit_code=2)
    kept = {*arms, *(against or results[0][0].references[:1])} if arms else shared
    found = [
        _summary_of(folder, [result for result in one if result.arm in kept], against)
        for folder, one in zip(folders, results, strict=True)
    ]
    if out is None:
        for one in found:
            print_summary(one)
    else:
        single = len(found) == 1
        name = found[0].ladder if single else "across"
        text = to_markdown(found[0]) if single else across(found)
        short = brief(found[0]) if single else across_brief(found)
        page = out.is_file() and "<!-- ladder " in out.read_text(encoding="utf-8")  # with places for tables
        write_text(out, put_in(out, name, text, short) if page else text)
        typer.echo(f"wrote {out}")
    if json is not None:
        write_json(json, found[0].as_json() if len(found) == 1 else [one.as_json() for one in found])
        typer.echo(f"wrote {json}")


def _summary_of(folder: Path, results: list[Result], against: list[str]) -> Summary:
    from apiece.study.summary import summarise

    latest = max(results, key=lambda result: len(result.arms))
    there = {result.arm for result in results}
    references = against or [name for name in latest.references if name in there]
    if not references:
        message = f"{latest.references[0]}, the reference of this ladder, is not among the results"
        fix = f"run it, or name another one: --against ARM, of {', '.join(sorted(there))}"
        raise UserError(message, where=folder, fix=fix)
    return summarise(results, references, arms=latest.arms)
