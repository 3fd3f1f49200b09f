"""Comparisons and ladders for people: on the terminal, as Markdown, and as the page of all arms."""

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
from apiece.printed import table
from apiece.report.page import Built, build_report
from apiece.stats.draws import unit_draws
from apiece.stats.interval import LEVEL, Difference, Verdict
from apiece.stats.ratio import CROWDING
from apiece.study.comparison import ALL, Comparison, Row
from apiece.study.jobs import Job
from apiece.study.results import GROUPS, TRUE, figure_of
from apiece.study.summary import SPEED, Mean, Summary

_SHOWN = 5
_STYLES = {Verdict.BETTER: "green", Verdict.WORSE: "red", Verdict.HIGHER: "bold", Verdict.LOWER: "bold"}


def print_comparison(comparison: Comparison, console: Console | None = None) -> None:
    """Print a comparison, 100 columns wide or more."""
    console = _wide(console, 100)
    protocol = comparison.protocol
    for letter, name in zip("AB", (comparison.a, comparison.b), strict=True):
        runs = [run for arm, run in comparison.runs if arm == name]
        steps = ", ".join(dict.fromkeys(f"step {run.step}" for run in runs if run.step is not None))
        seeds = f"{len(runs)} seeds, " if len(runs) > 1 else ""
        console.print(f"{letter}  [bold]{escape(name)}[/bold]  {seeds}{steps}")
    console.print(f"{protocol['images']:,} images, the same in both; B - A has a {protocol['level']:.0%} interval")
    console.print()
    rows = [row for row in comparison.rows if not row.found.a == 0 == row.found.b]
    console.print(_figures_of(rows))
    if hidden := len(comparison.rows) - len(rows):
        console.print(f"figures that are 0 in both, not shown: {hidden}", style="dim")
    _print_changed(comparison, console)
    known = [row.found.verdict for row in rows if row.found.lo is not None]
    differ = sum(verdict not in (Verdict.CANNOT_TELL, Verdict.SAME) for verdict in known)
    chance = (1 - protocol["level"]) * len(known)
    console.print()
    console.print(f"{differ} of {len(known)} figures differ; by chance alone about {chance:.1f} would")
    for remark in comparison.remarks:
        console.print(f"- {escape(remark)}")


def _wide(console: Console | None, width: int) -> Console:
    """A console of at least so many columns: a table that is cut is useless."""
    console = console or Console(highlight=False)
    return console if console.width >= width else Console(width=width, highlight=False)


def _figures_of(rows: Sequence[Row]) -> Table:
    made = table("", "A", "B", "B - A", "95 % interval", head_width=29)
    made.add_column("verdict", no_wrap=True)
    made.add_column("more images", justify="right", no_wrap=True)
    for group in GROUPS:
        of_group = [row for row in rows if row.figure.group == group]
        if of_group:
            made.add_row(f"[bold]{group}[/bold]")
        for row in of_group:
            found, more = row.found, row.more_images
            verdict = f"[{_STYLES.get(found.verdict, 'dim')}]{found.verdict}[/]"
            shown = "" if more is None else f"{more:,}" if more < 100_000 else f"{more / 1e6:.1f} M"
            shown = shown if more is None or more < 1e9 else "> 1,000 M"
            made.add_row(f"  {escape(row.figure.label)}", *_numbers(found), verdict, shown)
    return made


def _print_changed(comparison: Comparison, console: Console) -> None:
    better = [c for c in comparison.changed if c.difference > 0][:_SHOWN]
    worse = [c for c in comparison.changed if c.difference < 0][-_SHOWN:][::-1]
    for head, rows in (("higher", better), ("lower", worse)):
        if rows:
            made = table(f"F1 {head} most", "A", "B", "B - A", head_width=40)
            for row in rows:
                made.add_row(escape(row.id), f"{row.a:.3f}", f"{row.b:.3f}", f"{row.difference:+.3f}")
            console.print()
            console.print(made)


def _numbers(found: Difference) -> tuple[str, str, str, str]:
    """A, B, B - A and the interval as text, all with the same decimals."""
    size = max((abs(value) for value in (found.a, found.b) if value is not None), default=0.0)
    form = ".1e" if 0 < size < 0.001 else ".4f" if size < 100 else ".1f"

    def text(value: float | None, sign: str = "") -> str:
        return "-" if value is None else f"{value:{sign}{form}}"

    interval = "-" if found.lo is None else f"{text(found.lo, '+')} {text(found.hi, '+')}"
    return text(found.a), text(found.b), text(found.difference, "+"), interval


# A ladder as Markdown.

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
LEAST_ARMS = 8  # for a correlation over arms
_PERCENT = ("rates/", "miss_rate/", "shape/", "probes/chimera", "probes/flip", "f1/", "coco/")
_POLICY = re.compile(r"coco_by_policy/(\w+)/AP")
MARKS = dict(zip(Verdict, ("**better**", "**worse**", "higher", "lower", "same", "?"), strict=True))

Column = tuple[str, str]  # scope and key of a figure


def to_markdown(summary: Summary) -> str:
    """All tables of a ladder."""
    headline, shapes = _keys([summary])
    steady = sorted({key for _, _, key in summary.means if key.startswith("window_var/")})
    scopes = [scope for scope in CROWDING[1:] if summary.images.get(scope)]

    def means(title: str, scope: str, keys: Sequence[str]) -> str:
        columns = [(scope, key) for key in keys if any((arm, scope, key) in summary.means for arm in summary.results)]
        rows = [[arm, *_means(summary, arm, columns)] for arm in summary.results]
        return f"### {title}\n\n{_grid(['arm', *(label(key) for _, key in columns)], rows) if columns else '(none)'}"

    def against(reference: str, scope: str, parts: Iterable[Sequence[str]]) -> str:
        blocks = [f"### Against {reference}, {where(scope)}"]
        arms = [arm for arm in summary.results if arm != reference]
        for keys in parts:
            columns = [(scope, k) for k in keys if any((reference, a, scope, k) in summary.differences for a in arms)]
            rows = [[arm, *_differences(summary, reference, arm, columns)] for arm in arms]
            if columns:
                blocks.append(_grid(["arm", *(label(key) for _, key in columns)], rows))
        return "\n\n".join(blocks)

    blocks = [f"## {summary.ladder}", _about(summary), _arms(summary), means("F1 and AP", ALL, headline)]
    blocks += [means(f"What the predictions are, {where(scope)}", scope, shapes) for scope in (ALL, *scopes)]
    blocks.append(means("Beliefs at the labels of the panel", ALL, PROBES))
    blocks += [*_explained(summary), *_over_arms(summary), *_policies(summary)]
    if steady:
        blocks.append(means("Variance of the geometry terms from step to step, later half", ALL, steady))
    for reference in summary.references:
        blocks.append(against(reference, ALL, (headline, shapes, PROBES, steady)))
        blocks += [against(reference, scope, (headline, shapes)) for scope in reversed(scopes)]
    if summary.remarks:
        blocks.append("### Remarks\n\n" + "\n".join(f"- {remark}" for remark in summary.remarks))
    return "\n\n".join(blocks) + "\n"


def brief(summary: Summary) -> str:
    """A ladder in a few tables: the headline figures of every arm, and how they differ from each reference's."""
    columns = headline_columns(summary)
    rows = [
        [arm, str(len(runs)), f"{runs[0].flops['of_reference']:.2f}", *_means(summary, arm, columns)]
        for arm, runs in summary.results.items()
    ]
    blocks = [_grid(["arm", "seeds", "compute", *_labels(columns)], rows)]
    for reference in summary.references:
        rows = [
            [f"{arm}{' (one seed)' if len(runs) == 1 else ''}", *_differences(summary, reference, arm, columns)]
            for arm, runs in summary.results.items()
            if arm != reference
        ]
        blocks.append(_grid([f"minus {reference}", *_labels(columns)], rows))
    return "\n\n".join([*blocks, *_over_arms(summary), *_policies(summary)]) + "\n"


def headline_columns(summary: Summary) -> list[Column]:
    """F1 and AP, group boxes and duplicates in crowds, and `follow`: the columns of short tables."""
    headline, shapes = _keys([summary])
    columns = [*((ALL, key) for key in headline), *((CROWDED, key) for key in shapes[:2]), (ALL, PROBES[0])]
    return [(s, k) for s, k in columns if any((arm, s, k) in summary.means for arm in summary.results)]


def across(summaries: Sequence[Summary]) -> str:
    """The same figures of several ladders: those of each arm, then its difference to its own reference."""
    blocks = [f"## {', '.join(summary.ladder for summary in summaries)}"]
    for scope in (ALL, CROWDED):
        shown = [summary for summary in summaries if summary.images.get(scope)]
        for keys in _keys(summaries) if shown else ():
            columns, rows = [(scope, key) for key in keys], []
            for summary in shown:
                reference = summary.references[0]
                for arm in summary.results:
                    rows.append([summary.ladder, arm, *_means(summary, arm, columns)])
                    if arm != reference:
                        rows.append(["", f"{arm} - {reference}", *_differences(summary, reference, arm, columns)])
            heads = ["ladder", "arm", *(label(key) for key in keys)]
            blocks.append(f"### {where(scope).capitalize()}\n\n{_grid(heads, rows)}")
    return "\n\n".join(blocks) + "\n"


def across_brief(summaries: Sequence[Summary]) -> str:
    """Several ladders in one table: the headline figures of their arms, and each arm's difference to its reference."""
    columns = list(dict.fromkeys(column for summary in summaries for column in headline_columns(summary)))
    rows = []
    for summary in summaries:
        name, reference = summary.ladder, summary.references[0]
        rows += [[name, a, str(len(runs)), *_means(summary, a, columns)] for a, runs in summary.results.items()]
        others = [arm for arm in summary.results if arm != reference]
        rows += [[name, f"{a} - {reference}", "", *_differences(summary, reference, a, columns)] for a in others]
    return _grid(["ladder", "arm", "seeds", *_labels(columns)], rows) + "\n"


def _grid(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["".join(f"| {cell} " if cell else "| " for cell in row) + "|" for row in (heads, *rows)]
    return "\n".join([lines[0], "|---" * len(heads) + "|", *lines[1:]])


def _keys(summaries: Sequence[Summary]) -> tuple[list[str], list[str]]:
    """Headline figures, and shapes: judged on complete truth where it is known."""
    known = any(key.startswith(TRUE) for summary in summaries for _, _, key in summary.means)
    headline = [key for key in HEADLINE if known or not key.startswith(TRUE)]
    return headline, [f"{TRUE}{key}" if known else key for key in SHAPES]


def _labels(columns: Iterable[Column]) -> list[str]:
    return [f"{label(key)}{'' if scope == ALL else f', {scope}'}" for scope, key in columns]


def _means(summary: Summary, arm: str, columns: Iterable[Column]) -> list[str]:
    return [mean_text(summary.means.get((arm, scope, key)), key) for scope, key in columns]


def _differences(summary: Summary, reference: str, arm: str, columns: Iterable[Column]) -> list[str]:
    return [difference_text(summary.differences.get((reference, arm, scope, key)), key) for scope, key in columns]


def _about(summary: Summary) -> str:
    rows = [result for group in summary.results.values() for result in group]
    first = rows[0]
    start = ", ".join(f"`{name}` {value[:12]}" for name, value in first.made_from["start"].items())
    data = ", ".join(f"{name} {value[:12]}" for name, value in first.made_from["data"].items())
    images = ", ".join(f"{count} with {scope}" for scope, count in summary.images.items() if scope != ALL)
    return (
        f"{len(summary.results)} arms, {len(rows)} runs from one start ({start}); judged on {first.test.images} "
        f"images ({images} objects; {summary.images[ALL]} count), probed on {first.panel.images}. "
        f"Data (SHA-256): {data}.\n\n"
        f"Intervals are {LEVEL:.0%}, over images and seeds ({summary.draws} draws; docs/guides/comparing.md). "
        "A figure is a mean over the seeds of its arm, `value [low, high]`. Rates are per prediction, `merged` per "
        "object; where "
        "complete truth is known, all are judged on it. A difference is `arm - reference [low, high] verdict`; `?` is "
        "can't tell."
    )


def _arms(summary: Summary) -> str:
    rows = []
    for arm, runs in summary.results.items():
        first, speed = runs[0], summary.means.get((arm, ALL, SPEED))
        rows.append(
            [
                arm,
                ", ".join(str(run.seed) for run in runs),
                f"{first.steps} x {first.batch_size}",
                f"{first.flops['step'] / 1e9:,.0f}",
                f"{first.flops['of_reference']:.2f}",
                "-" if speed is None or speed.value is None else f"{speed.value:.1f}",
            ]
        )
    heads = ("arm", "seeds", "steps x batch", "GFLOP a step", "of the reference's compute", "samples/s")
    return _grid(heads, rows)


def _explained(summary: Summary) -> list[str]:
    """How many seeds of each arm support or refute each explanation of long boxes."""
    known = {arm: [run.diagnosis for run in runs if run.diagnosis] for arm, runs in summary.results.items()}
    if not any(known.values()):
        return []
    names = list(dict.fromkeys(n for found in known.values() for one in found for n in one["explanations"]))
    rows = []
    for arm, found in known.items():
        rates = [one["long_boxes"]["value"] for one in found if one["long_boxes"]["value"] is not None]
        rate = number(sum(rates) / len(rates), "rates/group") if rates else "-"
        tallies = [_tally(one["explanations"][name]["verdict"] for one in found) for name in names]
        rows.append([arm, rate, *tallies, _tally(" and ".join(one["verdict"]) for one in found)])
    return [
        "### What explains the long boxes on the panel\n\n"
        "Group boxes, and strips that are no true positive, over predictions; then how many seeds support or refute "
        f"each explanation (docs/guides/diagnosing.md).\n\n{_grid(['arm', 'long boxes', *names, 'verdict'], rows)}"
    ]


def _over_arms(summary: Summary) -> list[str]:
    """Which beliefs correlate with group boxes over the arms of a ladder; nothing for too few arms."""
    outcome = _keys([summary])[1][0]
    rates = _by_arm(summary, outcome)
    if len(rates) < LEAST_ARMS:
        return []
    rows = []
    for key in PROBES:
        values = _by_arm(summary, key)
        if len(values) == len(rates) and np.ptp(values):
            drawn = [_ranked(values[chosen], rates[chosen]) for chosen in unit_draws(len(rates), summary.draws)]
            lo, hi = np.nanquantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
            rows.append([label(key), f"{_ranked(values, rates):+.2f} [{lo:+.2f}, {hi:+.2f}]"])
    return [
        f"### What goes with {label(outcome)}, over {len(rates)} arms\n\n"
        "Rank correlation (Spearman) of the arms' means; intervals draw arms. What goes together, not why.\n\n"
        f"{_grid(['belief', 'rank correlation'], rows)}"
    ]


def _policies(summary: Summary) -> list[str]:
    """AP under other scores of the same boxes: differences within runs, over all runs of a ladder."""
    runs = [result for group in summary.results.values() for result in group]
    used = str(runs[0].protocol.get("score_policy"))
    found: dict[str, list[float]] = {}
    for run in runs:
        for key, value in run.metrics.items():
            if (named := _POLICY.fullmatch(key)) and named[1] != used:
                found.setdefault(named[1], []).append(value - run.metrics["coco/AP"])
    if not found:
        return []
    rows = []
    for policy, values in sorted(found.items(), key=lambda item: -float(np.mean(item[1]))):
        shown = (number(float(x), "coco/AP", sign=True) for x in (np.mean(values), min(values), max(values)))
        rows.append([f"`{policy}`", *shown, f"{sum(value > 0 for value in values)} of {len(values)}"])
    return [
        f"### AP under other scores than `{used}`, over {len(runs)} runs\n\n"
        "AP on the labels under a policy minus that under the one in use, of the same boxes; over all arms and seeds."
        f"\n\n{_grid(['policy', 'mean', 'least', 'most', 'higher in'], rows)}"
    ]


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


def where(scope: str) -> str:
    """A scope in words."""
    return "all images" if scope == ALL else f"images with {scope} objects"


def label(key: str) -> str:
    """Short name of a figure."""
    return figure_of(key).label.replace("|", "\\|")


def mean_text(mean: Mean | None, key: str) -> str:
    """`.312 [.301, .324]`."""
    if mean is None or mean.value is None:
        return "-"
    value = number(mean.value, key)
    return value if mean.lo is None or mean.hi is None else f"{value} [{number(mean.lo, key)}, {number(mean.hi, key)}]"


def difference_text(row: Row | None, key: str) -> str:
    """`-0.011 [-0.038, +0.004] ?`; without an interval there is no verdict."""
    if row is None or row.found.difference is None:
        return "-"
    found, change = row.found, row.found.difference
    value = number(change, key, sign=True)
    if found.lo is None or found.hi is None:
        return f"{value} (no interval)"
    interval = f"[{number(found.lo, key, sign=True)}, {number(found.hi, key, sign=True)}]"
    return f"{value} {interval} {MARKS[found.verdict]}"


def number(value: float, key: str, *, sign: bool = False) -> str:
    """A figure with the digits that its kind deserves."""
    form = "+" if sign else ""
    if key.startswith("window_var/"):
        return f"{value:{form}.2e}"
    plain = key.removeprefix(TRUE)
    if plain.startswith(_PERCENT) or "mass" in plain or "follow" in plain:
        return f"{value:{form}.4f}" if abs(value) < 0.1 else f"{value:{form}.3f}"
    return f"{value:{form}.2f}"


def put_in(path: Path, name: str, text: str, short: str = "") -> str:
    """A Markdown file with a ladder's tables in their places; a `UserError` if it has none.

    A place goes from `<!-- ladder NAME -->`, or from `<!-- ladder NAME brief -->` for the short ones, to
    `<!-- end NAME -->`.
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


_SIGNS = dict(zip(Verdict, ("[green]+[/]", "[red]-[/]", "^", "v", "=", "?"), strict=True))


def print_summary(summary: Summary, console: Console | None = None) -> None:
    """Print a summary, one row an arm, 160 columns wide or more."""
    console = _wide(console, 160)
    columns = headline_columns(summary)
    heads = [
        head.replace(", complete truth", ", true").replace("the neighbour's box", "neighbour")
        for head in _labels(columns)
    ]
    for reference in summary.references:
        made = table(f"against {reference}", "seeds", *map(escape, heads))
        for arm, runs in summary.results.items():
            cells = []
            for scope, key in columns:
                mean = summary.means.get((arm, scope, key))
                row = summary.differences.get((reference, arm, scope, key))
                value = "-" if mean is None or mean.value is None else number(mean.value, key)
                cells.append(f"{value} {' ' if row is None or row.found.lo is None else _SIGNS[row.found.verdict]}")
            made.add_row(escape(arm), str(len(runs)), *cells)
        console.print(made)
    console.print(
        "+ better, - worse, ^ higher, v lower than the reference; ? can't tell; `true` is judged on complete truth",
        style="dim",
    )
    for remark in summary.remarks:
        console.print(f"- {escape(remark)}")


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
