"""Packing a data file's images into tar shards, in the order of the file, so that they are read front to back."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from apiece.data.images import SUFFIX, image_size, read_image_file
from apiece.data.index import open_records
from apiece.data.jsonl import write_jsonl
from apiece.errors import UserError
from apiece.files import atomic_open
from apiece.progress import track
from apiece.types import Sample


@dataclass(slots=True)
class Packed:
    """What was written.

    Attributes:
        data: The new data file.
        images: How many images it names.
        shards: The tar files, in order.
    """

    data: Path
    images: int = 0
    shards: list[Path] = field(default_factory=list)


def pack(path: Path, out: Path, *, shard_bytes: int) -> Packed:
    """Copy images into shards, and write a data file that names them there. Images are copied byte for byte.

    An image that several records name is packed for each of them: a reader that goes front to back finds it there.

    Args:
        path: The data file; its images may lie in shards themselves.
        out: New or empty folder.
        shard_bytes: Images of a shard come to about this; a larger image has one to itself.

    Raises:
        UserError: The folder has something in it, the disk is full, or an image is missing or not of its size.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError("expected a new or empty folder", where=out, fix="choose another --out", exit_code=2)
    records = open_records(path)
    done = Packed(out / path.name)

    def moved() -> Iterator[Sample]:
        batch: list[tuple[Sample, bytes]] = []
        waiting = 0
        for sample in track(records, "packing", total=len(records)):
            data = _image(sample)
            if batch and waiting + len(data) > shard_bytes:
                yield from _write_shard(done, batch)
                batch, waiting = [], 0
            batch.append((sample, data))
            waiting += len(data)
        yield from _write_shard(done, batch)

    write_jsonl(done.data, moved())
    return done


def _image(sample: Sample) -> bytes:
    """The bytes of an image, which must have the size that its record says."""
    size_wh = image_size(sample.image)
    if size_wh != sample.size_wh:
        raise UserError(
            f"sample {sample.id}: expected {sample.size_wh[0]} x {sample.size_wh[1]} pixels, found "
            f"{size_wh[0]} x {size_wh[1]}",
            where=sample.image,
            fix="mend the data first: apiece data check",
        )
    return read_image_file(sample.image)


def _write_shard(done: Packed, batch: list[tuple[Sample, bytes]]) -> Iterator[Sample]:
    """Write one shard; gives the samples as they are from now on."""
    shard = done.data.parent / f"{done.data.stem}-{len(done.shards):05d}{SUFFIX}"
    with atomic_open(shard, "wb") as file, tarfile.open(fileobj=file, mode="w") as archive:
        for number, (sample, data) in enumerate(batch, done.images):
            member = tarfile.TarInfo(f"{number:08d}{sample.image.suffix.lower()}")  # no time, no owner: the same again
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
            yield Sample(sample.id, shard / member.name, sample.size_wh, sample.objects)
    done.shards.append(shard)
    done.images += len(batch)
