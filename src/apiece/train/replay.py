"""Going over one step of a run again, sample by sample: which terms and gradients are not finite, and where."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch

from apiece.config.resolve import load_config, require_data
from apiece.data.collate import Batch
from apiece.errors import UserError
from apiece.losses.compose import total_loss
from apiece.train.checkpoint import complete_checkpoints, load_checkpoint, problem_of, step_of
from apiece.train.distributed import World, join_world
from apiece.train.loop import one_step
from apiece.train.meter import Meter
from apiece.train.optim import lr_scale, set_lr
from apiece.train.saving import NONFINITE
from apiece.train.setup import Training, build_training, read_questions, seed_step
from apiece.train.step import global_counts
from apiece.train.stop import NonFiniteError, told


@dataclass(frozen=True, slots=True)
class Bad:
    """One sample of a step that is not finite.

    Attributes:
        sample: Its id.
        terms: Value by name of the terms that are not finite; a name begins with its pass (`a1`, `a2`, `b`).
        gradients: Names of parameters whose gradient is not finite.
    """

    sample: str
    terms: dict[str, float]
    gradients: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Replayed:
    """A step, gone over again.

    Attributes:
        step: Its number, from 1.
        channel: `a` or `b`.
        begun: Steps that the checkpoint had which it began from; 0 for the weights before the first one.
        samples: All ids, in order.
        bad: Those that are not finite.
    """

    step: int
    channel: str
    begun: int
    samples: tuple[str, ...]
    bad: tuple[Bad, ...]


def replay(run: Path, step: int | None = None, *, say: Callable[[str], None]) -> Replayed:
    """Take the steps after the last whole checkpoint before `step` again, then look into that one. Nothing is written.

    Args:
        run: Folder of a run.
        step: Number of the step, from 1; the last one that was not finite if `None`.
        say: Told what is being done.

    Raises:
        UserError: There is no such step, or another one before it is not finite.
    """
    number = chosen_step(run) if step is None else step
    loaded = load_config(run / "config.yaml")
    require_data(loaded)
    config = loaded.config
    if not 1 <= number <= config.train.steps:
        raise UserError(f"expected a step from 1 to {config.train.steps}, found {number}", exit_code=2)
    # One process goes over it, however many there were.
    world = World(0, 1, join_world(config.train.device).device)
    training = build_training(config, read_questions(config), world)
    begun = _begin(run, number, training, say)
    if begun < number - 1:
        say(f"taking steps {begun + 1} to {number - 1} again")
    meter = Meter(config, world)
    with closing(training.stream(begun, number - 1)) as stream, told(config):
        for done, batches in enumerate(stream, begun + 1):
            set_lr(training.optimizers, lr_scale(done - 1, config.train.steps, config.optim))
            try:
                one_step(training, meter, batches, done)
            except NonFiniteError as error:
                if done not in reported_steps(run):
                    raise UserError(f"step {done} comes first: {error.message}", fix=f"--step {done}") from error
    seed_step(config.seed, number, 0)
    with closing(training.stream(number - 1, number, micro=1)) as stream, told(config):
        prepared = training.channels.prepare(number - 1, next(stream)).batches
        bad = look_into([batch.to(world.device) for batch in prepared], training)
    samples = tuple(i for batch in prepared for i in batch.sample_ids)
    return Replayed(number, training.channels.letter(number - 1), begun, samples, bad)


def reported_steps(run: Path) -> list[int]:
    """Steps of a run of which it is kept that they were not finite, ascending."""
    return sorted(int(path.stem.removeprefix("step_")) for path in (run / NONFINITE).glob("step_*.json"))


def chosen_step(run: Path) -> int:
    """The last step that was not finite.

    Raises:
        UserError: There is none.
    """
    steps = reported_steps(run)
    if not steps:
        raise UserError(
            "no step of this run was anything but finite", where=run, fix="name the step to look into: --step N"
        )
    return steps[-1]


def _begin(run: Path, number: int, training: Training, say: Callable[[str], None]) -> int:
    """Put back the last whole checkpoint before a step; gives its step, 0 where there is none."""
    for folder in reversed(complete_checkpoints(run)):
        if step_of(folder) >= number:
            continue
        if (problem := problem_of(folder, training.world)) is not None:
            say(f"{folder} is not used: {problem}")
            continue
        say(f"beginning from {folder}")
        return int(load_checkpoint(folder, training.model, training.optimizers, training.world)["step"])
    say(f"beginning from {training.config.model.checkpoint}: there is no checkpoint before step {number}")
    return 0


def look_into(batches: Sequence[Batch], training: Training) -> tuple[Bad, ...]:
    """What is not finite, sample by sample; `batches` hold one each. No weights change."""
    world, dtype = training.world, training.dtype
    counts = global_counts(training.objective, batches, world)[0]
    found = []
    for batch in batches:
        with torch.autocast(world.device.type, dtype=dtype, enabled=dtype is not None):
            terms = training.channel(batch)
        values = {term.name: float(term.total.detach()) for term in terms}
        bad = {name: value for name, value in values.items() if not math.isfinite(value)}
        gradients = _bad_gradients(training, total_loss(terms, counts))
        if bad or gradients:
            found.append(Bad(batch.sample_ids[0], bad, gradients))
    return tuple(found)


def _bad_gradients(training: Training, loss: torch.Tensor) -> tuple[str, ...]:
    loss.backward()
    names = tuple(
        name
        for name, parameter in training.model.named_parameters()
        if parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all())
    )
    for optimizer in training.optimizers:
        optimizer.zero_grad(set_to_none=True)
    return names
