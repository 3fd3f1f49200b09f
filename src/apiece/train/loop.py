"""The training loop: it reads top to bottom; every stage is one call."""

from __future__ import annotations

import logging
import signal
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from apiece.config.dump import dump_config
from apiece.config.schema import Config
from apiece.data.records import Records, open_records
from apiece.errors import UserError
from apiece.files import file_hash, write_json
from apiece.losses.compose import Objective
from apiece.model.encode import Augmentation, PromptTokens, SampleEncoder
from apiece.model.load import TextSide, load_text_side
from apiece.model.parts import describe_parameters
from apiece.model.prompts import prompt_text
from apiece.progress import progress_bar
from apiece.train.batches import BatchPlan, micro_batches, sample_lengths
from apiece.train.channels import build_channels
from apiece.train.checkpoint import complete_checkpoints, load_checkpoint, save_checkpoint
from apiece.train.distributed import World, join_world, leave_world
from apiece.train.meter import Meter, brief
from apiece.train.optim import build_optimizers, lr_scale, set_lr
from apiece.train.run import Metrics, create_run, log_to, make_manifest
from apiece.train.sharding import parallelize
from apiece.train.step import autocast_dtype, train_step
from apiece.train.trackers import TRACKERS
from apiece.train.trainable import seed_dropout, trainable_model
from apiece.train.watch import Watched, read_manifest, watching, what_to_watch

log = logging.getLogger("apiece")


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended.

    Attributes:
        run: Its folder.
        step: Steps done.
        finished: False if it was interrupted.
    """

    run: Path
    step: int
    finished: bool


def train(config: Config, name: str, *, resume: Path | None = None) -> Outcome:
    """Train as the config says, or go on with the run in `resume`.

    Args:
        config: Of the run; when resuming, the run's own.
        name: Name of a new run's folder.
        resume: Folder of an interrupted run.
    """
    world = join_world(config.train.device)
    check_world(config, world)
    side = load_text_side(config.model.checkpoint, config.data.max_pixels)
    prompt = PromptTokens.of(side, prompt_text(config.prompt.name, config.prompt.text))
    samples, dropped = training_samples(config, side)
    watched = what_to_watch(config, resume, world)

    model = trainable_model(config, side, world)
    objective = Objective(
        config.objective, config.stage2_ab.coord_decode_mode, side.vocab.first_id, side.vocab.num_bins
    )
    dtype = autocast_dtype(config.model.precision, world.device)
    encoder = SampleEncoder(side, prompt, model.config.text_config.max_position_embeddings)
    channels = build_channels(model, objective, encoder, config, world)
    channel = parallelize(channels, config.train.parallel, world, dtype)
    optimizers = build_optimizers(model, config.optim)
    card = checkpoint_card(config, prompt)
    lengths = sample_lengths(samples, encoder)
    plan = BatchPlan(
        lengths,
        config.train.batch_size,
        config.train.length_window,
        config.seed,
        config.data.shuffle,
        config.data.buffer_size,
    )

    extra = manifest_extra(samples, dropped, watched)
    run, start = open_run(config, name, resume, world, model, optimizers, extra)
    stream = training_stream(config, samples, encoder, plan, start, world)
    step, steps = start, config.train.steps
    with (
        closing(stream),
        logged(run, world),
        open_metrics(run, start, config, world) as metrics,
        progress_bar() as bar,
        stop_signals() as stopped,
        watching(run, start, config, encoder, world, watched) as watch,
    ):
        log.info(describe_parameters(model))
        watch.begin(start, model)
        task = bar.add_task("train", total=steps, completed=start, note="")
        meter = Meter(config, world)
        for step, batches in enumerate(stream, start + 1):
            rates = set_lr(optimizers, lr_scale(step - 1, steps, config.optim))
            prepared = channels.prepare(step - 1, batches)
            seed_dropout(config, step, world)
            batches = [b.to(world.device) for b in prepared.batches]
            result = train_step(
                channel, objective, optimizers, batches, world, clip_norm=config.optim.clip_norm, dtype=dtype
            )
            meter.add(result, prepared.tally)
            if step % config.train.log_every == 0 or step == steps:
                figures = meter.read(rates)
                if world.is_main:
                    metrics.log(step, figures)
                    log.info("step %d  %s", step, brief(figures))
                bar.update(task, note=brief(figures))
            bar.update(task, completed=step)
            interrupted = step < steps and (world.any(stopped.now) if world.size > 1 else stopped.now)
            if interrupted or step == steps or step % (config.train.save_every or steps) == 0:
                save_checkpoint(run, step, model, side, optimizers, card, config.train.keep_last, world)
            if not interrupted and watch.after(step, model, metrics):
                meter.restart_clock()
            if interrupted:
                break
    leave_world(world)
    return Outcome(run, step, finished=step == steps)


def check_world(config: Config, world: World) -> None:
    """Refuse numbers of processes that would give ranks different numbers of micro-batches: they would wait forever."""
    share, rest = divmod(config.train.batch_size, world.size)
    micro = config.train.micro_batch_size or share
    if rest or share % micro:
        raise UserError(
            f"train.batch_size ({config.train.batch_size}) does not split evenly over {world.size} processes "
            f"in micro-batches of {micro or 1}",
            where="config",
            fix=f"make train.batch_size a multiple of {world.size * max(micro, 1)}",
        )


def checkpoint_card(config: Config, prompt: PromptTokens) -> dict[str, Any]:
    """What is kept beside the weights: evaluating under another prompt or pixel budget can then be told."""
    return {
        "prompt": config.prompt.model_dump(mode="json"),
        "prompt_hash": prompt.hash,
        "max_pixels": config.data.max_pixels,
        "object_order": str(config.data.object_order),
    }


def training_samples(config: Config, side: TextSide) -> tuple[Records, int]:
    """The samples that are trained on, and how many were left out for having too many objects.

    Every name is checked against the tokenizer before anything is trained.
    """
    if config.data.train is None:
        raise UserError("data.train is not set", where="config", fix="name the training JSONL: data.train=X.jsonl")
    path = Path(config.data.train)
    records = open_records(path)
    for desc in sorted(records.table.names):
        side.renderer.check_desc(desc)
    kept = np.flatnonzero(records.num_objects <= config.data.max_objects)
    dropped = len(records) - len(kept)
    if not len(kept):
        raise UserError(f"no image to train on: {len(records)} read, {dropped} above data.max_objects", where=path)
    return records.select(kept), dropped


def open_run(
    config: Config,
    name: str,
    resume: Path | None,
    world: World,
    model: Any,
    optimizers: list[torch.optim.Optimizer],
    extra: dict[str, Any],
) -> tuple[Path, int]:
    """The run's folder and the step to start from: new, or as the newest complete checkpoint left it.

    `extra` goes into the manifest of a new run; a run that only now gets a panel gets it in its manifest, too.
    """
    if resume is not None:
        found = complete_checkpoints(resume)
        start = load_checkpoint(found[-1], model, optimizers) if found else 0
        log.info("resuming %s from step %d", resume, start)
        manifest = read_manifest(resume)
        for path, sha256 in extra["data"].items():
            if manifest.get("data", {}).get(path, sha256) != sha256:
                log.warning("%s has changed since the run began: its batches from here on are others", path)
        if world.is_main and "panel" in extra and "panel" not in manifest:
            write_json(resume / "manifest.json", manifest | {"panel": extra["panel"]})
        return resume, start
    parent = Path(config.run.dir)
    if world.is_main:
        others = {str(Path(path)): file_hash(Path(path)) for path in (config.data.eval, config.data.complete) if path}
        extra = extra | {"data": others | extra["data"], "world_size": world.size, "device": str(world.device)}
        create_run(parent, name, dump_config(config), make_manifest(config.seed, extra))
    world.barrier()
    return parent / name, 0


def manifest_extra(records: Records, dropped: int, watched: Watched) -> dict[str, Any]:
    """What only this run's data decides."""
    panel = {} if watched.panel is None else {"panel": watched.panel.entry}
    return {"data": {str(records.path): records.table.sha256}, "samples_over_max_objects": dropped, **panel}


def open_metrics(run: Path, start: int, config: Config, world: World) -> Metrics:
    """The run's metrics file, and the trackers that the config names (on the process that writes files)."""
    trackers = [TRACKERS[name]() for name in config.train.trackers] if world.is_main else []
    for tracker in trackers:
        tracker.start(run, config.model_dump(mode="json"))
    # Opening the file rewrites it, so the other processes must not.
    return Metrics(run if world.is_main else None, start, trackers)


def training_stream(
    config: Config, samples: Records, encoder: SampleEncoder, plan: BatchPlan, start: int, world: World
) -> Generator[Any]:
    """This rank's micro-batches of every step from `start` on."""
    micro = config.train.micro_batch_size or config.train.batch_size // world.size
    augment = Augmentation(
        flip=config.data.flip,
        scale_jitter=config.data.scale_jitter,
        order=config.data.object_order,
        seed=config.seed,
    )
    return micro_batches(
        samples,
        encoder,
        augment,
        plan,
        start=start,
        stop=config.train.steps,
        rank=world.rank,
        world=world.size,
        micro=micro,
        workers=config.data.workers,
    )


@dataclass
class StopFlag:
    """Set by Ctrl-C or SIGTERM: finish the step, save, end."""

    now: bool = False


@contextmanager
def stop_signals() -> Iterator[StopFlag]:
    """The first signal asks the loop to save and stop; a second one ends it at once."""
    flag = StopFlag()

    def ask(number: int, _: object) -> None:
        if flag.now:
            raise KeyboardInterrupt
        flag.now = True

    before = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def logged(run: Path, world: World) -> Iterator[None]:
    """Write the log to the run's folder while the block runs."""
    handler = log_to(run) if world.is_main else logging.NullHandler()
    try:
        yield
    finally:
        log.removeHandler(handler)
        handler.close()
