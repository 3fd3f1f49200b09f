"""Which samples make which batch, and the workers that encode them.

Batch k of a run is a function of the seed and k alone, so resuming at step k needs no saved sampler state.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset

from apiece.config.schema import Shuffle
from apiece.data.collate import Batch, Samples, collate
from apiece.data.index import DataFile
from apiece.errors import UserError
from apiece.model.encode import Augmentation, SampleEncoder
from apiece.types import IntArray, Sample

Draw = tuple[int, int]  # index of a sample, and the epoch it is drawn in
MicroBatch = Batch | Samples


@dataclass(frozen=True, eq=False)
class BatchPlan:
    """Cuts every epoch into batches of samples of similar length.

    An epoch is cut into blocks: with `full` one block of all samples, with `buffer` blocks of `buffer_size` consecutive
    samples of the file, with `none` blocks of one batch. A block is a seeded permutation, cut into windows of `window`
    batches; each window is sorted by length and cut, and the batches of a block are then shuffled (with `none`, none of
    this happens). With `buffer` each epoch begins at another place in the file, so that blocks hold different samples
    every time. The last, short batch of an epoch is filled up from its front.
    """

    lengths: Sequence[int] | IntArray  # about how many tokens each sample has
    batch_size: int  # samples in one optimizer step
    window: int  # batches that are sorted together
    seed: int
    shuffle: Shuffle = Shuffle.FULL  # how far a sample may move from its place in the file
    buffer_size: int = 1  # samples of a block, with `buffer`

    @property
    def batches_per_epoch(self) -> int:
        return -(-len(self.lengths) // self.batch_size)

    @property
    def batches_per_block(self) -> int:
        """The last block of an epoch may be shorter."""
        if self.shuffle is Shuffle.FULL:
            return self.batches_per_epoch
        return max(1, self.buffer_size // self.batch_size) if self.shuffle is Shuffle.BUFFER else 1

    def block(self, epoch: int, number: int) -> IntArray:
        """The batches of one block of an epoch, `[batches, batch_size]` indices."""
        first = number * self.batches_per_block
        count = min(self.batches_per_block, self.batches_per_epoch - first)
        rng = np.random.default_rng([self.seed, epoch])
        if self.shuffle is Shuffle.FULL:
            # Fill the last batch from the front.
            order = np.resize(rng.permutation(len(self.lengths)), count * self.batch_size)
        else:
            order = first * self.batch_size + np.arange(count * self.batch_size)
            if self.shuffle is Shuffle.NONE:
                return (order % len(self.lengths)).reshape(count, self.batch_size)
            order = (order + rng.integers(len(self.lengths))) % len(self.lengths)
            rng = np.random.default_rng([self.seed, epoch, number])
            order = rng.permutation(order)
        lengths = np.asarray(self.lengths)
        size = self.window * self.batch_size
        windows = [order[i : i + size] for i in range(0, len(order), size)]
        order = np.concatenate([w[np.argsort(lengths[w], kind="stable")] for w in windows])
        return order.reshape(count, self.batch_size)[rng.permutation(count)]

    def epoch(self, epoch: int) -> Iterator[list[int]]:
        """The batches of one epoch, as indices."""
        for number in range(-(-self.batches_per_epoch // self.batches_per_block)):
            yield from (batch.tolist() for batch in self.block(epoch, number))

    def steps(self, start: int, stop: int) -> Iterator[list[Draw]]:
        """The batches of steps `start` to `stop - 1`, counted over epochs."""
        epoch, batch = divmod(start, self.batches_per_epoch)
        number, skip = divmod(batch, self.batches_per_block)
        step = start
        while step < stop:
            for row in self.block(epoch, number)[skip : skip + stop - step]:
                yield [(index, epoch) for index in row.tolist()]
                step += 1
            number, skip = number + 1, 0
            if number * self.batches_per_block >= self.batches_per_epoch:
                epoch, number = epoch + 1, 0


def sample_lengths(records: DataFile, encoder: SampleEncoder) -> IntArray:
    """Approximate tokens `[N]` of each sample without the prompt; fails now rather than mid-run if one does not fit the
    model."""
    lengths = encoder.lengths(records)
    prompt = len(encoder.prompt.before) + len(encoder.prompt.after)
    over = np.flatnonzero(lengths + prompt > encoder.max_length)
    if len(over):
        sample = records[int(over[0])]
        more = f" ({len(over) - 1} more samples are too long)" if len(over) > 1 else ""
        raise UserError(
            f"sample {sample.id} needs {lengths[over[0]] + prompt} tokens, the model takes {encoder.max_length}{more}",
            where=sample.image,
            fix="lower data.max_objects or data.max_pixels",
        )
    return lengths


class _TrainingSet(Dataset["MicroBatch | UserError"]):
    """Returns the user's mistakes as values: the loader would wrap an exception of a worker in its traceback."""

    def __init__(self, samples: Sequence[Sample], encoder: SampleEncoder, augment: Augmentation) -> None:
        self.samples, self.encoder, self.augment = samples, encoder, augment

    def __getitems__(self, asked: tuple[list[Draw], bool]) -> MicroBatch | UserError:
        draws, collated = asked
        try:
            encoded = [self.encoder.training(self.samples[i], self.augment, epoch) for i, epoch in draws]
        except UserError as error:
            return error
        side = self.encoder.side
        return collate(encoded, side.tokenizer.pad_token_id, side.image_token_id) if collated else encoded


def _unchanged(micro: Any) -> Any:
    return micro  # in place of the loader's own collation


def _ignore_stop_signals(worker: int) -> None:
    """Stop signals often reach the whole process group; the main process ends the workers after its step."""
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
    collated: Callable[[int], bool] = lambda step: True,
) -> Generator[list[MicroBatch]]:
    """For every step from `start` on, this rank's micro-batches, encoded ahead by worker processes.

    Args:
        micro: Samples in one forward pass.
        workers: Processes; 0 encodes in this one. They end with the generator: close it.
        collated: Whether the micro-batches of a step are collated, with the labels as answers.
    """

    def asked() -> Iterator[Any]:
        for step, batch in enumerate(plan.steps(start, stop), start):
            own = batch[rank::world]
            yield from ((own[i : i + micro], collated(step)) for i in range(0, len(own), micro))

    loader: Any = DataLoader(
        _TrainingSet(samples, encoder, augment),
        batch_sampler=asked(),
        num_workers=workers,
        collate_fn=_unchanged,
        prefetch_factor=4 if workers else None,
        worker_init_fn=_ignore_stop_signals,
    )
    per_step = -(-len(range(rank, plan.batch_size, world)) // micro)
    stream = iter(loader)
    try:
        for _ in range(start, stop):
            found = [next(stream) for _ in range(per_step)]
            if error := next((one for one in found if isinstance(one, UserError)), None):
                raise error
            yield found
    finally:
        if workers:
            # At the end of the process Python would wait for them forever, as they ignore the signal that should stop
            # them; and an error's traceback keeps the iterator from being collected.
            stream._shutdown_workers()
