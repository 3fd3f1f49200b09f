"""One of two processes that join and leave again and again, and end while gloo's threads still work.

Run by torchrun from test_train_ranks.py: torchrun ending_rank.py FOLDER
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from apiece.cli import app, main
from apiece.config.schema import Parallel
from apiece.train.distributed import join_world, leave_world, parallelize

ROUNDS, EXCHANGES = 100, 3000


def once(meeting: Path) -> None:
    """A replicated step and an exchange right before the end, as in a run."""
    # In a file of its own: torchrun's store remembers the addresses of the round before.
    dist.init_process_group("gloo", init_method=meeting.as_uri(), rank=int(os.environ["RANK"]), world_size=2)
    world = join_world("cpu")
    model = parallelize(nn.Linear(8, 8), Parallel.DDP, world, None)
    model(torch.ones(2, 8)).sum().backward()
    world.share({"rank": world.rank})
    assert not world.any(False)
    leave_world(world)


@app.command("hurry")
def hurry() -> None:
    """Leave right after many exchanges, whose tensors the threads give back one by one."""
    world = join_world("cpu")
    for _ in range(EXCHANGES):
        dist.all_reduce(torch.ones(10), async_op=True)
    leave_world(world)
    sys.stdout.write("left at once\n")


if __name__ == "__main__":
    for number in range(ROUNDS):
        once(Path(sys.argv[1]) / str(number))
    sys.stdout.write(f"left {ROUNDS} times\n")
    sys.argv = ["apiece", "hurry"]
    main()
