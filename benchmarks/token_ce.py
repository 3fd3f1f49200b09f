"""What cross-entropy in pieces (`linear_cross_entropy`) costs and saves against whole logits, at Qwen's vocabulary.

Each arm runs in a process of its own, as the peak of a process's memory never goes back.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch.nn import functional as F

from apiece.files import write_json

ARMS = ("whole", "pieces")
MB = 1 << 20


def memory(field: str) -> int:
    """Bytes of this process: `VmRSS` now, `VmHWM` at most so far. Linux only."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def run(arm: str, rows: int, width: int, vocabulary: int) -> dict[str, float]:
    """Forward and backward of one arm."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    head = torch.empty(vocabulary, width).normal_(0, 0.02).requires_grad_()
    hidden, target = torch.randn(rows, width, requires_grad=True), torch.randint(0, vocabulary, (rows,))
    start, clock = memory("VmRSS"), time.process_time()
    if arm == "whole":
        losses = F.cross_entropy(F.linear(hidden, head), target, reduction="none")
    else:
        options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=128)
        losses = F.linear_cross_entropy(hidden, head, target, reduction="none", options=options)
    losses.sum().backward()
    seconds, peak = time.process_time() - clock, memory("VmHWM") - start
    return {"loss": float(losses.detach().sum()), "cpu_s": seconds, "peak_mb": peak / MB}


def main() -> None:
    p = argparse.ArgumentParser(description=(__doc__ or "").strip())
    p.add_argument("--rows", type=int, nargs="+", default=[300, 1000])
    p.add_argument("--width", type=int, default=1024)
    p.add_argument("--vocabulary", type=int, default=152_704)
    p.add_argument("--quick", action="store_true", help="8 rows of width 16, 1000 tokens: does it run?")
    p.add_argument("--json", type=Path, metavar="OUT", help="also write the figures here")
    p.add_argument("--arm", choices=ARMS, help="one arm in this process, printed as JSON")
    o = p.parse_args()
    if o.quick:
        o.rows, o.width, o.vocabulary = [8], 16, 1000
    if o.arm:
        print(json.dumps(run(o.arm, o.rows[0], o.width, o.vocabulary)))
        return
    results = []
    table = Table("rows", "arm", "loss", "CPU seconds", "peak MB", title=f"{o.vocabulary} tokens, width {o.width}")
    for rows in o.rows:
        for arm in ARMS:
            sizes = ["--rows", str(rows), "--width", str(o.width), "--vocabulary", str(o.vocabulary)]
            command = [sys.executable, __file__, "--arm", arm, *sizes]
            row = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            results.append({"rows": rows, "arm": arm, "width": o.width, "vocabulary": o.vocabulary, **row})
            table.add_row(str(rows), arm, f"{row['loss']:.4f}", f"{row['cpu_s']:.1f}", f"{row['peak_mb']:.0f}")
    Console().print(table)
    if o.json:
        write_json(o.json, {"benchmark": "token_ce", "results": results})


if __name__ == "__main__":
    main()
