"""Which samples make which batch, and the workers that encode them.

Batch k of a run is a function of the seed and k alone, so resuming at step k needs no saved sampler state.
"""

from __future__ import annotations

import signal
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset, Sampler

from apiece.data.collate import Batch, collate
from apiece.errors import UserError
from apiece.model.encode import Augmentation, SampleEncoder
from apiece.types import Sample

Draw = tuple[int, int]
"""Index of a sample and the epoch it is drawn in."""


@dataclass(frozen=True)
class BatchPlan:
    """Cuts every epoch into batches of samples of like length.

    An epoch is a seeded permutation, cut into windows of `window` batches; each window is sorted by length and cut, and
    the batches of an epoch are then shuffled. Batches may straddle two epochs only in so far as the last, short batch
    of an epoch is filled up from the front of the same permutation.

    Attributes:
        lengths: About how many tokens each sample has.
        batch_size: Samples in one optimizer step.
        window: Batches that are sorted together.
        seed: Of the permutations.
    """

    lengths: Sequence[int]
    batch_size: int
    window: int
    seed: int

    @property
    def batches_per_epoch(self) -> int:
        """Batches in one pass over the data."""
        return -(-len(self.lengths) // self.batch_size)

    def epoch(self, epoch: int) -> list[list[int]]:
        """The batches of one epoch, as indices."""
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(len(self.lengths))
        order = np.resize(order, self.batches_per_epoch * self.batch_size)  # fill the last batch from the front
        lengths = np.asarray(self.lengths)
        size = self.window * self.batch_size
        windows = [order[i : i + size] for i in range(0, len(order), size)]
        windows = [w[np.argsort(lengths[w], kind="stable")] for w in windows]
        batches = [w[i : i + self.batch_size] for w in windows for i in range(0, len(w), self.batch_size)]
        return [batches[i].tolist() for i in rng.permutation(len(batches))]

    def steps(self, start: int, stop: int) -> Iterator[list[Draw]]:
        """The batches of steps `start` to `stop - 1`, counted over epochs."""
        epoch, skip = divmod(start, self.batches_per_epoch)
        step = start
        while step < stop:
            for batch in self.epoch(epoch)[skip:]:
                yield [(index, epoch) for index in batch]
                step += 1
                if step == stop:
                    return
            epoch, skip = epoch + 1, 0


def sample_lengths(samples: Sequence[Sample], encoder: SampleEncoder) -> list[int]:
    """About how many tokens each sample has beside the prompt.

    Raises:
        UserError: One does not fit the model: better told now than in the middle of a run.
    """
    lengths = [encoder.estimate_length(s) for s in samples]
    prompt = len(encoder.prompt.before) + len(encoder.prompt.after)
    over = [(s, n + prompt) for s, n in zip(samples, lengths, strict=True) if n + prompt > encoder.max_length]
    if over:
        sample, length = over[0]
        more = f" ({len(over) - 1} more samples are too long)" if len(over) > 1 else ""
        raise UserError(
            f"sample {sample.id} needs {length} tokens, the model takes {encoder.max_length}{more}",
            where=sample.image,
            fix="lower data.max_objects or data.max_pixels",
        )
    return lengths


class _TrainingSet(Dataset["Batch | UserError"]):
    """Gives mistakes of the user as values: the loader would wrap an exception of a worker in its traceback."""

    def __init__(self, samples: Sequence[Sample], encoder: SampleEncoder, augment: Augmentation) -> None:
        self.samples, self.encoder, self.augment = samples, encoder, augment

    def __getitems__(self, draws: Sequence[Draw]) -> Batch | UserError:
        try:
            encoded = [self.encoder.training(self.samples[i], self.augment, epoch) for i, epoch in draws]
        except UserError as error:
            return error
        side = self.encoder.side
        return collate(encoded, side.tokenizer.pad_token_id, side.image_token_id)

    def __getitem__(self, draw: Draw) -> Batch | UserError:
        return self.__getitems__([draw])


class _Draws(Sampler[list[Draw]]):
    def __init__(self, plan: BatchPlan, start: int, stop: int, rank: int, world: int, micro: int) -> None:
        self.args = (plan, start, stop, rank, world, micro)

    def __iter__(self) -> Iterator[list[Draw]]:
        plan, start, stop, rank, world, micro = self.args
        for batch in plan.steps(start, stop):
            own = batch[rank::world]
            yield from (own[i : i + micro] for i in range(0, len(own), micro))


def _as_made(batch: Any) -> Any:
    return batch  # `__getitems__` has collated it


def _ignore_stop_signals(worker: int) -> None:
    """Stop signals often reach the whole process group: the main process ends the workers when its step is done."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def micro_batches(
    samples: Sequence[Sample],
    encoder: SampleEncoder,
    augment: Augmentation,
    plan: BatchPlan,
    *,
    start: int,
    stop: int,
    rank: int,
    world: int,
    micro: int,
    workers: int,
) -> Generator[list[Batch]]:
    """For every step from `start` on, this rank's micro-batches, encoded ahead by worker processes.

    Args:
        micro: Samples in one forward pass.
        workers: Processes; 0 encodes in this one. They end with the generator: close it.

    Raises:
        UserError: A sample cannot be encoded.
    """
    loader = DataLoader(
        _TrainingSet(samples, encoder, augment),
        batch_sampler=_Draws(plan, start, stop, rank, world, micro),
        num_workers=workers,
        collate_fn=_as_made,
        prefetch_factor=4 if workers else None,
        worker_init_fn=_ignore_stop_signals,
    )
    per_step = -(-len(range(rank, plan.batch_size, world)) // micro)
    stream = iter(loader)
    try:
        for _ in range(start, stop):
            yield [_good(next(stream)) for _ in range(per_step)]
    finally:
        if workers:
            _end_workers(stream)


def _end_workers(stream: Any) -> None:
    """End the worker processes now. Left to the end of the process they would be waited for without end, as they pass
    over the signal that is to stop them; and the traceback of an error keeps the iterator from being collected.
    """
    stream._shutdown_workers()


def _good(batch: Batch | UserError) -> Batch:
    if isinstance(batch, UserError):
        raise batch
    return batch
