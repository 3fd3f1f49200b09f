"""Repeat one training step of a run, sample by sample: which terms and gradients are not finite, and where.

    python tools/replay.py RUN [STEP]      the last step that was not finite, where no STEP is named

The steps since the last checkpoint before it are taken again, with the same samples, answers and random numbers, in one
process. Nothing of the run is changed.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch

from apiece.config.resolve import load_config, require_data
from apiece.data.collate import Batch
from apiece.errors import UserError
from apiece.losses.compose import total_loss
from apiece.train.checkpoint import NONFINITE, complete_checkpoints, load_checkpoint, problem_of, step_of
from apiece.train.distributed import World, join_world
from apiece.train.loop import one_step
from apiece.train.meter import Meter
from apiece.train.setup import Training, build_training, read_training_data, seed_step
from apiece.train.step import global_counts, lr_scale, set_lr
from apiece.train.stop import NonFiniteError, explained


@dataclass(frozen=True, slots=True)
class Bad:
    """One sample of a step that is not finite.

    Attributes:
        terms: Value by name of the terms that are not finite; a name begins with its pass (`a1`, `a2`, `b`).
        gradients: Names of parameters whose gradient is not finite.
    """

    sample: str
    terms: dict[str, float]
    gradients: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Replayed:
    """A step that was repeated.

    Attributes:
        step: Its number, from 1.
        begun: Step of the checkpoint that it began from; 0 for the weights before the first step.
        samples: All ids, in order.
        bad: Those that are not finite.
    """

    step: int
    channel: str
    begun: int
    samples: tuple[str, ...]
    bad: tuple[Bad, ...]


def replay(run: Path, step: int | None = None, *, say: Callable[[str], None] = print) -> Replayed:
    """Repeat a step.

    Args:
        step: From 1; the last one that was not finite if `None`.

    Raises:
        UserError: There is no such step, or another one before it is not finite.
    """
    reported = sorted(int(path.stem.removeprefix("step_")) for path in (run / NONFINITE).glob("step_*.json"))
    if step is None and not reported:
        raise UserError("every step of this run had finite loss and gradients; name a step to repeat it", where=run)
    number = reported[-1] if step is None else step
    loaded = load_config(run / "config.yaml")
    require_data(loaded)
    config = loaded.config
    if not 1 <= number <= config.train.steps:
        raise UserError(f"expected a step from 1 to {config.train.steps}, found {number}")
    world = World(0, 1, join_world(config.train.device).device)  # however many processes trained it
    training = build_training(config, read_training_data(config), world)
    begun = restore_before(run, number, training, say)
    if begun < number - 1:
        say(f"repeating steps {begun + 1} to {number - 1}")
    meter = Meter(config, world)
    with closing(training.stream(begun, number - 1)) as stream, explained(config):
        for done, micro in enumerate(stream, begun + 1):
            set_lr(training.optimizers, lr_scale(done - 1, config.train.steps, config.optim))
            try:
                one_step(training, meter, micro, done)
            except NonFiniteError as error:
                if done not in reported:  # else the run left it out, too
                    raise UserError(f"step {done} is not finite, either: {error.message}") from error
    seed_step(config.seed, number, 0)
    with closing(training.stream(number - 1, number, micro=1)) as stream, explained(config):
        prepared = training.channels.prepare(number - 1, next(stream)).batches
        bad = look_into([batch.to(world.device) for batch in prepared], training)
    samples = tuple(i for batch in prepared for i in batch.sample_ids)
    return Replayed(number, training.channels.channel_of(number - 1), begun, samples, bad)


def restore_before(run: Path, number: int, training: Training, say: Callable[[str], None]) -> int:
    """Restore the last whole checkpoint before a step; gives its step, 0 where there is none."""
    for folder in reversed(complete_checkpoints(run)):
        if step_of(folder) >= number:
            continue
        if (problem := problem_of(folder, training.world)) is not None:
            say(f"{folder} is not used: {problem}")
            continue
        say(f"beginning from {folder}")
        return int(load_checkpoint(folder, training)["step"])
    say(f"beginning from {training.config.model.checkpoint}: there is no checkpoint before step {number}")
    return 0


def look_into(batches: Sequence[Batch], training: Training) -> tuple[Bad, ...]:
    """What is not finite, sample by sample; `batches` hold one each. No weights change."""
    world, dtype = training.world, training.dtype
    counts = global_counts(training.objective, batches, world)[0]
    found = []
    for batch in batches:
        with torch.autocast(world.device.type, dtype=dtype, enabled=dtype is not None):
            terms = training.wrapped_channels(batch)
        total_loss(terms, counts).backward()
        values = {term.name: float(term.total.detach()) for term in terms}
        bad = {name: value for name, value in values.items() if not math.isfinite(value)}
        gradients = tuple(
            name
            for name, parameter in training.model.named_parameters()
            if parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all())
        )
        training.model.zero_grad(set_to_none=True)
        if bad or gradients:
            found.append(Bad(batch.sample_ids[0], bad, gradients))
    return tuple(found)


def main(run: Path, step: int | None) -> None:
    done = replay(run, step)
    print(f"step {done.step} (channel {done.channel.upper()}), {len(done.samples)} samples")
    for bad in done.bad:
        for name, value in bad.terms.items():
            print(f"  sample {bad.sample}  term {name}  {value}")
        if bad.gradients:
            print(f"  sample {bad.sample}  gradient of {len(bad.gradients)} parameters: {', '.join(bad.gradients[:4])}")
    if not done.bad:
        print("  everything is finite here: on this device, and each sample by itself")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    try:
        main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) == 3 else None)
    except UserError as problem:
        sys.exit(str(problem))
