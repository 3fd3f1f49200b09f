"""Writing the report page: runs in, a folder out that opens from disk and needs nothing else."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

import apiece
from apiece.codec.bins import COORDINATE_NAMES
from apiece.data.images import inspect_image, open_image
from apiece.data.lines import ImageError, ProblemKind
from apiece.dumps.folder import find_image, open_run
from apiece.dumps.form import Entry
from apiece.errors import UserError
from apiece.report.draw import CLASS_COLOURS, CROWD_REGION, FATES, HIDDEN, OUTCOMES, PREDICTION, SOLID, Style
from apiece.report.payload import RunPages, write_payload
from apiece.stats.ratio import CROWDING, crowding_of_counts

MAX_SIDE = 1280
"""Longer photos are scaled down: boxes are drawn over them as data, so nothing is lost but pixels."""
_AS_IT_IS = 80_000
"""Bytes up to which a JPEG is copied as it is."""
_SMALL = 66_000
"""Pixels up to which a photo is kept without loss."""


class Photos:
    """`photos/` of a report: each photo is stored once for all steps and runs, without its metadata."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[tuple[Path, tuple[int, int]], tuple[str | None, str]] = {}

    def add(self, path: Path, size_wh: tuple[int, int]) -> tuple[str | None, str]:
        """Store a photo: its address in the page, or `None` and what is wrong. Its boxes are for `size_wh` pixels."""
        key = path, size_wh
        if key not in self._known:
            try:
                self._known[key] = self._stored(path, size_wh), ""
            except ImageError as error:
                self._known[key] = None, f"{path.name}: {error.message}"
        return self._known[key]

    def _stored(self, path: Path, size_wh: tuple[int, int]) -> str:
        facts = inspect_image(path)
        if facts.size_wh != size_wh:
            found, expected = (f"{w} x {h}" for w, h in (facts.size_wh, size_wh))
            message = f"the photo is {found} now, but its boxes are for {expected}"
            raise ImageError(ProblemKind.SIZE_DIFFERS, message, path, "")
        data = path.read_bytes() if path.stat().st_size <= _AS_IT_IS else b""
        suffix = ".jpg"
        plain = data.startswith(b"\xff\xd8") and b"Exif" not in data[:65536]  # metadata may turn it or name its place
        if not plain or max(size_wh) > MAX_SIDE:
            image = open_image(path)
            image.thumbnail((MAX_SIDE, MAX_SIDE))
            buffer = io.BytesIO()
            small = image.width * image.height <= _SMALL
            image.save(buffer, format="WEBP", lossless=small, quality=80, method=4)
            data, suffix = buffer.getvalue(), ".webp"
        name = f"photos/{hashlib.sha256(data).hexdigest()[:16]}{suffix}"
        target = self._folder / name
        target.parent.mkdir(exist_ok=True)
        if not target.exists():
            target.write_bytes(data)
        return name


MARK = '<meta name="generator" content="apiece report">'
"""Stands in every report's page, so that a report is replaced by a newer one but nothing else ever is."""
MAX_GAPS = 100
SCRIPTS = "core style chart scene pointer slots overview panel detail layers extras sample compare app".split()
"""In the order in which the page loads them."""


@dataclass(frozen=True, slots=True)
class Built:
    """What was written.

    Attributes:
        page: The file to open.
        steps: Number of dumps of all runs.
        num_bytes: Size of the whole folder.
        gaps: What is missing or broken, one sentence each.
    """

    page: Path
    samples: int
    steps: int
    num_bytes: int
    gaps: tuple[str, ...]


def build_report(
    runs: Sequence[Path],
    out: Path,
    *,
    comparison: Mapping[str, Any] | None = None,
    comparison_note: str = "",
    overwrite: bool = False,
) -> Built:
    """Write the page of some runs.

    Args:
        runs: Folders of runs, the first ones shown side by side.
        out: New or empty folder.
        comparison: What `apiece compare` wrote, where there is one.
        comparison_note: Why there is none.
        overwrite: Whether a report in `out` may be replaced.

    Raises:
        UserError: A folder is no run, no run has dumps, or `out` is not free.
    """
    _require_free(out, overwrite=overwrite)
    pages = [RunPages(open_run(path)) for path in runs]
    if len({page.run.path.resolve() for page in pages}) < len(pages):
        raise UserError("a run is named twice", fix="name each run once", exit_code=2)
    if not any(page.run.steps for page in pages):
        names = ", ".join(page.run.name for page in pages)
        raise UserError(
            f"expected runs with dumps, found none in {names}: there is nothing to show image by image",
            where=pages[0].run.path,
            fix="set monitor.every_steps (and data.eval) in the config of the next run",
        )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        try:
            built = _write(pages, part, out, comparison, comparison_note)
            part.chmod(0o755)  # mkdtemp's own folders are for one user alone
            if out.is_dir():
                shutil.rmtree(out)
            part.rename(out)
        finally:
            if part.exists():
                shutil.rmtree(part)
    except OSError as error:
        raise UserError(f"cannot write here: {error.strerror}", where=out, fix="choose another folder") from error
    return built


def _require_free(out: Path, *, overwrite: bool) -> None:
    if out.exists() and not out.is_dir():
        raise UserError("expected a new or empty folder, found a file", where=out, exit_code=2)
    if not out.is_dir() or not any(out.iterdir()):
        return
    page = out / "index.html"
    is_report = page.is_file() and MARK in page.read_text(encoding="utf-8", errors="replace")
    if is_report and overwrite:
        return
    fix = "replace the report in it with --overwrite, or name another" if is_report else "name a new folder"
    raise UserError("folder is not empty", where=out, fix=fix, exit_code=2)


def _write(
    pages: Sequence[RunPages], part: Path, out: Path, comparison: Mapping[str, Any] | None, comparison_note: str
) -> Built:
    for page in pages:
        page.read()
    found = [(id_, facts.in_panel) for page in pages for id_, facts in page.samples.items()]
    ids = list(dict.fromkeys(id_ for id_, _ in sorted(found, key=lambda sample: not sample[1])))
    numbers = {id_: number for number, id_ in enumerate(ids)}
    photos = Photos(part)
    samples = [_sample(id_, pages, photos) for id_ in ids]
    lost = [f"photo of sample {sample['id']}: {sample['gap']}" for sample in samples if sample["gap"]]
    for number, page in enumerate(pages):
        page.write(part / "data", f"run{number}", numbers)
    index = {
        "made": time.strftime("%Y-%m-%d %H:%M"),
        "version": apiece.__version__,
        "coordinates": COORDINATE_NAMES,
        "crowding": CROWDING,
        "styles": _styles(),
        "runs": [_run(page, out) for page in pages],
        "differences": _differences([page.run.config for page in pages]),
        "samples": samples,
        "gaps": lost[:MAX_GAPS],
        "comparison": comparison,
        "comparison_note": comparison_note,
    }
    write_payload(part / "data", "index", index)
    with as_file(files("apiece.report") / "templates") as templates:
        (part / "assets").mkdir()
        for path in (*templates.glob("*.js"), *templates.glob("*.css")):
            shutil.copyfile(path, part / "assets" / path.name)
        environment = jinja2.Environment(loader=jinja2.FileSystemLoader(templates), autoescape=True)
        title = " · ".join(page.run.name for page in pages)
        html = environment.get_template("index.html").render(title=title, scripts=SCRIPTS, mark=Markup(MARK))
    (part / "index.html").write_text(html, encoding="utf-8")
    size = sum(path.stat().st_size for path in part.rglob("*") if path.is_file())
    gaps = tuple(gap for page in pages for gap in page.gaps) + tuple(lost)
    return Built(out / "index.html", len(samples), sum(len(page.steps) for page in pages), size, gaps)


def _sample(id_: str, pages: Sequence[RunPages], photos: Photos) -> dict[str, Any]:
    """A line of the page's list of samples. The photo is taken from the first run that still has it."""
    holders = [(number, page) for number, page in enumerate(pages) if id_ in page.samples]
    facts = [page.samples[id_] for _, page in holders]
    address, gap = None, "not found"
    for (_, page), fact in zip(holders, facts, strict=True):
        if address is None:
            path = find_image(fact.entry, page.run.path)
            missing = None, f"{fact.entry['image']}: not found"
            address, gap = missing if path is None else photos.add(path, _size_wh(fact.entry))
    return {
        "id": id_,
        "photo": address,
        "gap": gap,
        "size": _size_wh(facts[0].entry),
        "objects": facts[0].objects,
        "crowding": int(crowding_of_counts(facts[0].objects)),
        "classes": sorted({name[:200] for fact in facts for name in fact.classes}),
        "panel": any(fact.in_panel for fact in facts),
        "runs": [number for number, _ in holders],
    }


def _size_wh(entry: Entry) -> tuple[int, int]:
    return entry["width"], entry["height"]


def _run(page: RunPages, out: Path) -> dict[str, Any]:
    manifest, protocol, gaps = page.run.manifest, page.protocol, page.gaps
    git = manifest.get("git")
    return {
        "name": page.run.name,
        # From the page to the run's own files, for links that work while both stay where they are.
        "path": Path(os.path.relpath(page.run.path.resolve(), out.resolve())).as_posix(),
        "steps": page.steps,
        "gaps": [*gaps[:MAX_GAPS], *([f"and {len(gaps) - MAX_GAPS} more"] if len(gaps) > MAX_GAPS else [])],
        "num_bins": protocol.get("num_bins"),
        "facts": {
            "created": manifest.get("created"),
            "seed": manifest.get("seed"),
            "commit": str(git.get("commit") or "")[:10] if isinstance(git, dict) else None,
            "panel of": protocol.get("data"),
            "scores": protocol.get("score_policy"),
        },
    }


def _differences(configs: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
    """Settings in which the runs differ: dotted key, then the value in each run."""
    flat = [dict(_flat("", config)) for config in configs]
    keys = dict.fromkeys(key for settings in flat for key in settings)
    rows = [[key, *(settings.get(key, "-") for settings in flat)] for key in keys if not key.startswith("run.")]
    return [row for row in rows if len(set(row[1:])) > 1][:60]


def _flat(prefix: str, value: Any) -> list[tuple[str, str]]:
    if isinstance(value, Mapping):
        return [row for key, child in value.items() for row in _flat(f"{prefix}.{key}" if prefix else str(key), child)]
    return [(prefix, str(value))]


def _styles() -> dict[str, Any]:
    """Colours and lines for the scripts; the palette is the only place that knows them."""
    return {
        "prediction": [[name, *_style(style)] for name, style in OUTCOMES.items()],
        "label": [[name, *_style(style)] for name, style in FATES.items()],
        "crowd": ["crowd", *_style(CROWD_REGION)],
        "hidden": ["hidden", *_style(HIDDEN)],
        "other": ["other", *_style(PREDICTION)],
        "runs": [Style("", colour, SOLID).css for colour in CLASS_COLOURS],
    }


def _style(style: Style) -> tuple[str, str, tuple[int, int]]:
    return style.word, style.css, style.dash
