"""One of two processes that train together, several runs one after the other; run by torchrun from test_train_ranks.py.

torchrun ranks.py FOLDER
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

from helpers import LORA, small_config, small_scenes

from apiece.channels.a_soft_context import SoftContext
from apiece.config.schema import Config
from apiece.data.collate import Batch
from apiece.errors import UserError
from apiece.train import loop, watch
from apiece.train.checkpoint import complete_checkpoints
from apiece.train.distributed import end_process, join_world, leave_world
from apiece.train.loop import train
from apiece.types import LossTerm

STEPS, HALF = 20, 10
CHANGES = {
    "stage2_ab__b_ratio": 0.5,
    "stage2_ab__n_softctx_iter": 2,
    "stage2_ab__b_redundancy_weight": 1.0,
    "generate__max_objects": 3,
    "generate__max_new_tokens": 80,
    "optim__lr": 1e-5,
    "train__steps": STEPS,
    "train__micro_batch_size": 1,
    "train__save_every": HALF,
    "train__keep_last": 3,
    "eval__every_steps": HALF,
    "eval__samples": 5,  # shares of three and two
    "monitor__every_steps": HALF,
    "monitor__panel__size": 3,
    "monitor__pictures": "false",
}
EMPTY = 5
ORDERS: dict[str, dict[str, int]] = {"full": {}, "buffer": {"data__buffer_size": 8}}


def scenes(folder: Path) -> Path:
    """Twelve images, five of them without labels: in some steps one process has no slots at all."""
    data = small_scenes(folder)
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    for row in rows[:EMPTY]:
        row["objects"] = []
    data.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return data


def config(root: Path, **changes: Any) -> Config:
    """Of every run of these tests."""
    data = root / "s" / "complete.jsonl"
    return small_config(root, root / "mini", data, data__eval=data, **(CHANGES | changes))


def main(root: Path) -> None:
    join_world("cpu")
    with mock.patch.object(loop, "leave_world"):  # the same processes go on to the next run
        train(config(root), "ddp")
        train(config(root, train__parallel="fsdp", train__sharded_checkpoints="true"), "fsdp")
        # One process has begun these: replicated, and in shards.
        train(config(root, train__parallel="fsdp"), "one to two", resume=root / "runs" / "one to two")
        again = config(root, train__parallel="fsdp", train__sharded_checkpoints="true")
        train(again, "sharded one to two", resume=root / "runs" / "sharded one to two")
        not_finite_on_one(root)
        asked_to_stop(root)
        with_adapters(root)
        in_every_order(root)
    leave_world(join_world("cpu"))


def not_finite_on_one(root: Path) -> None:
    """Only the second process has a value that is not finite, twice: the first time it is left out, then all stop."""
    rank, real = join_world("cpu").rank, SoftContext.forward

    def forward(self: SoftContext, batch: Batch) -> list[LossTerm]:
        terms = real(self, batch)
        if rank == 0:
            return terms
        return [LossTerm(t.name, t.weight, t.total * float("nan"), t.per) for t in terms]

    few = {"train__steps": 4, "train__skip_nonfinite": 1, "stage2_ab__b_ratio": 0.25, "eval__every_steps": 4}
    with mock.patch.object(SoftContext, "forward", forward):
        try:
            train(config(root, **few), "not finite")
            said = "it ended"
        except UserError as error:
            said = str(error)
    (root / f"said_{rank}").write_text(said)


def asked_to_stop(root: Path) -> None:
    """One process gets SIGTERM, in a step; after going on the other one does, in the evaluation. Then it ends."""
    rank = join_world("cpu").rank
    ends = []
    for where, step, chosen in (("one_step", 3, 1), ("evaluate_step", 0, 0), ("", 0, 0)):
        with interrupted(where, step) if rank == chosen and where else nullcontext():
            run = root / "runs" / "stopped"
            outcome = train(config(root), "stopped", resume=run if ends else None)
        ends.append([outcome.step, outcome.finished, outcome.signal])
    (root / f"ends_{rank}").write_text(json.dumps(ends))


def lora_config(root: Path, parallel: str) -> Config:
    """Of the runs of both channels with adapters."""
    return config(root, train__parallel=parallel, **(LORA | {"optim__lr": 1e-4, "eval__samples": 2}))


def with_adapters(root: Path) -> None:
    """Both channels with adapters, replicated and sharded."""
    for parallel in ("ddp", "fsdp"):
        train(lora_config(root, parallel), f"lora {parallel}")


def in_every_order(root: Path) -> None:
    """Five steps of samples in two orders, encoded by workers; a copy is resumed from the fourth of them."""
    world = join_world("cpu")
    for shuffle, more in ORDERS.items():
        small = {"train__steps": 5, "data__flip": True, "data__shuffle": shuffle, "data__workers": 2}
        order = small_config(root, root / "mini", root / "s" / "complete.jsonl", train__save_every=4, **small, **more)
        whole, parts = train(order, f"{shuffle} whole").run, root / "runs" / f"{shuffle} parts"
        if world.is_main:
            shutil.copytree(whole, parts)
            shutil.rmtree(complete_checkpoints(parts)[-1])
        world.barrier()
        train(order, parts.name, resume=parts)


@contextmanager
def interrupted(where: str, step: int) -> Iterator[None]:
    """SIGTERM to this process as it begins a step, or an evaluation."""
    owner: Any = loop if where == "one_step" else watch
    real = getattr(owner, where)

    def function(*args: Any, **kwargs: Any) -> Any:
        if not step or args[-1] == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*args, **kwargs)

    with mock.patch.object(owner, where, function):
        yield


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    end_process(0)
