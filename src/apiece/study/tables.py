"""The end of a ladder: the comparison as `comparison.json` has it, and the page of all arms."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from scipy import stats

from apiece.boxes import FloatArray
from apiece.errors import UserError
from apiece.files import locked
from apiece.report.page import Built, build_report
from apiece.stats.interval import LEVEL, Difference, Verdict
from apiece.stats.ratio import CROWDING
from apiece.study.jobs import Job
from apiece.study.results import TRUE
from apiece.study.summary import ALL, SPEED, Mean, Summary, study_figure
from apiece.study.verdicts import FIGURES, SCHEMA

# A summary as Markdown: tables for people, in which no verdict stands without its interval.


HEADLINE = (f"{TRUE}f1/f1", f"{TRUE}coco/AP", "f1/f1", "coco/AP")
SHAPES = (
    *("rates/group", "rates/duplicate", "rates/fragment", "shape/strip", "miss_rate/merged"),
    *("shape/near_duplicate", "count/per_image"),
)
PROBES = (
    *("probes/follow/near_neighbour", "probes/follow/near_own", "probes/chimera", "probes/flip"),
    *("probes/a1/exp_argmax_gap", "probes/last/exp_argmax_gap", "probes/a1/entropy", "probes/last/entropy"),
    *("probes/drift", "probes/a1/cross_instance_mass", "probes/a1/own_mass"),
)
CROWDED = CROWDING[-1]
LEAST_ARMS = 8
"""Arms below which nothing is said of what goes together over them."""
_PERCENT = ("rates/", "miss_rate/", "shape/", "probes/chimera", "probes/flip", "f1/", "coco/")
_POLICY = re.compile(r"coco_by_policy/(\w+)/AP")
MARKS = {
    Verdict.BETTER: "**better**",
    Verdict.WORSE: "**worse**",
    Verdict.HIGHER: "higher",
    Verdict.LOWER: "lower",
    Verdict.SAME: "same",
    Verdict.CANNOT_TELL: "?",
}


def to_markdown(summary: Summary, title: str = "") -> str:
    """All tables of a ladder."""
    known = _knows_truth(summary)
    headline = [key for key in HEADLINE if known or not key.startswith(TRUE)]
    shapes = [f"{TRUE}{key}" for key in SHAPES] if known else list(SHAPES)
    blocks = [f"## {title or summary.ladder}", _about(summary), _arms(summary)]
    blocks.append(f"### F1 and AP\n\n{_means(summary, ALL, headline)}")
    for scope in (ALL, *(CROWDING[1:])):
        if summary.images.get(scope):
            blocks.append(f"### What the predictions are, {where(scope)}\n\n{_means(summary, scope, shapes)}")
    blocks.append(f"### Beliefs at the labels of the panel\n\n{_means(summary, ALL, PROBES)}")
    blocks += _explained(summary)
    blocks += _over_arms(summary) + _policies(summary)
    steady = sorted({key for _, _, key in summary.means if key.startswith("window_var/")})
    if steady:
        blocks.append(
            f"### Variance of the geometry terms from step to step, later half\n\n{_means(summary, ALL, steady)}"
        )
    for reference in summary.references:
        blocks.append(_against(summary, reference, ALL, (headline, shapes, PROBES, steady)))
        for scope in CROWDING[:0:-1]:
            if summary.images.get(scope):
                blocks.append(_against(summary, reference, scope, (headline, shapes)))
    if summary.remarks:
        blocks.append("### Remarks\n\n" + "\n".join(f"- {remark}" for remark in summary.remarks))
    return "\n\n".join(block.rstrip() for block in blocks) + "\n"


def brief(summary: Summary) -> str:
    """A ladder in a few tables: the headline figures of every arm, and how they differ from each reference's."""
    columns = headline_columns(summary)
    heads = _heads(columns)
    lines = [f"| arm | seeds | compute | {heads} |", "|---" * (len(columns) + 3) + "|"]
    for arm, rows in summary.results.items():
        cells = _means_told(summary, arm, columns)
        lines.append(f"| {arm} | {len(rows)} | {rows[0].flops['of_reference']:.2f} | {cells} |")
    blocks = ["\n".join(lines)]
    for reference in summary.references:
        lines = [f"| minus {reference} | {heads} |", "|---" * (len(columns) + 1) + "|"]
        for arm in summary.results:
            if arm != reference:
                single = " (one seed)" if len(summary.results[arm]) == 1 else ""
                lines.append(f"| {arm}{single} | {_differences_told(summary, reference, arm, columns)} |")
        blocks.append("\n".join(lines))
    blocks += _over_arms(summary) + _policies(summary)
    return "\n\n".join(blocks) + "\n"


def headline_columns(summary: Summary) -> list[tuple[str, str]]:
    """Scope and key of the figures that stand for all: F1 and AP, group boxes and duplicates in crowds, `follow`."""
    known = _knows_truth(summary)
    columns = [(ALL, key) for key in HEADLINE if known or not key.startswith(TRUE)]
    columns += [(CROWDED, f"{TRUE if known else ''}{key}") for key in SHAPES[:2]] + [(ALL, PROBES[0])]
    return [(s, k) for s, k in columns if any((arm, s, k) in summary.means for arm in summary.results)]


def across(summaries: Sequence[Summary]) -> str:
    """The same figures of several ladders side by side: those of each arm, and its difference to its own reference."""
    known = any(key.startswith(TRUE) for summary in summaries for _, _, key in summary.means)
    keys = [key for key in HEADLINE if known or not key.startswith(TRUE)]
    shapes = [f"{TRUE}{key}" if known else key for key in SHAPES]
    blocks = [f"## {', '.join(summary.ladder for summary in summaries)}"]
    for scope in (ALL, CROWDED):
        shown = [s for s in summaries if s.images.get(scope)]
        if not shown:
            continue
        for of_part in (keys, shapes):
            lines = [
                f"| ladder | arm | {' | '.join(label(key) for key in of_part)} |",
                "|---" * (len(of_part) + 2) + "|",
            ]
            for summary in shown:
                for arm in summary.results:
                    cells = [mean_text(summary.means.get((arm, scope, key)), key) for key in of_part]
                    lines.append(f"| {summary.ladder} | {arm} | {' | '.join(cells)} |")
                    reference = summary.references[0]
                    if arm != reference:
                        cells = [
                            difference_text(summary.differences.get((reference, arm, scope, key)), key)
                            for key in of_part
                        ]
                        lines.append(f"| | {arm} - {reference} | {' | '.join(cells)} |")
            blocks.append(f"### {where(scope).capitalize()}\n\n" + "\n".join(lines))
    return "\n\n".join(blocks) + "\n"


def across_brief(summaries: Sequence[Summary]) -> str:
    """Several ladders in one table: the headline figures of their arms, and each arm's difference to its reference."""
    columns = list(dict.fromkeys(column for summary in summaries for column in headline_columns(summary)))
    lines = [f"| ladder | arm | seeds | {_heads(columns)} |", "|---" * (len(columns) + 3) + "|"]
    for summary in summaries:
        for arm, rows in summary.results.items():
            lines.append(f"| {summary.ladder} | {arm} | {len(rows)} | {_means_told(summary, arm, columns)} |")
        reference = summary.references[0]
        for arm in summary.results:
            if arm != reference:
                told = _differences_told(summary, reference, arm, columns)
                lines.append(f"| {summary.ladder} | {arm} - {reference} | | {told} |")
    return "\n".join(lines) + "\n"


def _heads(columns: Iterable[tuple[str, str]]) -> str:
    return " | ".join(f"{label(key)}{'' if scope == ALL else f', {scope}'}" for scope, key in columns)


def _means_told(summary: Summary, arm: str, columns: Iterable[tuple[str, str]]) -> str:
    return " | ".join(mean_text(summary.means.get((arm, scope, key)), key) for scope, key in columns)


def _differences_told(summary: Summary, reference: str, arm: str, columns: Iterable[tuple[str, str]]) -> str:
    return " | ".join(
        difference_text(summary.differences.get((reference, arm, scope, key)), key) for scope, key in columns
    )


def _about(summary: Summary) -> str:
    """What the tables are made of."""
    rows = [result for group in summary.results.values() for result in group]
    first = rows[0]
    start = ", ".join(f"`{name}` {value[:12]}" for name, value in first.made_from["start"].items())
    data = ", ".join(f"{name} {value[:12]}" for name, value in first.made_from["data"].items())
    images = ", ".join(f"{count} with {scope}" for scope, count in summary.images.items() if scope != ALL)
    return (
        f"{len(summary.results)} arms, {len(rows)} runs from one start ({start}); judged on {first.test.images} "
        f"images ({images} objects; {summary.images[ALL]} count), probed on {first.panel.images}. "
        f"Data (SHA-256): {data}.\n\n"
        f"Intervals are {LEVEL:.0%}, over images and seeds ({summary.draws} draws; docs/comparing.md). A figure is "
        "a mean over the seeds of its arm, `value [low, high]`. Rates are per prediction, `merged` per object; where "
        "complete truth is known, all are judged on it. A difference is `arm - reference [low, high] verdict`; `?` is "
        "can't tell."
    )


def _arms(summary: Summary) -> str:
    lines = [
        "| arm | seeds | steps x batch | GFLOP a step | of the reference's compute | samples/s |",
        "|---|---|---|---|---|---|",
    ]
    for arm, rows in summary.results.items():
        first, speed = rows[0], summary.means.get((arm, ALL, SPEED))
        lines.append(
            f"| {arm} | {', '.join(str(r.seed) for r in rows)} | {first.steps} x {first.batch_size} | "
            f"{first.flops['step'] / 1e9:,.0f} | {first.flops['of_reference']:.2f} | "
            f"{'-' if speed is None or speed.value is None else f'{speed.value:.1f}'} |"
        )
    return "\n".join(lines)


def _explained(summary: Summary) -> list[str]:
    """How the explanations of long boxes stand in each arm, seed by seed; nothing where none were asked for."""
    known = {arm: [r.diagnosis for r in rows if r.diagnosis] for arm, rows in summary.results.items()}
    if not any(known.values()):
        return []
    names = list(dict.fromkeys(n for rows in known.values() for row in rows for n in row["explanations"]))
    lines = [
        "### What explains the long boxes on the panel",
        "",
        "Group boxes, and strips that are no true positive, over predictions; then how many seeds support or refute "
        "each explanation (docs/diagnosing.md).",
        "",
        f"| arm | long boxes | {' | '.join(names)} | verdict |",
        "|---" * (len(names) + 3) + "|",
    ]
    for arm, rows in known.items():
        rates = [row["long_boxes"]["value"] for row in rows if row["long_boxes"]["value"] is not None]
        rate = number(sum(rates) / len(rates), "rates/group") if rates else "-"
        cells = [_tally(row["explanations"][name]["verdict"] for row in rows) for name in names]
        verdict = _tally(" and ".join(row["verdict"]) for row in rows)
        lines.append(f"| {arm} | {rate} | {' | '.join(cells)} | {verdict} |")
    return ["\n".join(lines)]


def _over_arms(summary: Summary) -> list[str]:
    """Which beliefs go with group boxes over the arms of a ladder; nothing for too few arms to say so."""
    known = _knows_truth(summary)
    outcome = f"{TRUE if known else ''}{SHAPES[0]}"
    rates = _by_arm(summary, outcome)
    if len(rates) < LEAST_ARMS:
        return []
    draws = np.random.default_rng(0).integers(len(rates), size=(summary.draws, len(rates)))
    lines = [
        f"### What goes with {label(outcome)}, over {len(rates)} arms",
        "",
        "Rank correlation (Spearman) of the arms' means; intervals draw arms. What goes together, not why.",
        "",
        "| belief | rank correlation |",
        "|---|---|",
    ]
    for key in PROBES:
        values = _by_arm(summary, key)
        if len(values) == len(rates) and np.ptp(values):
            drawn = [_ranked(values[rows], rates[rows]) for rows in draws]
            lo, hi = np.nanquantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
            lines.append(f"| {label(key)} | {_ranked(values, rates):+.2f} [{lo:+.2f}, {hi:+.2f}] |")
    return ["\n".join(lines)]


def _policies(summary: Summary) -> list[str]:
    """What AP would be under other scores of the same boxes: differences within runs, over all runs of a ladder."""
    runs = [result for group in summary.results.values() for result in group]
    used = str(runs[0].protocol.get("score_policy"))
    found: dict[str, list[float]] = {}
    for run in runs:
        for key, value in run.metrics.items():
            if (named := _POLICY.fullmatch(key)) and named[1] != used:
                found.setdefault(named[1], []).append(value - run.metrics["coco/AP"])
    lines = [
        f"### AP under other scores than `{used}`, over {len(runs)} runs",
        "",
        "AP on the labels under a policy minus that under the one in use, of the same boxes; over all arms and seeds.",
        "",
        "| policy | mean | least | most | higher in |",
        "|---|---|---|---|---|",
    ]
    for policy, values in sorted(found.items(), key=lambda item: -float(np.mean(item[1]))):
        told = " | ".join(number(float(x), "coco/AP", sign=True) for x in (np.mean(values), min(values), max(values)))
        lines.append(f"| `{policy}` | {told} | {sum(value > 0 for value in values)} of {len(values)} |")
    return ["\n".join(lines)] if found else []


def _knows_truth(summary: Summary) -> bool:
    """Whether figures are judged on complete truth as well."""
    return any(key.startswith(TRUE) for _, _, key in summary.means)


def _by_arm(summary: Summary, key: str) -> FloatArray:
    """A figure of every arm that has it."""
    means = [summary.means.get((arm, ALL, key)) for arm in summary.results]
    return np.array([mean.value for mean in means if mean is not None and mean.value is not None])


def _ranked(a: FloatArray, b: FloatArray) -> float:
    """Spearman's rank correlation; NaN where one of them is the same everywhere."""
    return float(stats.spearmanr(a, b).statistic) if np.ptp(a) and np.ptp(b) else float("nan")


def _tally(words: Iterable[str]) -> str:
    """`refuted (2), can't tell (1)`."""
    return ", ".join(f"{word} ({count})" for word, count in Counter(words).most_common())


def _means(summary: Summary, scope: str, keys: Sequence[str]) -> str:
    """One row an arm, one column a figure."""
    shown = [key for key in keys if any((arm, scope, key) in summary.means for arm in summary.results)]
    if not shown:
        return "(none)"
    lines = [f"| arm | {' | '.join(label(key) for key in shown)} |", "|---" * (len(shown) + 1) + "|"]
    for arm in summary.results:
        cells = [mean_text(summary.means.get((arm, scope, key)), key) for key in shown]
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _against(summary: Summary, reference: str, scope: str, parts: Iterable[Sequence[str]]) -> str:
    """One row an arm, one column a figure: the difference, its interval and the verdict; a table for each part."""
    blocks = [f"### Against {reference}, {where(scope)}"]
    arms = [arm for arm in summary.results if arm != reference]
    for keys in parts:
        shown = [key for key in keys if any((reference, arm, scope, key) in summary.differences for arm in arms)]
        if not shown:
            continue
        lines = [f"| arm | {' | '.join(label(key) for key in shown)} |", "|---" * (len(shown) + 1) + "|"]
        for arm in arms:
            cells = [difference_text(summary.differences.get((reference, arm, scope, key)), key) for key in shown]
            lines.append(f"| {arm} | {' | '.join(cells)} |")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def where(scope: str) -> str:
    """A scope in words."""
    return "all images" if scope == ALL else f"images with {scope} objects"


def label(key: str) -> str:
    """Short name of a figure."""
    return study_figure(key).label.replace("|", "\\|")


def mean_text(mean: Mean | None, key: str) -> str:
    """`.312 [.301, .324]`."""
    if mean is None or mean.value is None:
        return "-"
    value = number(mean.value, key)
    return value if mean.lo is None or mean.hi is None else f"{value} [{number(mean.lo, key)}, {number(mean.hi, key)}]"


def difference_text(found: Difference | None, key: str) -> str:
    """`-0.011 [-0.038, +0.004] ?`; without an interval there is no verdict."""
    if found is None or found.difference is None:
        return "-"
    value = number(found.difference, key, sign=True)
    if found.lo is None or found.hi is None:
        return f"{value} (no interval)"
    interval = f"[{number(found.lo, key, sign=True)}, {number(found.hi, key, sign=True)}]"
    return f"{value} {interval} {MARKS[found.verdict]}"


def number(value: float, key: str, *, sign: bool = False) -> str:
    """With the digits that its kind of figure deserves."""
    form = "+" if sign else ""
    if key.startswith("window_var/"):
        return f"{value:{form}.2e}"
    plain = key.removeprefix(TRUE)
    if plain.startswith(_PERCENT) or "mass" in plain or "follow" in plain:
        return f"{value:{form}.4f}" if abs(value) < 0.1 else f"{value:{form}.3f}"
    return f"{value:{form}.2f}"


def put_in(path: Path, name: str, text: str, short: str = "") -> str:
    """A Markdown file with a ladder's tables in their places.

    A place goes from `<!-- ladder NAME -->`, or from `<!-- ladder NAME brief -->` for the short ones, to
    `<!-- end NAME -->`.

    Raises:
        UserError: The file has no such place.
    """
    old = path.read_text(encoding="utf-8")
    end = f"<!-- end {name} -->"
    heads = {f"<!-- ladder {name} -->": text, f"<!-- ladder {name} brief -->": short}
    place = re.compile(f"({'|'.join(map(re.escape, heads))}).*?{re.escape(end)}", flags=re.DOTALL)
    new, places = place.subn(lambda found: f"{found[1]}\n{heads[found[1]]}{end}", old)
    if not places:
        raise UserError(
            f"expected a place for the tables of {name}, found none",
            where=path,
            fix=f"write {next(iter(heads))} and {end} on lines of their own where they belong, or name a new file",
        )
    return new


# A summary on the terminal: one row an arm, its headline figures, and how it differs from the reference.


_MARKS = {
    Verdict.BETTER: "[green]+[/]",
    Verdict.WORSE: "[red]-[/]",
    Verdict.HIGHER: "^",
    Verdict.LOWER: "v",
    Verdict.SAME: "=",
    Verdict.CANNOT_TELL: "?",
}
_WIDTH = 160


def print_summary(summary: Summary, console: Console | None = None) -> None:
    """Print a summary: coloured on a terminal, plain text elsewhere; it takes 160 columns."""
    console = console or Console()
    if console.width < _WIDTH:
        console = Console(width=_WIDTH)
    columns = headline_columns(summary)
    for reference in summary.references:
        table = Table(box=None, pad_edge=False, header_style="bold", title_justify="left")
        table.add_column(f"against {reference}", no_wrap=True)
        table.add_column("seeds", justify="right")
        for scope, key in columns:
            head = label(key).replace(", complete truth", ", true").replace("the neighbour's box", "neighbour")
            table.add_column(escape(head + ("" if scope == ALL else f", {scope}")), justify="right", no_wrap=True)
        for arm, rows in summary.results.items():
            cells = []
            for scope, key in columns:
                mean = summary.means.get((arm, scope, key))
                found = summary.differences.get((reference, arm, scope, key))
                value = "-" if mean is None or mean.value is None else number(mean.value, key)
                told = found is not None and found.lo is not None
                cells.append(f"{value} {_MARKS[found.verdict] if found is not None and told else ' '}")
            table.add_row(escape(arm), str(len(rows)), *cells)
        console.print(table)
    console.print(
        "+ better, - worse, ^ higher, v lower than the reference; ? can't tell; `true` is judged on complete truth",
        style="dim",
    )
    for remark in summary.remarks:
        console.print(f"- {escape(remark)}", highlight=False)


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
