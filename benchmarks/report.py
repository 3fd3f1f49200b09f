"""What a report weighs, how long it takes and how much memory: 200 samples through 40 dumps, made by hand.

    python benchmarks/report.py [--quick] [--samples 200] [--steps 40] [--json OUT]

The records are those of the tests (tests/made_runs.py): drawn scenes, predictions that get better, and four noisy
distributions for every box and every pass. 25 scenes are made and stand for all; every sample has a photo of its own.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from apiece.files import write_json
from apiece.report.page import build_report
from apiece_scenes.scene import generate_scene

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from made_runs import Made, make_run

KINDS = {"boxes": "run*/boxes_*", "details": "run*/details_*", "grid, curves, index": "**/[gci]*.js"}


def write_run(folder: Path, samples: int, steps: int, scenes: int) -> Path:
    """A run of some scenes, told over and over under other ids, each with a photo of its own."""
    run = make_run(folder, Made(samples=scenes, steps=tuple(100 * (i + 1) for i in range(steps))))
    for i in range(scenes, samples):
        generate_scene(6, i).image.save(folder / "images" / f"{i:06d}.png")
    for file in run.glob("dumps/*/records.jsonl"):
        lines = file.read_text(encoding="utf-8").splitlines()
        with file.open("w", encoding="utf-8") as out:
            for i in range(samples):
                record = json.loads(lines[i % scenes])
                record |= {"id": f"{i:06d}", "image": str(folder / "images" / f"{i:06d}.png")}
                out.write(json.dumps(record) + "\n")
    return run


def megabytes(folder: Path, pattern: str) -> float:
    """Of all files that a pattern names."""
    return sum(path.stat().st_size for path in folder.glob(pattern) if path.is_file()) / 1e6


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--quick", action="store_true", help="8 samples, 3 steps: does it run?")
    parser.add_argument("--json", type=Path, metavar="OUT", help="also write the figures here")
    options = parser.parse_args()
    samples, steps, scenes = (8, 3, 4) if options.quick else (options.samples, options.steps, 25)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = write_run(folder, samples, steps, min(scenes, samples))
        dumps = megabytes(run, "dumps/*/records.jsonl")
        counts = [json.loads(line) for line in next(run.glob("dumps/*/records.jsonl")).open(encoding="utf-8")]
        begun = time.process_time()
        built = build_report([run], folder / "report")
        seconds = time.process_time() - begun
        sizes = {kind: megabytes(folder / "report" / "data", pattern) for kind, pattern in KINDS.items()}
        sizes |= {"photos": megabytes(folder / "report", "photos/*"), "page": megabytes(folder / "report", "assets/*")}
    row = {
        **{"samples": samples, "steps": steps, "dumps_mb": dumps, "report_mb": built.num_bytes / 1e6},
        "parts_mb": sizes,
        "labels_per_image": sum(len(record["objects"]) for record in counts) / samples,
        "predictions_per_image": sum(len(record["predictions"]) for record in counts) / samples,
        "cpu_seconds": seconds,
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
    }
    table = Table(title=f"{samples} samples x {steps} dumps", box=None)
    table.add_column("")
    table.add_column("", justify="right")
    for key, value in {**row, **{f"  {kind} MB": size for kind, size in sizes.items()}}.items():
        if isinstance(value, float):
            table.add_row(key.replace("_", " "), f"{value:,.1f}")
    Console().print(table)
    if options.json:
        write_json(options.json, {"results": [row]})


if __name__ == "__main__":
    main()
