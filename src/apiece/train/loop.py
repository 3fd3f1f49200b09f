"""The training loop: it reads top to bottom; every stage is one call."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apiece.config.reference import dump_config
from apiece.config.schema import Config
from apiece.data.collate import Batch
from apiece.files import file_hash, write_json, write_text
from apiece.model.families import describe_parameters
from apiece.progress import progress_bar
from apiece.train.checkpoint import choose_checkpoint, forget_after, load_checkpoint
from apiece.train.distributed import World, join_world, leave_world
from apiece.train.meter import Meter, brief, give_back
from apiece.train.optim import lr_scale, set_lr
from apiece.train.run import Metrics, create_run, held, log_to, make_manifest
from apiece.train.saving import Saver
from apiece.train.setup import Questions, Training, build_training, check_world, read_questions, seed_step
from apiece.train.step import train_step
from apiece.train.stop import signal_name, stop_signals, told
from apiece.train.trackers import TRACKERS
from apiece.train.watch import Watched, read_manifest, watching, what_to_watch

log = logging.getLogger("apiece")


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended.

    Attributes:
        run: Its folder.
        step: Steps done.
        finished: False if it was interrupted.
        signal: The signal that interrupted it, on the process that got one.
    """

    run: Path
    step: int
    finished: bool
    signal: int | None = None


def train(
    config: Config,
    name: str,
    *,
    resume: Path | None = None,
    step: int | None = None,
    say: Callable[[str], None] = log.info,
) -> Outcome:
    """Train as the config says, or go on with the run in `resume`.

    Args:
        config: Of the run; when resuming, the run's own.
        name: Name of a new run's folder.
        resume: Folder of an interrupted run.
        step: Go on from this step's checkpoint; from the newest if `None`.
        say: Told where a run begins, or goes on from.
    """
    world = join_world(config.train.device)
    check_world(config, world)
    with held(resume if world.is_main else None):
        return _train(config, name, world, resume, step, say)


def _train(
    config: Config, name: str, world: World, resume: Path | None, step: int | None, say: Callable[[str], None]
) -> Outcome:
    found = None if resume is None else choose_checkpoint(resume, step, world)
    questions = read_questions(config)
    watched = what_to_watch(config, resume)
    training = build_training(config, questions, world)
    run = make_run(config, name, resume, world, manifest_extra(questions, watched))
    state = load_checkpoint(found, training.model, training.optimizers, world) if found else {"step": 0}
    start, steps = state["step"], config.train.steps
    if resume is not None and world.is_main:
        forget_after(run, start)

    with (
        held(run if world.is_main and resume is None else None),
        closing(training.stream(start, steps)) as stream,
        logged(run, world),
        open_metrics(run, start, config, world) as metrics,
        progress_bar() as bar,
        stop_signals() as stop,
        told(config),
        watching(run, start, config, training.encoder, world, watched, stop) as watch,
    ):
        log.info(describe_parameters(training.model))
        if resume is not None:
            say(f"going on from {found or 'the beginning: there is no checkpoint yet'}")
        else:
            say(f"training {steps} steps; log: {run / 'train.log'}")
        meter = Meter(config, world)
        saver = Saver(run, training, meter, metrics)
        saver.restore(state)
        watch.begin(start, training.model, metrics)
        saver.prune()
        done, stopped = start, world.any(stop.now)
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
    finished = done == steps and not (stopped and watch.due(done))
    return Outcome(run, done, finished=finished, signal=stop.signal)


def one_step(training: Training, meter: Meter, batches: list[Batch], number: int) -> None:
    """Take optimizer step `number`, from 1."""
    config, world = training.config, training.world
    seed_step(config.seed, number, world.rank)
    prepared = training.channels.prepare(number - 1, batches)
    result = train_step(
        training.channel,
        training.objective,
        training.optimizers,
        [batch.to(world.device) for batch in prepared.batches],
        world,
        clip_norm=config.optim.clip_norm,
        dtype=training.dtype,
    )
    meter.add(result, prepared.tally)


def write_figures(meter: Meter, metrics: Metrics, step: int, rates: dict[str, float], world: World) -> str:
    """Write a line of metrics; gives it in a few words."""
    if meter.empty:
        return ""
    figures = meter.read(rates)
    if world.is_main:
        metrics.log(step, figures)
        log.info("step %d  %s", step, brief(figures))
    return brief(figures)


def make_run(config: Config, name: str, resume: Path | None, world: World, extra: dict[str, Any]) -> Path:
    """The run's folder: a new one, or that of the run that goes on.

    `extra` goes into the manifest of a new run; a run that only now gets a panel gets it in its manifest, too, and
    settings that may change when a run goes on are those of its config from then on.
    """
    if resume is not None:
        if world.is_main and dump_config(config) != (resume / "config.yaml").read_text(encoding="utf-8"):
            write_text(resume / "config.yaml", dump_config(config))
        manifest = read_manifest(resume)
        for path, sha256 in extra["data"].items():
            if manifest.get("data", {}).get(path, sha256) != sha256:
                log.warning("%s has changed since the run began: its batches from here on are others", path)
        if world.is_main and "panel" in extra and "panel" not in manifest:
            write_json(resume / "manifest.json", manifest | {"panel": extra["panel"]})
        return resume
    parent = Path(config.run.dir)
    if world.is_main:
        others = {str(Path(path)): file_hash(Path(path)) for path in (config.data.eval, config.data.complete) if path}
        extra = extra | {"data": others | extra["data"], "world_size": world.size, "device": str(world.device)}
        create_run(parent, name, dump_config(config), make_manifest(config.seed, extra))
    world.barrier()
    return parent / name


def manifest_extra(questions: Questions, watched: Watched) -> dict[str, Any]:
    """What only this run's data decides."""
    panel = {} if watched.panel is None else {"panel": watched.panel.entry}
    records = questions.records
    return {"data": {str(records.path): records.table.sha256}, "samples_over_max_objects": questions.dropped, **panel}


def open_metrics(run: Path, start: int, config: Config, world: World) -> Metrics:
    """The run's metrics file, and the trackers that the config names (on the process that writes files)."""
    trackers = [TRACKERS[name]() for name in config.train.trackers] if world.is_main else []
    for tracker in trackers:
        tracker.start(run, config.model_dump(mode="json"))
    # Opening the file rewrites it, so the other processes must not.
    return Metrics(run if world.is_main else None, start, trackers)


@contextmanager
def logged(run: Path, world: World) -> Iterator[None]:
    """Write the log to the run's folder while the block runs."""
    handler = log_to(run) if world.is_main else logging.NullHandler()
    try:
        yield
    finally:
        log.removeHandler(handler)
        handler.close()
