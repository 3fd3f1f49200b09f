"""`apiece data`: bring data in, and find what is wrong with it."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from apiece.cli import app
from apiece.cli.options import Overwrite
from apiece.errors import UserError
from apiece.files import require_free, write_json

if TYPE_CHECKING:
    from apiece.data.check import CheckReport
    from apiece.data.formats import Imported

MAX_LISTED = 20

data = typer.Typer(
    no_args_is_help=True,
    help="Import data sets and check them. One line of JSON per image.",
    short_help="Import data sets, and find what is wrong with them.",
)
importers = typer.Typer(no_args_is_help=True, help="Convert COCO, YOLO or Pascal VOC labels to the JSONL format.")
data.add_typer(importers, name="import")
app.add_typer(data, name="data")

Out = Annotated[Path, typer.Option("--out", help="JSONL file to write.")]
ImagesFolder = Annotated[Path, typer.Option("--images", help="Folder of the image files.")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave out what cannot be converted, and list it.")]


@importers.command()
def coco(
    annotations: Annotated[Path, typer.Option("--annotations", help="COCO instances file.")],
    images: ImagesFolder,
    out: Out,
    skip_bad: SkipBad = False,
    overwrite: Overwrite = False,
) -> None:
    """Import a COCO annotation file.

    Keeps image ids (as `id`), annotation ids, areas and `iscrowd`. Boxes that stick out by at most one pixel are cut
    and counted; other dirt is kept for `apiece data check` to name.

    Example: `apiece data import coco --annotations instances_val2017.json --images val2017 --out val.jsonl`
    """
    from apiece.data.coco import import_coco

    require_free(out, overwrite=overwrite, made_from=[annotations])
    _finish(import_coco(annotations, images), out, skip_bad)


@importers.command()
def yolo(
    images: ImagesFolder,
    labels: Annotated[Path, typer.Option("--labels", help="Folder of label files.")],
    names: Annotated[Path, typer.Option("--names", help="Class names: one a line, or data.yaml.")],
    out: Out,
    skip_bad: SkipBad = False,
    overwrite: Overwrite = False,
) -> None:
    """Import YOLO labels: `class cx cy width height` a line, as shares of the image.

    An image without a label file has no objects. Polygons become their bounding boxes.

    Example: `apiece data import yolo --images images/train --labels labels/train --names data.yaml --out train.jsonl`
    """
    from apiece.data.formats import import_yolo

    require_free(out, overwrite=overwrite, made_from=[names])
    _finish(import_yolo(images, labels, names), out, skip_bad)


@importers.command()
def voc(
    annotations: Annotated[Path, typer.Option("--annotations", help="Folder of XML files.")],
    images: ImagesFolder,
    out: Out,
    skip_bad: SkipBad = False,
    overwrite: Overwrite = False,
) -> None:
    """Import Pascal VOC annotations: one XML file an image, pixels counted from 1.

    Example: `apiece data import voc --annotations Annotations --images JPEGImages --out train.jsonl`
    """
    from apiece.data.formats import import_voc

    require_free(out, overwrite=overwrite)
    _finish(import_voc(annotations, images), out, skip_bad)


@data.command()
def check(
    path: Annotated[Path, typer.Argument(metavar="DATA.jsonl", help="File to check.")],
    fix: Annotated[
        Literal["drop"] | None, typer.Option(help="`drop`: write a copy without what has an error, to --out.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Where --fix writes its copy.")] = None,
    json_out: Annotated[Path | None, typer.Option("--json", help="Write all numbers and problems as JSON.")] = None,
    images: Annotated[bool, typer.Option("--images/--no-images", help="Open every image file.")] = True,
    max_objects: Annotated[int, typer.Option("--max-objects", min=1, help="Warn of images with more objects.")] = 60,
    overwrite: Overwrite = False,
    show: Annotated[int, typer.Option("--show", min=-1, help="Warnings to list of each kind; -1 for all.")] = 5,
) -> None:
    """Check a data file: list every error with its line, and describe the set.

    Exits with 1 if there are errors; warnings do not fail. With `--fix drop` it exits with 0 when the copy is written.

    Examples:

    `apiece data check train.jsonl`

    `apiece data check train.jsonl --fix drop --out train_clean.jsonl`
    """
    from rich.console import Console

    from apiece.data.check import check_jsonl, kinds, plain_line, print_report
    from apiece.data.lines import Level, counted, remedy

    if (fix is None) != (out is None):
        raise UserError("--fix drop and --out go together", fix="give both or neither", exit_code=2)
    for target in (out, json_out):
        if target is not None:
            require_free(target, overwrite=overwrite, made_from=[path])
    if out is not None and json_out is not None:
        require_free(out, overwrite=True, made_from=[json_out])
    report = check_jsonl(path, open_images=images, max_objects=max_objects)
    console = Console()
    print_report(report, console, show=show)
    if json_out is not None:
        write_json(json_out, report.as_dict())
    errors = report.counted(Level.ERROR)
    plain_line(console, "" if errors else f"\n{path}: no errors")
    if out is not None:
        _write_clean(report, out)
    elif errors:
        message = f"{counted(errors.total(), 'error')}: {kinds(errors)}"
        raise UserError(message, where=path, fix=remedy(report.errors, path, "mend them, or"))


def _write_clean(report: CheckReport, out: Path) -> None:
    from apiece.data.check import write_clean
    from apiece.data.lines import ROOT_VARIABLE, counted

    images, objects = write_clean(report, out)
    print(
        f"wrote {out} without the errors above: dropped {counted(images, 'image')}"
        f" and {counted(objects, 'object')} of other images"
    )
    allowed = [root for root in os.environ.get(ROOT_VARIABLE, "").split(os.pathsep) if root]
    source = report.path.parent.resolve()
    if not any(source.is_relative_to(folder.resolve()) for folder in (out.parent, *map(Path, allowed))):
        allowed.append(str(source))
    if allowed:
        roots = os.pathsep.join(allowed)
        print(f"if its images lie outside {out.parent}: to read this file, export {ROOT_VARIABLE}={roots}")


def _finish(imported: Imported, out: Path, skip_bad: bool) -> None:
    """Write what was imported, or fail with the problems listed."""
    from rich.console import Console

    from apiece.data.check import kinds, print_problems, printable
    from apiece.data.jsonl import write_jsonl
    from apiece.data.lines import ROOT_VARIABLE, Level, counted

    errors = imported.errors
    if errors and not skip_bad:
        listed = "".join(f"\n  {printable(str(problem))}" for problem in errors[:MAX_LISTED])
        more = f"\n  ... and {len(errors) - MAX_LISTED:,} more" if len(errors) > MAX_LISTED else ""
        found = kinds(Counter(problem.kind for problem in errors))
        message = f"{counted(len(errors), 'problem')}, nothing written: {found}{listed}{more}"
        raise UserError(message, fix="mend them, or leave them out with --skip-bad")
    if not imported.samples:
        raise UserError("no images to write", fix="check the paths given")
    console = Console()
    if errors:
        print_problems(errors, f"dropped, {counted(len(errors), 'problem')}", console)
    if warnings := [problem for problem in imported.problems if problem.level is Level.WARNING]:
        print_problems(warnings, counted(len(warnings), "warning"), console)
    write_jsonl(out, imported.samples)
    objects = [instance for sample in imported.samples for instance in sample.objects]
    empty = sum(not sample.objects for sample in imported.samples)
    crowd, classes = sum(one.iscrowd for one in objects), len({one.desc for one in objects})
    print(
        f"wrote {out}: {counted(len(imported.samples), 'image')} ({empty:,} without objects),"
        f" {counted(len(objects), 'object')} ({crowd:,} iscrowd), {counted(classes, 'class')}"
    )
    if imported.clipped:
        print(f"{counted(imported.clipped, 'box')} stuck out of the image by at most one pixel and were cut to it")
    for note in imported.notes:
        print(note)
    own = os.path.realpath(out.parent)
    folders = map(os.path.realpath, {sample.image.parent for sample in imported.samples})
    if outside := [folder for folder in folders if not Path(folder).is_relative_to(own)]:
        print(f"images lie outside the folder of {out}: commands that read this file need {ROOT_VARIABLE}")
        print(f"next: export {ROOT_VARIABLE}={os.path.commonpath(outside)} && apiece data check {out}")
    else:
        print(f"next: apiece data check {out}")
