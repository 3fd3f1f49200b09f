"""`apiece compare`: two or more runs on the same images, with intervals and plain verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from apiece.cli import app
from apiece.cli.options import Overwrite
from apiece.errors import UserError
from apiece.stats import DRAWS

_FORMS = "apiece compare RUN_A RUN_B [...]  or  apiece compare --arm A=RUN[,RUN] --arm B=RUN[,RUN]"
_FILE = "comparison.json"


@app.command(short_help="Compare runs on the same images, with intervals and verdicts.")
def compare(
    runs: Annotated[
        list[Path] | None, typer.Argument(metavar="RUN_A RUN_B [...]", help="Folders of runs, dumps or evaluations.")
    ] = None,
    arm: Annotated[
        list[str] | None, typer.Option(metavar="NAME=RUN,RUN", help="An arm of several seeds, instead of RUNs.")
    ] = None,
    step: Annotated[int | None, typer.Option(help="Of the runs' dumps; the newest that all have by default.")] = None,
    draws: Annotated[int, typer.Option(min=100, help="Bootstrap draws.")] = DRAWS,
    seed: Annotated[int, typer.Option(min=0, help="Of the draws; equal seeds give equal intervals.")] = 0,
    score_policies: Annotated[
        bool, typer.Option("--score-policies", help="Ask which score policy is better: those may differ then.")
    ] = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help=f"Folder for `{_FILE}`.")] = None,
    json: Annotated[Path | None, typer.Option("--json", help="The same under a name of your own.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Compare runs on the same images: every figure with its difference, a paired interval and a plain verdict.

    Takes folders of runs (their dumps), of single dumps, or of `apiece evaluate`. Every arm is compared with the first.
    Runs that differ in `seed` alone are taken as one arm. Different data, panels, prompts, pixel budgets, score
    policies or settings of generation are refused.

    Examples:

    `apiece compare runs/baseline runs/anchor`

    `apiece compare eval_a eval_b --out out`

    `apiece compare eval_logprob eval_product --score-policies`

    `apiece compare --arm baseline=runs/a_s0,runs/a_s1 --arm anchor=runs/b_s0,runs/b_s1`
    """
    runs, arm = runs or [], arm or []
    if bool(runs) == bool(arm):
        what = "these do not go together: RUNs, --arm" if runs else "nothing to compare"
        raise UserError(what, fix=_FORMS, exit_code=2)
    arms_named = [_arm(text) for text in arm]
    _refuse_twice([*runs, *(path for _, paths in arms_named for path in paths)])
    from apiece.files import require_free, write_json

    targets = [path for path in (json, None if out is None else out / _FILE) if path is not None]
    for path in targets:
        require_free(path, overwrite=overwrite)
    from apiece.study.arms import Arm, group_seeds, read_sources
    from apiece.study.comparison import compare as compare_arms
    from apiece.study.comparison import comparison_json
    from apiece.study.tables import print_comparison

    if len(runs) == 1:
        raise UserError(f"expected two runs or more, found {runs[0]} alone", fix=_FORMS, exit_code=2)
    read = read_sources(runs or [path for _, paths in arms_named for path in paths], step)
    rest = iter(read)
    arms, remarks = group_seeds(read) if runs else ([Arm(n, tuple(next(rest) for _ in p)) for n, p in arms_named], ())
    may_differ = ("score_policy",) if score_policies else ()
    comparisons = compare_arms(arms, draws=draws, seed=seed, remarks=remarks, may_differ=may_differ)
    for number, comparison in enumerate(comparisons):
        if number:
            typer.echo()
        print_comparison(comparison)
    for path in targets:
        write_json(path, comparison_json(comparisons))
        typer.echo(f"\nwrote {path}")


def _refuse_twice(paths: Sequence[Path]) -> None:
    seen: dict[Path, Path] = {}
    for path in paths:
        first = seen.setdefault(path.resolve(), path)
        if first is not path:
            what = f"{path} is named twice" if first == path else f"{first} and {path} are the same folder"
            fix = "name another run, or two steps of one run: RUN/dumps/step_000100 RUN/dumps/step_000200"
            raise UserError(f"{what}; there is nothing to compare", fix=fix, exit_code=2)


def _arm(text: str) -> tuple[str, list[Path]]:
    name, equals, paths = text.partition("=")
    found = [Path(path) for path in paths.split(",") if path]
    if not name or not equals or not found:
        raise UserError(f"expected --arm NAME=RUN or NAME=RUN,RUN, found '{text}'", fix=_FORMS, exit_code=2)
    return name, found
