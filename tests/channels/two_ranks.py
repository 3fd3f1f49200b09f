"""One of two processes that share a step; run by torchrun from test_soft_context.py."""

from __future__ import annotations

import sys

import torch
from equivalence import EVERYTHING, RAGGED, batch_of, channel, stage2, stepped
from small import small_model

import toy
from apiece.model.load import load_text_side
from apiece.train.distributed import join_world, leave_world

CHECKPOINT, OUT = sys.argv[1:]
world = join_world("cpu")
side = load_text_side(CHECKPOINT)
step = channel(small_model(side), side, EVERYTHING, stage2(n_softctx_iter=2))
# Micro-batches of one; one rank meets one without any slot.
mine = toy.encode(side, *RAGGED)[2 * world.rank : 2 * world.rank + 2]
result = stepped(world.wrap(step), step, [batch_of(side, [s]) for s in mine], world)
if world.is_main:
    torch.save((result.atoms, result.gradients), OUT)
leave_world(world)
