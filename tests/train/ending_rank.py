"""One of two processes that end while gloo's threads still work; run by torchrun from test_train_ranks.py."""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist

from apiece.cli import app, main
from apiece.train.distributed import join_world, leave_world

EXCHANGES = 3000


@app.command("hurry")
def hurry() -> None:
    """Leave right after many exchanges, whose tensors the threads give back one by one."""
    world = join_world("cpu")
    for _ in range(EXCHANGES):
        dist.all_reduce(torch.ones(10), async_op=True)
    leave_world(world)
    sys.stdout.write("left\n")


sys.argv = ["apiece", "hurry"]
main()
