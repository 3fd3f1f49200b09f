"""The training loop: it reads top to bottom; every stage is one call."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apiece.config.reference import dump_config
from apiece.config.schema import Config
from apiece.files import file_hash, write_json, write_text
from apiece.model.families import describe_parameters
from apiece.progress import progress_bar
from apiece.train.batches import MicroBatch
from apiece.train.checkpoint import Saver, choose_checkpoint, forget_after, load_checkpoint
from apiece.train.distributed import World, join_world, leave_world
from apiece.train.meter import Meter, give_back
from apiece.train.run import TRACKERS, MetricsFile, create_run, hold, log_to, make_manifest, read_manifest
from apiece.train.setup import Training, build_training, check_world, read_training_data, seed_step
from apiece.train.step import lr_scale, set_lr, train_step
from apiece.train.stop import explained, signal_name, stop_signals
from apiece.train.watch import Watched, watching, what_to_watch

log = logging.getLogger("apiece")


@dataclass(frozen=True, slots=True)
class RunEnd:
    """How a run ended."""

    run: Path
    step: int  # steps done
    finished: bool  # false if it was interrupted
    signal: int | None = None  # what interrupted it, on the process that got a signal


def train(
    config: Config,
    name: str,
    *,
    resume: Path | None = None,
    step: int | None = None,
    say: Callable[[str], None] = log.info,
) -> RunEnd:
    """Train as the config says, or resume the run in `resume`.

    Args:
        config: When resuming, the run's own.
        name: Name of a new run's folder.
        step: Resume from this step's checkpoint; from the newest if `None`.
        say: Gets a line about where the run begins or resumes.
    """
    world = join_world(config.train.device)
    check_world(config, world)
    steps = config.train.steps
    with open_run(config, name, resume, step, world, say) as opened, stop_signals() as stop, explained(config):
        run, training, watched, metrics, state, stream = opened
        done = start = state["step"]
        with watching(run, start, config, training.encoder, world, watched, stop) as watch, progress_bar() as bar:
            meter = Meter(config, world)
            saver = Saver(run, training, meter, metrics)
            saver.restore(state)
            watch.begin(start, training.model, metrics)
            saver.prune()
            stopped = world.any(stop.now)
            task = bar.add_task("train", total=steps, completed=start, note="")
            while done < steps and not stopped:
                done += 1
                with saver.step(done):
                    rates = set_lr(training.optimizers, lr_scale(done - 1, steps, config.optim))
                    one_step(training, meter, next(stream), done)
                if done % config.train.log_every == 0 or done == steps:
                    bar.update(task, note=write_figures(meter, metrics, done, rates, world))
                    give_back()
                bar.update(task, completed=done)
                stopped = world.any(stop.now)
                if stopped or done == steps or done % (config.train.save_every or steps) == 0:
                    saver.save(done)
                if not stopped and watch.after(done, training.model, metrics):
                    meter.restart_clock()
                    saver.prune()
                    if stopped := world.any(stop.now):
                        saver.save(done)
            if stop.signal is not None:
                log.info("stopped by %s after step %d", signal_name(stop.signal), done)
    leave_world(world)
    return RunEnd(run, done, finished=done == steps and not (stopped and watch.due(done)), signal=stop.signal)


def one_step(training: Training, meter: Meter, micro: Sequence[MicroBatch], number: int) -> None:
    """Take optimizer step `number`, from 1."""
    config, world = training.config, training.world
    seed_step(config.seed, number, world.rank)
    prepared = training.channels.prepare(number - 1, micro)
    result = train_step(
        training.wrapped_channels,
        training.objective,
        training.optimizers,
        [batch.to(world.device) for batch in prepared.batches],
        world,
        clip_norm=config.optim.clip_norm,
        dtype=training.dtype,
    )
    meter.add(result, prepared.tally)


def write_figures(meter: Meter, metrics: MetricsFile, step: int, rates: dict[str, float], world: World) -> str:
    """Write a line of metrics; returns it in a few words."""
    if meter.empty:
        return ""
    figures = meter.read(rates)
    brief = f"loss {figures['loss/total']:.4f}  {figures['speed/samples_per_s']:.1f} samples/s"
    if world.is_main:
        metrics.log(step, figures)
        log.info("step %d  %s", step, brief)
    return brief


# Folder, what is trained and watched, metrics, what the checkpoint remembers, and the micro-batches of each step.
OpenRun = tuple[Path, Training, Watched, MetricsFile, dict[str, Any], Generator[list[MicroBatch]]]


@contextmanager
def open_run(
    config: Config, name: str, resume: Path | None, step: int | None, world: World, say: Callable[[str], None]
) -> Iterator[OpenRun]:
    """Hold the run's lock, read data and model, make its folder or restore its checkpoint, open its files.

    Nothing is written before everything that is read has been found good. Data workers, files and lock end with the
    block.
    """
    with hold(resume if world.is_main else None):
        found = None if resume is None else choose_checkpoint(resume, step, world)
        data = read_training_data(config)
        watched = what_to_watch(config, resume)
        training = build_training(config, data, world)
        run = make_run(config, name, resume, world, data.manifest | watched.manifest)
        state = load_checkpoint(found, training) if found else {"step": 0}
        if resume is not None and world.is_main:
            forget_after(run, state["step"])
        trackers = [TRACKERS[tracker]() for tracker in config.train.trackers]
        with (
            hold(run if world.is_main and resume is None else None),
            closing(training.stream(state["step"], config.train.steps)) as stream,
            # Opening these rewrites them, so one process does.
            log_to(run if world.is_main else None),
            MetricsFile(run if world.is_main else None, state["step"], trackers, config) as metrics,
        ):
            log.info(describe_parameters(training.model))
            if resume is None:
                say(f"training {config.train.steps} steps; log: {run / 'train.log'}")
            else:
                say(f"resuming from {found or 'the beginning: there is no checkpoint yet'}")
            yield run, training, watched, metrics, state, stream


def make_run(config: Config, name: str, resume: Path | None, world: World, about: dict[str, Any]) -> Path:
    """The run's folder: a new one, or that of the run that is resumed.

    `about` goes into the manifest of a new run. Of a resumed run its data is compared, and its panel added if it was
    not asked for before; settings that may change on resume are those of its config from then on.
    """
    if resume is not None:
        manifest = read_manifest(resume)
        for path, sha256 in about["data"].items():
            if manifest.get("data", {}).get(path, sha256) != sha256:
                log.warning("%s has changed since the run began: its batches differ from here on", path)
        if world.is_main and dump_config(config) != (resume / "config.yaml").read_text(encoding="utf-8"):
            write_text(resume / "config.yaml", dump_config(config))
        if world.is_main and "panel" in about and "panel" not in manifest:
            write_json(resume / "manifest.json", manifest | {"panel": about["panel"]})
        return resume
    parent = Path(config.run.dir)
    if world.is_main:
        others = {str(Path(path)): file_hash(Path(path)) for path in (config.data.eval, config.data.complete) if path}
        about = about | {"data": others | about["data"], "world_size": world.size, "device": str(world.device)}
        create_run(parent, name, dump_config(config), make_manifest(config.seed, about))
    world.barrier()
    return parent / name
