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
    group_boxes: Annotated[float, typer.Option(help="Probability that labelled row neighbours become one box.")] = 0.0,
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
    from apiece.printed import stdout_console, table
    from apiece_scenes.scene import SceneSettings
    from apiece_scenes.write import write_scenes

    names = tuple(part.strip() for part in families.split(","))
    settings = SceneSettings(size, names, unlabelled, group_boxes, iscrowd_rows)
    written = write_scenes(out, n, settings, seed=seed, workers=workers or (2 if n >= 300 else 1))
    counts = (written.scenes, written.complete, written.observed)
    rows = table("family", "scenes", "objects", "labelled", "share")
    figures = {family: [count[family] for count in counts] for family in written.scenes}
    figures["all"] = [sum(count.values()) for count in counts]
    for family, (drawn, objects, labelled) in figures.items():
        rows.add_row(family, str(drawn), str(objects), str(labelled), f"{labelled / max(objects, 1):.1%}")
    stdout_console().print(rows)
    print(f"wrote {out}; look at {out / 'contact_sheet.png'}")


def _benchmark(file: Path, out: Path, workers: int) -> None:
    from apiece.config.resolve import load_file
    from apiece.printed import stdout_console, table
    from apiece_scenes.benchmark import BenchmarkFile, prepare

    drawn, splits = prepare(load_file(file, BenchmarkFile), out, workers)
    rows = table("labels", *splits)
    for name in next(iter(splits.values())):
        rows.add_row(name, *(str(counts[name]) for counts in splits.values()))
    stdout_console().print(rows)
    print(f"drew {', '.join(drawn) or 'nothing: every split exists'}; look at {out / 'test' / 'contact_sheet.png'}")
