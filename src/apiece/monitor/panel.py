"""The panel: the samples that every dump shows, chosen once and written to the manifest."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, cast

import numpy as np

from apiece.config.schema import Config, PanelSection
from apiece.data.images import open_image
from apiece.data.jsonl import read_jsonl
from apiece.dumps.folder import Panel, open_run
from apiece.errors import UserError, nearest, require_file
from apiece.files import file_hash
from apiece.stats.ratio import CROWDING, crowding_of_counts
from apiece.types import Sample

log = logging.getLogger("apiece")

_EMPTY_SHARE = 16
"""Of this many chosen images at most one is without labels, where there are enough others: they show little."""


@dataclass(frozen=True, slots=True)
class ChosenPanel:
    """A panel as the manifest has it, and its samples in the same order."""

    entry: Panel
    samples: tuple[Sample, ...]

    def __post_init__(self) -> None:
        if [sample.id for sample in self.samples] != self.entry["ids"]:
            raise ValueError("samples must be those of the entry's ids, in order")


def choose_panel(config: Config) -> ChosenPanel:
    """Choose the panel of a new run, or take over another run's.

    Samples that are asked for but missing or unreadable are listed in one warning and in the entry.

    Raises:
        UserError: Nothing is left to show, or the other run's panel is of other data.
    """
    settings, data = config.monitor.panel, Path(str(config.data.eval))
    samples, digest = read_jsonl(data), file_hash(data)
    if settings.from_run is None:
        named = list(dict.fromkeys(settings.ids))
        others = [sample for sample in samples if sample.id not in set(named)]
        ids, seed = [*named, *spread(others, settings.size, settings.seed)], settings.seed
    else:
        taken = _other_panel(settings, data, digest)
        ids, named, seed = [*taken["ids"], *taken["missing"]], taken["named"], taken["seed"]
    kept, missing = _usable(ids, samples, data)
    bucket = [CROWDING[i] for i in crowding_of_counts(np.array([_crowding(sample) for sample in kept]))]
    complete = config.data.complete
    entry: Panel = {
        "seed": seed,
        "ids": [sample.id for sample in kept],
        "named": named,
        "missing": missing,
        "by_crowding": {name: bucket.count(name) for name in CROWDING},
        "data": str(data),
        "data_sha256": digest,
        "complete": complete,
        "complete_sha256": None if complete is None else file_hash(require_file(Path(complete), "the complete truth")),
        "from": settings.from_run,
    }
    return ChosenPanel(entry, kept)


def panel_again(config: Config, manifest: Mapping[str, Any]) -> ChosenPanel:
    """The panel in the manifest of a resumed run; what is no longer there is warned of and left out.

    Raises:
        UserError: Nothing of it is left.
    """
    if "panel" not in manifest:
        return choose_panel(config)
    entry, data = cast(Panel, manifest["panel"]), Path(str(config.data.eval))
    if file_hash(data) != entry["data_sha256"]:
        log.warning("%s has changed since the run began: dumps from here on show other labels", data)
    kept, missing = _usable(entry["ids"], read_jsonl(data), data)
    entry = {**entry, "ids": [sample.id for sample in kept], "missing": [*entry["missing"], *missing]}
    return ChosenPanel(entry, kept)


def spread(samples: Sequence[Sample], size: int, seed: int) -> list[str]:
    """Ids of `size` samples (all if there are fewer), one of each bucket of crowding in turn, the emptiest first.

    The choice depends on `seed` and the ids, not on the order of the samples.
    """
    order = sorted(samples, key=lambda s: hashlib.sha256(f"{seed}:{s.id}".encode("utf-8", "surrogatepass")).digest())
    bucket = crowding_of_counts(np.array([_crowding(sample) for sample in order], dtype=np.int64))
    rows = {name: [s.id for s, b in zip(order, bucket, strict=True) if CROWDING[b] == name] for name in CROWDING}
    empty, most_empty = rows.pop(CROWDING[0]), -(-size // _EMPTY_SHARE)
    turns = zip_longest(*rows.values(), empty[:most_empty])
    found = [identity for turn in turns for identity in turn if identity is not None][:size]
    found += empty[most_empty:][: size - len(found)]
    labels = {sample.id: _crowding(sample) for sample in samples}
    return sorted(found, key=labels.__getitem__)


def _other_panel(settings: PanelSection, data: Path, digest: str) -> Panel:
    run = open_run(Path(str(settings.from_run)))
    panel = run.panel
    if panel is None:
        raise UserError(
            "monitor.panel.from names a run without a panel",
            where=run.path,
            fix="name a run that was trained with monitor.every_steps, or leave monitor.panel.from out",
        )
    if panel["data_sha256"] != digest:
        raise UserError(
            f"the panel of this run was chosen from other data: {panel['data']} (sha256 {panel['data_sha256'][:12]}), "
            f"while data.eval is {data} ({digest[:12]})",
            where=run.path,
            fix="evaluate on the same file, or leave monitor.panel.from out",
        )
    return panel


def _usable(ids: Sequence[str], samples: Sequence[Sample], data: Path) -> tuple[tuple[Sample, ...], list[str]]:
    """The samples of `ids` that can be shown, and the ids of the others, which are listed in one warning."""
    by_id = {sample.id: sample for sample in samples}
    kept, reasons = [], {}
    for identity in dict.fromkeys(ids):
        sample = by_id.get(identity)
        if sample is None:
            reasons[identity] = f"'{identity}' is not in {data}{nearest(identity, by_id)}"
        elif problem := image_problem(sample):
            reasons[identity] = f"'{identity}': {problem}"
        else:
            kept.append(sample)
    if reasons and kept:
        listed = "".join(f"\n  {reason}" for reason in reasons.values())
        log.warning("%d of the panel's %d samples are left out:%s", len(reasons), len(kept) + len(reasons), listed)
    if not kept:
        listed = "".join(f"\n  {reason}" for reason in list(reasons.values())[:10])
        raise UserError(f"none of the panel's {len(reasons)} samples can be shown:{listed}", where="monitor.panel")
    return tuple(kept), list(reasons)


def image_problem(sample: Sample) -> str | None:
    """Why a sample's image cannot be shown, or `None`."""
    try:
        size = open_image(sample.image).size
    except UserError as error:
        return f"{error.where}: {error.message}" if error.where else error.message
    if size != sample.size_wh:
        width, height = sample.size_wh
        return f"{sample.image}: expected {width} x {height} pixels, found {size[0]} x {size[1]}"
    return None


def _crowding(sample: Sample) -> int:
    return sum(not instance.iscrowd for instance in sample.objects)
