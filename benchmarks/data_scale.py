"""How long a file of a million records takes to open, how fast it is read, and whether reading it takes memory.

Records are made up (a few class names, 0 to 14 boxes each); no images are opened. Each part runs in a process of its
own, so that memory is its own, too: seconds of wall time and of the processor (of the processes that it starts, too),
and private memory (RssAnon: what is mapped from the index file is not in it) before and after.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from apiece.config.schema import Shuffle
from apiece.data.index import open_data
from apiece.data.jsonl import read_jsonl
from apiece.files import write_json
from apiece.train.batches import BatchPlan

NAMES = ("person", "book", "chair", "car", "bottle", "cup", "sports ball", "dining table", "dog", "traffic light")
BATCH, WINDOW, BUFFER = 64, 8, 10_000
PARTS = {
    "open_first": "open, no index yet",
    "open_again": "open, with its index",
    "read_full": "read once, shuffle: full",
    "read_buffer": "read once, shuffle: buffer",
    "whole": "all in memory (`read_jsonl`)",
}


def generate(path: Path, records: int, seed: int = 0) -> None:
    """Write a data file of made-up records."""
    rng = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    block, number = 10_000, 0
    with open(path, "w", encoding="utf-8") as file:
        for start in range(0, records, block):
            counts = rng.integers(0, 15, min(block, records - start))
            total = int(counts.sum())
            corner = rng.uniform(0, 400, (total, 2))
            boxes = np.round(np.concatenate([corner, corner + rng.uniform(5, 80, (total, 2))], axis=1), 2).tolist()
            names = rng.integers(len(NAMES), size=total).tolist()
            row = 0
            for i, count in enumerate(counts.tolist(), start):
                objects = [
                    f'{{"desc": "{NAMES[names[k]]}", "bbox": {boxes[k]}, "area": 900.5, "id": {number + k}}}'
                    for k in range(row, row + count)
                ]
                row += count
                listed = ", ".join(objects)
                file.write(f'{{"id": "{i}", "image": "images/{i % 8}.png", "width": 640, "height": 480, ')
                file.write(f'"objects": [{listed}]}}\n')
            number += total


def memory_mb(field: str) -> float:
    """A figure of `/proc/self/status`, in MB."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:"))


def cpu_seconds_so_far() -> float:
    """Of this process and of those that it has started and waited for."""
    return sum(os.times()[:4])


def measure(part: str, path: Path) -> dict[str, Any]:
    """One part, in this process."""
    before = memory_mb("RssAnon")
    wall, cpu = time.perf_counter(), cpu_seconds_so_far()
    if part == "whole":
        samples = read_jsonl(path)
        count = len(samples)
    else:
        records = open_data(path)
        count = len(records)
        if part.startswith("open"):
            # What training asks for before its first step: names, drops, lengths, the first batch.
            kept = records.select(np.flatnonzero(records.num_objects <= 60))
            lengths = kept.sums_over_names(np.ones(len(records.table.names), np.int64)) * 25
            first = next(BatchPlan(lengths, BATCH, WINDOW, 0).steps(0, 1))
            assert len([kept[i] for i, _ in first]) == BATCH
        else:
            shuffle = Shuffle(part.removeprefix("read_"))
            plan = BatchPlan(records.num_objects, BATCH, WINDOW, 0, shuffle, BUFFER)
            before = memory_mb("RssAnon")
            wall, cpu = time.perf_counter(), cpu_seconds_so_far()
            for step in plan.steps(0, plan.batches_per_epoch):
                for i, _ in step:
                    records[i]
    seconds, cpu_seconds = time.perf_counter() - wall, cpu_seconds_so_far() - cpu
    after = memory_mb("RssAnon")
    return {
        "part": part,
        "records": count,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "records_per_cpu_s": count / cpu_seconds,
        "memory_before_mb": before,
        "memory_after_mb": after,
        "memory_peak_mb": memory_mb("VmHWM"),
    }


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--records", type=int, default=1_000_000, help="records in the file (1,000,000)")
    p.add_argument("--folder", type=Path, help="where the file is written and left (a temporary one, removed)")
    p.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS)[:4], help="`whole` takes 5 GB a million")
    p.add_argument("--quick", action="store_true", help="2,000 records: does it run?")
    p.add_argument("--json", type=Path, metavar="OUT", help="also write the figures here")
    p.add_argument("--measure", nargs=2, metavar=("PART", "FILE"), help=argparse.SUPPRESS)
    options = p.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure[0], Path(options.measure[1]))))
        return
    count = 2_000 if options.quick else options.records
    with tempfile.TemporaryDirectory() as temporary:
        path = (options.folder or Path(temporary)) / "records.jsonl"
        if not path.exists():
            generate(path, count)
        path.with_name(f".{path.name}.records.safetensors").unlink(missing_ok=True)
        rows = []
        for part in options.parts:
            command = [sys.executable, __file__, "--measure", part, str(path)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ)
            rows.append(json.loads(done.stdout))
        size = path.stat().st_size
    columns = ("seconds", "of the processor", "records/s of it", "MB before", "MB after", "MB at most, maps included")
    table = Table(*("part", *columns), title=f"{rows[0]['records']:,} records, {size / 1e6:,.0f} MB")
    for row in rows:
        figures = (row["memory_before_mb"], row["memory_after_mb"], row["memory_peak_mb"])
        times = (f"{row['seconds']:.2f}", f"{row['cpu_seconds']:.2f}", f"{row['records_per_cpu_s']:,.0f}")
        table.add_row(PARTS[row["part"]], *times, *(f"{value:,.0f}" for value in figures))
    Console(width=None if Console().is_terminal else 140).print(table)
    if options.json:
        write_json(options.json, {"bytes": size, "results": rows})


if __name__ == "__main__":
    main()
