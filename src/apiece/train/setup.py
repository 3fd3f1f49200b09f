"""Everything the steps of a run are made of, built from its config."""

from __future__ import annotations

import random
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from apiece.channels.a_soft_context import SoftContext
from apiece.channels.b_rollout import RolloutChannel, answering
from apiece.channels.schedule import TwoChannels
from apiece.config.schema import Config
from apiece.data.index import DataFile, open_data
from apiece.errors import UserError
from apiece.losses.compose import Objective
from apiece.model.encode import Augmentation, PromptTokens, SampleEncoder
from apiece.model.find import resolve_checkpoint
from apiece.model.load import TextSide, load_model, load_text_side
from apiece.model.lora import add_adapters, is_adapter, require_peft
from apiece.model.prompt import prompt_text
from apiece.rollout.generate import Engine, LocalEngine
from apiece.rollout.targets import TargetBuilder
from apiece.train.batches import BatchPlan, MicroBatch, micro_batches, sample_lengths
from apiece.train.distributed import World, parallelize, whole_model
from apiece.train.step import autocast_dtype, build_optimizers, freeze_parts
from apiece.types import ChannelName


def check_world(config: Config, world: World) -> None:
    """Refuse a number of processes that would give ranks unequal numbers of micro-batches: they would wait forever."""
    share, rest = divmod(config.train.batch_size, world.size)
    micro = config.train.micro_batch_size or share
    if rest or share % micro:
        raise UserError(
            f"train.batch_size ({config.train.batch_size}) does not split evenly over {world.size} processes "
            f"in micro-batches of {micro or 1}",
            where="config",
            fix=f"make train.batch_size a multiple of {world.size * max(micro, 1)}",
        )


@dataclass(frozen=True, slots=True, eq=False)
class TrainingData:
    """What is trained on, and how it becomes tokens; known before any weights are loaded."""

    side: TextSide
    prompt: PromptTokens
    samples: DataFile
    dropped: int  # samples left out for having too many objects

    @property
    def manifest(self) -> dict[str, Any]:
        return {
            "data": {str(self.samples.path): self.samples.table.sha256},
            "samples_over_max_objects": self.dropped,
        }


def read_training_data(config: Config) -> TrainingData:
    """Read the data and the text side; every name is checked against the tokenizer."""
    side = load_text_side(config.model.checkpoint, config.data.max_pixels)
    prompt = PromptTokens.of(side, prompt_text(config.prompt.name, config.prompt.text))
    return TrainingData(side, prompt, *training_samples(config, side))


def training_samples(config: Config, side: TextSide) -> tuple[DataFile, int]:
    """The samples to train on, and how many were left out for having too many objects."""
    if config.data.train is None:
        raise UserError("data.train is not set", where="config", fix="name the training JSONL: data.train=X.jsonl")
    path = Path(config.data.train)
    records = open_data(path)
    for desc in sorted(records.table.names):
        side.renderer.check_desc(desc)
    kept = np.flatnonzero(records.num_objects <= config.data.max_objects)
    dropped = len(records) - len(kept)
    if not len(kept):
        message = f"no image to train on: {len(records)} read, {dropped} above data.max_objects"
        raise UserError(message, where=path, fix="raise data.max_objects")
    return records.select(kept), dropped


@dataclass(frozen=True, slots=True, eq=False)
class Training:
    """Everything that a step is made of."""

    config: Config
    world: World
    data: TrainingData
    model: Any  # bare, not in a distributed wrapper
    objective: Objective
    channels: TwoChannels  # both channels: they say whose step it is, and prepare it
    wrapped_channels: nn.Module  # the same module as a step runs it: alone, replicated or sharded
    optimizers: list[torch.optim.Optimizer]
    encoder: SampleEncoder
    dtype: torch.dtype | None  # autocast's; `None` for float32
    plan: BatchPlan

    @property
    def card(self) -> dict[str, Any]:
        """Kept with the weights, so that evaluating under another prompt or pixel budget is noticed."""
        config = self.config
        return {
            "prompt": config.prompt.model_dump(mode="json"),
            "prompt_hash": self.data.prompt.hash,
            "max_pixels": config.data.max_pixels,
            "object_order": str(config.data.object_order),
        }

    def stream(self, start: int, stop: int, micro: int | None = None) -> Generator[list[MicroBatch]]:
        """This process's micro-batches of steps `start` to `stop - 1`, counted from 0; `micro` replaces the config's
        micro-batch size."""
        config, data, world = self.config, self.config.data, self.world
        augment = Augmentation(data.flip, data.scale_jitter, data.context_jitter, data.object_order, config.seed)
        return micro_batches(
            self.data.samples,
            self.encoder,
            augment,
            self.plan,
            start=start,
            stop=stop,
            rank=world.rank,
            world=world.size,
            micro=micro or config.train.micro_batch_size or config.train.batch_size // world.size,
            workers=data.workers,
            collated=lambda step: self.channels.channel_of(step) is ChannelName.A,
        )


def build_training(config: Config, data: TrainingData, world: World) -> Training:
    """Load the model and put everything around it that a step needs."""
    side = data.side
    model = trainable_model(config, side, world)
    objective = Objective(
        config.objective, config.stage2_ab.coord_decode_mode, side.vocab.first_id, side.vocab.num_bins
    )
    dtype = autocast_dtype(config.model.precision, world.device)
    encoder = SampleEncoder(side, data.prompt, model.config.text_config.max_position_embeddings)
    channels = build_channels(model, objective, encoder, config, world)
    wrapped = parallelize(channels, config.train.parallel, world, dtype)
    optimizers = build_optimizers(model, config.optim)
    plan = BatchPlan(
        sample_lengths(data.samples, encoder),
        config.train.batch_size,
        config.train.length_window,
        config.seed,
        config.data.shuffle,
        config.data.buffer_size,
    )
    return Training(config, world, data, model, objective, channels, wrapped, optimizers, encoder, dtype, plan)


def trainable_model(config: Config, side: TextSide, world: World) -> Any:
    """The model on its device, in training mode: with adapters where the config asks for them, its parts frozen."""
    settings = config.model
    if settings.lora.rank:
        require_peft()
        if is_adapter(folder := resolve_checkpoint(settings.checkpoint)):
            raise UserError(
                "expected a base to put adapters on, found adapters",
                where=folder,
                fix=f"merge them first (apiece model merge {settings.checkpoint} --out DIR), and name that folder",
            )
    model = load_model(settings.checkpoint, attention=settings.attention)
    if settings.lora.rank:
        add_adapters(model, settings.lora, side.vocab.first_id, side.vocab.num_bins, config.seed)
    if settings.gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    freeze_parts(model, config.optim, settings.freeze)
    return model.to(world.device).train()


def build_channels(
    model: Any, objective: Objective, encoder: SampleEncoder, config: Config, world: World
) -> TwoChannels:
    """Both channels of a run; Channel-B only where the config has steps for it."""
    settings, side = config.stage2_ab, encoder.side
    a = SoftContext(model, objective, settings)
    if not settings.b_ratio:
        return TwoChannels(model, a)

    @contextmanager
    def engine_at(step: int) -> Iterator[Engine]:
        with whole_model(model, config.model, world, everywhere=True) as whole:
            assert whole is not None, "every process answers its own samples"
            with answering(whole):
                yield LocalEngine(whole, side, config.generate, rollout_seed(config.seed, step))

    builder = TargetBuilder(side.renderer, config.data.max_objects, encoder.max_length)
    b = RolloutChannel(model, objective, builder, engine_at, side, settings.b_redundancy_weight)
    return TwoChannels(model, a, b, settings.b_ratio)


def rollout_seed(seed: int, step: int) -> int:
    """The engine's seed at an optimizer step: it makes a drawn answer a function of (seed, step, sample)."""
    return int(np.random.SeedSequence([seed, 0xB, step]).generate_state(1)[0])


def seed_step(seed: int, step: int, rank: int) -> None:
    """Make every random number of a step, such as for dropout, a function of the seed, the step and the process.

    So a resumed run needs no generator's state, and a step can be repeated.
    """
    words = np.random.SeedSequence([seed, 0x5EED, step, rank]).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))
    torch.manual_seed(int(words[2]))
