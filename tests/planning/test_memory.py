"""Footprints, FLOPs and times: what is exact, and how figures move with settings."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from published import published_config

from apiece.config.schema import Part
from apiece.planning.estimate import GIB, GPUS, Gpu, machine_of, rollout_seconds, step_seconds
from apiece.planning.flops import Recipe, Work, step_flops
from apiece.planning.lengths import Lengths
from apiece.planning.memory import Resident, rollout_footprint, training_footprint
from apiece.planning.shapes import ModelShape

SHAPE = ModelShape.of(published_config("2b"), rows=152_704)
WORK = Work(
    grids=((1, 60, 60),) * 4,
    prefix=940,
    answer=400,
    text_rows=1200,
    name_rows=120,
    slots=240,
    first_slot=15,
    padded=False,
)
EMPTY = Work(((1, 2, 2),), 20, 1, 1, 0, 0, 0, False)
FROZEN = {part: part is Part.LANGUAGE for part in Part}


def peak(work: Work = WORK, **changes: object) -> float:
    """Beyond what is always there."""
    recipe = replace(Recipe(), **changes)  # type: ignore[arg-type]
    found = training_footprint(SHAPE, work, recipe, 1, accumulates=False)
    return found.gradients + found.activations + found.logits


def test_memory_moves_as_it_should() -> None:
    assert peak(recompute=True) < peak()
    assert peak(half=False) > peak()
    assert peak() < peak(passes=2) < peak(passes=4)
    assert peak(passes=4, unroll=False) < peak(passes=4)
    assert peak(trained=FROZEN) < peak()
    assert peak(gate=False) < peak()
    assert peak(text_gate=True) > peak()
    assert peak(passes=2, flash=True) < peak(passes=2)
    assert peak(shards=8) < peak()
    assert peak(replace(WORK, padded=True)) > peak()
    assert peak(EMPTY, passes=2) > 0
    several = training_footprint(SHAPE, WORK, Recipe(), 1, accumulates=True)
    assert several.gradients == Resident.of(SHAPE, Recipe(), 1).learnt + 4 * SHAPE.table  # all, and the table's again


def test_flops_move_as_they_should() -> None:
    plain, frozen = step_flops(SHAPE, WORK, Recipe()), step_flops(SHAPE, WORK, Recipe(trained=FROZEN))
    assert plain.forward == frozen.forward
    assert frozen.backward["vision"] == 0 < plain.backward["vision"]
    assert 0 < frozen.backward["head"] < plain.backward["head"]
    assert plain.again == {"vision": 0, "language": 0, "head": 0}
    again = step_flops(SHAPE, WORK, Recipe(recompute=True))
    assert 0 < again.again["language"] < again.forward["language"]
    nothing = step_flops(SHAPE, WORK, Recipe(trained=dict.fromkeys(Part, False)))
    assert sum(nothing.backward.values()) == 0
    detached = step_flops(SHAPE, WORK, Recipe(passes=4, unroll=False))
    assert detached.total < step_flops(SHAPE, WORK, Recipe(passes=4)).total
    assert step_flops(SHAPE, WORK, Recipe(), causal=False).total > plain.total


def test_adapters() -> None:
    """What peft adds to the linear layers of a part, and the coordinate rows; the base gets no gradient."""
    nothing = dict.fromkeys(Part, False)
    recipe = Recipe(trained=nothing, rank=16, adapted=frozenset({Part.LANGUAGE}), rows=True)
    # q, k, v, o, gate, up, down of the 2B model: inputs and outputs of 28 layers.
    sides = 28 * ((2048 + 2048) * 2 + (2048 + 1024) * 2 + (2048 + 6144) * 3)
    assert recipe.learnt(SHAPE)[Part.LANGUAGE] == 16 * sides
    assert recipe.learnt(SHAPE)[Part.COORD] == SHAPE.coordinate_rows == 1000 * 2048
    assert recipe.learnt(SHAPE)[Part.VISION] == 0
    assert sum(recipe.held(SHAPE).values()) == sum(SHAPE.parameters.values()) + sum(recipe.learnt(SHAPE).values())
    whole, adapted = (training_footprint(SHAPE, WORK, r, 1, accumulates=False) for r in (Recipe(), recipe))
    assert adapted.optimizer < 0.05 * whole.optimizer
    assert adapted.total < whole.total
    flops = step_flops(SHAPE, WORK, recipe)
    assert flops.backward["language"] < step_flops(SHAPE, WORK, Recipe()).backward["language"]
    assert flops.backward["vision"] == 0


def test_what_is_always_there() -> None:
    count = sum(SHAPE.parameters.values())
    alone, ddp = Resident.of(SHAPE, Recipe(), 1), Resident.of(SHAPE, Recipe(), 8)
    shared = Resident.of(SHAPE, Recipe(shards=8), 8)
    assert (alone.weights, alone.optimizer, alone.exchange) == (4 * count, 8 * count, 0)
    assert (ddp.weights, ddp.exchange) == (4 * count, 4 * count)  # buckets
    assert (shared.weights, shared.optimizer, shared.exchange) == (count / 2, count, 0)
    muon = Resident.of(SHAPE, Recipe(muon=True), 1)
    matrices = sum(n for part, n in SHAPE.matrices.items() if part is not Part.COORD)
    assert muon.optimizer == 8 * count - 4 * matrices


def test_the_update_can_be_the_highest_point() -> None:
    assert training_footprint(SHAPE, EMPTY, Recipe(), 1, accumulates=False).highest_in == "update"
    assert training_footprint(SHAPE, WORK, Recipe(half=False), 1, accumulates=False).highest_in != "update"


def test_a_shared_model_is_whole_while_answers_are_written() -> None:
    count = sum(SHAPE.parameters.values())
    alone = rollout_footprint(SHAPE, WORK, Recipe(), 1, 16, 400)
    shared = rollout_footprint(SHAPE, WORK, Recipe(shards=8), 8, 16, 400)
    assert (alone.exchange, shared.exchange) == (0, 4 * count)
    assert rollout_footprint(SHAPE, WORK, Recipe(), 1, 64, 400).total > alone.total


def test_times() -> None:
    flops = step_flops(SHAPE, WORK, Recipe()).total
    one = step_seconds(SHAPE, Recipe(), machine_of("h100"), flops, 1)
    assert one.compute == pytest.approx(flops / (0.25 * 989e12))
    assert (one.exchange, one.rollout) == (0, 0)
    assert step_seconds(SHAPE, Recipe(), machine_of("h100", 0.5), flops, 1).compute == one.compute / 2
    assert step_seconds(SHAPE, Recipe(half=False), machine_of("h100"), flops, 1).compute > one.compute
    # A handful of samples on cards without NVLink: the gradients of 2B weights take longer than computing them.
    assert step_seconds(SHAPE, Recipe(), machine_of("rtx4090:8"), flops / 10, 1).exchange > 0
    objects = np.array([2, 30])
    samples = Lengths(np.full((2, 2), 60), np.full(2, 900), 40, 25 * objects + 6, 2 * objects, objects, np.full(2, 15))
    slow, held = (rollout_seconds(SHAPE, samples, machine_of("h100"), 8, 8, grammar=g) for g in (False, True))
    assert 0 < held < slow
    assert rollout_seconds(SHAPE, samples, machine_of("h100"), 16, 8, grammar=True) > held


@pytest.mark.parametrize("gpu", GPUS.values(), ids=GPUS)
def test_the_table_of_gpus(gpu: Gpu) -> None:
    assert 0.8 * gpu.memory_gib * GIB < gpu.room < gpu.memory_gib * GIB
    assert gpu.peak_float32 < gpu.peak_bf16
    assert 0.05 < gpu.reaches < 0.6
