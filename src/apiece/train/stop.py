"""Being asked to stop: Ctrl-C, and SIGTERM as a cluster sends it before it takes a machine away.

The first signal asks: the step in progress is finished and saved; an evaluation or a dump is cut short, since it can be
repeated. A second signal ends the process at once, by the operating system.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch

from apiece.config.schema import Config, Parallel
from apiece.errors import UserError


class CutShortError(Exception):
    """The process was asked to stop, and what it does can be repeated."""


@dataclass
class StopFlag:
    """Whether this process was asked to stop."""

    signal: int | None = None  # the one that asked
    _cut: bool = field(default=False, repr=False)

    @property
    def now(self) -> bool:
        return self.signal is not None

    def ask(self, number: int, _: FrameType | None = None) -> None:
        """Take the first signal; the next one of either kind ends the process."""
        self.signal = number
        for one in (signal.SIGINT, signal.SIGTERM):
            signal.signal(one, signal.SIG_DFL)
        self.check()

    def check(self) -> None:
        """Leave the `cutting` block if this process was asked to stop."""
        if self.now and self._cut:
            raise CutShortError

    @contextmanager
    def cutting(self) -> Iterator[None]:
        """Leave the block as soon as a signal comes, wherever it is."""
        self._cut = True
        try:
            with suppress(CutShortError):
                yield
        finally:
            self._cut = False


@contextmanager
def stop_signals() -> Iterator[StopFlag]:
    """Signals set the flag while the block runs."""
    flag = StopFlag()
    before = {s: signal.signal(s, flag.ask) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# What can happen to a step: a value that is not finite, memory that runs out, a worker or process lost.
#
# All but `UpdateBrokenError` happen before the update: the weights are those of the step before, and are saved.


MORE_ROOM = (
    "lower train.micro_batch_size, set model.gradient_checkpointing: true, or share the model among processes "
    "(train.parallel: fsdp)"
)
_WORKER = re.compile(r"DataLoader worker \(pid\(?s?\)? ?([\d, ]+)\)")
_BY_SIGNAL = re.compile(r"is killed by signal: ([^.]*)")
_PEER = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited", "Timed out")


class NonFiniteError(UserError):
    """A term or the gradient of a step is not finite; `found` says which as JSON. Every process raises the same."""

    def __init__(self, message: str, *, found: dict[str, Any]) -> None:
        super().__init__(message, fix="lower optim.lr, or look at those samples: apiece data check")
        self.found = found


class UpdateBrokenError(UserError):
    """An update began and was not completed: the weights are neither those before nor those after."""


@contextmanager
def explained(config: Config) -> Iterator[None]:
    """Turn a failure of the block, a step up to its update, into a `UserError` that names the settings to change."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise _memory(error, config, "the GPU's memory") from error
    except MemoryError as error:
        raise _memory(error, config, "this machine's memory") from error
    except RuntimeError as error:
        text = str(error)
        if "DefaultCPUAllocator" in text:
            raise _memory(error, config, "this machine's memory") from error
        if _WORKER.search(text):
            raise _worker(error, config) from error
        if any(words in text for words in _PEER):
            raise UserError(
                f"another process of this run has ended ({first_line(error)})", fix="its own message says why"
            ) from error
        raise


def first_line(error: BaseException) -> str:
    """The first line of an error's message."""
    return str(error).strip().partition("\n")[0]


def _memory(error: BaseException, config: Config, which: str) -> UserError:
    train, model, data = config.train, config.model, config.data
    size = train.micro_batch_size or f"unset, so up to {train.batch_size} samples at once"
    knobs = [f"lower train.micro_batch_size (now {size}; the step stays the same)"]
    if not model.gradient_checkpointing:
        knobs.append("set model.gradient_checkpointing: true")
    if config.stage2_ab.b_ratio:
        knobs.append(f"lower generate.batch_size (now {config.generate.batch_size})")
    if train.parallel is Parallel.DDP:
        knobs.append("share the model among several GPUs (torchrun, train.parallel: fsdp)")
    knobs.append(f"or, in a new run, lower data.max_pixels (now {data.max_pixels}) or train.batch_size")
    return UserError(f"{which} is too small for a step: {first_line(error)}", fix="; ".join(knobs))


def _worker(error: RuntimeError, config: Config) -> UserError:
    text = f"{error} {error.__cause__ or ''}"
    killed, pid = _BY_SIGNAL.search(text), _WORKER.search(text)
    how = f"was killed by signal {killed[1]}" if killed else "ended unexpectedly"
    which = f"a data worker (process {pid[1].strip()})" if pid else "a data worker"
    fix = f"the system kills processes when memory runs out: lower data.workers (now {config.data.workers})"
    return UserError(f"{which} {how}", fix=fix)


def signal_name(number: int) -> str:
    """Such as SIGTERM for 15."""
    return signal.Signals(number).name
