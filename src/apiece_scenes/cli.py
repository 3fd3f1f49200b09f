"""`apiece scenes`: draw crowd scenes with complete truth."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from apiece.errors import UserError

_FAMILIES = "shelf,stands,street,sparse"


def register(app: typer.Typer) -> None:
    """Add the command: the entry point of the group `apiece.commands`."""
    app.command(short_help="Draw crowd scenes of which every object is known.")(scenes)


def scenes(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="New or empty folder.", show_default=False)],
    n: Annotated[int, typer.Option("--n", help="Number of scenes.")] = 2000,
    seed: Annotated[int, typer.Option(help="Seed; scene k is the same for any number of scenes.")] = 0,
    size: Annotated[int, typer.Option(help="Side of the images in pixels, 64 to 1024.")] = 192,
    families: Annotated[
        str, typer.Option(help="Families in turn, with commas: shelf, stands, street, sparse.")
    ] = _FAMILIES,
    unlabelled: Annotated[float, typer.Option(help="Mean share of the crowd left out of the observed labels.")] = 0.0,
    group_boxes: Annotated[
        float, typer.Option(help="Probability that labelled neighbours in a row become one box.")
    ] = 0.0,
    iscrowd_rows: Annotated[float, typer.Option(help="Probability that a row becomes one iscrowd region.")] = 0.0,
    workers: Annotated[
        int, typer.Option(min=0, help="Processes; the files do not depend on it. 0: two, or one if few.")
    ] = 0,
    benchmark: Annotated[
        Path | None,
        typer.Option(
            help="Draw the scenes that this file (or packaged config) describes; takes no other options.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Draw crowd scenes (books on shelves, spectators, streets) of which every object is known.

    Writes images, `complete.json` and `observed.json` (COCO: everything, and what an annotator would have labelled),
    the same as `.jsonl`, the settings and a contact sheet.

    With `--benchmark FILE`: train, panel and test scenes of a benchmark, each drawn once and labelled in every way that
    it names.

    Example: `apiece scenes data/crowd --n 2000 --seed 0 --unlabelled 0.4`
    """
    if benchmark is not None:
        in_file = {
            **{"--n": n != 2000, "--seed": seed, "--size": size != 192, "--families": families != _FAMILIES},
            **{"--unlabelled": unlabelled, "--group-boxes": group_boxes, "--iscrowd-rows": iscrowd_rows},
        }
        if idle := [name for name, given in in_file.items() if given]:
            raise UserError(f"not with --benchmark, whose file sets them: {', '.join(idle)}", exit_code=2)
        _benchmark(benchmark, out, workers or 2)
        return
    from apiece_scenes import split_families, write_scenes

    written = write_scenes(
        out,
        n,
        seed=seed,
        size=size,
        families=split_families(families),
        unlabelled=unlabelled,
        group_boxes=group_boxes,
        iscrowd_rows=iscrowd_rows,
        workers=workers or (2 if n >= 300 else 1),
    )
    print(f"{'family':<8} {'scenes':>7} {'objects':>8} {'labelled':>9} {'share':>6}")
    for family, count in written.scenes.items():
        whole, seen = written.complete[family], written.observed[family]
        print(f"{family:<8} {count:>7} {whole:>8} {seen:>9} {seen / max(whole, 1):>6.1%}")
    whole, seen = sum(written.complete.values()), sum(written.observed.values())
    print(f"{'all':<8} {n:>7} {whole:>8} {seen:>9} {seen / max(whole, 1):>6.1%}")
    print(f"wrote {written.out}; look at {written.contact_sheet}")


def _benchmark(file: Path, out: Path, workers: int) -> None:
    from apiece.config.resolve import load_file
    from apiece_scenes.benchmark import BenchmarkFile, prepare

    prepared = prepare(load_file(file, BenchmarkFile), out, workers)
    names = list(next(iter(prepared.counts.values())))
    print(f"{'labels':<10}" + "".join(f"{split:>10}" for split in prepared.counts))
    for name in names:
        print(f"{name:<10}" + "".join(f"{counts[name]:>10}" for counts in prepared.counts.values()))
    drawn = ", ".join(prepared.drawn) or "nothing: all was there"
    print(f"drew {drawn}; look at {out / 'test' / 'contact_sheet.png'}")
