"""The end of a ladder: the comparison as `comparison.json` has it, and the page of all arms."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from apiece.compare.figures import FIGURES
from apiece.compare.result import SCHEMA
from apiece.experiment.jobs import Job
from apiece.experiment.split import TRUE
from apiece.experiment.summary import ALL, Summary, study_figure
from apiece.files import locked
from apiece.report.page.build import Built, build_report


def comparison_json(summary: Summary, reference: str) -> dict[str, Any]:
    """Every arm against the reference, in the form of `apiece compare`."""
    pairs: list[dict[str, Any]] = []
    for arm, group in summary.results.items():
        if arm == reference:
            continue
        rows = []
        for key in _ordered(summary, reference, arm):
            found, figure = summary.differences[reference, arm, ALL, key], study_figure(key)
            rows.append(
                {
                    "key": key,
                    "label": figure.label,
                    "group": figure.group,
                    "a": found.a,
                    "b": found.b,
                    "difference": found.difference,
                    "lo": found.lo,
                    "hi": found.hi,
                    "verdict": str(found.verdict),
                    "more_images": None,
                    "higher_is_better": figure.higher_is_better,
                    "n": summary.images[ALL],
                }
            )
        runs = [
            {"name": result.name, "path": result.name, "step": result.steps, "seed": result.seed, "arm": name}
            for name, of_arm in ((reference, summary.results[reference]), (arm, group))
            for result in of_arm
        ]
        pairs.append(
            {
                "schema": SCHEMA,
                "a": reference,
                "b": arm,
                "runs": runs,
                "rows": rows,
                "changed": [],
                "remarks": list(summary.remarks),
                "protocol": {"draws": summary.draws, "unit": "images and seeds", "images": summary.images[ALL]},
            }
        )
    runs = list({run["name"]: run for pair in pairs for run in pair["runs"]}.values())
    return {"schema": SCHEMA, "runs": runs, "pairs": pairs}


def _ordered(summary: Summary, reference: str, arm: str) -> list[str]:
    """Keys of a pair's figures: those of the table of figures first, the complete truth's before the labels'."""
    keys = [key for ref, name, scope, key in summary.differences if (ref, name, scope) == (reference, arm, ALL)]
    rank = {key: number for number, key in enumerate(FIGURES)}
    return sorted(keys, key=lambda key: (rank.get(key.removeprefix(TRUE), len(rank)), not key.startswith(TRUE), key))


def write_page(jobs: Sequence[Job], comparison: dict[str, Any], out: Path) -> Built | None:
    """The page of all arms, the first seed of each; `None` where no run has dumps."""
    first: dict[str, Path] = {}
    for job in jobs:
        if (job.run / "dumps").is_dir():
            first.setdefault(job.arm, job.run)
    if not first:
        return None
    with locked(out.with_name(f".{out.name}.lock"), wait=True):  # two that share the work may end at once
        return build_report(list(first.values()), out, comparison=comparison, overwrite=True)
