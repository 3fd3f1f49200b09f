"""One of two processes that share steps, replicated and sharded; run by torchrun from test_soft_context.py."""

from __future__ import annotations

import sys

import torch
from equivalence import EVERYTHING, RAGGED, batch_of, channel, stage2, stepped
from small import small_model

import toy
from apiece.config.schema import Parallel
from apiece.model.load import load_text_side
from apiece.train.distributed import end_process, join_world, leave_world, parallelize

UNROLL = {"n_softctx_iter": 2}
# The pass in the middle runs without a graph.
DETACHED = {"n_softctx_iter": 3, "softctx_grad_mode": "em_detach"}
CASES = {
    # parallel, knobs, recompute layers, head tied to the embedding
    "ddp": (Parallel.DDP, UNROLL, False, True),
    "fsdp": (Parallel.FSDP, UNROLL, False, True),
    "fsdp one pass": (Parallel.FSDP, {"n_softctx_iter": 1}, False, True),
    "fsdp recomputed": (Parallel.FSDP, UNROLL, True, True),
    "fsdp untied": (Parallel.FSDP, UNROLL, False, False),
    "fsdp detached": (Parallel.FSDP, DETACHED, False, True),
    "fsdp detached recomputed": (Parallel.FSDP, DETACHED, True, True),
}


def main(checkpoint: str, out: str) -> None:
    world = join_world("cpu")
    side = load_text_side(checkpoint)
    # Micro-batches of one; one rank meets one without any slot.
    mine = toy.encode(side, *RAGGED)[2 * world.rank : 2 * world.rank + 2]
    results = {}
    for name, (parallel, knobs, recompute, tied) in CASES.items():
        model = small_model(side, tied=tied).train()
        if recompute:
            model.activation_checkpointing_enable({"use_reentrant": False})
        step = channel(model, side, EVERYTHING, stage2(**knobs))
        wrapped = parallelize(step, parallel, world, None)
        # The second step starts from what the first left of the shards.
        for _ in range(2):
            result = stepped(wrapped, step, [batch_of(side, [s]) for s in mine], world)
        results[name] = result.atoms, result.gradients
    if world.is_main:
        torch.save(results, out)
    leave_world(world)


if __name__ == "__main__":
    main(*sys.argv[1:])
    end_process(0)
